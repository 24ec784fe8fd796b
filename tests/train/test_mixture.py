"""Which samples make a batch: exact counts, no repeats within an epoch, a pure function of its index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.datasets import Card, Dataset, Sample, write
from tasks.model.jpeg import Jpeg, encode
from tasks.train.augment import WHOLE, draw
from tasks.train.mixture import Balanced, Order, Shuffled, counts, reservoir
from tasks.train.pools import Pool
from tests.train.project import dataset

SHARES = [0.33, 0.34, 0.33]


def test_times_mixture_at_batch_512() -> None:
    assert counts(SHARES, [9, 9, 9], 512) == [169, 175, 168]


def test_the_first_step_splits_the_buffers_share_between_pretraining_and_update() -> None:
    assert counts(SHARES, [9, 9, 0], 512) == [169 + 84, 175 + 84, 0]
    assert counts([0.2, 0.5, 0.3], [9, 9, 0], 10) == [3, 7, 0]


def test_what_an_empty_pool_would_have_had_goes_to_the_others_with_a_share() -> None:
    assert counts(SHARES, [0, 9, 0], 5) == [0, 5, 0]
    assert counts([0.5, 0.5, 0], [0, 9, 9], 7) == [0, 7, 0]  # no buffer was asked for: none is drawn
    assert counts([0, 0.71, 0.29], [0, 9, 9], 100) == [0, 71, 29]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(2, 700))
def test_counts_sum_to_the_batch(parts: list[float], batch: int) -> None:
    shares = [part / sum(parts) for part in parts]
    found = counts(shares, [1] * len(shares), batch)
    assert sum(found) == batch
    assert all(abs(n - batch * s) <= 1 for n, s in zip(found, shares, strict=True))


def order(seed: int, step: int, sizes: list[int], per_batch: list[int]) -> Order:
    return Order([Shuffled(size, seed, step, "order", i) for i, size in enumerate(sizes)], per_batch)


def test_every_epoch_sees_every_sample_once() -> None:
    drawn = [order(3, 1, [10, 7], [4, 3]).rows(i) for i in range(35)]
    for pool, size in enumerate((10, 7)):
        stream = np.concatenate([rows[pool] for rows in drawn])
        epochs = [stream[i : i + size].tolist() for i in range(0, len(stream) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_its_index_alone() -> None:
    def make(seed: int = 3, step: int = 1) -> Order:
        return order(seed, step, [10, 7], [4, 9])

    used = make()
    used.rows(0)
    assert all(np.array_equal(a, b) for a, b in zip(make().rows(17), used.rows(17), strict=True))
    assert not np.array_equal(make().rows(0)[0], make(seed=4).rows(0)[0])
    assert not np.array_equal(make().rows(0)[1], make(step=2).rows(0)[1])


def test_an_empty_pool_draws_nothing() -> None:
    assert [len(rows) for rows in order(0, 1, [0, 5], [0, 2]).rows(0)] == [0, 2]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_groups_take_turns_and_so_do_rows_within_a_group(groups: list[int], start: int, count: int) -> None:
    groups_ = np.array(groups)
    draws = Balanced(groups_, 0, "test")
    known = len(np.unique(groups_))
    whole = draws(0, 10 * known)
    assert np.array_equal(draws(start, count), draws(0, start + count)[start:])
    for turn in groups_[whole].reshape(10, known):
        assert sorted(turn) == sorted(np.unique(groups_))
    for group in np.unique(groups_):
        times = np.bincount(whole[groups_[whole] == group], minlength=len(groups_))[groups_ == group]
        assert times.max() - times.min() <= 1


def test_a_reservoir_forgets_for_good_and_favours_nobody() -> None:
    names, sizes = [f"a{i}" for i in range(6)], [40, 10, 80, 5, 60, 5]
    kept: list[set[int]] = [set(reservoir(7, names[:n], sizes[:n], 20).tolist()) for n in range(1, 7)]
    assert [len(k) for k in kept] == [20] * 6
    for before, after, new in zip(kept, kept[1:], np.cumsum(sizes), strict=False):
        assert {row for row in after if row < new} <= before
    assert reservoir(7, ["a"], [3], 20).tolist() == [0, 1, 2]
    often = np.zeros(sum(sizes))
    for seed in range(300):
        often[reservoir(seed, names, sizes, 20)] += 1
    by_pool = [part.mean() for part in np.split(often, np.cumsum(sizes)[:-1])]
    assert by_pool == pytest.approx([300 * 20 / 200] * 6, rel=0.2)


def test_pool_joins_its_parts(tmp_path: Path) -> None:
    dataset(tmp_path / "one", 4)
    dataset(tmp_path / "two", 6, noise=1)
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    pool = Pool("buffer", [one, two])
    assert len(pool) == 10
    assert pool.captions == [*one.captions, *two.captions]
    rows = np.array([9, 0, 4, 3])
    expected = np.stack([two.images[5], one.images[0], two.images[0], one.images[3]])
    assert np.array_equal(pool.images(rows), expected)
    assert pool.ids(rows)[:2] == ["buffer/green-5", "buffer/red-0"]
    assert pool.groups("arrival").tolist() == [0] * 4 + [1] * 6
    by_class = pool.groups("class")
    assert (by_class[0], by_class[1]) == (by_class[4], by_class[5])  # red and green of both
    assert len(set(by_class.tolist())) == 4
    part = Pool("buffer", [one, two], np.array([1, 8]))
    assert (len(part), part.captions) == (2, [one.captions[1], two.captions[4]])
    assert part.ids(np.array([1])) == ["buffer/red-4"]
    assert part.groups("arrival").tolist() == [0, 1]
    assert len(Pool("empty")) == 0
    assert Pool("empty").captions == []


@pytest.mark.parametrize("form", ["raw", "model", "original"])
def test_views_of_a_pool_are_random_crops_of_all_that_is_stored(tmp_path: Path, form: str) -> None:
    how = None if form == "raw" else Jpeg("original" if form == "original" else "model")
    ramp = np.tile(np.linspace(0, 255, 48, dtype=np.uint8)[None, :, None], (16, 1, 3))  # three times as wide as high
    square = np.asarray(ramp[:, 16:32])
    original = encode(np.asarray(ramp), 95) if form == "original" else None
    write(tmp_path, Card("ramp", 16, jpeg=how), [Sample("s", square, "a ramp", -1, original)], 1)
    pool, draws = Pool("update", [Dataset(tmp_path)]), draw(3, np.random.default_rng(0))
    images, boxes = pool.views(np.array([0, 0, 0]), draws)
    assert images.shape == (3, 16, 16, 3)
    if form == "original":  # the centre of the ratio 4:3, as torchvision has it where nothing fits
        assert (boxes == WHOLE).all()
        assert images[0, 8, 0, 0] < square[8, 0, 0] - 5
        assert images[0, 8, -1, 0] > square[8, -1, 0] + 5
    else:
        np.testing.assert_array_equal(boxes, draws.squares())
        assert np.abs(images[0].astype(int) - square).max() <= (0 if form == "raw" else 4)
