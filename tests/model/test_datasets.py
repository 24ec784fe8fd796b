"""The prepared form: what is written is read back, the same bytes every time, and damage is named."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.model.datasets import Card, Dataset, Origin, Sample, write

CARD = Card("things", 4, ("cat", "größe"), "an icon of {}", (Origin("here", "CC0", "me"), Origin("there")))


def sample(number: int, label: int = 0) -> Sample:
    image = np.random.Generator(np.random.Philox(number)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Sample(f"s{number}", image, f"caption “{number}”", label)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(-1, 1), min_size=1, max_size=20))
def test_what_is_written_is_read_back(tmp_path: Path, labels: list[int]) -> None:
    samples = [sample(i, label) for i, label in enumerate(labels)]
    card = write(tmp_path / "data", CARD, samples, len(samples))
    data = Dataset(tmp_path / "data")
    assert data.card == card
    assert (card.size, card.classes, card.origins) == (len(labels), CARD.classes, CARD.origins)
    assert data.ids == [s.id for s in samples]
    assert data.captions == [s.caption for s in samples]
    assert data.labels.tolist() == labels
    assert data.labels.dtype == np.int32
    np.testing.assert_array_equal(data.images, np.stack([s.image for s in samples]))
    assert isinstance(data.images, np.memmap)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, CARD, (sample(i) for i in range(5)), 5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write(tmp_path / "b", CARD, (sample(i) for i in range(3)), 3)  # over another
    write(tmp_path / "c", CARD, (sample(i) for i in range(3)), 3)
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_images_are_plain_numpy(tmp_path: Path) -> None:
    write(tmp_path, CARD, [sample(0)], 1)
    expected = tmp_path / "expected.npy"
    np.save(expected, sample(0).image[None])
    assert (tmp_path / "images.npy").read_bytes() == expected.read_bytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data set 'things' is empty"):
        write(tmp_path, CARD, [], 0)
    with pytest.raises(UserError, match="data set 'things' holds the sample 's1' twice"):
        write(tmp_path, CARD, [sample(0), sample(1), sample(1)], 3)
    with pytest.raises(ValueError, match=r"s0: expected uint8 of shape \(4, 4, 3\), got float64 \(4, 4, 3\)"):
        write(tmp_path, CARD, [Sample("s0", np.zeros((4, 4, 3)), "c")], 1)
    with pytest.raises(ValueError, match="s0: expected uint8"):
        write(tmp_path, CARD, [Sample("s0", np.zeros((4, 4), np.uint8), "c")], 1)
    with pytest.raises(ValueError, match="label 2 is out of range for 2 classes"):
        write(tmp_path, CARD, [sample(0, 2)], 1)
    for count, message in ((1, "got more"), (3, "got 2")):
        with pytest.raises(RuntimeError, match=f"announced {count} samples, {message}"):
            write(tmp_path, CARD, [sample(0), sample(1)], count)
    assert not (tmp_path / "dataset.json").exists()


def test_a_failed_write_over_a_data_set_leaves_none(tmp_path: Path) -> None:
    write(tmp_path, CARD, [sample(0)], 1)
    with pytest.raises(UserError):
        write(tmp_path, CARD, [sample(0), sample(0)], 2)
    with pytest.raises(UserError, match="not a prepared data set"):
        Dataset(tmp_path)


def test_a_full_disk_is_an_error_not_a_crash(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write(tmp_path, CARD, (sample(i) for i in range(1000)), 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("name", ["dataset.json", "images.npy", "samples.arrow"])
@pytest.mark.parametrize("keep", [None, 0, 10, -1])
def test_damage_is_named(tmp_path: Path, name: str, keep: int | None) -> None:
    folder = tmp_path / "data"
    write(folder, CARD, [sample(0), sample(1)], 2)
    content = (folder / name).read_bytes()
    if keep is None:
        (folder / name).unlink()
    else:
        # The last byte of the card is a newline: take the brace too.
        (folder / name).write_bytes(content[: keep - 1 if keep < 0 else keep])
    with pytest.raises(UserError, match="data: not a prepared data set"):
        Dataset(folder)


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a", CARD, [sample(0)], 1)
    write(tmp_path / "b", CARD, [sample(0), sample(1)], 2)
    (tmp_path / "a/images.npy").write_bytes((tmp_path / "b/images.npy").read_bytes())
    with pytest.raises(UserError, match="2 images, 1 samples, 1 on the card"):
        Dataset(tmp_path / "a")


@pytest.mark.parametrize("content", ["[]", '{"name": "x"}', '"x"', "null"])
def test_a_card_of_something_else(tmp_path: Path, content: str) -> None:
    write(tmp_path, CARD, [sample(0)], 1)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="not a prepared data set"):
        Dataset(tmp_path)


def test_the_card_is_for_people(tmp_path: Path) -> None:
    write(tmp_path, CARD, [sample(0)], 1)
    text = (tmp_path / "dataset.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert json.loads(text)["origins"][0] == {"source": "here", "licence": "CC0", "attribution": "me"}
