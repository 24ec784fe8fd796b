"""Techniques that look at the experts' data: formulas in float64, cases worked by hand, and the statistics file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import Accumulator, Statistics, advance, create, merge
from tasks.merge.matrices import solve
from tests.merge.models import Model, base, close, experts, same, statistics_of
from tests.merge.test_cli import app, run  # noqa: F401

FACTS = {"samples": "1", "estimator": '"expected"', "pool": '"icons:food"'}


def stats(samples: int = 1, **arrays: Any) -> Statistics:
    """Arrays by KIND_NAME."""
    named = {name.replace("_", "/", 1): np.asarray(x, np.float32) for name, x in arrays.items()}
    return Statistics(named, samples, "expected", "by hand")


def weights(*values: Any) -> list[Model]:
    return [{"w": np.asarray(v, np.float32)} for v in values]


def merged(
    name: str, models: Sequence[Model], statistics: Sequence[Statistics], zero: Model | None = None, **chosen: Any
) -> Any:
    zero = zero or {n: np.zeros_like(x) for n, x in models[0].items()}
    tensors = merge(name, models, zero, statistics=statistics, settings=chosen).tensors
    assert tensors is not None
    return tensors


class TestFisher:
    ONE_FIVE = weights([1], [5])
    THREE_ONE = (stats(fisher_w=[3]), stats(fisher_w=[1]))
    NOBODY = (stats(fisher_w=[0]), stats(fisher_w=[0]))

    def test_by_hand(self) -> None:
        fisher = {"models": self.ONE_FIVE, "statistics": self.THREE_ONE, "normalize": "none"}
        assert merged("fisher", **fisher)["w"] == pytest.approx(2)
        assert merged("fisher", **fisher, prior=1)["w"] == pytest.approx(8 / 5)
        assert merged("fisher", self.ONE_FIVE, self.THREE_ONE)["w"] == pytest.approx(3)  # each F is 1 over its norm

    def test_where_nobody_cares_it_is_the_mean_with_a_floor_and_the_base_without(self) -> None:
        zero = {"w": np.float32([7])}
        for normalize in ("none", "model"):
            chosen = {"normalize": normalize, "zero": zero}
            assert merged("fisher", self.ONE_FIVE, self.NOBODY, **chosen, floor=1e-6)["w"] == pytest.approx(3)
            assert merged("fisher", self.ONE_FIVE, self.NOBODY, **chosen, prior=1e-3)["w"] == 7
            assert merged("fisher", self.ONE_FIVE, self.NOBODY, **chosen)["w"] == 7

    def test_weights_and_forgetting(self) -> None:
        given = merge(
            "fisher", self.ONE_FIVE, weights("00")[0] | {"w": np.zeros(1, "f4")}, weights=[1, 3],
            statistics=self.THREE_ONE, settings={"normalize": "none"},
        ).tensors  # fmt: skip
        assert given is not None
        assert given["w"] == pytest.approx((3 * 1 + 3 * 5) / 6)
        forgotten = merged("fisher", self.ONE_FIVE, self.THREE_ONE, normalize="none", forgetting=0.5)
        assert forgotten["w"] == pytest.approx((1.5 * 1 + 1 * 5) / 2.5)
        with pytest.raises(UserError, match="fisher: a weight is -1; a Fisher counts more or less, never against"):
            merge("fisher", self.ONE_FIVE, {"w": np.zeros(1, "f4")}, weights=[3, -1], statistics=self.THREE_ONE)

    @pytest.mark.parametrize("floor", [0.0, 0.4])
    @pytest.mark.parametrize("prior", [0.0, 0.01])
    @pytest.mark.parametrize("normalize", ["model", "none"])
    def test_it_is_the_formula_in_float64(self, floor: float, prior: float, normalize: str) -> None:
        zero, models = base(), experts(4)
        given = [statistics_of(model) for model in models]
        above = {name: np.zeros(x.shape) + prior * zero[name] for name, x in zero.items()}
        below = {name: np.full(x.shape, prior) for name, x in zero.items()}
        for model, one in zip(models, given, strict=True):
            fisher = {n: np.maximum(one.arrays[f"fisher/{n}"].astype("f8"), floor) for n in zero}
            norm = np.sqrt(sum(np.square(f).sum() for f in fisher.values())) if normalize == "model" else 1
            for name in zero:
                above[name] += fisher[name] / norm * model[name].astype("f8")
                below[name] += fisher[name] / norm
        chosen = {"floor": floor, "prior": prior, "normalize": normalize}
        close(merged("fisher", models, given, zero, **chosen), {n: above[n] / below[n] for n in zero})

    def test_copies_merge_to_the_bits_of_one(self) -> None:
        one = experts(1)[0]
        given = [statistics_of(model) for model in experts(3)]  # of anything
        assert same(merged("fisher", [one] * 3, given, base()), one)

    def test_it_does_not_matter_how_many_samples_were_measured(self) -> None:
        few, many = [[statistics_of(m, samples=n) for m in experts(2)] for n in (3, 3000)]
        assert same(merged("fisher", experts(2), few, base()), merged("fisher", experts(2), many, base()))

    def test_tensors_without_a_fisher_stay_where_the_expert_has_not_moved_them(self) -> None:
        zero = {"w": np.float32([0, 0]), "buffer": np.float32([3, 4])}
        models = [{**zero, "w": np.float32([1, 2])}, {**zero, "w": np.float32([5, 2])}]
        outcome = merge("fisher", models, zero, statistics=[stats(fisher_w=[1, 1])] * 2)
        assert outcome.tensors is not None
        np.testing.assert_allclose(outcome.tensors["w"], [3, 2])
        np.testing.assert_array_equal(outcome.tensors["buffer"], [3, 4])
        assert "no Fisher for 1 tensors in which the expert is the base" in outcome.report.notes[0]
        models[1]["buffer"] = np.float32([3, 5])
        with pytest.raises(UserError, match=r"statistics 2: lacks fisher/buffer, which fisher needs"):
            merge("fisher", models, zero, statistics=[stats(fisher_w=[1, 1])] * 2)


class TestRegMean:
    PAIR = weights([[1, 0]], [[0, 1]])
    GRAMS = (stats(gram_w=[[2, 1], [1, 2]]), stats(gram_w=[[1, 0], [0, 1]]))

    @pytest.mark.parametrize(("share", "expected"), [(1, [0.5, 0.5]), (0, [2 / 3, 1 / 3]), (0.5, [0.6, 0.4])])
    def test_by_hand(self, share: float, expected: list[float]) -> None:
        np.testing.assert_allclose(merged("regmean", self.PAIR, self.GRAMS, offdiagonal=share)["w"][0], expected, 1e-6)

    def test_each_direction_is_of_the_expert_that_has_inputs_there(self) -> None:
        apart = [stats(gram_w=[[1, 0], [0, 0]]), stats(gram_w=[[0, 0], [0, 1]])]
        np.testing.assert_allclose(merged("regmean", self.PAIR, apart, offdiagonal=1)["w"][0], [1, 1], 1e-6)

    def test_directions_without_inputs_stay_as_in_the_base(self) -> None:
        zero = {"w": np.float32([[5, 7, 9]])}
        models = weights([[1, 0, 3]], [[0, 1, 4]])
        one = [[1, 1, 0], [1, 1, 0], [0, 0, 0]]  # knows the direction (1, 1, 0) alone
        found = merged("regmean", models, [stats(gram_w=one)] * 2, zero, offdiagonal=1)["w"][0]
        tau = np.mean([m["w"][0] - zero["w"][0] for m in models], axis=0)
        np.testing.assert_allclose(found - zero["w"][0], [tau[:2].mean()] * 2 + [0], rtol=1e-5)

    def test_many_samples_are_no_louder(self) -> None:
        often = [stats(samples=7, gram_w=np.multiply(7, [[2, 1], [1, 2]])), self.GRAMS[1]]
        for chosen in ({}, {"ridge": 0.3}):
            np.testing.assert_allclose(
                merged("regmean", self.PAIR, often, **chosen)["w"],
                merged("regmean", self.PAIR, self.GRAMS, **chosen)["w"], rtol=1e-6,
            )  # fmt: skip

    @pytest.mark.parametrize(("share", "ridge"), [(1.0, 0.0), (0.9, 0.0), (0.4, 2.0)])
    def test_it_is_the_formula_in_float64(self, share: float, ridge: float) -> None:
        zero, models = base(), experts(3)
        given = [statistics_of(model, samples=4 + i) for i, model in enumerate(models)]
        expected: Model = {}
        for name, start in zero.items():
            taus = [m[name].astype("f8") - start for m in models]
            grams = [one.arrays.get(f"gram/{name}") for one in given]
            grams = [g if g is None else g.astype("f8") / one.samples for g, one in zip(grams, given, strict=True)]
            if grams[0] is None:
                tau = np.mean(taus, axis=0)
            else:
                rows = name.startswith("token") or name == "text_projection"
                maps = [t.reshape(len(t), -1) if rows else t.reshape(len(t), -1).T for t in taus]
                full = [np.diag(g) if g.ndim == 1 else share * g + (1 - share) * np.diag(np.diag(g)) for g in grams]
                system = sum(full) + ridge * np.eye(len(full[0]))
                used = np.diag(system) > 0
                solution = np.mean(maps, axis=0)
                right = sum(g @ m for g, m in zip(full, maps, strict=True))
                solution[used] = np.linalg.solve(system[used][:, used], right[used])
                tau = (solution if rows else solution.T).reshape(start.shape)
            expected[name] = start + tau
        close(merged("regmean", models, given, zero, offdiagonal=share, ridge=ridge), expected, 2e-4)

    def test_a_token_that_nobody_uses_is_the_mean_and_with_a_ridge_the_base(self) -> None:
        zero = {"e": np.float32([[9, 9], [9, 9], [9, 9]])}
        models = [{"e": np.float32([[0, 0], [1, 1], [2, 2]])}, {"e": np.float32([[4, 4], [3, 3], [4, 4]])}]
        counts = [stats(gram_e=[1, 0, 2]), stats(gram_e=[3, 0, 0])]
        np.testing.assert_allclose(merged("regmean", models, counts, zero)["e"][:, 0], [3, 2, 2], rtol=1e-6)
        pulled = merged("regmean", models, counts, zero, ridge=1e-6)["e"][:, 0]
        np.testing.assert_allclose(pulled, [3, 9, 2], rtol=1e-4)

    def test_a_square_weight_is_out_by_in_unless_its_name_or_the_file_says_otherwise(self) -> None:
        gram = np.float32([[2, 1], [1, 2]])
        for name in ("layer.weight", "text_projection"):
            models = [{name: np.float32([[1, 0], [0, 0]])}, {name: np.float32([[0, 1], [0, 0]])}]
            given = [Statistics({f"gram/{name}": g}, 1, "expected", None) for g in (gram, np.eye(2, dtype="f4"))]
            found = merged("regmean", models, given, offdiagonal=1)[name]
            wanted = [[0.5, 0.5], [0, 0]] if name == "layer.weight" else [[0.625, 0.375], [0.125, -0.125]]
            np.testing.assert_allclose(found, wanted, atol=1e-6)

    def test_a_state_goes_on_with_another_ridge_and_share(self, tmp_path: Path) -> None:
        models, previous = experts(3), None
        save_file(base(), tmp_path / "base.safetensors")
        for t, (model, share) in enumerate(zip(models, (1.0, 0.3, 0.8), strict=True)):
            technique = create("regmean", {"offdiagonal": share, "ridge": share})
            assert isinstance(technique, Accumulator)
            save_file(model, tmp_path / "expert.safetensors")
            files = tmp_path / "expert.safetensors", tmp_path / "base.safetensors"
            state, out = tmp_path / f"state-{t}", tmp_path / "out.safetensors"
            advance(technique, *files, previous, state, out, statistics=statistics_of(model))
            previous = state
        given = [statistics_of(model) for model in models]
        last = merged("regmean", models, given, base(), offdiagonal=0.8, ridge=0.8)
        assert same(load_file(tmp_path / "out.safetensors"), last)


def test_systems_of_several_blocks_are_solved_to_float64() -> None:
    random = np.random.default_rng(0)
    inputs, right = random.normal(size=(900, 600)), random.normal(size=(600, 5))
    system = inputs.T @ inputs + np.diag(np.geomspace(1e-3, 1e6, 600))
    found = solve(system.copy(), right, float(np.finfo(np.float32).eps))
    np.testing.assert_allclose(found, np.linalg.solve(system, right), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("place", [(0, 299), (299, 0), (280, 270)])
@pytest.mark.parametrize("both", [False, True])
def test_one_wrong_entry_of_a_large_gram_matrix_is_found(place: tuple[int, int], both: bool) -> None:
    gram = np.eye(300, dtype="f4")
    gram[place] = 1.5
    if both:
        gram[place[::-1]] = 1.5
    model = {"w": np.ones((1, 300), "f4")}
    with pytest.raises(UserError, match="an entry is larger than" if both else "'gram/w' is not symmetric"):
        merged("regmean", [model], [stats(gram_w=gram)])


class TestBecame:
    def test_by_hand(self) -> None:
        """New 4, old 0, F 1 and 3: λ = ¼."""
        assert merged("became", weights([4], [0]), [stats(fisher_w=[1]), stats(fisher_w=[3])])["w"] == 1
        assert merged("became", weights([4], [0]), [stats(fisher_w=[0]), stats(fisher_w=[3])])["w"] == 0

    @pytest.mark.parametrize("scope", ["model", "tensor"])
    def test_it_is_the_formula_in_float64(self, scope: str) -> None:
        new, old = experts(2)
        given = [statistics_of(new), statistics_of(old)]
        sums = {}
        for name in new:
            squares = np.square(new[name].astype("f8") - old[name])
            sums[name] = np.array([(squares * one.arrays[f"fisher/{name}"]).sum() for one in given])
        if scope == "model":
            sums = dict.fromkeys(new, sum(sums.values()))
        shares = {name: s[0] / s.sum() for name, s in sums.items()}
        expected = {name: (1 - shares[name]) * old[name] + shares[name] * new[name] for name in new}
        close(merged("became", [new, old], given, base(), scope=scope), expected)

    def test_no_coefficient_along_the_line_has_less_loss(self) -> None:
        new, old = weights([1, 2, 3], [0, 5, 1])
        of_new, of_old = np.float32([3, 1, 2]), np.float32([1, 4, 1])
        found = merged("became", [new, old], [stats(fisher_w=of_new), stats(fisher_w=of_old)])["w"]

        def loss(w: Any) -> float:
            return float((of_new * (w - new["w"]) ** 2 + of_old * (w - old["w"]) ** 2).sum())

        assert all(loss(found) <= loss(old["w"] + s * (new["w"] - old["w"])) + 1e-5 for s in np.linspace(0, 1, 101))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, the experts x and y, and statistics of both, made with safetensors alone."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros((1, 2), "f4"), "b": np.zeros(1, "f4")}, "base.safetensors")
    for name, weight, gram in (("x", [[1, 0]], [[2, 1], [1, 2]]), ("y", [[0, 1]], [[1, 0], [0, 1]])):
        save_file({"w": np.float32(weight), "b": np.float32([len(gram)])}, f"{name}.safetensors")
        arrays = {"gram/w": np.float32(gram), "fisher/w": np.float32([[3, 1]]), "fisher/b": np.float32([1])}
        save_file(arrays, f"{name}.stats.safetensors", metadata=FACTS)
    return tmp_path


COMMAND = (
    "--base", "base.safetensors", "--expert", "x.safetensors", "--statistics", "x.stats.safetensors",
    "--expert", "y.safetensors", "--statistics", "y.stats.safetensors", "--out", "merged.safetensors",
)  # fmt: skip


@pytest.mark.usefixtures("files")
def test_the_command_line_takes_a_file_an_expert_in_their_order() -> None:
    said = run("merge", "--technique", "regmean", *COMMAND, "--set", "offdiagonal=0")
    assert "merged 2 models with regmean: 2 tensors" in said
    assert "averaged, without a Gram matrix: 1 tensor" in said
    np.testing.assert_allclose(load_file("merged.safetensors")["w"], [[2 / 3, 1 / 3]], rtol=1e-6)
    assert load_file("merged.safetensors")["b"] == 2
    report = json.loads(run("merge", "--technique", "fisher", *COMMAND, "--json"))
    assert report["measured"][1] == {
        "file": "y.stats.safetensors", "samples": 1, "estimator": "expected", "pool": "icons:food", "experts": 1,
    }  # fmt: skip
    run("merge", "--technique", "became", *COMMAND, "--dry-run")


def rewritten(metadata: dict[str, str] | None = None, drop: str = "", **arrays: Any) -> None:
    """Write y's statistics again, with changes."""
    found = load_file("y.stats.safetensors")
    found = {n: x for n, x in found.items() if not drop or not n.startswith(drop)}
    found |= {n.replace("_", "/", 1): np.asarray(x) for n, x in arrays.items()}
    save_file(found, "y.stats.safetensors", metadata={**FACTS, **metadata} if metadata is not None else FACTS)


NAN = np.float32([[1, np.nan], [np.nan, 1]])
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("fisher", {"fisher_v": np.float32([1])}, r"'fisher/v' is of another model: base\.safetensors has no tensor 'v'"),
    ("fisher", {"fisher_w": np.float32([1])}, r"'fisher/w' has shape \[1\], and 'w' has \[1, 2\] in base\.safetensors"),
    ("fisher", {"drop": "fisher"}, "holds no fisher/NAME, which fisher needs"),
    ("fisher", {"drop": "fisher/b"}, "lacks fisher/b, which fisher needs: the expert differs from the base there"),
    ("fisher", {"fisher_w": np.float32([[1, np.nan]])}, "'fisher/w' holds NaN or infinity; measure the model again"),
    ("fisher", {"fisher_w": np.float32([[1, -1]])}, "'fisher/w' holds negative numbers"),
    ("fisher", {"fisher_w": np.int32([[1, 1]])}, "'fisher/w' is I32; store it as float32"),
    ("fisher", {"hessian_w": np.float32([[1, 1]])}, "'hessian/w' should be called fisher/NAME or gram/NAME"),
    ("regmean", {"gram_w": NAN}, "'gram/w' holds NaN or infinity; measure the model again"),
    ("regmean", {"gram_w": np.float32([[1, 0.5], [0.2, 1]])}, "'gram/w' is not symmetric"),
    ("regmean", {"gram_w": np.float32([[1, 2], [2, 1]])}, "'gram/w' is no Gram matrix: an entry is larger"),
    ("regmean", {"gram_w": np.float32([[-1, 0], [0, 1]])}, "'gram/w' has a negative diagonal"),
    ("regmean", {"gram_w": np.eye(3, dtype="f4")}, r"'gram/w' has shape \[3, 3\], .* asks for 2 × 2; the stat"),
    ("regmean", {"gram_b": np.eye(3, dtype="f4")}, r"'gram/b' has shape .* asks for none: it is no linear"),
    ("regmean", {"drop": "gram"}, "has no Gram matrix for 'w', and x.stats.safetensors has a Gram matrix of 2 inputs"),
    ("regmean", {"gram_w": np.float32([1, 1])}, "has the diagonal of a Gram matrix of 2 inputs for 'w', and x.stats"),
    ("fisher", {"metadata": {"samples": "0"}}, "was measured on 0 samples; measure it on at least one"),
    ("fisher", {"metadata": {"samples": "many"}}, "the metadata 'samples' should be a whole number, got 'many'"),
    ("fisher", {"metadata": {"samples": "1.5"}}, "the metadata 'samples' should be a whole number, got 1.5"),
    ("fisher", {"metadata": {"estimator": "3"}}, "the metadata 'estimator' should be a name, got 3"),
    ("fisher", {"metadata": {"rows": '"w"'}}, "the metadata 'rows' should be a list of tensor names, got 'w'"),
]  # fmt: skip


@pytest.mark.parametrize(("technique", "change", "message"), WRONG)
def test_statistics_that_are_refused(technique: str, change: dict[str, Any], message: str, files: Path) -> None:
    rewritten(**change)
    before = sorted(files.iterdir())
    with pytest.raises(UserError, match=rf"^y\.stats\.safetensors: .*{message}"):
        run("merge", "--technique", technique, *COMMAND)
    assert sorted(files.iterdir()) == before


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("key", ["samples", "estimator", "pool"])
def test_metadata_that_is_missing(key: str) -> None:
    found = load_file("y.stats.safetensors")
    save_file(found, "y.stats.safetensors", metadata={k: v for k, v in FACTS.items() if k != key})
    with pytest.raises(UserError, match=rf"y\.stats\.safetensors: not a statistics file: its metadata lacks '{key}'"):
        run("merge", "--technique", "fisher", *COMMAND)
    save_file(found, "y.stats.safetensors")
    with pytest.raises(UserError, match="its metadata lacks 'samples' and 'estimator' and 'pool'"):
        run("merge", "--technique", "fisher", *COMMAND)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("technique", "arguments", "message"),
    [
        ("fisher", COMMAND[:6] + COMMAND[6:8] + COMMAND[10:], "1 statistics file for 2 experts; give one an expert"),
        ("fisher", COMMAND[:4] + COMMAND[6:8] + COMMAND[10:], r"fisher needs statistics of each expert's own data"),
        ("ties", COMMAND, "ties looks at no data; leave the statistics out"),
        ("fisher", COMMAND[2:], "fisher .*needs the base"),
        ("regmean", (*COMMAND[:5], "x.safetensors", *COMMAND[6:]), r"x\.safetensors: not a statistics file"),
        ("regmean", (*COMMAND[:5], "none.stats.safetensors", *COMMAND[6:]), r"none\.stats\.safetensors: no such"),
    ],
)
def test_the_wrong_number_of_statistics(technique: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("merge", "--technique", technique, *arguments)
    assert not Path("merged.safetensors").exists()


@pytest.mark.usefixtures("files")
def test_estimators_that_differ_are_said() -> None:
    rewritten(metadata={"estimator": "empirical"})
    said = run("merge", "--technique", "fisher", *COMMAND)
    assert (
        "estimated in different ways: expected (x.stats.safetensors) and empirical (y.stats.safetensors)"
        in " ".join(said.split())
    )


@pytest.mark.usefixtures("files")
def test_plain_text_is_as_good_as_json_where_it_is_text() -> None:
    rewritten(metadata={"estimator": "expected", "pool": "icons:food, first 10", "samples": "10"})
    report = json.loads(run("merge", "--technique", "fisher", *COMMAND, "--json"))
    assert report["measured"][1]["pool"] == "icons:food, first 10"


@pytest.mark.usefixtures("files")
def test_statistics_in_half_precision() -> None:
    rewritten(gram_w=np.float16([[1, 0], [0, 1]]), fisher_w=np.float16([[3, 1]]))
    run("merge", "--technique", "regmean", *COMMAND, "--set", "offdiagonal=1")
    np.testing.assert_allclose(load_file("merged.safetensors")["w"], [[0.5, 0.5]], rtol=1e-3)
