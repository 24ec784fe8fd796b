"""The model of a timeline: its open_clip configuration on disk, its base weights, and how to build and feed it.

A model folder holds two plain JSON files, made once per timeline by `resolve` and read by every node:

``model.json``
    ``{"name": ..., "model_cfg": {...}}``: open_clip's configuration with the context length written out and with no
    download left to do at construction.
``preprocess.json``
    ``{"image_size", "mean", "std", "interpolation", "resize_mode"}``: what the base saw, image size in pixels.

torch and open_clip are imported inside the functions that need them: importing this module costs nothing.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import platform
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import layout
from tasks.errors import UnavailableError, UserError
from tasks.model import origins, tokenizers
from tasks.model.light_imports import prepare as prepare_imports
from tasks.params import COMPLETE, Base
from tasks.storage import atomic, hub

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tasks.model.checkpoints import Weights

    class Clip(torch.nn.Module):
        """What is used of open_clip's two-tower models."""

        logit_scale: torch.nn.Parameter
        """Logarithm of the factor on the cosines."""
        logit_bias: torch.nn.Parameter | None
        """Added to the logits, in models made for SigLIP's loss."""
        positional_embedding: torch.nn.Parameter
        token_embedding: torch.nn.Embedding
        transformer: Any
        """The text tower's blocks, where these are attributes of the model itself."""
        ln_final: torch.nn.Module
        text_projection: torch.nn.Parameter | torch.nn.Linear | None
        attn_mask: torch.Tensor | None
        text_eos_id: int
        encode_image: Callable[..., torch.Tensor]
        """Float (N, 3, H, W) → (N, D); ``normalize=True`` for unit length."""
        encode_text: Callable[..., torch.Tensor]
        """int64 (N, L) → (N, D); ``normalize=True`` for unit length."""
        set_grad_checkpointing: Callable[[bool], None]


Tokenizer = Callable[[Sequence[str]], "torch.Tensor"]
"""Texts → int64 token ids, shape (N, context length)."""

REQUIRED = ("embed_dim", "vision_cfg", "text_cfg")


@dataclass(frozen=True)
class Preprocess:
    """How images are brought into the model: ``preprocess.json``."""

    image_size: int
    """Side in pixels; models here see square images."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def check(base: Base, project: Path) -> None:
    """Look whether the model, and the tag or the files of its weights, are there; builds and reads nothing.

    Of a repository on a hub, it is asked whether the files are there and may be read.

    Raises:
        UserError: an unknown model or tag (with near matches), or a file, folder or repository that is missing.
    """
    if base.model.startswith(COMPLETE):
        _look(base.model, project, "base.model")
    elif base.model.endswith(".json"):
        _from_file(base, project)
    else:
        _registered(base.model)
    if base.pretrained == "train":
        return
    if _is_checkpoint(base, project):
        _look(base.pretrained, project, "base.pretrained")
    else:
        _tag(base)


def pinned(base: Base) -> Base:
    """``base`` with the commits that its addresses mean now, so that everything of it is taken from one.

    Raises:
        UserError: as `hub.look`.
    """
    commits = {
        key: str(replace(address, revision=hub.look(address).commit))
        for key in ("model", "pretrained")
        if hub.is_address(getattr(base, key))
        for address in (hub.parse(getattr(base, key)),)
    }
    return base.model_copy(update=commits)


def _look(text: str, project: Path, key: str) -> None:
    try:
        if hub.is_address(text):
            origins.require_there(hub.parse(text))
        elif not layout.is_there(origins.located(text, project).path):
            raise UserError(
                f"{project / text.removeprefix(origins.LOCAL_DIR)}: no such file or folder; name a checkpoint, an "
                "open_clip tag, or train"
            )
    except UnavailableError as error:
        raise UnavailableError(f"{key}: {error}") from None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def resolve(base: Base, project: Path, into: Path) -> None:
    """Write ``model.json`` and ``preprocess.json`` for ``base.model`` into the folder ``into``.

    A name is looked up in open_clip's registry. A folder (``local-dir:``) or repository (``hf-hub:``) has open_clip's
    configuration or transformers'. Anything that ends in ``.json`` is a configuration file, relative to ``project``,
    in open_clip's own format (bare, or as ``open_clip_config.json`` with ``model_cfg`` and ``preprocess_cfg``). Where
    ``base.pretrained`` is an open_clip tag, mean, std, interpolation and the activation that the weights were trained
    with come from the tag.

    Raises:
        UserError: an unknown model or tag (with near matches), or a configuration that open_clip cannot build.
    """
    prepare_imports()
    import open_clip

    config, preprocessing = _configured(base, project)
    if base.pretrained != "train" and not _is_checkpoint(base, project):
        tag = _tag(base)
        preprocessing = {**preprocessing, **tag}
        if "quick_gelu" in tag:
            config["quick_gelu"] = tag["quick_gelu"]
    if "multimodal_cfg" in config:
        raise UserError(f"base.model: {base.model!r} is a CoCa model; its captioning loss is not trained here")
    config["text_cfg"].setdefault("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    for tower, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if key.replace("pretrained", "name") in config[tower]:
            config[tower][key] = False
    merged = open_clip.factory.merge_preprocess_dict(open_clip.transform.PreprocessCfg(), preprocessing)
    preprocess = Preprocess(
        image_size=_square(config["vision_cfg"].get("image_size", 224), base.model),
        mean=tuple(merged["mean"]),
        std=tuple(merged["std"]),
        interpolation=merged["interpolation"],
        resize_mode=merged["resize_mode"],
    )
    _construct(config, base.model, "meta")  # a configuration that cannot be built is refused before any work
    into.mkdir(parents=True, exist_ok=True)
    name = hub.parse(base.model).repository.rpartition("/")[2] if hub.is_address(base.model) else Path(base.model).stem
    _write_json(into / "model.json", {"name": name, "model_cfg": config})
    _write_json(into / "preprocess.json", asdict(preprocess))


def fetch_base(base: Base, project: Path, into: Path) -> hub.Pin | None:
    """Write the weights that ``base.pretrained`` names as ``into/base.safetensors``, float32.

    A tag is downloaded by open_clip itself. Files and folders, relative to ``project``, and repositories of a hub may
    be of any dialect (`tasks.model.dialects`); torch files are read with ``weights_only``. Of a repository the files
    are left in ``into/source``, and what they are is returned. A tokenizer beside them must be that of the model folder
    ``into/model``, where `resolve` and `fetch_tokenizer` have made it. Not to be called for ``train``.

    Raises:
        UserError: a file that is missing, truncated, unsafe or of another architecture, weights that are not finite,
            or a download that fails.
    """
    from tasks.model import checkpoints

    config = _configured(base, project)[0]
    if not _is_checkpoint(base, project):
        model = _construct(config, base.model, "cpu")
        weights = _download(base, _tag(base), model)
        checkpoints.save(into / "base.safetensors", conform(weights, model.state_dict(), base.pretrained))
        return None
    origin = origins.located(base.pretrained, project)
    expected = _construct(config, base.model, "meta").state_dict()
    label = base.pretrained if origin.pin else str(origin.path)
    weights = _read_as(origin, expected, label)
    if (into / "model").is_dir() and base.pretrained != base.model:
        tokenizers.require_same(origin.path if origin.path.is_dir() else origin.path.parent, into / "model")
    checkpoints.save(into / "base.safetensors", conform(weights, expected, label))
    if origin.pin:
        for name in origin.pin.files:
            target = into / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin.root / name, target)
    return origin.pin


def _read_as(origin: origins.ModelFiles, expected: Mapping[str, torch.Tensor], label: str) -> Weights:
    """The tensors of a checkpoint of any dialect, under open_clip's names where they can be translated to them."""
    import torch

    from tasks.model import adapters
    from tasks.model.dtypes import as_given, require_precise, stored_as
    from tasks.model.fitting import NamesOnly
    from tasks.model.inputs import open_model
    from tasks.model.sources import TensorEntry, raw_bytes
    from tasks.model.translated import as_the_base

    if adapters.is_adapter(origin.path):
        raise UserError(f"base.pretrained: {label}: is a PEFT adapter; name the model that it adapts")
    like = NamesOnly({name: TensorEntry("F32", tuple(t.shape)) for name, t in expected.items()}, "the model")
    weights: Weights = {}
    with ExitStack() as stack:
        source = as_the_base(open_model(origin, "base", stack, None), like)
        require_precise({name: entry.dtype for name, entry in source.entries.items()}, label)
        for name, entry in source.entries.items():
            stored = raw_bytes(source, name, 0, entry.bytes).view(stored_as(entry.dtype))
            weights[name] = as_given(stored.reshape(entry.shape), entry.dtype, torch.empty(0))
    return weights


def build(folder: Path, device: str = "cpu") -> Clip:
    """The open_clip model of a model folder, weights random from torch's global generator (on ``meta``: none)."""
    raw = _read_json(folder / "model.json")
    return _construct(raw["model_cfg"], raw["name"], device)


def shapes_of(config: Mapping[str, Any], source: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an open_clip configuration's model; nothing is allocated.

    Raises:
        UserError: open_clip cannot build it; the message names ``source``.
    """
    return {name: tuple(t.shape) for name, t in _construct(config, source, "meta").state_dict().items()}


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Copy checked weights into ``model``.

    Raises:
        UserError: names or shapes are not the model's, or a value is not finite; the message names ``source``.
    """
    model.load_state_dict(conform(weights, model.state_dict(), str(source)))


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that the model was made for, with its context length.

    Raises:
        UserError: as `tokenizers.load`.
    """
    return tokenizers.load(folder, _read_json(folder / "model.json")["model_cfg"]["text_cfg"])


def fetch_tokenizer(base: Base, project: Path, folder: Path, beside: Path | None = None) -> None:
    """Save the tokenizer's files into a model folder that `resolve` has written, where it is none of open_clip's own.

    ``beside`` is a folder that may have them; by default that of the configuration which ``base.model`` names.

    Raises:
        UserError: as `tokenizers.fetch`.
    """
    text = _read_json(folder / "model.json")["model_cfg"]["text_cfg"]
    if beside is None and base.model.startswith(COMPLETE):
        beside = _folder(base, project)
    elif beside is None and base.model.endswith(".json"):
        beside = (project / base.model).parent
    if beside and base.model.startswith(COMPLETE):  # a relative name starts at its own folder
        tokenizers.fetch(folder, text, beside, beside, complete=True)
    else:
        tokenizers.fetch(folder, text, project, beside)


def preprocess(folder: Path) -> Preprocess:
    """What ``preprocess.json`` of a model folder says."""
    raw = _read_json(folder / "preprocess.json")
    return Preprocess(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def normalize(images: np.ndarray | torch.Tensor, how: Preprocess, device: torch.device) -> torch.Tensor:
    """uint8 images (N, H, W, 3) → float32 (N, 3, H, W) on ``device``, standardized as the model expects."""
    import torch

    pixels = torch.as_tensor(images).to(device).permute(0, 3, 1, 2).float()
    scale = torch.tensor([1 / (255 * s) for s in how.std], device=device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(how.mean, how.std, strict=True)], device=device).view(3, 1, 1)
    return pixels.mul_(scale).add_(shift)


def text_features(model: Clip, tokens: torch.Tensor) -> torch.Tensor:
    """Normalized features of texts' tokens, int64 (N, L), without the part of the context that cannot matter: (N, D).

    Where the text tower is causal and reads its feature at the end-of-text token (open_clip's ``CLIP``), positions
    after the longest of the texts influence neither features nor gradients: they are not computed.
    """
    from torch.func import functional_call

    ends = text_ends(model, tokens)
    if ends is None or model.attn_mask is None:
        return model.encode_text(tokens, normalize=True)
    length = int(ends.max()) + 1
    shorter = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    features: torch.Tensor = functional_call(model, shorter, (None, tokens[:, :length]))[1]
    return features


def text_ends(model: Clip, tokens: torch.Tensor) -> torch.Tensor | None:
    """The position of each text's end in its tokens, int64 (N, L): (N,), beyond which nothing matters.

    None where the text tower is not causal, or reads its feature elsewhere.
    """
    pool = getattr(model, "text_pool_type", None)
    if pool not in ("argmax", "eos") or model.attn_mask is None:
        return None
    # The end-of-text token has the largest number, or the one that the model names; padding may be the same token.
    ends = tokens if pool == "argmax" else (tokens == model.text_eos_id).int()
    return ends.argmax(dim=1)


def conform(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """``weights`` with exactly the names and shapes of ``expected``, floating tensors as float32.

    A scalar may be stored 0-d or as one element: both are in use for ``logit_scale``.

    Raises:
        UserError: names the first tensor that is missing, extra, of another shape or not finite.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights:
            raise UserError(f"{source}: lacks the tensor {name!r} that the model has; is it of another architecture?")
        if name not in expected:
            raise UserError(f"{source}: has a tensor {name!r} that the model lacks; is it of another architecture?")
        ours, theirs = expected[name], weights[name]
        if ours.shape != theirs.shape and {ours.shape, theirs.shape} != {(), (1,)}:
            raise UserError(f"{source}: {name!r} has shape {list(theirs.shape)}, the model has {list(ours.shape)}")
        tensor = theirs.reshape(ours.shape)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not tensor.isfinite().all():
                raise UserError(f"{source}: {name!r} holds values that are not finite (NaN or infinity)")
        tensors[name] = tensor
    return tensors


def read_checkpoint(path: Path) -> Weights:
    """The weights of a safetensors or torch file, on the CPU, unwrapped from ``state_dict`` and ``module.``.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or a pickle of more than tensors.
    """
    import torch

    from tasks.model import checkpoints, sources

    if path.suffix == ".safetensors":
        raw: Any = checkpoints.load(path)
    else:
        sources.require_weights(path)
        _require_plain_zip(path)
        try:
            raw = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(f"{path}: not a file of plain weights; save its state_dict as safetensors") from None
        except Exception as error:  # on damaged bytes, torch raises errors of any type
            raise UserError(f"{path}: not a readable checkpoint, perhaps truncated ({_one_line(error)})") from None
        if isinstance(raw, dict) and isinstance(raw.get("state_dict"), dict):
            raw = raw["state_dict"]
    if not isinstance(raw, dict) or not raw or not all(isinstance(t, torch.Tensor) for t in raw.values()):
        raise UserError(f"{path}: holds no named tensors, neither at its top level nor under 'state_dict'")
    for name, tensor in raw.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: the name of a tensor is {name!r:.60}, which is not text")
        _require_plain_tensor(tensor, f"{path}: {name!r:.200}")
    if all(name.startswith("module.") for name in raw):
        raw = {name.removeprefix("module."): tensor for name, tensor in raw.items()}
    return dict(raw)


def _require_plain_zip(path: Path) -> None:
    """Refuse code, and what takes more memory than it has bytes: torch itself stores its members uncompressed."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return  # torch's older format, or damaged: torch says what
    if any(member.filename.partition("/")[2] == "constants.pkl" for member in members):
        raise UserError(
            f"{path}: a TorchScript archive (torch.jit.save), which is code, not plain weights; for OpenAI's CLIP use "
            "open_clip's tag 'openai', for others, if trusted, save torch.jit.load(…).state_dict() as safetensors"
        )
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path}: its members are compressed or overlap, which torch.save never writes; save it anew")


def _require_plain_tensor(tensor: torch.Tensor, what: str) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{what} is sparse, nested, quantized or without values; save it as a dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{what} is an expanded view, larger than what is stored; save it with .contiguous()")


def device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def configure(threads: int | None) -> None:
    """Set torch up once for a process: its thread count, and deterministic algorithms only.

    ``threads`` defaults to the cores this process may use. Results are bit-exact at equal thread counts.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.use_deterministic_algorithms(True)
    # Deterministic mode fills every fresh tensor with NaN to expose reads of unwritten memory: pure cost here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def preload() -> None:
    """Import what every training needs (three seconds), while something else takes its time."""
    prepare_imports()
    import open_clip  # noqa: F401
    import torch._dynamo  # noqa: F401 - by torch's optimizers


def device_facts(threads: int | None) -> dict[str, str | int]:
    """What computes, for a manifest: the device by name, and the thread count that `configure` sets."""
    import torch

    where = device()
    facts: dict[str, str | int] = {"threads": threads or len(os.sched_getaffinity(0))}
    if where.type == "cuda":
        return facts | {"name": torch.cuda.get_device_name(where), "gpus": torch.cuda.device_count()}
    return facts | {"name": f"cpu ({platform.machine()})"}


_NOT_BUILT = (
    TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError,
    ImportError,
)  # fmt: skip
"""What open_clip and timm raise at a configuration that makes no sense."""


def _construct(config: Mapping[str, Any], name: str, device: str) -> Clip:
    """The open_clip class that a configuration means, as open_clip's own factory chooses it, but with no download."""
    prepare_imports()
    import open_clip
    import torch

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    try:
        custom = config.get("custom_text", False) or "hf_model_name" in config["text_cfg"]
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        with torch.device(device):
            model: Clip = kind(**settings)
    except _NOT_BUILT as error:
        raise UserError(f"base.model: open_clip cannot build {name!r}: {_one_line(error)}") from None
    return model


def _registered(name: str) -> dict[str, Any]:
    prepare_imports()
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise UserError(f"base.model: open_clip has no model {name!r}{_near(name, open_clip.list_models())}")
    return config


def _from_file(base: Base, project: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and preprocessing configuration of a JSON file."""
    path = project / base.model
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"base.model: {path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"base.model: {path}: not a JSON file ({error})") from None
    config = raw.get("model_cfg", raw) if isinstance(raw, dict) else {}
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise UserError(f"base.model: {path}: lacks {', '.join(missing)}, which an open_clip model configuration has")
    return config, raw.get("preprocess_cfg", {})


def _configured(base: Base, project: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and preprocessing configuration, wherever ``base.model`` says that it is."""
    if not base.model.startswith(COMPLETE):
        return _from_file(base, project) if base.model.endswith(".json") else (_registered(base.model), {})
    from tasks.model import configurations

    folder = _folder(base, project)
    if not folder.is_dir():
        raise UserError(f"base.model: {folder}: no such folder")
    origins.require_no_state(folder)
    config = configurations.of_folder(folder)
    if config is None:
        raise UserError(
            f"base.model: {base.model}: has neither {configurations.OPEN_CLIP} nor {configurations.TRANSFORMERS}; name "
            "the architecture in base.model, and this as base.pretrained"
        )
    missing = [key for key in REQUIRED if key not in config["model_cfg"]]
    if missing:
        raise UserError(f"base.model: {base.model}: its configuration lacks {', '.join(missing)}")
    return config["model_cfg"], config.get("preprocess_cfg", {})


def _folder(base: Base, project: Path) -> Path:
    """Where a base's configuration and tokenizer are: a local folder, or the few files of a repository."""
    if not hub.is_address(base.model):
        return project / base.model.removeprefix(origins.LOCAL_DIR)
    address = hub.parse(base.model)
    if address.file:
        raise UserError(f"base.model: {base.model}: names a file; write it as base.pretrained")
    snapshot = hub.look(address)
    beside = [name for name in origins.BESIDE if name in snapshot.names]
    if not beside:
        raise UserError(f"base.model: {base.model}: has no configuration")
    return snapshot.bring(beside)


def _is_checkpoint(base: Base, project: Path) -> bool:
    """Whether ``base.pretrained`` names files; else it is a tag, which has no suffix and no slash."""
    text = base.pretrained
    return layout.is_there(project / text) or bool(Path(text).suffix) or "/" in text or text.startswith(COMPLETE)


def _tag(base: Base) -> dict[str, Any]:
    prepare_imports()
    import open_clip

    config: dict[str, Any] = open_clip.get_pretrained_cfg(base.model.replace("/", "-"), base.pretrained)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(base.model.replace("/", "-"))
        raise UserError(
            f"base.pretrained: {base.pretrained!r} is neither a file, nor train, nor one of the tags that open_clip has"
            f" for {base.model!r}{_near(base.pretrained, tags)}"
        )
    return config


def _download(base: Base, tag: dict[str, Any], model: torch.nn.Module) -> Weights:
    import open_clip

    try:
        path = open_clip.download_pretrained(tag)
        open_clip.load_checkpoint(model, path, weights_only=True)
    except Exception as error:  # whatever urllib, the hub's client or a half-written file may raise
        raise UserError(
            f"base.pretrained: the weights {base.pretrained!r} of {base.model!r} could not be downloaded"
            f" ({_one_line(error)}); name a checkpoint file instead where there is no network"
        ) from None
    return dict(model.state_dict())


def _near(name: str, known: Sequence[str]) -> str:
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=4, cutoff=0.5)]
    if near:
        return f"; near matches: {', '.join(near)}"
    return f"; it has: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def _square(size: int | Sequence[int], name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(f"base.model: {name!r} takes images of {size}; only square images are prepared here")
    return sides.pop()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no readable model configuration ({_one_line(error)})") from None
    return raw


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    atomic.write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
