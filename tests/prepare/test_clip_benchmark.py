"""CLIP_benchmark's layout, from a folder and from a hub: names, templates, splits, pins, and every way to fail."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UnavailableError, UserError
from tasks.model.datasets import Dataset
from tasks.prepare import check, notes_on
from tasks.prepare.registry import parse
from tests import hub, published
from tests.prepare.conftest import params, picture

Prepare = Callable[..., Dataset]
SAMPLES = [(picture(number), label) for number, label in enumerate((0, 1, 2, 0, 1, 2, 1))]


@pytest.fixture(autouse=True)
def animals(project: Path) -> Path:
    return published.clip_benchmark(project / "animals", {"train": SAMPLES[:4], "test": SAMPLES[2:]}, shard=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    folder = published.clip_benchmark(
        tmp_path_factory.mktemp("wds") / "animals", {"train": SAMPLES[:4], "test": SAMPLES[2:]}, shard=2
    )
    with hub.serving() as one:
        one.commit("clip-benchmark/wds_vtab-animals", folder, kind="datasets")
        yield one


def named(data: Dataset) -> list[str]:
    return [data.card.classes[label] for label in data.labels]


def test_classes_and_templates_come_with_the_data(prepare_test: Prepare, project: Path) -> None:
    data = prepare_test("clip-benchmark:animals#test")
    assert named(data) == ["polar bear", "cat", "dog", "polar bear", "dog"]
    assert data.card.templates == ("a photo of a {}.", "a blurry photo of a {}.")
    assert data.card.prompt == "a photo of a {}."
    assert data.captions[0] == "a photo of a polar bear."
    (origin,) = data.card.origins
    assert (origin.source, origin.licence, origin.attribution) == ("animals", "cc-by-4.0", "Small Animals")
    assert sorted(p.name for p in (project / "data/raw/evaluation/clip-benchmark").rglob("*.tar")) == [
        "0.tar", "1.tar", "2.tar",
    ]  # fmt: skip


def test_pixels_are_those_of_the_samples(prepare: Prepare, project: Path) -> None:
    data = prepare("clip-benchmark:animals#train")
    plain = project / "plain"
    for number, (image, label) in enumerate(SAMPLES[:4]):
        (plain / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(plain / str(label) / f"{number}.png")
    other = prepare("images:plain")
    by_image = {image.tobytes(): name for image, name in zip(other.images, named(other), strict=True)}
    numbers = {"cat": "0", "dog": "1", "polar bear": "2"}
    assert [by_image[image.tobytes()] for image in data.images] == [numbers[name] for name in named(data)]


def test_classes_without_samples_stay_choices_and_only_leaves_them_out(prepare_test: Prepare, project: Path) -> None:
    published.clip_benchmark(project / "few", {"test": SAMPLES[:2]})
    assert prepare_test("clip-benchmark:few").card.classes == ("cat", "dog", "polar bear")
    some = prepare_test({"source": "clip-benchmark", "path": "animals", "split": "test", "only": ["cat", "dog"]})
    assert some.card.classes == ("cat", "dog")
    assert named(some) == ["cat", "dog", "dog"]
    with pytest.raises(UserError, match="only names the class 'cow'"):
        prepare_test({"source": "clip-benchmark", "path": "animals", "split": "test", "only": ["cow"]})


def test_classes_of_the_same_name_are_told_apart(prepare_test: Prepare, project: Path) -> None:
    published.clip_benchmark(project / "twice", {"test": SAMPLES[:6]}, ("missile", "dog", "missile"))
    data = prepare_test("clip-benchmark:twice")
    assert data.card.classes == ("dog", "missile", "missile")
    assert [int(label) for label in data.labels] == [1, 0, 2, 1, 0, 2]
    assert data.captions[2] == "a photo of a missile."
    assert any(
        "1 classes have the name of an earlier one" in note for note in notes_on(project / "data/raw/evaluation")
    )


def test_a_prompt_of_the_users_own_replaces_the_ensemble(prepare_test: Prepare) -> None:
    own = {"source": "clip-benchmark", "path": "animals", "split": "test", "template": "an icon of {}"}
    data = prepare_test(own)
    assert (data.card.prompt, data.card.templates) == ("an icon of {}", ())
    assert prepare_test("clip-benchmark:animals#test", prompt="{}").card.templates == ()


def test_captions_one_a_line_of_a_retrieval_set(prepare_test: Prepare, project: Path) -> None:
    samples = [(picture(0), ["a red cat", "a cat "]), (picture(1), ["a dog"])]
    published.clip_benchmark(project / "pairs", {"test": samples}, retrieval=True)
    data = prepare_test("clip-benchmark:pairs")
    assert data.captions == ["a red cat", "a cat", "a dog"]
    assert set(data.labels) == {-1}
    assert (data.images[0] == data.images[1]).all()


def test_a_selection_of_classes_says_that_tar_files_come_whole(prepare: Prepare, project: Path) -> None:
    data = prepare({"source": "clip-benchmark", "path": "animals", "split": "test", "only": ["cat"]})
    assert named(data) == ["cat"] * len(data)
    raw = project / "data/raw/arrival"
    assert len(list(raw.rglob("*.tar"))) == 3
    said = next(note for note in notes_on(raw) if "tar files have no index of classes, so all 3 files" in note)
    assert re.search(r"\([0-9.]+ kB\) read$", said)


def test_the_first_samples_take_no_more_shards_than_they_need(prepare: Prepare, project: Path) -> None:
    data = prepare("clip-benchmark:animals#test[:3]")
    assert named(data) == ["polar bear", "cat", "dog"]
    raw = project / "data/raw/arrival"
    assert len(list(raw.rglob("*.tar"))) == 2
    assert any("the first 3 samples: 2 of 3 files read" in note for note in notes_on(raw))
    with pytest.raises(UserError, match="has 5 samples, not 6"):
        prepare("clip-benchmark:animals#test[:6]")


def test_a_drawn_share_of_a_split(prepare: Prepare) -> None:
    first, second = (prepare(f"clip-benchmark:animals#test{share}") for share in ("[:50%]", "[50%:]"))
    assert not {*first.ids} & {*second.ids}
    assert len(first) + len(second) == 5


def test_what_is_left_out_is_counted(prepare: Prepare, project: Path, animals: Path) -> None:
    (animals / "extra.json").write_text("{}")
    published.write_tar(animals / "train/7.tar", [])
    published.write_tar(
        animals / "train/0.tar",
        [("a.webp", published.png(picture(0))), ("a.cls", b"1"), ("a.json", b"{}"), ("README", b"x")],
    )
    prepare("clip-benchmark:animals#train")
    notes = "\n".join(notes_on(project / "data/raw/arrival"))
    assert "left out: 1 .json, 1 .tar" in notes
    assert "left out of its tar files: 1 json, 1 without extension" in notes


# --- From a hub -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["vtab/animals", "hf:clip-benchmark/wds_vtab-animals", "clip-benchmark/wds_vtab-animals@main"]
)
def test_names_of_a_repository(server: hub.Hub, prepare_test: Prepare, tmp_path: Path, address: str) -> None:
    with server.used(tmp_path / "home"):
        assert named(prepare_test(f"clip-benchmark:{address}#test")) == [
            "polar bear",
            "cat",
            "dog",
            "polar bear",
            "dog",
        ]


def test_what_came_from_a_hub_is_pinned_on_the_card(server: hub.Hub, prepare: Prepare, tmp_path: Path) -> None:
    key = "datasets/clip-benchmark/wds_vtab-animals"
    commit = server.repositories[key].refs["main"]
    with server.used(tmp_path / "home"):
        data = prepare("clip-benchmark:vtab/animals#train")
    (origin,) = data.card.origins
    assert origin.source == f"hf:clip-benchmark/wds_vtab-animals@{commit}"
    assert (origin.licence, origin.attribution) == ("cc-by-4.0", "Small Animals, hf:clip-benchmark/wds_vtab-animals")
    files = server.repositories[key].commits[commit]
    wanted = {"train/0.tar", "train/1.tar", "train/nshards.txt", "classnames.txt", "README.md",
              "zeroshot_classification_templates.txt"}  # fmt: skip
    assert {name: (size, sha) for name, size, sha in origin.files} == {
        name: (len(files[name]), hashlib.sha256(files[name]).hexdigest()) for name in wanted
    }
    assert json.loads((data.folder / "dataset.json").read_text())["origins"][0]["files"]


def test_only_the_files_of_the_split_are_downloaded(server: hub.Hub, prepare: Prepare, tmp_path: Path) -> None:
    server.requests.clear()
    with server.used(tmp_path / "home"):
        prepare("clip-benchmark:vtab/animals#test[:1]")
    tars = {
        one.path.rpartition("/resolve/")[2].partition("/")[2] for one in server.requests if one.path.endswith(".tar")
    }
    assert tars == {"test/0.tar"}


def test_offline_the_cache_has_to_do(server: hub.Hub, prepare: Prepare, tmp_path: Path) -> None:
    with server.used(tmp_path / "home"):
        before = prepare("clip-benchmark:vtab/animals#train")
    with server.used(tmp_path / "home", offline=True):
        again = prepare("clip-benchmark:vtab/animals#train")
        assert (again.images == before.images).all()
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and the cache in .* lacks it"):
            prepare("clip-benchmark:vtab/animals#test")


def test_a_broken_download_goes_on_and_a_hub_that_is_down_says_so(
    server: hub.Hub, prepare: Prepare, tmp_path: Path
) -> None:
    files = server.files("clip-benchmark/wds_vtab-animals", kind="datasets")
    server.cut[hashlib.sha256(files["train/0.tar"]).hexdigest()] = 1000
    with server.used(tmp_path / "home"):
        assert len(prepare("clip-benchmark:vtab/animals#train")) == 4
    assert not server.cut
    server.down = True
    try:
        with server.used(tmp_path / "other"), pytest.raises(UnavailableError, match=r"status 503|does not answer"):
            prepare("clip-benchmark:vtab/animals#train")
    finally:
        server.down = False


def test_gated_and_missing_repositories(server: hub.Hub, prepare: Prepare, tmp_path: Path) -> None:
    server.commit("org/wds_gated", {"test/nshards.txt": "1\n"}, kind="datasets")
    server.repositories["datasets/org/wds_gated"].gated = True
    with server.used(tmp_path / "home"):
        with pytest.raises(UserError, match=r"access to the repository is restricted; log in"):
            prepare("clip-benchmark:org/wds_gated#test")
        with pytest.raises(UserError, match=r"there is no folder vtab/none; as a name on a hub: .* no such repository"):
            prepare("clip-benchmark:vtab/none#test")


# --- What is wrong with a folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: [one.unlink() for one in f.glob("*/nshards.txt")], r"has no SPLIT/nshards.txt"),
        (lambda f: (f / "test/nshards.txt").write_text("4"), r"says 4 shards, and test/3.tar is missing"),
        (lambda f: (f / "test/nshards.txt").write_text("-1"), r"holds '-1', which is no number of shards"),
        (lambda f: (f / "classnames.txt").unlink(), r"classnames.txt is missing; give the names"),
        (lambda f: (f / "classnames.txt").write_text("cat\n\ndog\n"), r"line 2 is empty"),
        (lambda f: (f / "classnames.txt").write_text("cat\ndog\n"), r"its class is '2', and classnames.* 0 to 1"),
        (lambda f: (f / "dataset_type.txt").write_text("multilabel"), r"dataset_type.txt says 'multilabel'"),
        (
            lambda f: (f / "zeroshot_classification_templates.txt").write_text("a {c} of {x}"),
            r"must hold \{c\} once, and no other braces",
        ),
        (lambda f: (f / "test/0.tar").write_bytes(b"x" * 3000), r"0.tar is damaged or no tar file"),
        (
            lambda f: published.write_tar(f / "test/0.tar", [("a.webp", b"x"), ("a.npy", b"y")]),
            r"0.tar/a: has no cls, only webp, npy",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    prepare: Prepare, animals: Path, change: Callable[[Path], Any], words: str
) -> None:
    change(animals)
    with pytest.raises(UserError, match=words) as error:
        prepare("clip-benchmark:animals#test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clip-benchmark:animals", r"has the splits test, train; pick one with #test, say"),
        ("clip-benchmark:animals#dev", r"has no split 'dev', only test, train"),
        ("clip-benchmark:./nowhere#test", r"no such folder; or write a repository"),
        ("clip-benchmark:hf:org/name/file.tar#test", r"names a file of a repository"),
        ("clip-benchmark:animals#..", r"split: a split is a name"),
        ({"source": "clip-benchmark", "path": "animals", "first": 3, "only": ["cat"]}, r"give one of them"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_before_any_work(project: Path, spec: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(params(base={"model": "m", "pretrained": "p", "pretraining": [spec]}), project)


def test_a_split_of_the_usual_name_and_its_note(prepare_test: Prepare, project: Path) -> None:
    published.clip_benchmark(project / "valid", {"train": SAMPLES[:2], "validation": SAMPLES[:3]})
    assert len(prepare_test("clip-benchmark:valid#test")) == 3
    assert any("#test reads the split validation" in note for note in notes_on(project / "data/raw/evaluation"))
    assert len(prepare_test("clip-benchmark:valid#validation")) == 3


def test_short_and_mapping_form_mean_the_same() -> None:
    mapping = {"source": "clip-benchmark", "path": "vtab/cifar100", "split": "train"}
    assert parse("clip-benchmark:vtab/cifar100#train", "x") == parse(mapping, "x")
    assert parse("clip-benchmark:a#train[:10]", "x") == parse({**mapping, "path": "a", "first": 10}, "x")
    assert parse("clip-benchmark:a#train[:10%]", "x") == parse({**mapping, "path": "a", "share": "[:10%]"}, "x")
