"""Data sets of a hub: the three layouts, columns, classes, splits, selections, pins, and every way to fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.errors import UnavailableError, UserError
from tasks.model.datasets import Dataset
from tasks.prepare import notes_on, parquet
from tasks.prepare.registry import parse, written
from tasks.storage.cache import sha256_of
from tasks.storage.hub import TAIL
from tests import hub, published
from tests.prepare.conftest import picture

Prepare = Callable[..., Dataset]
NAMES = ("cat", "dog", "polar bear")
LABELS = (0, 0, 1, 1, 2, 2)
TRAIN = [{"image": picture(n), "label": label, "note": "x"} for n, label in enumerate(LABELS)]
TEST = [{"image": picture(n + 50), "label": label, "note": "x"} for n, label in enumerate((2, 0, 1))]


@pytest.fixture(scope="module")
def server() -> Iterator[hub.Hub]:
    with hub.serving() as one:
        yield one


@pytest.fixture(autouse=True)
def used(server: hub.Hub, tmp_path: Path) -> Iterator[None]:
    server.repositories.clear()
    server.requests.clear()
    with server.used(tmp_path / "home"):
        yield


@pytest.fixture
def animals(server: hub.Hub, tmp_path: Path) -> str:
    """The commit of ``org/animals``: Parquet in two files and one, with names of classes in the files."""
    folder = tmp_path / "animals"
    classes = {"label": NAMES}
    published.parquet(folder / "data/train-00000-of-00002.parquet", TRAIN[:4], classes, group=2)
    published.parquet(folder / "data/train-00001-of-00002.parquet", TRAIN[4:], classes, group=2)
    published.parquet(folder / "data/test-00000-of-00001.parquet", TEST, classes)
    (folder / "README.md").write_text("---\nlicense: [cc-by-4.0, other]\npretty_name: Animals\n---\n")
    return server.commit("org/animals", folder, kind="datasets")


def named(data: Dataset) -> list[str]:
    return [data.card.classes[label] for label in data.labels]


def downloaded(server: hub.Hub) -> set[str]:
    """Files that came whole, rather than in parts."""
    paths = {r.path.rpartition("/objects/")[2] for r in server.requests if r.method == "GET" and r.range is None}
    return {
        name
        for one in server.repositories.values()
        for files in one.commits.values()
        for name, content in files.items()
        if hashlib.sha256(content).hexdigest() in paths
    }


def notes(project: Path, what: str = "arrival") -> str:
    return "\n".join(notes_on(project / "data/raw" / what))


# --- Parquet --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("animals")
def test_parquet_with_its_own_names_of_classes(prepare: Prepare, server: hub.Hub, project: Path) -> None:
    data = prepare("hf:org/animals#train")
    assert named(data) == [NAMES[label] for label in LABELS]
    assert data.ids[:2] == [f"org/animals:data/train-00000-of-00002.parquet:{n}" for n in (1, 2)]
    assert data.ids[-1] == "org/animals:data/train-00001-of-00002.parquet:2"
    assert data.captions[4] == "a photo of a polar bear."
    assert downloaded(server) == {f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)}
    assert "columns that are not read: note" in notes(project)


@pytest.mark.usefixtures("animals")
def test_pixels_are_those_of_a_folder_of_the_same_images(prepare: Prepare, project: Path) -> None:
    data = prepare("hf:org/animals#train")
    for number, row in enumerate(TRAIN):
        (project / "plain/x").mkdir(parents=True, exist_ok=True)
        row["image"].save(project / f"plain/x/{number}.png")
    assert (data.images == prepare("images:plain").images).all()


def test_what_came_is_pinned_and_credited(prepare: Prepare, server: hub.Hub, animals: str) -> None:
    data = prepare("hf:org/animals@main#test")
    (origin,) = data.card.origins
    assert (origin.source, origin.licence) == (f"hf:org/animals@{animals}", "cc-by-4.0, other")
    assert origin.attribution == "Animals, hf:org/animals"
    files = server.files("org/animals", kind="datasets")
    assert {name: sha for name, _, sha in origin.files} == {
        name: hashlib.sha256(files[name]).hexdigest() for name in ("README.md", "data/test-00000-of-00001.parquet")
    }
    server.commit("org/animals", {"data/test-00000-of-00001.parquet": b"changed"}, kind="datasets")
    assert (prepare(f"hf:org/animals@{animals}#test").images == data.images).all()


def test_columns_found_by_kind_and_named(prepare: Prepare, server: hub.Hub, tmp_path: Path) -> None:
    rows = [{"img": picture(n), "fine_label": n, "coarse_label": 0} for n in range(3)]
    both = {"fine_label": NAMES, "coarse_label": ["animal"]}
    file = published.parquet(tmp_path / "t/train.parquet", rows, both, images=("img",))
    server.commit("org/cifar", {"data/train.parquet": file}, kind="datasets")
    with pytest.raises(UserError, match="the columns fine_label, coarse_label may be meant; name one with label"):
        prepare("hf:org/cifar#train")
    spec = {"source": "hf", "path": "org/cifar", "split": "train", "label": "fine_label"}
    assert named(prepare(spec)) == list(NAMES)
    with pytest.raises(UserError, match="no column 'label'; there are img, fine_label, coarse_label"):
        prepare({**spec, "label": "label"})
    with pytest.raises(UserError, match=r"column 'fine_label' holds int64, not encoded images"):
        prepare({**spec, "image": "fine_label"})


def test_names_of_classes_from_the_card(prepare: Prepare, server: hub.Hub, tmp_path: Path) -> None:
    rows = [{"img": picture(n), "fine_label": n} for n in range(3)]
    file = published.parquet(tmp_path / "t.parquet", rows, images=("img",), known=False)
    server.commit("org/bare", {"data/train.parquet": file}, kind="datasets")
    with pytest.raises(UserError, match="column 'fine_label' holds numbers; give their names"):
        prepare({"source": "hf", "path": "org/bare", "label": "fine_label"})
    server.commit("org/bare", {"README.md": f"---\n{published.FEATURES}---\n"}, kind="datasets")
    assert named(prepare("hf:org/bare#train")) == list(NAMES)
    own = {"source": "hf", "path": "org/bare", "split": "train", "classes": ["x", "y", "z"]}
    assert named(prepare(own)) == ["x", "y", "z"]


@pytest.mark.parametrize("column", ["caption", "captions"])
def test_lists_of_captions_are_one_sample_each(prepare: Prepare, server: hub.Hub, tmp_path: Path, column: str) -> None:
    rows = [{"image": picture(0), column: ["a cat", "one cat"]}, {"image": picture(1), column: ["a dog"]}]
    file = published.parquet(tmp_path / "t.parquet", rows)
    server.commit("org/pairs", {"test.parquet": file}, kind="datasets")
    data = prepare("hf:org/pairs")
    assert data.captions == ["a cat", "one cat", "a dog"]
    assert (data.images[0] == data.images[1]).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", r"org/paths: column 'image' holds paths of images"),
        ({"bytes": None, "path": "cat.png"}, r"org/paths: column 'image' holds paths of images"),
        ({"bytes": None, "path": "cat.png"}, r"parquet:1: the column of images holds paths of images"),
    ],
)
def test_images_that_are_paths_are_refused_with_the_way_out(
    prepare: Prepare, server: hub.Hub, tmp_path: Path, image: Any, message: str
) -> None:
    rows = [{"image": image, "caption": "a cat"}]
    kept = {"image": {"bytes": b"", "path": ""}, "caption": ""}
    schema = pa.Table.from_pylist([kept]).schema if message.startswith("parquet:1") else None
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet")
    server.commit("org/paths", {"train.parquet": tmp_path / "t.parquet"}, kind="datasets")
    with pytest.raises(UserError, match=rf"{message}.*; fetch the repository \(hf download\) and read .* table:"):
        prepare("hf:org/paths#train")


def test_configurations(prepare: Prepare, server: hub.Hub, tmp_path: Path, project: Path) -> None:
    one = published.parquet(tmp_path / "1.parquet", TRAIN[:2], {"label": NAMES})
    two = published.parquet(tmp_path / "2.parquet", TRAIN[:3], {"label": NAMES})
    configs = [
        {"config_name": name, "data_files": [{"split": "cropped_digits", "path": f"{name}/*.parquet"}]} for name in "ab"
    ]
    files = {"a/x.parquet": one, "b/x.parquet": two, "README.md": f"---\n{json.dumps({'configs': configs})}\n---\n"}
    server.commit("org/two", files, kind="datasets")
    assert len(prepare("hf:org/two/b#cropped_digits")) == 3
    assert "reads the configuration b; there are a too" in notes(project)
    assert "left out" not in notes(project)
    with pytest.raises(UserError, match="has the configurations a, b; name one as ORG/NAME/CONFIGURATION"):
        prepare("hf:org/two#cropped_digits")
    with pytest.raises(UserError, match="has no configuration 'c', only a, b"):
        prepare("hf:org/two/c")
    with pytest.raises(UserError, match="has no split 'test', only cropped_digits; #cropped_digits"):
        prepare("hf:org/two/a#test")


def test_the_copy_in_parquet_that_a_hub_makes(prepare: Prepare, server: hub.Hub, tmp_path: Path) -> None:
    file = published.parquet(tmp_path / "1.parquet", TRAIN[:2], {"label": NAMES})
    other = published.parquet(tmp_path / "2.parquet", TRAIN[:3], {"label": NAMES})
    files = {"default/train/0000.parquet": file, "other/train/0000.parquet": other}
    server.commit("org/made", files, kind="datasets", ref="refs/convert/parquet")
    assert len(prepare("hf:org/made@refs%2Fconvert%2Fparquet/default#train")) == 2
    with pytest.raises(UserError, match="has the configurations default, other; name one"):
        prepare("hf:org/made@refs%2Fconvert%2Fparquet#train")


# --- Selections -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("animals")
def test_some_classes_take_only_files_and_row_groups_that_may_have_them(
    prepare: Prepare, server: hub.Hub, project: Path
) -> None:
    data = prepare({"source": "hf", "path": "org/animals", "split": "train", "only": ["dog"]})
    assert (data.card.classes, len(data)) == (("dog",), 2)
    assert downloaded(server) == set()  # it comes in part
    assert data.ids == [f"org/animals:data/train-00000-of-00002.parquet:{n}" for n in (3, 4)]
    assert "the classes of only: 1 of 2 files read, and 1 of 2 row groups" in notes(project)
    with pytest.raises(UserError, match="only names the class 'cow'"):
        prepare({"source": "hf", "path": "org/animals", "split": "train", "only": ["cow"]})


@pytest.mark.usefixtures("animals")
def test_the_first_samples_take_no_more_files_than_they_need(prepare: Prepare, server: hub.Hub, project: Path) -> None:
    data = prepare("hf:org/animals#train[:3]")
    assert named(data) == ["cat", "cat", "dog"]
    assert downloaded(server) == {"data/train-00000-of-00002.parquet"}
    assert "the first 3 samples: 1 of 2 files read, and all 2 row groups" in notes(project)


@pytest.mark.usefixtures("animals")
def test_drawn_shares_have_no_sample_in_common(prepare: Prepare) -> None:
    first, second = (prepare(f"hf:org/animals#train{share}") for share in ("[:50%]", "[50%:]"))
    assert not {*first.ids} & {*second.ids}
    assert len(first) + len(second) == 6


@pytest.mark.parametrize("kind", ["parquet", "folders", "tars", "clip-benchmark"])
def test_shares_have_no_image_in_common_whatever_revision_an_address_names(
    prepare: Prepare, server: hub.Hub, tmp_path: Path, kind: str
) -> None:
    rows = [{"image": picture(n), "label": n % 2} for n in range(12)]
    files: Mapping[str, bytes | str | Path] | Path
    if kind == "parquet":
        files = {"train.parquet": published.parquet(tmp_path / "t.parquet", rows, {"label": NAMES})}
    elif kind == "folders":
        files = {f"train/{n % 2}a/{n}.png": published.png(picture(n)) for n in range(12)}
    elif kind == "tars":
        members = [
            (f"{n}.{end}", data) for n in range(12) for end, data in (("png", published.png(picture(n))), ("txt", b"x"))
        ]
        files = {"train.tar": published.write_tar(tmp_path / "t.tar", members)}
    else:
        files = published.clip_benchmark(tmp_path / "t", {"train": [(picture(n), n % 3) for n in range(12)]})
    commit = server.commit("org/wds_any", files, kind="datasets")
    source = "clip-benchmark:org/wds_any" if kind == "clip-benchmark" else "hf:org/wds_any"
    first, second = prepare(f"{source}#train[:50%]").images[:], prepare(f"{source}@{commit}#train[50%:]").images[:]
    assert len(first) + len(second) == 12
    assert not {image.tobytes() for image in first} & {image.tobytes() for image in second}


def test_some_classes_of_folders(prepare: Prepare, server: hub.Hub, project: Path) -> None:
    files = {f"train/{NAMES[n % 3].replace(' ', '_')}/{n}.png": published.png(picture(n)) for n in range(6)}
    server.commit("org/folders", files, kind="datasets")
    data = prepare({"source": "hf", "path": "org/folders", "only": ["polar bear"]})
    assert (data.card.classes, len(data)) == (("polar bear",), 2)
    assert "the classes of only: 2 of 6 files read" in notes(project)
    assert len([r for r in server.requests if r.method == "GET" and r.path.endswith(".png")]) == 2


@pytest.mark.usefixtures("animals")
def test_a_mirror_gives_the_same_files_and_is_named_nowhere(
    prepare: Prepare, server: hub.Hub, tmp_path: Path, project: Path
) -> None:
    """``HF_ENDPOINT`` is the setting; what is pinned is the repository and its commit, and no host."""
    first = prepare("hf:org/animals#train")
    with hub.serving() as mirror:
        mirror.commit("org/animals", server.files("org/animals", kind="datasets"), kind="datasets")
        server.down = True
        try:
            with mirror.used(tmp_path / "other"):
                again = prepare("hf:org/animals#train")
        finally:
            server.down = False
        assert len(downloaded(mirror)) == 2
    assert again.card.origins == first.card.origins
    assert (again.images[:] == first.images[:]).all()
    host = mirror.address.removeprefix("http://")
    texts = [path.read_text() for path in (project / "data").rglob("*.json")]
    assert not any(host in text for text in texts)


def served(server: hub.Hub, content: bytes) -> int:
    """Bytes of a large file that were asked for."""
    total = 0
    for one in server.requests:
        if one.method == "GET" and one.path.endswith(hashlib.sha256(content).hexdigest()):
            start, stop = (one.range or f"bytes=0-{len(content)}").removeprefix("bytes=").split("-")
            total += min(int(stop), len(content) - 1) + 1 - int(start)
    return total


def noise(number: int) -> Image.Image:
    """A picture of 30 kB that compresses to nothing less."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (100, 100, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("selection", "groups", "samples"), [({"only": ["dog"]}, [1], [21, 40]), ({"first": 25}, [0, 1], [1, 25])]
)
def test_row_groups_alone_are_brought_and_the_whole_file_is_named_by_the_hubs_hash(
    prepare: Prepare, server: hub.Hub, tmp_path: Path, project: Path, selection: dict[str, Any],
    groups: list[int], samples: list[int],
) -> None:  # fmt: skip
    rows = [{"image": noise(n), "label": n // 20, "more": "x" * 1000} for n in range(120)]
    file = published.parquet(tmp_path / "t.parquet", rows, {"label": [*NAMES, "fox", "owl", "hen"]}, group=20)
    server.commit("org/large", {"train.parquet": file}, kind="datasets")
    content = file.read_bytes()
    assert len(content) > 3_000_000
    part = prepare({"source": "hf", "path": "org/large", "split": "train", **selection})
    brought = served(server, content)
    assert len(groups) / 6 * len(content) < brought < len(groups) / 6 * len(content) + 3 * TAIL
    ((name, size, sha256),) = part.card.origins[0].files
    whole = hashlib.sha256(content).hexdigest()
    assert name == f"train.parquet (row groups {', '.join(map(str, groups))} of the file with SHA-256 {whole})"
    (kept,) = (project / "data/raw/arrival").rglob("train.parquet")
    assert (size, sha256) == (kept.stat().st_size, hashlib.sha256(kept.read_bytes()).hexdigest())
    assert part.ids == [f"org/large:train.parquet:{n}" for n in range(samples[0], samples[1] + 1)]
    assert (part.images == prepare("hf:org/large#train").images[samples[0] - 1 : samples[1]]).all()


# --- Folders of images and WebDataset -------------------------------------------------------------------------------


def test_folders_of_images(prepare: Prepare, server: hub.Hub, project: Path) -> None:
    files: dict[str, bytes | str] = {
        f"{part}/{NAMES[n % 3].replace(' ', '_')}/{n}.png": published.png(picture(n + shift))
        for part, shift in (("train", 0), ("validation", 50))
        for n in range(6)
    }
    server.commit("org/folders", {**files, "extra/list.pdf": "x"}, kind="datasets")
    data = prepare("hf:org/folders#train")
    assert sorted(named(data)) == sorted(list(NAMES) * 2)
    assert data.ids[0] == "org/folders/train/cat/0.png"
    assert len(prepare("hf:org/folders#test")) == 6
    assert "#test reads the split validation" in notes(project)
    assert "left out: 1 .pdf" in notes(project)


def test_folders_with_metadata(prepare: Prepare, server: hub.Hub) -> None:
    files: dict[str, bytes | str] = {f"train/{n}.png": published.png(picture(n)) for n in range(3)}
    files["train/metadata.jsonl"] = "".join(
        json.dumps({"file_name": f"{n}.png", "text": f"picture {n}"}) + "\n" for n in range(3)
    )
    server.commit("org/meta", files, kind="datasets")
    assert prepare("hf:org/meta#train").captions == ["picture 0", "picture 1", "picture 2"]


def test_webdataset(prepare: Prepare, server: hub.Hub, tmp_path: Path) -> None:
    members = [
        (f"{n}.{end}", data) for n in range(4) for end, data in (("png", published.png(picture(n))), ("cls", b"1"))
    ]
    files = {
        f"data/train-{s}.tar": published.write_tar(tmp_path / f"{s}.tar", members[4 * s : 4 * s + 4]) for s in (0, 1)
    }
    card = published.FEATURES.replace("fine_label", "cls").replace("img", "png")
    server.commit("org/wds", {**files, "README.md": f"---\n{card}---\n"}, kind="datasets")
    assert named(prepare("hf:org/wds#train")) == ["dog"] * 4
    assert len(prepare("hf:org/wds#train[:2]")) == 2


@pytest.mark.parametrize("kind", ["hf", "clip-benchmark"])
def test_the_first_samples_of_a_tar_file_come_by_range(
    prepare: Prepare, server: hub.Hub, tmp_path: Path, project: Path, kind: str
) -> None:
    samples = [(noise(n), n % 3) for n in range(150)]
    folder = published.clip_benchmark(tmp_path / "noise", {"train": samples}, shard=100)
    if kind == "hf":
        (folder / "README.md").write_text(f"---\n{published.FEATURES.replace('fine_label', 'cls')}---\n")
    server.commit("org/noise", folder, kind="datasets")
    first, second = (folder / f"train/{n}.tar" for n in (0, 1))
    address = "hf:org/noise" if kind == "hf" else "clip-benchmark:hf:org/noise"
    part = prepare(f"{address}#train[:20]")
    assert 0.2 * first.stat().st_size < served(server, first.read_bytes()) < 0.7 * first.stat().st_size
    assert served(server, second.read_bytes()) == 0
    assert "the first 20 samples: 1 of 2 files read (" in notes(project)
    ((name, size, sha256),) = [one for one in part.card.origins[0].files if one[0].startswith("train/0.tar")]
    assert name == f"train/0.tar (the first 20 samples of the file with SHA-256 {sha256_of(first)})"
    (kept,) = (project / "data/raw/arrival").rglob("0.tar")
    assert (size, sha256) == (kept.stat().st_size, sha256_of(kept))
    more = prepare(f"{address}#train[:120]")  # one shard, and the start of another
    assert 0.2 * second.stat().st_size < served(server, second.read_bytes()) < second.stat().st_size
    assert (part.images == more.images[:20]).all()
    whole = prepare(f"{address}#train")
    assert more.captions == whole.captions[:120]
    assert (more.images == whole.images[:120]).all()
    again = prepare(f"{address}#train[:20]")  # the same bytes, out of the cache
    assert again.card.origins == part.card.origins


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data.py": "raise SystemExit"}, r"is loaded by a script of its own \(data.py\), and no code of a repository"),
        ({"train.csv": "image,label\na,b\n"}, r"its files are read as csv; Parquet, folders of images, WebDataset"),
        ({"notes.xyz": "x"}, r"has no data that are read here"),
        ({"train/1.png": b"x", "train/2.png": b"x"}, r"its images lie in one folder \(train\), without metadata"),
        ({"train/a/1.png": b"x", "train/a/b/2.png": b"x"}, r"images lie at different depths"),
        ({"train.parquet": b"PAR1 and no more PAR1"}, r"train.parquet: is no readable Parquet file"),
        ({"README.md": "---\na: [\n---\n", "train/a/1.png": b"x"}, r"the head of its card is no YAML"),
        (
            {"README.md": "---\nconfigs: [{config_name: a, data_files: '../../**'}]\n---\n", "train/a/1.png": b"x"},
            r"its card names files outside of the repository \('\.\./\.\./\*\*'\)",
        ),
        (
            {"README.md": "---\nconfigs: [{config_name: a, data_files: 'http://a/x'}]\n---\n", "t/a/1.png": b""},
            r"its card names files outside of the repository",
        ),
        (  # as a regular expression it takes years
            {"README.md": f"---\nconfigs: [{{config_name: a, data_files: 't/{'*a' * 20}b'}}]\n---\n",
             f"t/{'a' * 200}.png": b"x"},
            r"its card has the pattern 't/\*a\*a.*', whose 20 wildcards can stand at too many places",
        ),
        (
            {"README.md": "---\na: &a [x, x]\nconfigs: [*a, *a]\n---\n", "t/a/1.png": b"x"},
            r"the head of its card has YAML aliases",
        ),
        ({"README.md": f"---\na: {'[' * 60}{']' * 60}\n---\n", "t/a/1.png": b"x"}, r"nested deeper than 50 levels"),
        (
            {"train.parquet": published.bomb(200)}, r"train\.parquet: unpacks to more than 64 times its size"
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_in_one_line(
    prepare: Prepare, server: hub.Hub, files: dict[str, Any], words: str
) -> None:
    server.commit("org/data", files, kind="datasets")
    with pytest.raises(UserError, match=words) as error:
        prepare("hf:org/data#train")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("hf: org/data: ")


@pytest.mark.usefixtures("animals")
def test_gated_missing_down_and_offline(server: hub.Hub, prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf:org/none: .* has no such repository, or it is private"):
        prepare("hf:org/none#train")
    with pytest.raises(UserError, match="the repository has no revision 'v9'"):
        prepare("hf:org/animals@v9#train")
    server.repositories["datasets/org/animals"].gated = True
    with pytest.raises(UserError, match="access to the repository is restricted; log in"):
        prepare("hf:org/animals#train")
    with server.used(tmp_path / "other", hub.TOKEN):
        before = prepare("hf:org/animals#train")
    with server.used(tmp_path / "other", offline=True):
        assert (prepare("hf:org/animals#train").images == before.images).all()
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the cache"):
            prepare("hf:org/animals#test")
    server.down = True
    try:
        with server.used(tmp_path / "third"), pytest.raises(UnavailableError):
            prepare("hf:org/animals#train")
    finally:
        server.down = False


def test_a_broken_download_goes_on_where_it_stopped(
    server: hub.Hub, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    file = published.parquet(tmp_path / "t.parquet", [{"image": Image.fromarray(pixels), "label": 0}], {"label": NAMES})
    server.commit("org/large", {"train.parquet": file}, kind="datasets")
    server.cut[hashlib.sha256(file.read_bytes()).hexdigest()] = 150_000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    assert len(prepare("hf:org/large#train")) == 1
    (again,) = [r.range for r in server.requests if r.range]
    assert int(again.removeprefix("bytes=").partition("-")[0]) > 0


def test_short_and_mapping_form_mean_the_same_and_what_is_pinned_is_written_short(animals: str, project: Path) -> None:
    source = parse("hf:org/animals#train", "x")
    assert source == parse({"source": "hf", "path": "hf:org/animals", "split": "train"}, "x")
    pinned = source.pinned(project)  # type: ignore[attr-defined]
    assert written(pinned) == f"hf:org/animals@{animals}#train"
    with pytest.raises(UserError, match="not an address of a hub"):
        parse("hf:animals", "x").check(project)


def test_a_row_group_that_is_kept_stays_one_however_few_rows_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_AT_ONCE", 1)
    rows = pa.table({"image": [bytes([n]) * 9 for n in range(30)], "label": [n // 10 for n in range(30)]})
    pa.parquet.write_table(rows, tmp_path / "all.parquet", row_group_size=10)
    size = (tmp_path / "all.parquet").stat().st_size
    with parquet.opened(tmp_path / "all.parquet", "all") as file:
        parquet.keep(file, [0, 2], ["image", "label"], size, tmp_path / "kept.parquet", "all")
    with parquet.opened(tmp_path / "kept.parquet", "kept") as kept:
        assert parquet.starts(kept) == [1, 11, 21]
        assert kept.read() == pa.concat_tables([rows.slice(0, 10), rows.slice(20)])
