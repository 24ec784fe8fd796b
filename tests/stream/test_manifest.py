"""The manifests of ready streams: every entry is complete and names a source that exists, and parses as params."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks import yaml
from tasks.errors import UserError
from tasks.params import Base, BaseTraining, Params
from tasks.prepare.registry import parse
from tasks.stream import manifest, pace, ready
from tasks.stream.manifest import ReadySet, StreamManifest
from tasks.stream.ready import Wanted
from tests.project import ROOT
from tests.test_yaml import NINE_LINES

READY = {"vision8": (8, 1), "vision14": (14, 1), "vision20": (20, 1), "fomo-in-flux": (41, 22)}


def whole(name: str) -> StreamManifest:
    return manifest.read(name, ROOT)


def entries() -> list[tuple[str, ReadySet]]:
    return [(name, one) for name in ("vision20", "fomo-in-flux") for one in whole(name).sets]


def test_there_are_these_streams() -> None:
    assert manifest.names(ROOT) == sorted(READY)


@pytest.mark.parametrize("name", READY)
def test_each_has_its_number_of_sets(name: str) -> None:
    found = whole(name)
    assert (len(found.of_role("adaptation")), len(found.of_role("retention"))) == READY[name]
    assert found.base.pretrained
    assert re.fullmatch(r"\S+, \S+", found.scored_by or "")


@pytest.mark.parametrize(("stream", "one"), entries(), ids=lambda value: getattr(value, "name", value))
def test_each_entry_has_its_fields_and_names_a_source_that_exists(stream: str, one: ReadySet) -> None:
    of = whole(stream)
    assert one.title
    assert one.licence
    assert one.score is not None
    assert one.sources or one.missing
    places = [*one.sources, ready.source(one, of, Path("elsewhere"))]
    for part in ("train", "test"):
        for place in places:
            parse(f"{place}#{part}", one.name)
            parse(ready.spec(one, place, part), one.name)
    if one.pairs:
        assert not one.templates
    elif one.role == "adaptation" or stream == "fomo-in-flux":
        assert one.templates
        assert (one.number_of_classes or 2) > 1
    assert len(set(one.classes)) == len(one.classes)


def test_vision_streams_are_the_first_of_one_list_and_have_experts() -> None:
    names = [one.name for one in whole("vision20").of_role("adaptation")]
    assert names[:8] == ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
    for count in (8, 14):
        assert [one.name for one in whole(f"vision{count}").of_role("adaptation")] == names[:count]
    assert all(one.expert and one.score for one in whole("vision20").of_role("adaptation"))


def test_the_validation_samples_are_those_of_task_vectors_code() -> None:
    by_name = {one.name: one for one in whole("vision20").sets}
    assert [by_name[name].validation for name in ("dtd", "mnist", "svhn", "emnist_letters")] == [376, 5000, 5000, 5000]
    assert ready.shares(by_name["mnist"]) == ("[:91.67%]", "[91.67%:]")
    uncounted = whole("fomo-in-flux").of_role("adaptation")[1]
    assert (uncounted.counts.train, ready.shares(uncounted)) == (None, ("[:90%]", "[90%:]"))


@pytest.mark.parametrize("name", ["vision8", "vision14", "vision20"])
@pytest.mark.parametrize(
    "wanted",
    [Wanted(), Wanted(experts=True), Wanted(evaluate_on="validation"), Wanted(data=Path("x")), Wanted(prepared="jpeg")],
)
def test_vision_streams_are_valid_params(name: str, wanted: Wanted) -> None:
    params = Params.model_validate(ready.params_of(whole(name), wanted))
    assert len(params.stream) == READY[name][0]
    assert {one.name for one in params.stream} == {one.name for one in params.evaluate.adaptation}
    assert params.grid is not None


def test_ten_orders_are_ten_streams_of_the_same_tasks() -> None:
    params = Params.model_validate(ready.params_of(whole("vision20"), Wanted(orders=10)))
    assert params.grid is not None
    orders = [[one["name"] for one in variant["stream"]] for variant in params.grid.variants.values()]
    assert list(params.grid.variants) == [f"order-{number}" for number in range(1, 11)]
    assert orders[0] == [one.name for one in params.stream]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) == 10
    assert orders[:3] == [
        [one["name"] for one in variant["stream"]]
        for variant in ready.params_of(whole("vision20"), Wanted(orders=3))["grid"]["variants"].values()
    ]


def test_fomo_in_flux_needs_a_folder_and_says_whom_to_ask() -> None:
    with pytest.raises(UserError, match=r"AI2DIAGRAMS: its archive is .*\(licence: open .*\); give a folder.*--data"):
        ready.params_of(whole("fomo-in-flux"), Wanted())
    params = Params.model_validate(ready.params_of(whole("fomo-in-flux"), Wanted(data=Path("archives"))))
    assert (len(params.stream), len(params.evaluate.retention)) == (41, 22)
    pairs = [one.name for one in params.evaluate.sets if one.prompt is None]
    assert sorted(pairs) == ["FLICKR30K", "FSCOCO", "MSCOCO"]


def test_disk_is_told_by_samples_and_size() -> None:
    found = whole("vision8")
    raw = ready.size_of(found, 224, Params.model_validate(ready.params_of(found, Wanted())).prepared, experts=False)
    arriving = sum((one.counts.train or 0) + (one.counts.test or 0) for one in found.of_role("adaptation"))
    assert raw.samples == arriving + 6085
    assert raw.prepared == raw.samples * 3 * 224 * 224
    assert raw.uncounted == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "expected keys such as stream, base and sets"),
        ("of: vision20\nfirst: 99", "first: expected a number of sets of vision20, got 99"),
        ("of: nothing", "nothing: no such stream; there are fomo-in-flux, vision14"),
        ("of: vision20\nfirst: 2\nsets: {}\nunknown: 1", "unknown"),
        ("stream: {", "not a readable YAML file"),
        ("of: '../x'\nfirst: 2", "of: expected the name of a stream beside it, got '../x'"),
        ("of: other\nfirst: 2", r"other.yaml: sets: expected a list of sets"),
        (
            "of: vision20\nfirst: 2\nscored_by: 'tiny.json, train'",
            "scored_by: is MODEL, TAG: a model and its weights",
        ),
        ("of: vision20\nfirst: 2\nscored_by: ViT-B-32", "scored_by: is MODEL, TAG: a model and its weights"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, content: str, message: str) -> None:
    for file in (ROOT / "streams").glob("*.yaml"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other.yaml").write_text("sets: 5")
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        manifest.read(str(tmp_path / "own.yaml"), ROOT)


def test_every_set_of_fomo_in_flux_can_be_read_from_a_hubs_archives() -> None:
    whole_stream = whole("fomo-in-flux")
    for one in whole_stream.sets:
        where = ready.source(one, whole_stream, Path("hf:org/archives"))
        made = parse(ready.spec(one, where, "test", info=Path("00_info")), one.name)
        said = made.model_dump(exclude_defaults=True)
        assert (made.name, said["path"], said["info"]) == ("fomo-tar", f"hf:org/archives/{one.name}", "00_info")
        assert said.get("template", "a photo of a {}.") == (one.templates or ("a photo of a {}.",))[0]
        assert said.get("pairs", False) == one.pairs


def test_an_unknown_stream_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="vision9: no such stream; there are fomo-in-flux, vision14, vision20, vision8"):
        manifest.read("vision9", ROOT)


def test_the_time_of_a_stream_counts_a_base_that_is_trained() -> None:
    stream = whole("vision8")
    given = Params.model_validate(ready.params_of(stream, Wanted()))
    base = Base(
        model="m.json", pretrained="train", train=BaseTraining(steps=50, batch_size=4), pretraining=["images:x"]
    )
    before, after = (pace.work(stream, one) for one in (given, given.model_copy(update={"base": base})))
    assert before.samples == before.steps * given.train.batch_size
    assert (after.steps - before.steps, after.samples - before.samples) == (50, 200)
    assert (after.images, after.photographs) == (before.images, before.photographs)


FOREIGN = """stream: x
about: {about}
base: {{model: ViT-B-32, pretrained: openai}}
scored_by: ViT-B-32, openai
train: {{steps: 3}}
time: {time}
grid: {grid}
folder: x
sets:
- {{name: a, title: t, licence: l, sources: ["images:x"]}}
- {{name: b, role: retention, title: t, licence: l, sources: ["images:x"]}}
"""


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("time", '{technique: {name: "/tmp/evil.py:Evil"}}'), ("time", '{technique: "evil.py:Evil"}'),
        ("grid", '{technique: [{name: "evil.py:Evil"}]}'),
        ("grid", '{variants: [{technique: {name: "evil.py:Evil"}}]}'),
    ],
)  # fmt: skip
def test_a_manifest_of_somebody_else_names_no_code(tmp_path: Path, key: str, section: str) -> None:
    """It would be in params.yaml, whose techniques run."""
    (tmp_path / "x.yaml").write_text(FOREIGN.format(**{"about": "x", "time": "{}", "grid": "{}", key: section}))
    with pytest.raises(UserError, match=rf"x\.yaml: {key}: names only what comes with chronomerge, got '.*evil"):
        manifest.read(str(tmp_path / "x.yaml"), ROOT)


@pytest.mark.parametrize(
    ("was", "place"),
    [
        ('sources: ["images:x"]', 'sources: ["images:/etc"]'), ('sources: ["images:x"]', 'sources: ["images://etc"]'),
        ('sources: ["images:x"]', 'sources: ["table:../x.csv#train"]'),
        ('sources: ["images:x"]', 'sources: ["images:link/x"]'),
        ('sources: ["images:x"]', 'sources: ["hf:o/n"], expert: "../expert.safetensors"'),
        ("pretrained: openai", "pretrained: /etc/passwd"), ("model: ViT-B-32", "model: 'local-dir:/etc'"),
        ("pretrained: openai", "pretrained: openai, pretraining: ['images:/etc']"),
        ("folder: x", "folder: images:/etc"), ("folder: x", "folder: x\narchives: 'fomo-tar:../{data}'"),
        ("grid: {}", "grid: {variants: {a: {stream: [{name: a, update: [{source: images, path: /etc}]}]}}}"),
    ],
)  # fmt: skip
def test_a_manifest_of_somebody_else_names_no_files_of_this_machine(tmp_path: Path, was: str, place: str) -> None:
    """They would be trained on, and go into the store that the same repository names."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "link").symlink_to("/etc")
    text = FOREIGN.format(about="x", time="{}", grid="{}")
    assert was in text
    (tmp_path / "x.yaml").write_text(text.replace(was, place))
    with pytest.raises(UserError, match=r"leads out of the project, and a manifest names none of your folders"):
        manifest.read(str(tmp_path / "x.yaml"), project)
    (tmp_path / "x.yaml").write_text(
        text.replace("images:x", "hf:org/name").replace("folder: x", "folder: images:{data}")
    )
    assert manifest.read(str(tmp_path / "x.yaml"), project).stream == "x"


def test_what_a_manifest_is_about_stays_a_comment(tmp_path: Path) -> None:
    about = r'"x\nhooks: {recorded: [touch, x]}\nseed: 5"'
    (tmp_path / "x.yaml").write_text(FOREIGN.format(about=about, time="{}", grid="{}"))
    text = ready.text(manifest.read(str(tmp_path / "x.yaml"), ROOT), Wanted(), tmp_path)
    assert text.startswith("# x hooks: {recorded: [touch, x]} seed: 5: streams/x.yaml")
    assert not {"hooks", "seed"} & yaml.load(text).keys()


def test_a_manifest_with_aliases_for_a_billion_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"{NINE_LINES}of: *a8\nfirst: 1\n")
    with pytest.raises(UserError, match="not a readable YAML file: its aliases"):
        manifest.read(str(tmp_path / "x.yaml"), ROOT)
