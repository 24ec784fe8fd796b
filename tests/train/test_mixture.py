"""Which samples make a batch: exact counts, no repeats within an epoch, a pure function of its index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.datasets import Dataset
from tasks.train.mixture import Order, counts
from tasks.train.pools import Pool
from tests.train.project import dataset


def test_times_mixture_at_batch_512() -> None:
    assert counts([0.33, 0.34, 0.33], [9, 9, 9], 512) == [169, 174, 169]


def test_an_empty_pools_share_goes_to_the_others_in_proportion() -> None:
    assert counts([0.33, 0.34, 0.33], [9, 9, 0], 67) == [33, 34, 0]
    assert counts([0.2, 0.6, 0.2], [0, 9, 9], 8) == [0, 6, 2]
    assert counts([0.33, 0.34, 0.33], [0, 9, 0], 5) == [0, 5, 0]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(2, 700))
def test_counts_sum_to_the_batch(shares: list[float], batch: int) -> None:
    found = counts(shares, [1] * len(shares), batch)
    assert sum(found) == batch
    assert all(abs(n - batch * s / sum(shares)) < 1 for n, s in zip(found, shares, strict=True))


def test_every_epoch_sees_every_sample_once() -> None:
    order = Order(3, 1, ["a", "b"], [10, 7], [4, 3])
    drawn = [order.rows(i) for i in range(35)]
    for pool, size in enumerate((10, 7)):
        stream = np.concatenate([rows[pool] for rows in drawn])
        epochs = [stream[i : i + size].tolist() for i in range(0, len(stream) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_its_index_alone() -> None:
    def make(seed: int = 3, step: int = 1) -> Order:
        return Order(seed, step, ["a", "b"], [10, 7], [4, 9])

    used = make()
    used.rows(0)
    assert all(np.array_equal(a, b) for a, b in zip(make().rows(17), used.rows(17), strict=True))
    assert not np.array_equal(make().rows(0)[0], make(seed=4).rows(0)[0])
    assert not np.array_equal(make().rows(0)[1], make(step=2).rows(0)[1])


def test_an_empty_pool_draws_nothing() -> None:
    assert [len(rows) for rows in Order(0, 1, ["a", "b"], [0, 5], [0, 2]).rows(0)] == [0, 2]


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
    assert len(Pool("empty")) == 0
    assert Pool("empty").captions == []
