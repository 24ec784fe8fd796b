"""Measuring models: the Fisher and the Gram matrices against what they are by definition, and the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from flows.cli import measure as cli_measure
from flows.cli import merge as cli_merge
from tasks.errors import UserError
from tasks.measure import measure, measure_clip
from tasks.measure.drawing import drawn_loss
from tasks.measure.grams import gram_matrices
from tasks.measure.measurement import fisher_of
from tasks.measure.pool import MeasurePool, measure_pool, prompts_of
from tasks.merge import merge
from tasks.model import models
from tasks.params import Base
from tests.project import MODEL

app = typer.Typer()
app.command()(cli_measure.measure)
app.command()(cli_merge.merge)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items() if key != "format"}


class Tiny(nn.Module):
    """A map of every kind: patches, look-ups, packed attention, a layer, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 2, stride=2, bias=False)
        self.embedding = nn.Embedding(9, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 4)
        self.proj = nn.Parameter(torch.randn(4, 4))

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        patches = self.conv(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, self.embedding(ids)], dim=1)
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        projected: torch.Tensor = (self.fc(mixed).tanh() @ self.proj).mean(dim=1)
        return projected


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def batch(seed: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 4, generator=generator), torch.randint(0, 7, (count, 5), generator=generator)


def test_gram_matrices_are_those_of_the_inputs_of_every_map(tiny: Tiny) -> None:
    batches = [batch(1), batch(2)]
    grams = gram_matrices(tiny, [lambda one=one: tiny(*one) for one in batches], widest=100)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in ("conv", "in_proj", "out_proj", "fc", "proj")}
    for images, ids in batches:
        blocks = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        patches = tiny.conv(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, tiny.embedding(ids)], dim=1)
        q, k, v = nn.functional.linear(
            tokens, tiny.attention.in_proj_weight, tiny.attention.in_proj_bias
        ).chunk(3, dim=-1)  # fmt: skip
        heads = [x.unflatten(-1, (2, 3)).transpose(1, 2) for x in (q, k, v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = tiny.fc(tiny.attention.out_proj(mixed)).tanh()
        attended = tiny.attention.out_proj(mixed)
        for name, x in zip(inputs, (blocks, tokens, mixed, attended, hidden), strict=True):
            inputs[name].append(x.detach().reshape(-1, x.shape[-1]))
    names = {
        "conv": "conv.weight", "in_proj": "attention.in_proj_weight", "out_proj": "attention.out_proj.weight",
        "fc": "fc.weight", "proj": "proj",
    }  # fmt: skip
    for short, name in names.items():
        x = torch.cat(inputs[short])
        torch.testing.assert_close(grams.sums[name], x.T @ x, rtol=1e-4, atol=1e-4, msg=name)
    counts = torch.bincount(torch.cat([ids.flatten() for _, ids in batches]), minlength=9).float()
    assert torch.equal(grams.sums["embedding.weight"], counts)
    assert grams.rows == {"proj"}
    assert grams.sums.keys() == {*names.values(), "embedding.weight"}


def test_wide_inputs_have_the_diagonal_alone(tiny: Tiny) -> None:
    full, narrow = [gram_matrices(tiny, [lambda: tiny(*batch(1))], widest=w).sums for w in (8, 4)]
    torch.testing.assert_close(narrow["conv.weight"], full["conv.weight"].diagonal())
    assert narrow["proj"].shape == (4, 4)


def test_the_drawn_fisher_is_the_expected_one_on_average(tiny: Tiny) -> None:
    """Σ_c p(c) (∂ log p(c))², worked out for every class, against the mean over many draws."""
    images, ids = batch(3, 1)
    logits = tiny(images, ids)[0]
    log_p = logits.log_softmax(0)
    parameters = dict(tiny.named_parameters())
    exact = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for c in range(4):
        gradients = torch.autograd.grad(log_p[c], list(parameters.values()), retain_graph=True)
        for (name, total), gradient in zip(exact.items(), gradients, strict=True):
            exact[name] = total + log_p[c].detach().exp() * gradient.square()
    drawn = fisher_of(tiny, (drawn_loss(logits, 0, i) for i in range(400)))
    for name, expected in exact.items():
        assert float((drawn[f"fisher/{name}"] - expected).norm() / expected.norm()) < 0.2, name


def test_draws_depend_on_seed_and_sample_alone(tiny: Tiny, tmp_path: Path) -> None:
    def outputs(one: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return tiny(*one)

    images, ids = batch(4, 6)
    whole = [(images, ids)]
    parts = [(images[i : i + 1], ids[i : i + 1]) for i in range(6)]
    found = {}
    for name, batches, seed in (("whole", whole, 0), ("parts", parts, 0), ("again", parts, 0), ("other", parts, 1)):
        out = tmp_path / f"{name}.stats.safetensors"
        done = measure(tiny, batches, outputs, out, pool="random", seed=seed)
        assert (done.facts.samples, done.facts.estimator) == (6, "expected")
        found[name] = load_file(out)
    for name, x in found["whole"].items():
        torch.testing.assert_close(x, found["parts"][name], rtol=1e-4, atol=1e-6)
    assert (tmp_path / "parts.stats.safetensors").read_bytes() == (tmp_path / "again.stats.safetensors").read_bytes()
    assert any(not torch.equal(x, found["other"][name]) for name, x in found["parts"].items())


def test_losses_give_the_empirical_fisher(tiny: Tiny, tmp_path: Path) -> None:
    images, ids = batch(5, 4)
    labels = torch.tensor([0, 1, 2, 3])
    losses: Callable[[Any], torch.Tensor] = lambda one: nn.functional.cross_entropy(  # noqa: E731
        tiny(*one), labels, reduction="none"
    )
    out = tmp_path / "e.stats.safetensors"
    assert measure(tiny, [(images, ids)], losses, out, pool=None, statistics=["fisher"]).facts.estimator == "empirical"
    expected = torch.zeros_like(tiny.fc.weight)
    for i in range(4):
        loss = nn.functional.cross_entropy(tiny(images[i : i + 1], ids[i : i + 1]), labels[i : i + 1])
        expected += torch.autograd.grad(loss, tiny.fc.weight)[0].square() / 4
    torch.testing.assert_close(load_file(out)["fisher/fc.weight"], expected, rtol=1e-4, atol=1e-8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CLIP, its configuration, and drawings of two classes."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.json").write_text(json.dumps(MODEL))
    models.resolve(Base(model="tiny.json", pretrained="base.safetensors"), Path(), Path("model"))
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        save_file(
            {n: t.contiguous() for n, t in models.build(Path("model")).state_dict().items()}, f"{name}.safetensors"
        )
    for shade, name in ((60, "dark"), (200, "light")):
        Path("drawings", name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20, 20), (shade + 5 * i, shade, shade)).save(f"drawings/{name}/{i}.png")
    return tmp_path


MEASURE = ("measure", "--data", "images:drawings", "--architecture", "tiny.json")


def test_a_clip_is_measured_and_merged_from_the_command_line(folder: Path) -> None:
    for name in "ab":
        said = run(*MEASURE, "--model", f"{name}.safetensors", "--out", f"{name}.stats.safetensors", "--samples", "8")
        assert "measured on 8 samples (expected)" in said
        assert "no Gram matrix, because no product with them was seen: positional_embedding" in " ".join(said.split())
    facts = metadata(folder / "a.stats.safetensors")
    assert facts == {
        "samples": 8, "estimator": "expected", "pool": "images:drawings", "rows": ["text_projection", "visual.proj"],
    }  # fmt: skip
    weights, found = load_file("a.safetensors"), load_file("a.stats.safetensors")
    assert {name.removeprefix("fisher/") for name in found if name.startswith("fisher/")} == weights.keys()
    grams = {name.removeprefix("gram/"): g.shape for name, g in found.items() if name.startswith("gram/")}
    blocks = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    inputs = (16, 16, 16, 64)
    wanted = {
        f"{t}transformer.resblocks.0.{b}": (n, n) for t in ("", "visual.") for b, n in zip(blocks, inputs, strict=True)
    }
    wanted |= {"visual.conv1.weight": (192, 192), "visual.proj": (16, 16), "text_projection": (16, 16)}
    assert {n: tuple(s) for n, s in grams.items()} == {**wanted, "token_embedding.weight": (49408,)}
    command = [
        *("--base", "base.safetensors"),
        *("--expert", "a.safetensors", "--statistics", "a.stats.safetensors"),
        *("--expert", "b.safetensors", "--statistics", "b.stats.safetensors"),
    ]
    for technique in ("fisher", "regmean", "became"):
        run("merge", "--technique", technique, *command, "--out", f"{technique}.safetensors")
        assert load_file(f"{technique}.safetensors").keys() == weights.keys()


@pytest.mark.usefixtures("folder")
def test_measuring_again_gives_the_same_bytes() -> None:
    for out in ("1.safetensors", "2.safetensors"):
        measure_clip("a.safetensors", ["images:drawings"], out, architecture="tiny.json", samples=4)
    assert Path("1.safetensors").read_bytes() == Path("2.safetensors").read_bytes()


@pytest.mark.usefixtures("folder")
def test_captions_alone_are_told_apart_within_a_batch() -> None:
    rows = [f"drawings/{name}/{i}.png,a {name} drawing number {i}" for name in ("dark", "light") for i in range(5)]
    Path("captions.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    done = measure_clip("a.safetensors", ["table:captions.csv"], "c.safetensors", architecture="tiny.json")
    assert done.facts.samples == 10
    assert float(load_file("c.safetensors")["fisher/visual.proj"].sum()) > 0


def plainly(model: Any, pool: MeasurePool, how: Any, tokenize: Any) -> dict[str, torch.Tensor]:
    """The Fisher by definition: a pass through every whole text for each loss."""
    texts = tokenize(list(pool.prompts or pool.captions))
    images = models.normalize(pool.images, how, texts.device).double()
    cosines = model.encode_image(images, normalize=True) @ model.encode_text(texts, normalize=True).T
    logits = model.logit_scale.exp() * cosines
    rows = list(logits) if pool.prompts else [row for pair in zip(logits, logits.T, strict=True) for row in pair]
    parameters = dict(model.named_parameters())
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for number, row in enumerate(rows):
        gradients = torch.autograd.grad(drawn_loss(row, 3, number), list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            squares[name] += gradient.square() / len(rows)
    return squares


@pytest.mark.parametrize("prompts", [("a dark thing", "a light thing", "night", "a dark horse"), ()])
@pytest.mark.usefixtures("folder")
def test_the_fisher_of_a_clip_is_that_of_whole_texts_one_by_one(prompts: tuple[str, ...]) -> None:
    model = models.build(Path("model")).double().eval()
    tokenize, how = models.tokenizer(Path("model")), models.preprocess(Path("model"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    pool = MeasurePool("drawn", pixels, [f"drawing {i} of {i // 2}" for i in range(5)], prompts)
    measure_pool(model, pool, how, tokenize, Path("f.safetensors"), statistics=("fisher",), seed=3)
    found = load_file("f.safetensors")
    for name, expected in plainly(model, pool, how, tokenize).items():
        torch.testing.assert_close(found[f"fisher/{name}"], expected.float(), rtol=1e-5, atol=1e-20, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "none.safetensors"), r"none\.safetensors: no such checkpoint"),
        (("--architecture", "ViT-X"), "open_clip has no model 'ViT-X'"),
        (("--data", "images:nowhere"), "nowhere"),
        (("--statistics", "fisher,hessian"), "there is no statistic 'hessian'; there are fisher, gram"),
        (("--out", "a.stats"), "give a .safetensors file"),
        (("--out", "no/where/a.safetensors"), "there is no folder no/where"),
        (("--with", "mine.py:f"), "say what to measure on: --data SOURCE, or --with"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_refused(change: tuple[str, str], message: str) -> None:
    arguments = {"--model": "a.safetensors", "--out": "a.stats.safetensors", "--data": "images:drawings"}
    arguments |= {"--architecture": "tiny.json"} | {change[0]: change[1]}
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message):
        run("measure", *(word for pair in arguments.items() for word in pair))
    assert sorted(Path().rglob("*")) == before


def test_a_class_without_a_name_has_no_prompt() -> None:
    with pytest.raises(UserError, match="measure: a class of the data has no name, and so no prompt; name it"):
        prompts_of(["cat", " "], "a photo of a {}")


@pytest.mark.usefixtures("folder")
def test_weights_that_say_nothing_of_their_architecture() -> None:
    with pytest.raises(UserError, match="beside it says what model this is; name it with --architecture"):
        run("measure", "--data", "images:drawings", "--model", "a.safetensors", "--out", "a.stats.safetensors")


DOCUMENT = Path(__file__).parents[2] / "docs/guides/merging.md"


def own_function() -> str:
    """The function that the guide shows."""
    blocks = DOCUMENT.read_text().split("```python\n")[1:]
    (code,) = (text for block in blocks if "def language_model" in (text := block.partition("```")[0]))
    return code


def language_models(folder: Path) -> Iterator[Path]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    for seed, name in enumerate(("base", "x", "y")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        yield folder / name


def test_a_language_model_is_measured_with_the_function_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, *experts = language_models(tmp_path)
    Path("mine.py").write_text(own_function())
    assert len(own_function().splitlines()) <= 20
    Path("tokens.json").write_text(json.dumps(np.random.default_rng(0).integers(0, 60, (6, 16)).tolist()))
    for expert in experts:
        out = f"{expert.name}.stats.safetensors"
        said = run("measure", "--model", str(expert), "--with", "mine.py:language_model", "--out", out)
        assert "measured on 6 samples (expected)" in said
    found = load_file("x.stats.safetensors")
    assert found["gram/transformer.h.0.mlp.c_fc.weight"].shape == (12, 12)
    assert found["gram/transformer.h.0.attn.c_proj.weight"].shape == (12, 12)  # square, and stored as (in, out)
    assert "transformer.h.0.attn.c_proj.weight" in metadata(Path("x.stats.safetensors"))["rows"]
    given = [f"{expert.name}.stats.safetensors" for expert in experts]
    for technique in ("fisher", "regmean", "became"):
        done = merge(technique, experts, base, f"{technique}.safetensors", statistics=given)
        assert not done.report.kept


def test_labels_where_none_are_needed_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """Gram matrices are those of the inputs, whether a batch comes with labels, and a loss, or not."""
    images, ids = batch(5, 4)
    labels = torch.tensor([0, 1, 2, 3])
    files = [tmp_path / name for name in ("with", "without")]
    for file, with_labels in zip(files, (True, False), strict=True):

        def outputs(one: Any, with_labels: bool = with_labels) -> torch.Tensor:
            logits = tiny(*one[:2])
            return nn.functional.cross_entropy(logits, one[2], reduction="none") if with_labels else logits

        done = measure(tiny, [(images, ids, labels)], outputs, file, statistics=("gram",), pool="x")
        assert (done.facts.samples, done.facts.estimator) == (4, "inputs")
    assert files[0].read_bytes() == files[1].read_bytes()
    for statistics in (("gram",), ("fisher",)):
        with pytest.raises(UserError, match="are one number"):
            measure(tiny, [(images, ids)], lambda one: tiny(*one).mean(), files[0], statistics=statistics, pool="x")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "mine.py defines no function f"),
        ("def f(model): raise ValueError('no\\n such')", r"it fails \(ValueError: no such\)"),
        ("def f(model): return 1", "it should return"),
        ("def f(", "it fails .SyntaxError"),
        ("import torch\ndef f(m): return torch.nn.Linear(2, 2), [], len", "there are no samples"),
        ("import torch\ndef f(m): return torch.nn.Linear(2, 2), [1], lambda b: torch.zeros(())", "are one number"),
        ("import torch\ndef f(m): return torch.nn.Linear(2, 2), [1], lambda b: {'logits': 1}", "outputs are a dict"),
        ("import torch\ndef f(m): return torch.nn.Linear(2, 2), [1], lambda b: torch.zeros(3)", "have no gradient"),
        (
            "import torch\ndef f(m): return torch.nn.Linear(2, 2), [1], lambda b: b['x']",
            "function of a batch fails .Type",
        ),
        ("import torch\ndef f(m): return torch.nn.Linear(2, 2), 1, len", "through its batches fails .TypeError"),
    ],
)
def test_a_function_that_does_not_fit(code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    with pytest.raises(UserError, match=message):
        run("measure", "--model", "m", "--with", "mine.py:f", "--out", "m.stats.safetensors")
    with pytest.raises(UserError, match=r"there is no file other\.py"):
        run("measure", "--model", "m", "--with", "other.py:f", "--out", "m.stats.safetensors")
