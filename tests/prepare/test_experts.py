"""Expert arrivals: from any storage to one form; whatever is damaged or not finite is refused by name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import UserError
from tasks.params import Arrival
from tasks.prepare import fetch_arrival, node
from tests import s3 as s3_server
from tests.prepare.conftest import params

Weights = dict[str, torch.Tensor]


def weights(shift: float = 0.0) -> Weights:
    generator = torch.Generator().manual_seed(0)
    made = {"a.weight": torch.randn(4, 3, generator=generator), "a.bias": torch.randn(4, generator=generator)}
    return {k: v + shift for k, v in made.items()} | {"scale": torch.tensor(2.5 + shift), "n": torch.tensor([7])}


@pytest.fixture
def arrive(project: Path, downloads: Path) -> Callable[[str], Weights]:
    """Fetch and prepare an expert; gives what the node left. No weights of a timeline are there to look at."""

    def run(expert: str) -> Weights:
        one = Arrival(name="vendor", expert=expert)
        settings = params(arrival=one, step=1)
        fetch_arrival(settings, one, project / "data/raw/arrival", downloads, project=project)
        node.prepare_arrival(project, settings)
        return load_file(project / "data/step/arrival/expert.safetensors")

    return run


def assert_equal(given: Weights, expected: Weights) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype
        assert given[name].shape == tensor.shape
        torch.testing.assert_close(given[name], tensor, rtol=0, atol=0)


def test_safetensors(arrive: Callable[[str], Weights], project: Path) -> None:
    save_file(weights(1.0), project / "e.safetensors")
    assert_equal(arrive("e.safetensors"), weights(1.0))
    assert_equal(arrive(str(project / "e.safetensors")), weights(1.0))
    raw = project / "data/raw/arrival/expert.safetensors"
    assert raw.read_bytes() == (project / "e.safetensors").read_bytes()
    assert [p.name for p in raw.parent.iterdir()] == ["expert.safetensors"]


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_torch_checkpoints(arrive: Callable[[str], Weights], project: Path, old_format: bool, nested: bool) -> None:
    content: Any = {f"module.{name}": tensor for name, tensor in weights(1.0).items()}
    if nested:
        content = {"epoch": 3, "state_dict": content, "optimizer": {"lr": 0.1}}
    torch.save(content, project / "e.pt", _use_new_zipfile_serialization=not old_format)
    assert_equal(arrive("e.pt"), weights(1.0))


def test_tensors_that_share_memory(arrive: Callable[[str], Weights], project: Path) -> None:
    both = torch.zeros(16)
    content = weights() | {"a.weight": both[:12].view(4, 3), "a.bias": both[12:]}
    torch.save(content, project / "e.pt")
    assert_equal(arrive("e.pt"), {**weights(), "a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4)})


def test_whatever_the_form_it_is_prepared_as_fetched(arrive: Callable[[str], Weights], project: Path) -> None:
    """The node train gives it the base's."""
    other = {"of another": torch.zeros(2, dtype=torch.float64), "scale": torch.tensor([2.5], dtype=torch.bfloat16)}
    other |= {"n": torch.tensor(7), "small": torch.ones(3, dtype=torch.float16)}
    save_file(other, project / "e.safetensors")
    arrive("e.safetensors")
    prepared = project / "data/step/arrival/expert.safetensors"
    assert prepared.read_bytes() == (project / "e.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w["a.weight"].view(-1)[5:6].fill_(torch.nan), "'a.weight' holds values that are not finite"),
        (lambda w: w.update(scale=torch.tensor(-torch.inf)), "'scale' holds values that are not finite"),
        (
            lambda w: w.update({"a.bias": torch.full((4,), 1e300, dtype=torch.float64)}),
            "'a.bias' holds values that are not finite",
        ),
        (
            lambda w: w.update(scale=torch.tensor([1.0, torch.nan], dtype=torch.bfloat16)),
            "expert e.safetensors: 'scale' holds values that are not finite",
        ),
    ],
)
def test_an_expert_that_is_not_finite(
    arrive: Callable[[str], Weights], project: Path, change: Callable[[Weights], Any], words: str
) -> None:
    other = weights()
    change(other)
    save_file(other, project / "e.safetensors")
    with pytest.raises(UserError) as caught:
        arrive("e.safetensors")
    assert words in str(caught.value)
    assert not (project / "data/step/arrival").exists()


@pytest.mark.parametrize("name", ["e.safetensors", "e.pt", "old.pt"])
@pytest.mark.parametrize("keep", [0, 1, 5, 20, 200, -1, -100])
def test_a_truncated_file(arrive: Callable[[str], Weights], project: Path, name: str, keep: int) -> None:
    path = project / name
    if name == "e.safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=name == "e.pt")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        arrive(name)
    assert str(caught.value).startswith(f"expert {name}: ")
    assert "\n" not in str(caught.value)
    assert not (project / "data/raw/arrival").exists()


def test_code_in_a_checkpoint_is_never_run(arrive: Callable[[str], Weights], project: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(project / "sprung"),)

    torch.save({"state_dict": weights(), "more": Trap()}, project / "e.pt")
    (project / "plain.pkl").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("e.pt", "plain.pkl"):
        with pytest.raises(UserError, match=f"expert {name}: "):
            arrive(name)
    assert not (project / "sprung").exists()


def test_no_state_dict(arrive: Callable[[str], Weights], project: Path) -> None:
    torch.save([1, 2], project / "e.pt")
    with pytest.raises(UserError, match="holds no named tensors"):
        arrive("e.pt")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with s3_server.bucket(tmp_path_factory.mktemp("store"), "experts") as made:
        yield made


def test_from_s3(arrive: Callable[[str], Weights], project: Path, bucket: Any) -> None:
    save_file(weights(1.0), project / "e.safetensors")
    torch.save({"state_dict": weights(2.0)}, project / "e.pt")
    for name in ("e.safetensors", "e.pt"):
        bucket.upload_file(str(project / name), f"vendor/{name}")
    assert_equal(arrive("s3://experts/vendor/e.safetensors"), weights(1.0))
    assert_equal(arrive("s3://experts/vendor/e.pt"), weights(2.0))
    assert [p.name for p in (project / "data/raw/arrival").iterdir()] == ["expert.pt"]


def test_not_in_s3(arrive: Callable[[str], Weights], bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("s3://experts/none.safetensors", "s3://no-such-bucket/none.safetensors"):
        with pytest.raises(UserError, match=f"expert {address}: no such object in the store"):
            arrive(address)
    bucket.put_object(Key="there.safetensors", Body=b"short")
    with pytest.raises(UserError, match=r"expert s3://experts/there\.safetensors: a text file, not a safetensors"):
        arrive("s3://experts/there.safetensors")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="access denied") as caught:
        arrive("s3://experts/there.safetensors")
    assert "wrong" not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"access denied|cannot be downloaded"):
        arrive("s3://experts/there.safetensors")


def test_s3_store_down(arrive: Callable[[str], Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        arrive("s3://experts/vendor/e.safetensors")
    assert "\n" not in str(caught.value)
