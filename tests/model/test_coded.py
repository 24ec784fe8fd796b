"""Coded experts: every bit back, and no wrong weight out of a damaged file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.choice import available
from tasks.errors import UserError
from tasks.fit.landscape import TaskVectors
from tasks.merge.engine import merge
from tasks.model import checkpoints, codec, coded, planes
from tasks.model.codec import Codec, DamagedChunkError
from tasks.model.inputs import open_model
from tasks.model.sources import FileSource
from tasks.params import Named, Params
from tasks.storage.cache import md5_of
from tests.model.damaged import gives_the_right_weights_or_one_sentence
from tests.project import PARAMS

LOSSLESS = codec.chosen(Named(name="lossless"))


def models(folder: Path, *, change: float = 1e-3, seed: int = 0) -> tuple[Path, Path]:
    """A base and an expert of it, as files: of several dtypes, and one tensor of more than a chunk."""
    random = torch.Generator().manual_seed(seed)
    base = {
        "big": torch.randn(1100, 1000, generator=random),
        "half": torch.randn(7, 3, generator=random).to(torch.bfloat16),
        "scale": torch.tensor(2.5),
        "ids": torch.arange(9).reshape(1, 9),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False]),
    }
    expert = {
        name: t + change * torch.randn(t.shape, generator=random).to(t.dtype) if t.is_floating_point() else t.clone()
        for name, t in base.items()
    }
    checkpoints.save(folder / "base.safetensors", base)
    checkpoints.save(folder / "expert.safetensors", expert)
    return folder / "base.safetensors", folder / "expert.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return models(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", ["full", "lossless"])
def test_an_exact_codec_gives_back_the_very_file(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    base, expert = pair
    about = coded.encode(codec.chosen(Named(name=name)), expert, base, tmp_path / "expert.weights")
    assert about.decoded.md5 == md5_of(expert)
    assert about.error == 0
    coded.decode(tmp_path / "expert.weights", base, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == expert.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_lossless_is_smaller_the_closer_the_expert_is_to_its_base(tmp_path: Path) -> None:
    sizes = []
    for change in (1e-2, 1e-3, 1e-4):
        home = tmp_path / str(change)
        home.mkdir()
        base, expert = models(home, change=change)
        coded.encode(LOSSLESS, expert, base, home / "expert.weights")
        sizes.append((home / "expert.weights").stat().st_size / expert.stat().st_size)
    assert sizes == pytest.approx([0.65, 0.56, 0.45], abs=0.03)  # of the specification's synthetic weights


def test_equal_experts_have_equal_files_and_pieces_that_are_read_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    for name in ("a", "b"):
        coded.encode(LOSSLESS, expert, base, tmp_path / f"{name}.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()
    with ExitStack() as stack:
        source = coded.opened(tmp_path / "a.weights", stack.enter_context(FileSource(base)), stack)
        plain = stack.enter_context(FileSource(expert))
        assert source.entries == plain.entries
        for start, count in ((0, 12), (4 * (1 << 20) - 8, 16), (4_399_992, 8)):  # within, across and at the end
            one, other = np.empty(count, np.uint8), np.empty(count, np.uint8)
            source.read_into("big", start, one)
            plain.read_into("big", start, other)
            assert (one == other).all()
    weights = coded.load(tmp_path / "a.weights", base)
    assert all(torch.equal(weights[name], t) for name, t in checkpoints.load(expert).items())


FLOATS = {"F32": np.float32, "F64": np.float64, "F16": np.float16}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_planes_give_back_any_bits(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(FLOATS)))
    shape = data.draw(st.integers(0, 40))
    bits = arrays.arrays(f"<u{np.dtype(FLOATS[dtype]).itemsize}", shape)  # NaN, infinities and denormals too
    values, base = (data.draw(bits).view(FLOATS[dtype]) for _ in range(2))
    for origin in (base, None):
        back = planes.unpack(planes.pack(values, origin, dtype), origin, dtype, values.dtype, len(values))
        assert back.tobytes() == values.tobytes()


def test_a_neighbour_among_floats_is_a_difference_of_one() -> None:
    base = np.array([1.0, -1.0, 0.0], np.float32)
    values = np.array([np.nextafter(np.float32(1), np.float32(2)), -1.0, -0.0], np.float32)
    folded = planes._zigzag(planes._ordered(values, "F32") - planes._ordered(base, "F32"))
    assert folded.tolist() == [2, 0, 1]  # +1, 0 and -1


def refused(path: Path, base: Path, target: Path) -> str:
    """The sentence with which a damaged file is refused; nothing is left behind."""
    with pytest.raises(UserError) as error:
        coded.decode(path, base, target)
    assert not target.exists()
    assert not list(target.parent.glob(".*"))
    return str(error.value)


def test_another_base_is_named_and_gives_no_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    coded.encode(LOSSLESS, expert, base, tmp_path / "expert.weights")
    (tmp_path / "other").mkdir()
    other, _ = models(tmp_path / "other", seed=1)
    assert f"another base than {other}" in refused(tmp_path / "expert.weights", other, tmp_path / "out.safetensors")


def test_a_truncated_file_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    path = tmp_path / "expert.weights"
    coded.encode(LOSSLESS, expert, base, path)
    whole = path.read_bytes()
    for size in (0, 5, 40, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"expert\.weights"):
            coded.load(path, base)


def small(folder: Path) -> tuple[Path, Path]:
    """Two models of few bytes, so that most of a coded file is header and tables."""
    random = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(4, 5, generator=random), "b": torch.arange(6)}
    checkpoints.save(folder / "base.safetensors", base)
    checkpoints.save(folder / "expert.safetensors", {**base, "a": base["a"] + 0.01})
    return folder / "base.safetensors", folder / "expert.safetensors"


@pytest.mark.parametrize("name", [n for n, one in available(Codec).items() if one.codes])  # type: ignore[type-abstract]
def test_a_damaged_file_gives_the_right_weights_or_one_sentence(name: str, tmp_path: Path) -> None:
    base, expert = small(tmp_path)
    path, target = tmp_path / "expert.weights", tmp_path / "out" / "expert.safetensors"
    coded.encode(codec.chosen(Named(name=name)), expert, base, path)
    gives_the_right_weights_or_one_sentence(path, target, lambda: coded.decode(path, base, target))


def test_a_header_cannot_ask_for_more_memory_than_the_base_has(tmp_path: Path) -> None:
    base, expert = small(tmp_path)
    path = tmp_path / "expert.weights"
    coded.encode(LOSSLESS, expert, base, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = json.loads(header["__metadata__"]["chronomerge.coded"])
    about["tensors"]["a"]["shape"] = [1 << 40]
    header["__metadata__"]["chronomerge.coded"] = json.dumps(about)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert "has shape [1099511627776]" in refused(path, base, tmp_path / "out.safetensors")


def test_a_frame_that_unpacks_to_more_than_its_chunk_is_damaged() -> None:
    bomb = planes.compress(bytes(1 << 24))
    with pytest.raises(DamagedChunkError, match="another size"):
        planes.unpack(bomb, None, "F32", np.dtype("<f4"), 16)


@pytest.mark.parametrize("name", [n for n, one in available(Codec).items() if one.codes])  # type: ignore[type-abstract]
def test_frames_of_another_zstd_level_decode_to_the_same_bytes(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base, expert = pair
    files = []
    for level in (planes._LEVEL, -5, 9):
        monkeypatch.setattr(planes, "_LEVEL", level)
        path, plain = tmp_path / f"{level}.weights", tmp_path / f"{level}.safetensors"
        about = coded.encode(codec.chosen(Named(name=name)), expert, base, path)
        coded.decode(path, base, plain)
        assert about.decoded.md5 == md5_of(plain)
        files.append((path.read_bytes(), plain.read_bytes()))
    assert len({plain for _, plain in files}) == 1
    assert len({stored for stored, _ in files}) > 1


def test_a_frame_that_no_version_of_zstd_writes_is_decoded_as_the_format_says() -> None:
    """RFC 8878 by hand: magic, one segment of 8 bytes; a block of 3 raw bytes, a last one of 5 times the same."""
    frame = bytes.fromhex("28b52ffd 20 08 180000 010203 2b0000 07")
    assert planes.decompress(frame, 8) == bytes([1, 2, 3, 7, 7, 7, 7, 7])
    assert frame != planes.compress(bytes([1, 2, 3, 7, 7, 7, 7, 7]))


def test_an_expert_of_another_architecture_is_not_coded(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = small(tmp_path)
    with pytest.raises(UserError, match="not of both"):
        coded.encode(LOSSLESS, pair[1], base, tmp_path / "expert.weights")
    assert not (tmp_path / "expert.weights").exists()


def params(experts: object, **time: str) -> Params:
    return Params.model_validate(
        {**PARAMS, "time": {"init": "ema", "deploy": "ema", **time}, "store": {"experts": experts}}
    )


def test_codecs_are_checked_before_any_work() -> None:
    assert codec.check(params("lossless")) == []
    assert codec.check(params("full", deploy="ft")) == []
    (warning,) = codec.check(params("lossless", deploy="ft"))
    assert "saves nothing" in warning
    with pytest.raises(UserError, match=r"store\.experts: there is no 'zip'; there are adapter, full, lossless"):
        codec.check(params("zip"))
    with pytest.raises(UserError, match=r"store\.experts: ternary: density got 2"):
        codec.check(params({"name": "ternary", "density": 2}))


def test_the_base_is_found_around_a_coded_expert_and_asked_for_elsewhere(tmp_path: Path) -> None:
    base = tmp_path / "state/data/history/weights/base.safetensors"
    expert = tmp_path / "state/data/step/expert.weights"
    base.parent.mkdir(parents=True)
    base.touch()
    assert coded.base_around(expert) == base
    with pytest.raises(UserError, match="name the base with --base"):
        coded.base_around(tmp_path / "expert.weights")


def test_a_safetensors_file_is_no_coded_expert_and_a_coded_one_needs_its_base(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, expert = pair
    with pytest.raises(UserError, match=r"expert\.safetensors: is no coded expert"):
        coded.decode(expert, base, tmp_path / "out.safetensors")
    coded.encode(LOSSLESS, expert, base, tmp_path / "expert.weights")
    with ExitStack() as stack, pytest.raises(UserError, match="is a coded expert, the difference to a base"):
        open_model(tmp_path / "expert.weights", "expert 1", stack, None)


def test_a_merge_reads_coded_experts_as_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    coded.encode(LOSSLESS, expert, base, tmp_path / "expert.weights")
    for name, model in (("plain", expert), ("coded", tmp_path / "expert.weights")):
        merge("task_arithmetic", [model], base, tmp_path / f"{name}.safetensors", settings={"scale": 0.5})
    assert (tmp_path / "coded.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_fits_see_the_task_vectors_of_coded_experts(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(4, 5, generator=random)}
    checkpoints.save(tmp_path / "base.safetensors", base)
    checkpoints.save(tmp_path / "expert.safetensors", {"w": base["w"] + 0.5})
    coded.encode(LOSSLESS, tmp_path / "expert.safetensors", tmp_path / "base.safetensors", tmp_path / "expert.weights")
    files = [tmp_path / "expert.safetensors", tmp_path / "expert.weights"]
    plain, small = (TaskVectors(tmp_path / "base.safetensors", [file], ["w"]) for file in files)
    assert torch.equal(plain.sum_of("w", np.ones(1)), small.sum_of("w", np.ones(1)))
