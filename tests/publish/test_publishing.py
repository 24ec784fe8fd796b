"""A published state: a folder that loads, a card that says all it should, and nothing that is not for others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import open_clip
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load, load_file
from transformers import CLIPModel

from tasks import layout
from tasks.errors import UnavailableError, UserError
from tasks.model import models
from tasks.params import Base, TechniqueChoice
from tasks.publish import card, publish
from tasks.publish.public import shortened
from tasks.publish.recipe import last_merge, settings_of
from tasks.record import Form
from tasks.record.manifest import Manifest
from tasks.record.state import State
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git
from tests import hub, manifests, tokenizers
from tests.record import made_up
from tests.record.test_delivery import model

SECRET = "hf_tokenThatNobodyShouldSee"


def cards(**origins: list[dict[str, str]]) -> dict[str, bytes]:
    """Cards of prepared data sets, by path in a state."""
    return {path: json.dumps({"name": Path(path).parent.name, "origins": found}).encode()
            for path, found in origins.items()}  # fmt: skip


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory, dvc: Dvc) -> list[State]:
    """Two states with open_clip's tokenizer, and a third whose model has another; full of what is not for others."""
    folder = tmp_path_factory.mktemp("publish")
    remote = Remote("there", str(folder / "remote"))
    project = made_up.project(folder / "project", remote)
    params = YAML(typ="safe").load((project / "params.yaml").read_text())
    params["stream"] = [
        {"name": "first", "update": [f"images:{folder}/pictures/spring#train", "table:~/own/data.parquet"]},
        {"name": "second", "expert": f"s3://bucket/deep/inside/expert.safetensors?token={SECRET}"},
    ]
    params["hooks"] = {"recorded": f"curl -H {SECRET} http://10.0.0.1/"}
    params["evaluate"]["adaptation"][1]["test"] = ["images:/mnt/secret/place/second"]
    YAML(typ="safe").dump(params, project / "params.yaml")
    git(project, "commit", "--all", "--quiet", "--message", "params")
    tokenizers.save(folder / "words")
    found = []
    icons = {"source": "@iconify-json/noto 1.2.9", "licence": "Apache-2.0", "attribution": "by Google, https://x.org/l"}
    for step in range(3):
        home = folder / str(step)
        home.mkdir()
        text = {"vocab_size": len(tokenizers.WORDS), "hf_tokenizer_name": str(folder / "words")} if step == 2 else {}
        data = cards(**{
            f"{layout.HISTORY}/pools/base/dataset.json": [icons],
            f"{layout.ARRIVAL}/dataset.json": [{"source": f"{folder}/pictures/spring"}],
        })  # fmt: skip
        found.append(made_up.record(project, remote, dvc, instead={**model(home, **text), **data}))
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[hub.Hub]:
    with hub.serving() as server, server.used(tmp_path / "home", hub.TOKEN):
        yield server


def texts(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.suffix in (".json", ".md", ".yaml")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found if path.name != "vocab.json"}


def test_the_folder_loads_and_says_where_it_is_from(states: list[State], tmp_path: Path) -> None:
    done = publish(states[1], str(tmp_path / "shapes"), Form())
    folder = tmp_path / "shapes"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "README.md", "lineage.png", "open_clip_config.json", "open_clip_model.safetensors", "recipe/manifest.json",
        "recipe/merge.yaml", "recipe/params.yaml",
    }  # fmt: skip
    assert (done.files, done.commit) == (7, None)
    open_clip.create_model_and_transforms(f"local-dir:{folder}")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model_relation, card.data.library_name) == ("merge", "open_clip")
    assert card.data.license == "unknown"
    assert {"clip", "merge", "chronomerge"} <= set(card.data.tags or [])
    assert {one.metric_type: one.metric_value for one in card.data.eval_results or []} == {
        "A_KA": 1.0, "A_ZS": 2.0, "geometric_mean": 1.4,
    }  # fmt: skip
    text = card.text
    assert "| trained on: base | @iconify-json/noto 1.2.9 | Apache-2.0 | by Google, https://x.org/l |" in text
    assert "| trained on: arrival | …/spring | unknown |  |" in text
    assert "| 1 | first | data | init ema, deploy ema, linear" in text
    digest = hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert f"SHA-256 `{digest}`" in text
    assert "chronomerge verify state/x/0001" in text
    with Image.open(folder / "lineage.png") as picture:
        assert picture.size[0] > picture.size[1]
        assert len(picture.getcolors(1 << 16) or []) > 10  # boxes, an arrow and letters


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_published_folder_is_a_base_as_model_and_as_weights(
    states: list[State], tmp_path: Path, library: Literal["open_clip", "transformers"]
) -> None:
    """``base.model: local-dir:FOLDER``, the same with ``pretrained``, and a configuration of one's own with it."""
    publish(states[1], str(tmp_path / "shapes"), Form(library))
    deployed = load(model(tmp_path)[layout.DEPLOYED])  # as of every state here; beside its configuration
    for number, given in enumerate((
        {"model": "local-dir:shapes"},
        {"model": f"local-dir:{tmp_path / 'shapes'}", "pretrained": "shapes"},
        {"model": "tiny.json", "pretrained": "shapes"},
        {"model": "tiny.json", "pretrained": "local-dir:shapes"},
    )):  # fmt: skip
        base = Base.model_validate(given)
        models.check(base, tmp_path)
        into = tmp_path / str(number)
        models.resolve(base, tmp_path, into / "model")
        models.fetch_tokenizer(base, tmp_path, into / "model")
        assert models.fetch_base(base, tmp_path, into) is None
        read = load_file(into / "base.safetensors")
        assert read.keys() == deployed.keys()
        assert all(torch.equal(tensor.reshape(read[name].shape), read[name]) for name, tensor in deployed.items())


def test_what_came_from_a_hub_is_named_with_its_licence(tmp_path: Path, dvc: Dvc) -> None:
    remote = Remote("there", str(tmp_path / "remote"))
    project = made_up.project(tmp_path / "project", remote)
    params = YAML(typ="safe").load((project / "params.yaml").read_text())
    params["stream"] = [
        {"name": "brought", "expert": "data/arrivals/brought/expert"}, {"name": "file", "expert": "own/e.safetensors"},
    ]  # fmt: skip
    YAML(typ="safe").dump(params, project / "params.yaml")
    git(project, "commit", "--all", "--quiet", "--message", "params")

    def origin(repository: str, **more: str) -> bytes:
        files = {"model.safetensors": {"size": 1, "sha256": "0" * 64}}
        told = {"address": f"hf:{repository}", "repository": repository, "commit": "c0ffee" * 6, "files": files, **more}
        return json.dumps(told).encode()

    about = json.dumps({"read_as": "open_clip", "of_base": [], "notes": []}).encode()
    kinds = [
        {f"{layout.HISTORY}/source/origin.json": origin("org/base", licence="mit")},
        {f"{layout.RAW_ARRIVAL}/origin.json": origin("org/brought"), f"{layout.ARRIVAL}/expert.json": about},
        {f"{layout.ARRIVAL}/expert.json": about},
    ]
    for number, more in enumerate(kinds):
        (home := tmp_path / f"{number}").mkdir()
        state = made_up.record(project, remote, dvc, instead={**model(home), **more})
    publish(state, str(tmp_path / "shapes"), Form())
    card = ModelCard.load(tmp_path / "shapes/README.md")
    assert card.data.base_model == ["org/base", "org/brought"]
    assert "| base weights | hf:org/base@c0ffeec0ffee | mit |  |" in card.text
    assert "| expert: brought | hf:org/brought@c0ffeec0ffee | unknown |  |" in card.text
    assert "| expert: file | own/e.safetensors | unknown |  |" in card.text
    assert "| 1 | brought | expert hf:org/brought@c0ffeec0ffee |" in card.text
    assert "| 2 | file | expert own/e.safetensors |" in card.text


def test_the_recipe_says_what_the_params_leave_to_the_technique(states: list[State]) -> None:
    given = states[2].settings.time.technique
    assert (given.name, given.settings) == ("linear", {})
    wanted = {"normalize": True, "recency": "uniform", "reverse": False}
    assert wanted.items() <= last_merge(states[2])["parameters"].items()
    for technique, wanted in (
        ({"name": "ties"}, {"density": 0.2}),
        ({"name": "ties", "density": 0.7}, {"density": 0.7}),
        ({"name": "own/rule.py:Rule", "x": 1}, {"x": 1}),
    ):
        found = settings_of(TechniqueChoice.model_validate(technique))
        assert {key: found[key] for key in wanted} == wanted
        assert all(value is not None for value in found.values())


def test_the_recipe_is_the_last_merge(states: list[State], tmp_path: Path) -> None:
    publish(states[2], str(tmp_path / "shapes"), Form())
    recipe = YAML(typ="safe").load((tmp_path / "shapes/recipe/merge.yaml").read_text())
    md5 = [state.entries[layout.EXPERT].md5 for state in states]
    assert recipe["merge_method"] == "linear"
    assert recipe["base_model"] == f"state/x/0000:{layout.EXPERT}"
    assert recipe["models"][0] == {"model": f"state/x/0002:{layout.EXPERT}", "md5": md5[2]}
    assert recipe["models"][1]["model"] == f"state/x/0001:{layout.RUNNING}/ema.safetensors"
    manifest = json.loads((tmp_path / "shapes/recipe/manifest.json").read_text())
    assert manifest["outputs"][layout.DEPLOYED]["md5"] == states[2].entries[layout.DEPLOYED].md5
    assert set(manifest["recorded"]) == {"at"}
    params = YAML(typ="safe").load((tmp_path / "shapes/recipe/params.yaml").read_text())
    assert params["stream"][0]["update"] == ["images:…/spring#train", "table:…/data.parquet"]
    assert params["stream"][1]["expert"] == "s3://…/expert.safetensors"
    assert not {"store", "hooks"} & params.keys()


def test_nothing_secret_and_nothing_local_is_published(
    states: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    project = states[0].project
    for number, form in ((1, Form()), (1, Form("transformers")), (2, Form())):
        folder = tmp_path / f"{number}-{form.library}"
        publish(states[number], str(folder), form)
        for name, text in texts(folder).items():
            local = (str(project.parent), "/mnt/", "~/", "bucket", "10.0.0.1")
            for word in (*local, SECRET, "tester@localhost", "Tester"):
                assert word not in text, (name, word)
            if name != "tokenizer.json":
                assert not re.search(r"(?<![\w.…:/-])/(home|root|tmp|mnt|usr)\b", text), name


def test_what_slips_through_stops_the_publication(
    states: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "state/x/0001")
    with pytest.raises(UserError, match=r"README\.md would hold the value of MY_API_KEY, .* nothing is published"):
        publish(states[1], str(tmp_path / "shapes"), Form())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "public"), [
    ("images:/mnt/data/spring#train", "images:…/spring#train"), ("data/spring", "data/spring"),
    ("../other/place", "…/place"), ("~ada/x", "…/x"), ("s3://key:word@bucket/a/b.pt?sig=x", "s3://…/b.pt"),
    ("hf:org/name@main/file.safetensors", "hf:org/name@main/file.safetensors"),
    ("https://huggingface.co/org/name", "https://huggingface.co/org/name"), ("own/rule.py:Rule", "own/rule.py:Rule"),
    ("https://store.corp:9000/x/", "https://…/x"), ("top-1 / mean", "top-1 / mean"),
    ("images:/srv/Acme Corp/secret merger/spring#train", "images:…/spring#train"), ("/srv/Bob's, own/x", "…/x"),
    ("file:///srv/Acme Corp/x y/z", "file://…/z"), ("s3://bucket/a b/c d/x.pt", "s3://…/x.pt"),
    ("['/a b/c', '/d/e']", "['…/e']"), ("by Google, https://x.org/l", "by Google, https://…/l"),
])  # fmt: skip
def test_addresses_and_paths_become_their_last_part(text: str, public: str) -> None:
    assert shortened(text) == public


def test_a_folder_that_has_something_is_left_alone(states: list[State], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists; choose a new folder"):
        publish(states[1], str(tmp_path), Form())
    for to, why in (
        ("s3://bucket/x", "give a folder, or hf:ORG/NAME"), ("hf:org/name@main", "write hf:org/name"),
        ("hf:datasets/name", "is a repository of datasets, not of models"), ("hf:name", "not an address of a hub"),
        ("hf:org/..", "not an address of a hub"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why):
            publish(states[1], to, Form())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_hub_has_the_folder_in_one_commit(states: list[State], tmp_path: Path, server: hub.Hub) -> None:
    done = publish(states[2], "hf:org/shapes", Form())
    there = server.files("org/shapes")
    assert done.commit == server.repositories["models/org/shapes"].refs["main"]
    assert "state `state/x/0002`" in there["README.md"].decode()
    config = json.loads(there["open_clip_config.json"])
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "org/shapes"
    net = open_clip.create_model("hf-hub:org/shapes", cache_dir=str(tmp_path / "cache"))
    tokens = open_clip.get_tokenizer("hf-hub:org/shapes", cache_dir=str(tmp_path / "cache"))(["a red square"])
    assert net.encode_text(tokens).shape == (1, 16)
    assert hub.TOKEN not in repr(there)

    server.commit("org/shapes", {"notes.txt": "of its owner"})
    publish(states[1], "hf:org/shapes", Form("transformers", "bfloat16"))
    there = server.files("org/shapes")
    assert {"notes.txt", "model.safetensors", "config.json"} <= there.keys()
    assert not {"open_clip_model.safetensors", "open_clip_config.json"} & there.keys()
    folder = tmp_path / "hf"
    for name, content in there.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert CLIPModel.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_an_upload_that_breaks_off_leaves_the_repository_as_it_was(
    states: list[State], server: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(states[1], "hf:org/shapes", Form())
    before, commits = server.files("org/shapes"), len(server.repositories["models/org/shapes"].commits)
    pauses: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pauses.append)  # between its attempts
    server.lose = 3000
    with pytest.raises(UnavailableError, match=r"does not answer, or broke off \(\w+\); try again") as caught:
        publish(states[2], "hf:org/shapes", Form())
    assert "\n" not in str(caught.value)
    assert pauses
    assert server.files("org/shapes") == before
    assert len(server.repositories["models/org/shapes"].commits) == commits
    assert not list((states[2].project / ".chronomerge").glob("publish-*"))
    server.lose = None
    publish(states[2], "hf:org/shapes", Form())
    assert "tokenizer.json" in server.files("org/shapes")
    assert len(server.repositories["models/org/shapes"].commits) == commits + 1


def test_a_hub_that_refuses_or_fails_is_one_line(states: list[State], tmp_path: Path, server: hub.Hub) -> None:
    def refused(kind: type[Exception], why: str, **settings: Any) -> None:
        with server.used(tmp_path / "other", **settings), pytest.raises(kind, match=why) as caught:
            publish(states[1], "hf:org/shapes", Form())
        assert "\n" not in str(caught.value)
        assert not list((states[1].project / ".chronomerge").glob("publish-*"))

    refused(UserError, "publishing needs a token; log in with `hf auth login`, or set HF_TOKEN", token=None)
    refused(UserError, r"the hub refuses the token \(status 401\)", token="hf_" + "wrong" * 6)
    refused(UserError, r"the hub refuses the token \(status 403\); it needs write access", token=hub.OTHER_TOKEN)
    refused(UserError, "HF_HUB_OFFLINE is set", token=hub.TOKEN, offline=True)
    server.down = True
    refused(UnavailableError, "answers with status 503; try again", token=hub.TOKEN)
    server.down = False
    assert not server.repositories


def test_the_card_says_that_the_deployed_copy_was_rotated() -> None:
    """The recipe's last merge does not show it."""
    plain = Manifest.model_validate(manifests.content())
    rotated = {
        "state": "state/tiny/0000", "images": 9, "directions": 3, "cosine_before": 0.8, "cosine": 0.9,
        "similarity_change": 1e-7,
    }  # fmt: skip
    turned = Manifest.model_validate(manifests.content(compatible=rotated))
    assert card._rotated(cast(State, SimpleNamespace(manifest=plain))) == ""
    said = card._rotated(cast(State, SimpleNamespace(manifest=turned)))
    assert "rotated into the joint space of `state/tiny/0000`" in said
    foreign = Manifest.model_validate(manifests.content(compatible={**rotated, "state": "x` # <script>"}))
    assert "joint space of `x # <script>`, so that" in card._rotated(cast(State, SimpleNamespace(manifest=foreign)))
