"""``params.yaml``: one experiment, typed, validated as a whole before any work starts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks import gate, yaml
from tasks.errors import UserError


def _usable_in_git(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("use letters, digits, '.', '_' and '-', and begin with a letter or a digit")
    if ".." in name or name.endswith((".", ".lock")):
        raise ValueError("git allows no '..', and no '.' or '.lock' at the end")
    return name


Name = Annotated[str, AfterValidator(_usable_in_git)]
"""Names of timelines, arrivals and data sets: they become branches, tags and folders."""

SourceSpec = str | dict[str, Any]
"""A data source: ``kind:what`` or a mapping ``{source: kind, ...}``; `tasks.prepare` knows the kinds."""


class Settings(BaseModel):
    """Immutable; an unknown key is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseTraining(Settings):
    """How ``base.pretrained: train`` trains θ_0 on the pretraining pool."""

    steps: int = Field(gt=0)
    """Training steps."""
    batch_size: int = Field(default=128, gt=1)
    """Samples of a batch."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak of the learning rate; the rest of ``train`` counts for the base too."""


COMPLETE = ("hf-hub:", "hf:", "local-dir:")
"""How the name of a base begins that is a folder or a repository, with configuration and weights."""


class Base(Settings):
    """θ_0: a model (a name of open_clip, a configuration, a folder or a repository) and where its weights come from."""

    model: str
    """A name of open_clip, a JSON file with a configuration, ``hf-hub:ORG/NAME[@REVISION]`` or ``local-dir:FOLDER``."""
    pretrained: str
    """A tag of open_clip, a checkpoint (file, folder or ``hf:`` address; left out: the model's own), or ``train``."""
    train: BaseTraining | None = None
    """How much, where ``pretrained: train``."""
    pretraining: list[SourceSpec] = []
    """The pretraining pool: trains the base where ``pretrained: train``, and feeds the mixture."""

    @model_validator(mode="before")
    @classmethod
    def _weights_of_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and "pretrained" not in values and str(values.get("model")).startswith(COMPLETE):
            return {**values, "pretrained": values["model"]}
        return values

    @model_validator(mode="after")
    def _training_needs_data(self) -> Base:
        if self.pretrained == "train" and (self.train is None or not self.pretraining):
            raise ValueError("pretrained: train needs both base.train and base.pretraining")
        if self.pretrained != "train" and self.train is not None:
            raise ValueError(f"base.train is only used with pretrained: train, not with {self.pretrained!r}")
        return self


class Arrival(Settings):
    """What arrives at one time step: data to train an expert on, or an expert trained elsewhere."""

    name: Name
    """Its name in tables, tags and notes; unique in the stream."""
    update: list[SourceSpec] = []
    """Data sources of the new training data."""
    expert: str | None = None
    """A model of the base's architecture, or an adapter for it: a path, an ``s3://`` address or ``hf:ORG/NAME``."""
    on_mismatch: Literal["error", "base"] = "error"
    """What to do with an expert's tensor of another shape than the base's: refuse the expert, or take the base's."""
    measure: list[SourceSpec] = []
    """Beside ``expert``: data like the expert's own, for merging techniques that look at data."""
    from_state: str | None = None
    """The tag of a state whose files and expert are taken as they are: nothing is fetched, and nothing is trained.

    ``chronomerge withdraw`` writes it.
    """

    @model_validator(mode="after")
    def _one_kind(self) -> Arrival:
        if bool(self.update) == (self.expert is not None):
            raise ValueError(f"arrival {self.name!r} needs exactly one of update (data) or expert (a checkpoint)")
        if self.measure and self.expert is None:
            raise ValueError(f"arrival {self.name!r}: measure is for experts; others have their update")
        if self.on_mismatch != "error" and self.expert is None:
            raise ValueError(f"arrival {self.name!r}: on_mismatch is for experts")
        return self


class Named(BaseModel):
    """Something chosen by name, with its own settings beside it; the package that has it checks them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    """Which one; its own settings stand beside it."""

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TechniqueChoice(Named):
    """A merging technique (checked by `tasks.merge`)."""


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _form(value: Any) -> Any:
    return {"form": value} if isinstance(value, str) else value


NameOrSettings = Annotated[Named, BeforeValidator(_by_name)]
"""``lora``, or with settings ``{name: lora, rank: 64}``."""


class Time(Settings):
    """TIME's three axes (arXiv 2412.06712, section 3) and where the EMA recursion starts."""

    init: Literal["zs", "ft", "ema"] = "ema"
    """Where an expert's training starts: the base (``zs``), the last expert (``ft``) or the running model (``ema``)."""
    deploy: Literal["ft", "ema", "all", "routed"] = "ema"
    """What a step deploys: its expert (``ft``), the running model (``ema``), the merge of all experts (``all``), or the
    base, every expert's change of it, and a router that sends each image to one of them (``routed``)."""
    technique: TechniqueChoice = TechniqueChoice(name="linear")
    """How models are merged; `chronomerge techniques` lists them."""
    ema_start: Literal["base", "first-expert"] = "base"
    """Where the running model starts."""

    @property
    def uses_ema(self) -> bool:
        return "ema" in (self.init, self.deploy)

    @model_validator(mode="after")
    def _keeps_history(self) -> Time:
        if (self.init, self.deploy) == ("zs", "ft"):
            raise ValueError("init: zs with deploy: ft keeps no history; TIME has eight protocols without it")
        return self


def _reference(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, float):
        raise ValueError('quote the name of a state with a line: "3.2"')
    if value is None or (isinstance(value, str) and re.fullmatch(_STATE, value)):
        return value
    raise ValueError("say first, the step of a state, or its tag")


_STATE = r"first|(?:state/(?P<timeline>[A-Za-z0-9][A-Za-z0-9._-]*)/)?(?P<step>\d+)(?:\.[1-9]\d*)?"


class Deploy(Settings):
    """What is done to the deployed copy of a step's model, after merging; the running model stays as it is."""

    compatible_with: Annotated[str | None, BeforeValidator(_reference)] = None
    """A state whose embeddings stay comparable: ``first``, a step, or a tag. What is deployed after it is rotated into
    its space (`tasks.deploy`), so that an index built with that state can be searched with newer models."""
    probe: int = Field(default=2048, gt=0)
    """At most so many images, drawn from what has arrived, to fit the rotation on."""
    deltas: NameOrSettings | None = None
    """With ``time.deploy: routed``: the codec of the experts' changes; by default experts are as ``store`` has them."""
    max_deltas: int | None = Field(default=None, gt=0)
    """With ``time.deploy: routed``: at most so many; the expert that is routed to least is folded into the nearest."""

    @property
    def reference_step(self) -> int:
        """The step of the state in ``compatible_with``, which is set."""
        match = re.fullmatch(_STATE, self.compatible_with or "")
        return int(match["step"] or 0) if match else 0

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A state that routes nothing says nothing of it."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key not in ("deltas", "max_deltas") or value}


class Mixture(Settings):
    """Shares of the three pools in each batch; a pool that is empty gives its share to the others."""

    pretraining: float = Field(default=0.33, ge=0)
    """Share of the base's pretraining pool."""
    update: float = Field(default=0.34, gt=0)
    """Share of what has just arrived."""
    buffer: float = Field(default=0.33, ge=0)
    """Share of earlier arrivals; 0 is training without replay."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Mixture:
        total = self.pretraining + self.update + self.buffer
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the mixture sum to {total:g}, not to 1")
        return self


def require_parts(batch_size: int, processes: int, accumulate: int) -> None:
    """A batch divides evenly among processes, and each one's part holds a sample for each part it is computed in.

    Raises:
        ValueError: says what does not fit.
    """
    if batch_size % processes:
        raise ValueError(f"batch_size: {batch_size} samples do not divide evenly among {processes} processes")
    if accumulate > batch_size // processes:
        raise ValueError(f"accumulate: {batch_size // processes} samples a process make no {accumulate} parts")


class Buffer(Settings):
    """How the buffer of earlier arrivals is drawn, and how much of it there is."""

    uniform_by: Literal["sample", "class", "arrival"] = "sample"
    """What is equally likely: each sample, each class, or each arrival."""
    size: int | None = Field(default=None, gt=0)
    """At most so many samples, a uniform reservoir of all earlier arrivals; by default all of them."""


class Budget(Settings):
    """What one time step may spend on training, in one of three currencies."""

    steps: int | None = Field(default=None, gt=0)
    """Training steps."""
    samples: int | None = Field(default=None, gt=0)
    """Training samples, repeated ones too."""
    mafs: float | None = Field(default=None, gt=0)
    """Memory-Adjusted FLOPs (FoMo-in-Flux): FLOPs times peak memory over that of full fine-tuning."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of steps, samples and mafs")
        return self


class Train(Settings):
    """Expert training: AdamW, cosine with warm-up restarted at each time step (TIME, section 4)."""

    OF_EXPERTS: ClassVar[frozenset[str]] = frozenset(
        {"method", "steps", "budget", "batch_size", "lr", "mixture", "buffer"}
    )
    """What the training of the base does not read: ``base.train`` says how much, and of what there is one pool."""

    method: NameOrSettings = Named(name="full")
    """What trains of the model (one of `tasks.train.methods`); an expert is stored as full weights all the same."""
    regularizer: NameOrSettings | None = None
    """What pulls a step's training towards what earlier ones learned (one of `tasks.train.regularizers`)."""
    steps: int | None = Field(default=None, gt=0)
    """Training steps of a time step."""
    budget: Budget | None = None
    """In place of ``steps``: steps, samples or MAFs."""
    batch_size: int = Field(default=128, gt=1)
    """Samples of a batch."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Of matrices; biases, norms and the temperature are not decayed."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps spent warming up linearly."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """AdamW's, and its eps: open_clip's for vision transformers."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's epsilon."""
    meta_schedule: Literal["constant", "decaying", "rsqrt"] = "constant"
    """How the learning rates of time steps relate (FoMo-in-Flux; see `tasks.train.schedule`)."""
    loss: Literal["clip", "siglip"] = "clip"
    """``siglip`` where the model has a logit bias."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the towers' arithmetic; weights, loss and optimizer stay in float32."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    accumulate: int = Field(default=1, gt=0)
    """Parts that a batch is computed in, for less memory; the loss is that of the whole batch."""
    processes: int | None = Field(default=None, gt=0)
    """Processes that share each batch; by default one for each GPU, or one."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do where loss or gradient is not finite: stop, or skip the training step, ``skip_at_most`` times."""
    skip_at_most: int = Field(default=10, gt=0)
    """How many training steps ``on_nonfinite: skip`` may skip."""
    mixture: Mixture = Mixture()
    """Shares of the three pools."""
    buffer: Buffer = Buffer()
    """How earlier arrivals are drawn."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of every pool's samples that nothing is trained on, for ``fit``."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Train:
        require_parts(self.batch_size, self.processes or 1, self.accumulate)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A state of a timeline that holds nothing out says nothing of it."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key != "holdout" or value}

    @property
    def given(self) -> Budget:
        """The budget, however it was given."""
        return self.budget or Budget(steps=self.steps)

    @model_validator(mode="after")
    def _one_budget(self) -> Train:
        if (self.steps is None) == (self.budget is None):
            raise ValueError("needs exactly one of steps and budget")
        return self


PROMPT_SETS = ("openai", "simple")
"""Names of prompt ensembles: open_clip's 80 ImageNet templates, and the 7 of them that OpenAI found enough."""


class EvaluationSet(Settings):
    """One test set: its name in tables, and the sources it is made of."""

    name: Name
    """Its name in tables and metrics; unique."""
    test: list[SourceSpec] = Field(min_length=1)
    """Data sources of the test images."""
    prompt: str | tuple[str, ...] | None = None
    """The primer prompt, with ``{}`` for the class name; by default the data's own (icons) or "a photo of a {}.".

    Several, as a list, are an ensemble: a class is then the mean of its normalized text features, normalized again.
    ``openai`` is open_clip's ensemble of 80 templates for ImageNet, ``simple`` its 7 simple ones.
    """
    classnames: str | None = Field(default=None, min_length=1)
    """What classes are called in prompts: ``imagenet`` (open_clip's names, for WordNet ids or numbers from 0), or a
    file: a JSON object from class to name, or one name a line, for numbers from 0 or for all classes in sorted order.
    """

    @field_validator("prompt", mode="before")
    @classmethod
    def _has_place(cls, value: Any) -> Any:
        if value is None or value in PROMPT_SETS:
            return value
        templates = value if isinstance(value, (list, tuple)) else [value]
        if not templates:
            raise ValueError("an ensemble of prompts needs one at least; leave prompt out for the default")
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise ValueError(
                    f"a prompt holds {{}} once, where the class name goes, or is a set of them"
                    f" ({', '.join(PROMPT_SETS)}); got {template!r:.80}"
                )
        return value if isinstance(value, str) else tuple(templates)


class LabelledHead(Named):
    """A head on a model's features (checked by `tasks.evaluate.head`); ``label`` tells it from another of one name."""

    label: Name | None = None
    """Tells it from another head of the same name."""

    @property
    def shown(self) -> str:
        """What metrics, gates and figures call it."""
        return self.label or self.name


class Evaluate(Settings):
    """Zero-shot evaluation: A_KA over the adaptation sets, A_ZS over the retention sets (FoMo-in-Flux).

    A set counts by its top-1, or, where its samples have captions and no classes, by its mean recall@5.
    """

    adaptation: list[EvaluationSet] = Field(min_length=1)
    """Test sets of what arrives: knowledge accumulation, A_KA."""
    retention: list[EvaluationSet] = Field(min_length=1)
    """Test sets of what the base knows and what never arrives: zero-shot retention, A_ZS."""
    batch_size: int = Field(default=256, gt=0)
    """Images that are scored at a time; it decides no result."""
    allow_overlap: bool = False
    """Whether test images may be among what is trained on; if not, that is an error before training."""
    heads: list[Annotated[LabelledHead, BeforeValidator(_by_name)]] = []
    """Few-shot and prototype heads that are scored beside zero-shot (one of `tasks.evaluate.heads` each)."""
    compatibility: Literal["all"] | list[Name] = []
    """Test sets on which the deployed model is searched with in the galleries of earlier states; ``all``, or some."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the towers' arithmetic; the lower ones are for GPUs. Similarities are computed in float32."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of each class's test samples that steps are evaluated on, the same ones at every step.

    All samples count at step 0, at the end of the stream, for conditions of the gate, and for sets without classes.
    """

    # Written by the flow into the params.yaml of a state, where there is a share.
    in_full: tuple[Name, ...] = ()
    """The sets of which this step evaluates all samples."""

    @property
    def sets(self) -> list[EvaluationSet]:
        """All of them."""
        return [*self.adaptation, *self.retention]

    @model_validator(mode="after")
    def _unique(self) -> Evaluate:
        _refuse_duplicates("data set name", [s.name for s in self.sets], "evaluate", "rename one", indexed=False)
        _refuse_duplicates("head", [one.shown for one in self.heads], "evaluate.heads", "give one of them a label")
        if self.compatibility != "all":
            known = [s.name for s in self.sets]
            if unknown := [name for name in self.compatibility if name not in known]:
                raise ValueError(
                    f"compatibility: no evaluation set is called {unknown[0]}; there are {', '.join(known)}"
                )
            _refuse_duplicates("name", self.compatibility, "evaluate.compatibility", "remove one")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A state of a timeline without heads says nothing of them: its keys and bytes are as before there were any."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key not in ("heads", "compatibility") or value}


def _not_deployed(name: str) -> str:
    if name == "deployed":
        raise ValueError("deployed is moved by gate, promote, hold and rollback; choose another name")
    return name


PointerName = Annotated[Name, AfterValidator(_not_deployed)]
POINTER: TypeAdapter[str] = TypeAdapter(PointerName)


def _condition(text: str) -> str:
    gate.parse(text)
    return text


class Gate(Settings):
    """What a state must hold to be promoted once it is evaluated, and where the next step starts if it does not."""

    require: list[Annotated[str, AfterValidator(_condition)]] = []
    """Conditions, ``NAME OP NUMBER``; `tasks.gate` has the names."""
    held: Literal["continue", "skip"] = "continue"
    """After a held state: go on from it, or from the newest promoted one, as though its arrival had never come."""


class PointerGate(Settings):
    """Moves a pointer to each new state that holds these conditions."""

    require: list[Annotated[str, AfterValidator(_condition)]] = []
    """As in ``gate``, but differences are to the state that the pointer is at. Without any, every new state will do."""


class LabelledTechnique(TechniqueChoice):
    """A technique of a grid; ``label`` tells it from another of the same name."""

    label: Name | None = None
    """Tells it from another technique of the same name."""

    @property
    def shown(self) -> str:
        """What cells, tables and figures call it."""
        return self.label or self.name.rpartition(":")[2]


class Grid(Settings):
    """TIME's grid over the stream: protocols × techniques × seeds × variants, each cell a timeline of its own."""

    init: list[Literal["zs", "ft", "ema"]] = Field(default=["zs", "ft", "ema"], min_length=1)
    """Initializations; see ``time``."""
    deploy: list[Literal["ft", "ema", "all", "routed"]] = Field(default=["ft", "ema", "all"], min_length=1)
    """Deployments; see ``time``."""
    technique: list[Annotated[LabelledTechnique, BeforeValidator(_by_name)]] = []
    """By default that of ``time``."""
    seed: list[Annotated[int, Field(ge=0)]] = []
    """By default that of the params."""
    variants: dict[Name, dict[str, Any]] = {}
    """Other orderings, budgets or model sizes: name → keys of the params that replace or add to the file's own."""
    references: list[Literal["multitask", "no-replay"]] = ["multitask", "no-replay"]
    """What cells are compared with: training on everything at once, and sequential fine-tuning on new data alone."""

    @model_validator(mode="after")
    def _unique(self) -> Grid:
        shown = [one.shown for one in self.technique]
        _refuse_duplicates("technique", shown, "grid.technique", "give one of them a label")
        lists: dict[str, list[Any]] = {"init": self.init, "deploy": self.deploy, "seed": self.seed}
        for key, values in lists.items():
            _refuse_duplicates(key, [str(value) for value in values], f"grid.{key}", "remove one")
        return self


class Store(Settings):
    """Which DVC remote keeps the data of states: ``embedded`` (a server of ours) or one named in ``.dvc/config``."""

    remote: str = "embedded"
    """``embedded``, or the name that `chronomerge remote setup` gave."""
    git: str | None = None
    """A git remote that states are pushed to, where several machines share a timeline."""
    experts: NameOrSettings = Named(name="full")
    """How the experts that are trained are stored (one of `tasks.model.codecs`), from the next step on."""


def _split(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


Command = Annotated[list[str], BeforeValidator(_split), Field(min_length=1)]
"""A program and its arguments, as a list or as one line with a shell's quotes; no shell ever runs it."""


class Hooks(Settings):
    """The user's own commands (`flows.hooks`); what they do to a run is nothing."""

    recorded: Command | None = None
    """After each recorded state."""
    failed: Command | None = None
    """When a run has failed."""


class Prepared(Settings):
    """How prepared images are stored: as raw pixels, or as JPEG files for a tenth of the bytes."""

    form: Literal["raw", "jpeg"] = "raw"
    """``jpeg`` files are decoded by several threads when batches are read."""
    size: Literal["model", "original"] = "model"
    """With ``jpeg``: images at the model's size, or at their own, from which random crops are then drawn."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of the JPEG files; those that a source has are stored as they are at their original size."""

    @model_validator(mode="after")
    def _raw_is_of_the_models_size(self) -> Prepared:
        if self.form == "raw" and (self.size, self.quality) != ("model", 95):
            raise ValueError("size and quality are those of JPEG files; add form: jpeg")
        return self


class Limits(Settings):
    """What data may take; more is refused with one line. Those of files hold for what others drop (`inbox`)."""

    drop_bytes: int = Field(default=20 << 30, gt=0)
    """All files of a drop together, and what a compressed tar file unpacks to."""
    file_bytes: int = Field(default=4 << 30, gt=0)
    """One file of a drop."""
    image_pixels: int = Field(default=178_956_970, gt=0)
    """Width times height of an image (Pillow's own limit)."""
    cell_characters: int = Field(default=100_000, gt=0)
    """One cell of a table, one caption."""
    yaml_depth: int = Field(default=20, gt=0)
    """Levels of lists and mappings in an arrival.yaml."""
    yaml_aliases: int = Field(default=0, ge=0)
    """Aliases (``*name``) in an arrival.yaml."""


TAKEN = ("base", "pretraining")
"""Names that no arrival can have: step 0 and its pool are called so."""


class Params(Settings):
    """One experiment: a stream run under one set of settings, that is, a timeline."""

    timeline: Name
    """The name of the experiment: states are tagged ``state/NAME/0003``."""
    seed: int = Field(default=0, ge=0)
    """Seeds every random choice."""
    threads: int | None = Field(default=None, gt=0)
    """Torch's thread count; by default the cores that this process may use. Results are bit-exact at equal counts."""
    save_every: float = Field(default=300, ge=0)
    """Seconds between the checkpoints from which a killed training goes on."""
    base: Base
    """θ_0."""
    stream: list[Arrival]
    """What arrives, one entry a time step; new arrivals are appended."""
    time: Time = Time()
    """TIME's three axes."""
    deploy: Deploy | None = None
    """What is done to the deployed copy after merging."""
    train: Train
    """How experts are trained."""
    fit: NameOrSettings | None = None
    """How coefficients of the merge are found on data (one of `tasks.fit.methods`); by default they are as given."""
    evaluate: Evaluate
    """What every deployed model is tested on."""
    store: Store = Store()
    """Where data and weights of states are stored."""
    gate: Gate | None = None
    """Decides which states are promoted; without one all are."""
    pointers: dict[PointerName, PointerGate] = {}
    """Pointers beside ``deployed`` that a gate moves, by name, such as ``champion``."""
    hooks: Hooks = Hooks()
    """Commands of your own that a run starts."""
    track: list[NameOrSettings] = []
    """Trackers that are told of each recorded state: ``mlflow``, ``wandb``, ``trackio`` (`tasks.track`)."""
    prepared: Annotated[Prepared, BeforeValidator(_form)] = Prepared()
    """How prepared images are stored: ``raw``, ``jpeg``, or with settings ``{form: jpeg, size: original}``."""
    limits: Limits = Limits()
    """What data may take; more is refused."""
    grid: Grid | None = None
    """What ``chronomerge grid`` runs; a timeline by itself has no use for it."""

    # Written by the flow into the params.yaml of a state; a user's own file has neither.
    step: int | None = Field(default=None, ge=0)
    """The time step of the state."""
    arrival: Arrival | None = None
    """What arrived at it."""

    @property
    def codes_expert(self) -> bool:
        """Whether the step's expert is stored coded. One that arrives as a file is not: the state has that file."""
        given = self.arrival is not None and self.arrival.expert
        return self.store.experts.name != "full" and bool(self.step) and not given

    @property
    def codes_start(self) -> bool:
        """Whether the step's initial weights are an expert that may be stored coded."""
        return self.store.experts.name != "full" and bool(self.step) and self.time.init == "ft"

    @property
    def routes(self) -> bool:
        """Whether what the step deploys is the base, deltas and a router."""
        return self.time.deploy == "routed" and bool(self.step)

    def evaluated_in_full(self, step: int) -> tuple[str, ...]:
        """The evaluation sets of which a step evaluates all samples although there is a share."""
        sets = self.evaluate.sets
        if step in (0, len(self.stream)):
            return tuple(one.name for one in sets)
        conditions = self.gate.require if self.gate else []
        asked = {name for text in conditions for name in self._asked(text)}
        return tuple(one.name for one in sets if one.name in asked)

    def _asked(self, condition: str) -> list[str]:
        roles, name = gate.asked(condition)
        return [name] if name else [one.name for role in roles for one in getattr(self.evaluate, role)]

    @property
    def own_files(self) -> list[str]:
        """The user's files that are code: a technique of their own."""
        technique = self.time.technique.name
        return [technique.rpartition(":")[0]] if ":" in technique else []

    @field_validator("gate")
    @classmethod
    def _known_sets(cls, value: Gate | None, info: ValidationInfo) -> Gate | None:
        evaluate = info.data.get("evaluate")
        if value and evaluate:
            gate.require_sets(value.require, [one.name for one in evaluate.sets])
            gate.require_compatibility(value.require, measured=bool(evaluate.compatibility))
        return value

    @field_validator("pointers")
    @classmethod
    def _known_sets_of_pointers(cls, value: dict[str, PointerGate], info: ValidationInfo) -> dict[str, PointerGate]:
        if evaluate := info.data.get("evaluate"):
            for one in value.values():
                gate.require_sets(one.require, [each.name for each in evaluate.sets])
                gate.require_compatibility(one.require, measured=bool(evaluate.compatibility))
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A state of a timeline without a fit says nothing of it: its keys and bytes are as before there were any."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key != "fit" or value}

    @model_validator(mode="after")
    def _unique(self) -> Params:
        names = [arrival.name for arrival in self.stream]
        for taken in TAKEN:
            if taken in names:
                raise ValueError(f"the arrival name {taken!r} is taken: step 0 and its pool are called so")
        _refuse_duplicates("arrival name", names, "stream", "rename one")
        return self

    @model_validator(mode="after")
    def _compatible_with_its_own(self) -> Params:
        named = self.deploy.compatible_with if self.deploy else None
        if named and named.startswith("state/") and named.split("/")[1] != self.timeline:
            raise ValueError(f"deploy.compatible_with: {named} is of another timeline than {self.timeline!r}")
        return self

    @model_validator(mode="after")
    def _base_batch_divides(self) -> Params:
        if self.base.train:
            require_parts(self.base.train.batch_size, self.train.processes or 1, self.train.accumulate)
        return self


def _refuse_duplicates(what: str, names: list[str], key: str, way_out: str, *, indexed: bool = True) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"duplicate {what} {name!r} in {key}{f'[{i}]' if indexed else ''}; {way_out}")


def load(path: Path) -> Params:
    """Read and validate a params file.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown or has a value it does not accept; the
            message names the file and every such key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run chronomerge from a project's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file: {error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Params:
    """As `load`, of a text; ``path`` is what messages call it."""
    try:
        raw = yaml.load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        hint = '; inside [ ] or { } quote a value with a colon: ["icons:food"]' if "unexpected ':'" in reason else ""
        raise UserError(f"{path}: not a YAML file: {reason}{hint}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys such as timeline, base and stream at the top level")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{_did_you_mean(error['loc'])}"
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    shown = (
        "" if isinstance(value, (dict, list, BaseModel)) else f" (got {value!r:.80})"
    )  # the message names what it is
    return f"{key}: {message}{shown}" if key else message


def _did_you_mean(loc: tuple[str | int, ...]) -> str:
    """The keys that the section of a misspelt key does accept."""
    section: Any = Params
    for part in loc[:-1]:
        if isinstance(part, str) and part in section.model_fields:  # else a name of the user's own
            section = _model_in(section.model_fields[part].annotation)
    return f"; accepted here: {', '.join(section.model_fields)}"


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(a) for a in getattr(annotation, "__args__", ()))), None)
