"""Each ordering on a small material, and its cut into time steps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.prepare.source import Example, Reading
from tasks.stream import cut
from tasks.stream.material import DataSet, LoadedBase, Material, Pair
from tasks.stream.ordering import known, named
from tasks.stream.orderings.frequency import count
from tasks.stream.orderings.similarity import shortest_path

CLASSES = {"birds": ("owl", "wren"), "cars": ("bus", "fire engine", "van")}
DATES = {"birds": "2017", "cars": "2011-05-30"}
ANGLES = {"owl": 0.0, "wren": 20.0, "bus": 170.0, "fire engine": 15.0, "van": 90.0}
"""Where captions and images of a class lie, in degrees."""


class Compass(LoadedBase):
    """Features are directions: a text's that of the class it names, an image's that of its first pixel."""

    def __init__(self) -> None:
        pass

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        return directions([next(ANGLES[name] for name in ANGLES if name in text) for text in texts])

    def image_features(self, images: np.ndarray) -> np.ndarray:
        return directions(images[:, 0, 0, 0].astype(float))


def directions(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    radians = np.deg2rad(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


IMAGES = {"owl": [0, 0, 180], "wren": [20, 20, 20], "bus": [170, 0, 90, 90], "fire engine": [15, 10], "van": [90, 170]}


@contextmanager
def readings(one: DataSet) -> Iterator[list[tuple[None, Reading]]]:
    classes = CLASSES[one.name]
    examples = [
        Example(f"{name}-{i}", np.full((1, 1, 3), degrees, dtype=np.uint8), f"a {name}", name)
        for name in classes
        for i, degrees in enumerate(IMAGES[name])
    ]
    texts = tuple((e.caption, e.class_name) for e in examples)
    yield [(None, Reading(len(examples), classes, "a {}", (), iter(examples), texts))]


def material(seed: int = 0, dates: dict[str, str] = DATES, project: Path = Path()) -> Material:
    pairs = [
        Pair(data_set, name, (f"a {name}", f"one {name}"), ({"source": "images", "path": data_set, "only": [name]},))
        for data_set, names in CLASSES.items()
        for name in names
    ]
    return Material(
        pairs=tuple(pairs),
        data_sets=tuple(DataSet(name=name, update=[f"images:{name}"], date=dates.get(name)) for name in CLASSES),
        seed=seed,
        project=project,
        pretraining=lambda: iter(
            ["An owl and a van", "OWL!", "a van, a bus; a van", "vans", "the fire  engine", "owl"]
        ),
        base=Compass,
        readings=readings,
    )


def ordered(name: str, given: Material | None = None, **settings: Any) -> list[str]:
    made = given or material()
    return [made.pairs[i].name for i in named(name, settings).order(made)]


def test_every_file_is_an_order() -> None:
    assert set(known()) == {"random", "dataset", "date", "frequency", "similarity", "performance"}
    assert all(one.__doc__ and one.source for one in known().values())


@pytest.mark.parametrize("name", sorted(known()))
def test_an_order_is_a_permutation_and_the_same_every_time(name: str) -> None:
    found = ordered(name)
    assert sorted(found) == sorted(itertools.chain(*CLASSES.values()))
    assert ordered(name) == found


def test_random_follows_the_seed() -> None:
    assert len({tuple(ordered("random", material(seed))) for seed in range(5)}) > 1


def test_data_sets_come_as_given_or_by_date() -> None:
    assert [name in CLASSES["birds"] for name in ordered("dataset")] == [True, True, False, False, False]
    assert [name in CLASSES["cars"] for name in ordered("date")] == [True, True, True, False, False]
    with pytest.raises(UserError, match=r"--order date: the data set 'cars' has no date"):
        ordered("date", material(dates={"birds": "2017"}))


def test_rare_concepts_come_first(tmp_path: Path) -> None:
    assert ordered("frequency") == ["wren", "bus", "fire engine", "van", "owl"]
    (tmp_path / "counts.json").write_text(json.dumps({"owl": 1, "wren": 2, "bus": 9, "fire engine": 0, "van": 2.5}))
    given = material(project=tmp_path)
    assert ordered("frequency", given, counts="counts.json") == ["fire engine", "owl", "wren", "van", "bus"]
    (tmp_path / "counts.json").write_text('{"owl": 1}')
    with pytest.raises(UserError, match="has no count for 'wren'"):
        ordered("frequency", given, counts="counts.json")
    with pytest.raises(UserError, match="not a JSON file of counts"):
        ordered("frequency", given, counts="none.json")


def test_concepts_are_counted_as_whole_words_once_a_caption() -> None:
    captions = ["Hot dog, hot dog!", "a dog; hot", "hotdog", "DOG", "…"]
    assert count(["hot dog", "dog", "?"], captions) == {"hot dog": 1, "dog": 3, "?": 0}


def test_similar_concepts_follow_each_other() -> None:
    # 170 → 90 → 20 → 15 → 0 is as long as the way back: of equals the first start, which is the owl's.
    assert ordered("similarity") == ["owl", "fire engine", "wren", "van", "bus"]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 99))
def test_the_path_is_the_shortest_greedy_one(count: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)

    def greedy(start: int) -> list[int]:
        path, left = [start], set(range(count)) - {start}
        while left:
            here = path[-1]
            path.append(min(left, key=lambda j: (distances[here, j], j)))
            left.remove(path[-1])
        return path

    def length(path: list[int]) -> float:
        return float(sum(distances[a, b] for a, b in itertools.pairwise(path)))

    found = shortest_path(distances, np.arange(count))
    assert found == greedy(found[0])
    assert length(found) == pytest.approx(min(length(greedy(start)) for start in range(count)))


def test_easy_classes_come_first() -> None:
    # Right among the classes of its data set: wren 3 of 3, fire engine 2 of 2, owl 2 of 3, van 1 of 2, bus 1 of 4.
    assert ordered("performance") == ["wren", "fire engine", "owl", "van", "bus"]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_groups_are_near_equal_and_keep_the_order(count: int, steps: int) -> None:
    if steps > count:
        with pytest.raises(UserError, match=f"only {count} classes"):
            cut.groups(range(count), steps)
        return
    found = cut.groups(range(count), steps)
    assert list(itertools.chain(*found)) == list(range(count))
    assert len(found) == steps
    assert {len(group) for group in found} <= {count // steps, -(-count // steps)}


def test_the_stream_selects_classes_and_reads_back(tmp_path: Path) -> None:
    made = material()
    stream = cut.arrivals(made.pairs, [4, 0, 2, 1, 3], 2, "random")
    assert stream == [
        {
            "name": "random-001",
            "update": [
                {"source": "images", "path": "birds", "only": ["owl"]},
                {"source": "images", "path": "cars", "only": ["bus", "van"]},
            ],
        },
        {
            "name": "random-002",
            "update": [
                {"source": "images", "path": "birds", "only": ["wren"]},
                {"source": "images", "path": "cars", "only": ["fire engine"]},
            ],
        },
    ]
    (tmp_path / "stream.yaml").write_text(cut.text(stream, ["how it was made"]))
    written = (tmp_path / "stream.yaml").read_text()
    assert written.startswith("# how it was made\nstream:\n")
    assert YAML(typ="safe").load(written) == {"stream": stream}


def test_names_that_yaml_would_take_for_something_else_stay_text() -> None:
    pairs = [
        Pair("n", name, (name,), ({"source": "images", "path": "n", "only": [name]},)) for name in ("1", "no", "~")
    ]
    stream = cut.arrivals(pairs, [0, 1, 2], 1, "random")
    assert YAML(typ="safe").load(cut.text(stream, []))["stream"][0]["update"][0]["only"] == ["1", "no", "~"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "lists no data sets"),
        ("stream: []", "lists no data sets"),
        ("- {name: a, expert: x.safetensors}", "data set 1: "),
        ("- {name: a, update: ['images:a']}\n- {name: a, update: ['images:b']}", "two data sets are named 'a'"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_a_wrong_list_of_data_sets_is_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        cut.read(tmp_path / "sets.yaml")
    assert "\n" not in str(caught.value)


def test_dates_may_be_years_or_days(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "- {name: a, update: ['images:a'], date: 2011}\n- {name: b, update: ['images:b'], date: 2011-05-30}\n"
    )
    assert [one.date for one in cut.read(tmp_path / "s.yaml")] == ["2011", "2011-05-30"]


def test_unknown_orders_and_settings_say_what_there_is() -> None:
    with pytest.raises(UserError, match="--order: there is no 'easy'; there are dataset, date"):
        named("easy", {})
    with pytest.raises(UserError, match="--order: similarity: no setting 'start'; it accepts starts"):
        named("similarity", {"start": 3})
