"""``manifest.json``: what a state is made of and what made it. Read and written here and nowhere else.

Version 1 has no ``version`` key; version 2 added it. Keys that came later (``line``, ``starts_from``, ``gate``,
``elapsed``, ``starting``, ``expert``, ``base``) have defaults, so that every state ever recorded can be read. Keys of
other writers are preserved.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator

from tasks import layout
from tasks.errors import UserError
from tasks.storage.cache import Entry
from tasks.text import printable

VERSION = 2
FILE = "manifest.json"


def _printable(text: str) -> str:
    if printable(text) != text or "\n" in text:
        raise ValueError("contains control characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
"""A text that is safe on a terminal: a state may come from another repository."""


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("is no time as ISO 8601 writes it") from None
    return text


Content = Annotated[Entry, PlainSerializer(Entry.as_dict)]
Number = int | float


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the keys that were given and no defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class RecordedProtocol(_Part):
    """TIME's (init, deploy) pair, and where its moving average starts."""

    init: Text
    deploy: Text
    ema_start: Text = "base"


class RecordedTechnique(_Part):
    """The merge function by name; its settings are further keys."""

    name: Text

    @property
    def label(self) -> str:
        """The name with all settings: ``linear, weight 0.5``."""
        settings = self.model_extra or {}
        return ", ".join([self.name, *(f"{key} {value}" for key, value in settings.items())])


class RecordedCondition(_Part):
    """A condition of the gate: the value (a share of one) and whether it holds, None where nothing was compared."""

    condition: Text
    value: Number | None
    holds: bool | None


class RecordedGate(_Part):
    """What the gate decided when the state was new."""

    promoted: bool
    conditions: tuple[RecordedCondition, ...] = Field(default=(), strict=False)
    compared_with: Text | None = None


class Spent(_Part):
    """What training has used, in the units in which it was counted."""

    steps: Number | None = None
    samples: Number | None = None
    flops: Number | None = None
    mafs: Number | None = None


class RecordedBudget(_Part):
    """``training.json`` of the step: steps and samples, and what was given and spent where a budget was set."""

    steps: int = 0
    samples: int = 0
    spent: Spent = Spent()


class CodeVersion(_Part):
    """The commit that the run stood on, and whether the tree had changes beside it."""

    commit: Text
    dirty: bool
    tree: Text | None = None

    @property
    def label(self) -> str:
        """The short commit, with ``*`` where the tree had changes."""
        return self.commit[:7] + ("*" if self.dirty else "")


class RecordedDevice(_Part):
    """What a node ran on."""

    name: Text | None = None
    threads: int | None = None


class Recording(_Part):
    """When (UTC, ISO 8601) and on which host a state was recorded."""

    at: Annotated[Text, AfterValidator(_time)]
    host: Text


class StateBytes(_Part):
    """Bytes of all inputs and outputs, each content once; ``new`` is what the previous state does not refer to."""

    total: int
    new: int


class RecordedOverlap(_Part):
    """Test images among what was trained on: ``equal`` as prepared, ``similar`` nearly so, of ``total``."""

    equal: int
    similar: int
    total: int
    example: Text


class RecordedFile(_Part):
    """A file as a hub gave it: bytes and SHA-256."""

    size: int
    sha256: Text


class RecordedOrigin(_Part):
    """Where a model or a data set came from: a repository of a hub at one commit, and each file that was taken."""

    address: Text
    """As params.yaml, or whoever let it arrive, named it."""
    repository: Text
    revision: Text | None = None
    commit: Text
    files: dict[Text, RecordedFile]
    licence: Text | None = None
    """As the repository's card said."""


class RecordedExpert(_Part):
    """An expert trained elsewhere: what it was, and what of it is the base's."""

    read_as: Text
    """The dialect of its names, or ``a PEFT adapter``."""
    of_base: tuple[Text, ...] = Field(default=(), strict=False)
    """Tensors that are the base's, since the expert has none or, with ``on_mismatch: base``, of another shape."""
    notes: tuple[Text, ...] = Field(default=(), strict=False)
    origin: RecordedOrigin | None = None


class RollbackNote(_Part):
    """Which state a rollback went back to, and which one was the newest before."""

    to: Text
    left: Text = Field(alias="from")
    at: Text
    host: Text


class RecordedStatistics(_Part):
    """What of the expert's own data a technique looked at."""

    samples: int
    estimator: Text
    pool: Any
    kinds: tuple[Text, ...] = Field(default=(), strict=False)


class RecordedWithdrawal(_Part):
    """An arrival that was taken out of the timeline."""

    arrival: Text
    state: Text
    """The tag of the state that recorded it."""
    still_in: tuple[Text, ...] = Field(default=(), strict=False)
    """Arrivals up to this state whose experts descend from it: trained from a model, or on a pool, that held it."""


class FitPoint(_Part):
    """A value that was tried, and what the model merged with it scored on held-out samples, in percent."""

    value: Number
    accumulation: Number = Field(alias="A_KA")
    retention: Number = Field(alias="A_ZS")
    geometric_mean: Number
    holds: bool


class RecordedFit(_Part):
    """How coefficients of the merge were found; ``fit.json`` has them all."""

    method: Text
    samples: dict[Text, int] = {}
    """Pool → held-out samples."""
    setting: Text | None = None
    value: Number | None = None
    holds: bool | None = None
    """Whether the gate's conditions hold on the held-out samples."""
    curve: tuple[FitPoint, ...] = Field(default=(), strict=False)
    weights: dict[Text, Number] = {}
    """Model → its weight, where each has one: of a weight by tensor the mean."""
    gap: Number | None = None
    """Frank-Wolfe's, in nats."""


class RecordedCoding(_Part):
    """How the expert is stored, where that is coded: its content as a safetensors file, and what is lost of it."""

    codec: dict[Text, Any]
    decoded: Content
    error: Number
    """‖θ − θ̂‖ / ‖θ − θ_0‖ of the weights; 0 where every bit comes back."""


class RecordedCompatibility(_Part):
    """How the deployed copy was rotated into the space of an earlier state."""

    state: Text
    """Its tag."""
    images: int
    """Of the probe that the rotation was fitted on."""
    directions: int
    """Of the joint space that these images decide."""
    cosine_before: Number
    """Mean cosine of the probe's features with the earlier state's, before the rotation."""
    cosine: Number
    """And after it."""
    similarity_change: Number
    """The largest change of a similarity inside the model: rounding."""


class RecordedRoute(_Part):
    """An expert that images are routed to, or the base."""

    arrivals: tuple[Text, ...] = Field(strict=False)
    """Whose images belong to it; none where it is the base."""
    images: int
    """Of arrivals, that were routed to it when they arrived."""


class RecordedRouting(_Part):
    """A routed deployment."""

    routes: dict[Text, RecordedRoute]
    """Name → route, the oldest first."""
    bytes: int
    """Of the router and all deltas."""


class Manifest(_Part):
    """Everything about a state that is not in its params; hashes are DVC's (md5, of content)."""

    version: int = 1
    timeline: Text
    step: int = Field(ge=0)
    line: int = Field(default=1, ge=1)
    arrival: Text | None
    previous: Text | None
    """The tag of the state recorded before."""
    starts_from: Text | None = None
    """The tag of the state whose history went on; see `start`."""
    protocol: RecordedProtocol
    technique: RecordedTechnique
    gate: RecordedGate | None = None
    seed: int
    budget: RecordedBudget
    inputs: dict[Text, Content]
    """Path → content."""
    outputs: dict[Text, Content]
    """Path → content."""
    code: CodeVersion
    versions: dict[Text, Text]
    """Library → version."""
    device: dict[Text, RecordedDevice]
    """Node → what it ran on."""
    recorded: Recording
    seconds: dict[Text, Number]
    """Node → wall time of the run that made its outputs."""
    elapsed: Number | None = None
    """Seconds on the clock until the store held everything: nodes, waiting, hashing, pushing.

    From the start of the run, or from where the state before it in the same run has its end. So the states of a run
    leave no gap; in older states it begins with the step.
    """
    starting: Number | None = None
    """Of the first step that a run records: the seconds of ``elapsed`` in which its store and servers started."""
    bytes: StateBytes
    pointers: dict[Text, RecordedGate] = {}
    """Pointer → what its gate found; it went to this state where the gate promoted it."""
    rollback: RollbackNote | None = None
    coded: RecordedCoding | None = None
    """Of the expert, where the step stores it coded."""
    statistics: RecordedStatistics | None = None
    """Of the expert's data, where the technique looks at it."""
    fit: RecordedFit | None = None
    """Of the merge's coefficients, where they were found on data."""
    compatible: RecordedCompatibility | None = None
    """Where the deployed copy was rotated."""
    routed: RecordedRouting | None = None
    """Where the base, deltas and a router are deployed."""
    withdrawals: tuple[RecordedWithdrawal, ...] = Field(default=(), strict=False)
    """Arrivals that were taken out, on this line or one before it."""
    overlap: dict[Text, RecordedOverlap] = {}
    """Test set → its images among what was trained on, where there are some."""
    notes: dict[Text, Annotated[tuple[Text, ...], Field(strict=False)]] = {}
    """Path of an input → what a person should know of its data: files left out, shares drawn."""
    expert: RecordedExpert | None = None
    """Of an arrival that is an expert."""
    base: RecordedOrigin | None = None
    """Where the base came from: at step 0, where that is a hub."""
    data: dict[Text, list[RecordedOrigin]] = {}
    """Path of an input → the repositories of a hub that its data came from."""

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if not 1 <= version <= VERSION:
            raise ValueError(f"this chronomerge reads versions 1 to {VERSION}; update it (git pull && make install)")
        return version

    @property
    def start(self) -> str | None:
        """The tag of the state that this one started from: before ``starts_from`` existed, the previous one."""
        return self.starts_from if "starts_from" in self.model_fields_set else self.previous

    @property
    def promoted(self) -> bool:
        """What the gate said; states without a gate are promoted."""
        return self.gate is None or self.gate.promoted

    def output(self, path: str) -> Entry:
        """What the step left at a path.

        Raises:
            UserError: the manifest does not name it.
        """
        if path not in self.outputs:
            raise UserError(
                f"{FILE} of step {self.step} of timeline {self.timeline!r} is damaged: outputs lacks {path}"
            )
        return self.outputs[path]

    @property
    def stored_expert(self) -> Entry:
        """The step's expert as it is stored, coded or not.

        Raises:
            UserError: as `output`.
        """
        return self.output(layout.CODED_EXPERT if layout.CODED_EXPERT in self.outputs else layout.EXPERT)

    @property
    def deployed(self) -> Entry:
        """What the step deploys: one model, or the folder of a routed deployment.

        Raises:
            UserError: as `output`.
        """
        return self.output(layout.ROUTED if layout.ROUTED in self.outputs else layout.DEPLOYED)

    @property
    def contents(self) -> dict[str, Entry]:
        """Path → content of inputs and outputs."""
        return {**self.inputs, **self.outputs}


def read(text: str, state: str) -> Manifest:
    """Read a manifest; ``state`` is what messages call its state.

    Raises:
        UserError: it is no JSON, a key is missing or has a value of another type, or a newer chronomerge wrote it.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        reasons = "; ".join(_sentence(one) for one in error.errors()[:3])
        raise UserError(f"{state}: {FILE} is damaged ({reasons}); `chronomerge doctor` says more") from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {message} (got {error['input']!r:.80})" if key else message


def text(manifest: Manifest) -> str:
    """A manifest as its file holds it."""
    return json.dumps(manifest.as_dict(), indent=1) + "\n"
