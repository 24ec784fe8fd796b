"""Every technique: against its formula in float64, and the properties that its mathematics promises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.merge import available, create, merge
from tasks.merge.sparsifiers import _by_rank as by_rank
from tasks.merge.technique import Technique
from tests.merge import references
from tests.merge.models import Model, base, close, experts, same, seen

ALL = sorted(available())
MATRIX_TOLERANCE = 2e-4


def merged(name: str, models: list[Model], **arguments: object) -> Model:
    given = {**seen(name, models), **arguments}
    tensors = merge(name, models, given.pop("base", base()), **given).tensors  # type: ignore[arg-type]
    assert tensors is not None
    return tensors


def count_of(name: str, wanted: int = 3) -> int:
    most = available()[name].models[1]
    return wanted if most is None else min(wanted, most)


def stacks(models: list[Model], zero: Model | None) -> dict[str, np.ndarray]:
    return {
        name: np.stack([m[name].astype(np.float64) - (0 if zero is None else zero[name]) for m in models])
        for name in models[0]
    }


@pytest.mark.parametrize("name", sorted(references.PER_TENSOR))
def test_task_vector_techniques_are_their_formula(name: str) -> None:
    chosen, formula = references.PER_TENSOR[name]
    zero, models = base(), experts(4)
    expected = {key: zero[key] + formula(stack) for key, stack in stacks(models, zero).items()}
    # PCB's ranking of products, and the decompositions, amplify float32's last digits.
    tolerance = MATRIX_TOLERANCE if name in ("tsv", "iso_c", "iso_cts", "pcb", "dop") else 2e-5
    close(merged(name, models, settings=chosen), expected, tolerance)


@pytest.mark.parametrize("name", sorted(references.WEIGHTS))
def test_weight_techniques_are_their_formula(name: str) -> None:
    models = experts(4)
    chosen = {"iterations": 100, "tolerance": 1e-12} if name == "karcher" else {}
    expected = {key: references.WEIGHTS[name](stack) for key, stack in stacks(models, None).items()}
    close(merged(name, models, settings=chosen), expected)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_its_formula_from_the_first_to_the_second(t: float) -> None:
    models = experts(2)
    expected = {key: references.slerp(stack, t) for key, stack in stacks(models, None).items()}
    close(merged("slerp", models, settings={"t": t}), expected)
    assert same(merged("slerp", models, settings={"t": t}), merged("slerp", models, settings={"weight": 1 - t}))


def test_opcm_is_the_papers_recursion() -> None:
    zero, models = base(), experts(4)
    taus = [{name: m[name] - zero[name] for name in m} for m in models]
    expected = {name: zero[name] + d for name, d in references.opcm(taus, 0.5).items()}
    close(merged("opcm", models), expected, MATRIX_TOLERANCE)


@pytest.mark.parametrize("scope", ["tower", "model"])
def test_trimming_over_a_tower_or_the_model(scope: str) -> None:
    zero, models = base(), experts(3)
    groups = {name: name.startswith("visual.") if scope == "tower" else True for name in zero}
    expected = {}
    for group in set(groups.values()):
        names = [name for name in zero if groups[name] == group]
        flat = np.stack([np.concatenate([(m[n] - zero[n]).reshape(-1) for n in names]) for m in models])
        result = references.elect(references.trim(flat.astype(np.float64), 0.3), 1.0)
        cuts = np.cumsum([zero[n].size for n in names])[:-1]
        for name, part in zip(names, np.split(result, cuts), strict=True):
            expected[name] = zero[name] + part.reshape(zero[name].shape)
    close(merged("ties", models, settings={"density": 0.3, "scope": scope}), expected)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_dropping_keeps_the_expectation(name: str) -> None:
    """One expert: every entry is 0 or τ divided by its probability, and their mean over many entries is τ's."""
    zero = {"w": np.zeros((64, 512), np.float32)}
    one = {"w": np.ones((64, 512), np.float32) + np.arange(512, dtype=np.float32) * 1e-6}
    result = merged(name, [one], base=zero, settings={"density": 0.25})["w"]
    kept = result != 0
    assert abs(kept.mean() - 0.25) < 0.01
    assert abs(result.mean() - 1) < 0.03
    if name.startswith("della"):
        # The larger half of a row is kept more often, by half of epsilon.
        assert kept[:, 256:].mean() - kept[:, :256].mean() == pytest.approx(0.075, abs=0.02)
        assert result[kept].min() == pytest.approx(1 / 0.325, rel=1e-3)
    else:
        np.testing.assert_allclose(result[kept], 4, rtol=1e-3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [2, 3])
def test_copies_of_the_base_merge_to_it(name: str, count: int) -> None:
    copies = [base() for _ in range(count_of(name, count))]
    result = merged(name, copies)
    if available()[name].relative or name == "linear":
        assert same(result, base())
    else:
        close(result, base(), 1e-6)


IDEMPOTENT = {
    "linear": {},
    "slerp": {},
    "karcher": {},
    "ties": {"density": 1},
    "magmax": {},
    "emr": {},
    "wudi": {},
    "dop": {},
    "model_stock": {},
    "pcb": {"density": 1},
    "sce": {},
    "fisher": {},
    "regmean": {},
    "became": {},
}


@pytest.mark.parametrize("name", sorted(IDEMPOTENT))
def test_copies_of_one_expert_merge_to_it(name: str) -> None:
    one = experts(1)[0]
    result = merged(name, [one] * count_of(name), settings=IDEMPOTENT[name])
    close(result, one, 1e-5)
    if name == "linear":
        assert same(result, one)


@pytest.mark.parametrize("name", [n for n in ALL if available()[n].models[0] == 1])
def test_a_single_expert_will_do(name: str) -> None:
    one = experts(1)[0]
    full = {"density": 1} if "density" in available()[name].model_fields else {}
    full |= {"epsilon": 0} if "epsilon" in available()[name].model_fields else {}
    full |= {"scale": 1} if "scale" in available()[name].model_fields else {}
    full |= {"k": 1} if name == "consensus" else {}
    result = merged(name, [one], settings=full)
    if name not in ("iso_c", "iso_cts"):  # their singular values are made equal
        close(result, one, MATRIX_TOLERANCE)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("opcm", "dop", "slerp", "became")])
@given(order=st.permutations(range(4)))
@settings(max_examples=5, deadline=None)
def test_the_order_of_experts_does_not_matter(name: str, order: list[int]) -> None:
    models = experts(4)
    close(merged(name, [models[i] for i in order]), merged(name, models), MATRIX_TOLERANCE)


@pytest.mark.parametrize("name", ALL)
@given(length=st.integers(1, 2000), threads=st.integers(1, 3))
@settings(max_examples=5, deadline=None)
def test_neither_slices_nor_threads_change_a_bit(name: str, length: int, threads: int) -> None:
    models = experts(count_of(name))
    assert same(merged(name, models, slice_entries=length, threads=threads), merged(name, models, threads=1))


@given(count=st.integers(1, 5), scale=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_magmax_stays_within_the_largest_task_vector(count: int, scale: float) -> None:
    zero, models = base(), experts(count)
    result = merged("magmax", models, settings={"scale": scale})
    for name in zero:
        bound = scale * np.max([np.abs(m[name] - zero[name]) for m in models], axis=0)
        assert (np.abs(result[name] - zero[name]) <= bound + 1e-5).all()


@given(a=st.floats(-1, 1), b=st.floats(-1, 1))
@settings(max_examples=20, deadline=None)
def test_task_arithmetic_is_linear(a: float, b: float) -> None:
    zero, (x, y) = base(), experts(2)
    expected = {n: zero[n] + a * (x[n] - zero[n]) + b * (y[n] - zero[n]) for n in zero}
    close(merged("task_arithmetic", [x, y], weights=[a, b], settings={"scale": 1}), expected)


@pytest.mark.parametrize("name", [n for n in ALL if available()[n].weighted])
def test_weight_is_the_share_of_the_first_model(name: str) -> None:
    models = experts(2)
    own = merged(name, models, settings={"weight": 0.25})
    assert same(own, merged(name, models, weights=[0.25, 0.75]))
    with pytest.raises(UserError, match="weights are given both"):
        merged(name, models, settings={"weight": 0.25}, weights=[1, 3])


def test_linear_with_weights_and_without_normalization() -> None:
    x, y, z = experts(3)
    close(merged("linear", [x, y, z], weights=[1, 2, 5]), {n: (x[n] + 2 * y[n] + 5 * z[n]) / 8 for n in x})
    close(merged("linear", [x, y, z], weights=[3, -1, 2]), {n: (3 * x[n] - y[n] + 2 * z[n]) / 4 for n in x})
    unnormalized = merged("linear", [x, y], weights=[0.5, -1], settings={"normalize": False})
    close(unnormalized, {n: 0.5 * x[n] - y[n] for n in x})
    with pytest.raises(UserError, match="weights sum to -1"):
        merged("linear", [x, y], weights=[1, -2])


@pytest.mark.parametrize("recency", ["linear", "sqrt", "square", "cube", "x5", "x10", "exponential", "log"])
def test_recency_weights_favour_the_newest_or_reversed_the_oldest(recency: str) -> None:
    weights = create("linear", {"recency": recency}).weights(6)
    assert all(a < b for a, b in pairwise(weights))
    turned = create("linear", {"recency": recency, "reverse": True})
    assert turned.weights(6) == weights[::-1]
    assert not turned.sequential


def test_model_stock_clamps_its_ratio() -> None:
    """Opposed task vectors: the ratio has a pole there, and stays 0: the base."""
    zero, one = base(), experts(1)[0]
    opposed = {n: 2 * zero[n] - one[n] for n in zero}
    close(merged("model_stock", [one, opposed]), zero)


def test_tsv_where_experts_have_fewer_directions_than_their_share() -> None:
    """Of rank one, twice, and zero: each half of what both know counts once, and zeros add nothing."""
    zero = {"w": np.zeros((12, 9), np.float32)}
    one = {"w": np.outer(np.arange(1, 13), np.arange(3, 12)).astype(np.float32)}
    close(merged("tsv", [one, zero, one], base=zero), one, 1e-5)


def test_emr_by_hand() -> None:
    """τ = 3, −1 elects +, and 3; 0 counts as −; of two that agree the larger."""
    zero = {"w": np.zeros(4, np.float32)}
    models = [{"w": np.float32([3, 1, 0, -2])}, {"w": np.float32([-1, -1, 0, -5])}]
    np.testing.assert_array_equal(merged("emr", models, base=zero)["w"], [3, -1, 0, -5])


def test_wudi_gives_every_expert_its_own_outputs_where_their_inputs_are_apart() -> None:
    zero = {"w": np.zeros((2, 4), np.float32)}
    first, second = np.float32([[1, 2, 0, 0], [0, 1, 0, 0]]), np.float32([[0, 0, 3, 1], [0, 0, 1, 1]])
    result = merged("wudi", [{"w": first}, {"w": second}], base=zero)["w"]
    np.testing.assert_allclose(result, first + second, atol=1e-5)


def test_wudi_by_hand() -> None:
    """Rows (1, 0) and (1, 1): N = (1, 0) + (1, 1), G = [[1, 0], [0, 0]] + [[½, ½], [½, ½]]: N G⁻¹ = (1, 1)."""
    zero = {"w": np.zeros((1, 2), np.float32)}
    models = [{"w": np.float32([[1, 0]])}, {"w": np.float32([[1, 1]])}]
    np.testing.assert_allclose(merged("wudi", models, base=zero, settings={"epsilon": 0})["w"], [[1, 1]], atol=1e-6)


def test_dop_by_hand() -> None:
    """Two numbers 1 and 3: least (D−1)²·1 + (D−3)²·9 is D = (1 + 27)/10; apart in both spaces: their sum."""
    zero = {"w": np.zeros((1, 1), np.float32)}
    models = [{"w": np.float32([[1]])}, {"w": np.float32([[3]])}]
    np.testing.assert_allclose(merged("dop", models, base=zero)["w"], [[2.8]], rtol=1e-6)
    np.testing.assert_allclose(
        merged("dop", models, base=zero, settings={"weight": 0.9})["w"], [[(0.9 + 2.7) / 1.8]], rtol=1e-6
    )
    zero = {"w": np.zeros((2, 2), np.float32)}
    models = [{"w": np.float32([[1, 0], [0, 0]])}, {"w": np.float32([[0, 0], [0, 3]])}]
    np.testing.assert_allclose(merged("dop", models, base=zero)["w"], [[1, 0], [0, 3]], atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 90), (60, 60), (90, 40)])
@pytest.mark.parametrize("name", ["tsv", "iso_cts"])
def test_decompositions_of_wide_square_and_tall_matrices(name: str, shape: tuple[int, int]) -> None:
    zero = {"w": np.zeros(shape, np.float32)}
    models = [{"w": np.random.default_rng(i).standard_normal(shape).astype(np.float32)} for i in range(7)]
    stack = np.stack([one["w"].astype(np.float64) for one in models])
    expected = references.tsv(stack) if name == "tsv" else references.iso_cts(stack, 0.8)
    close(merged(name, models, base=zero), {"w": expected}, MATRIX_TOLERANCE)


@pytest.mark.parametrize("common", [0, 0.3, 1])
def test_iso_cts_has_one_singular_value(common: float) -> None:
    """With common: 1 it is Iso-C."""
    zero = {"w": np.zeros((12, 9), np.float32)}
    models = [{"w": np.random.default_rng(i).standard_normal((12, 9)).astype(np.float32)} for i in range(4)]
    result = merged("iso_cts", models, base=zero, settings={"common": common})
    values = np.linalg.svd(result["w"], compute_uv=False)
    np.testing.assert_allclose(values, values.mean(), rtol=1e-4)
    if common == 1:
        close(result, merged("iso_c", models, base=zero), 1e-4)


def test_magmax_takes_the_positive_of_two_that_are_as_far_from_the_base() -> None:
    zero = {"w": np.zeros(2, np.float32)}
    first, second = {"w": np.float32([1, -1])}, {"w": np.float32([-1, 1])}
    for pair in ([first, second], [second, first]):
        np.testing.assert_array_equal(merged("magmax", pair, base=zero)["w"], [1, 1])


@pytest.mark.parametrize("shape", [(5, 300), (1, 1), (3, 1), (7,)])
def test_ranks_within_rows_are_those_of_a_stable_sort(shape: tuple[int, ...]) -> None:
    """Of equal magnitudes, whatever their signs, the first in the row ranks first."""
    x = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    values = np.arange(shape[-1], dtype=np.float32)
    expected = np.argsort(np.argsort(np.abs(x), axis=-1, kind="stable"), axis=-1, kind="stable")
    for precision in (np.float32, np.float64):
        np.testing.assert_array_equal(by_rank(x.astype(precision), values), expected)


def test_ties_keeps_entries_equal_to_the_last_kept_one() -> None:
    zero = {"w": np.zeros(5, np.float32)}
    one = {"w": np.float32([1, 2, 2, 2, 0])}
    result = merged("ties", [one], base=zero, settings={"density": 0.4})["w"]
    np.testing.assert_array_equal(result, [0, 2, 2, 2, 0])


class TestLines:
    def test_it_scales_the_merged_task_vector_by_layer(self) -> None:
        zero, models = base(), experts(2)
        plain = merged("task_arithmetic", models)
        scaled = merged("task_arithmetic", models, settings={"lines": {"alpha": 0.25, "beta": 0.5}})
        for name in zero:
            factor = 0.75 if ".1." in name else 0.25
            np.testing.assert_allclose(scaled[name] - zero[name], factor * (plain[name] - zero[name]), atol=1e-5)

    @pytest.mark.parametrize("name", ["task_arithmetic", "ties", "linear", "model_stock", "iso_c"])
    def test_alpha_by_norm_is_the_papers_ratio(self, name: str) -> None:
        zero, models = base(), experts(3)
        taus = [{n: m[n].astype(np.float64) - zero[n] for n in m} for m in models]
        plain = merged(name, models)
        tau = {n: plain[n].astype(np.float64) - zero[n] for n in zero}
        alpha = references.lines_by_norm(taus, tau)
        depth = {n: 1.0 if ".1." in n else 0.0 for n in zero}
        expected = {n: zero[n] + (alpha + 0.3 * depth[n]) * tau[n] for n in zero}
        scaled = merged(name, models, settings={"lines": {"alpha": "norm", "beta": 0.3}})
        close(scaled, expected)

    def test_alpha_by_norm_undoes_scale_and_is_a_mean_outside_the_deeper_blocks(self) -> None:
        models = experts(4)
        settings = {"lines": {"alpha": "norm", "beta": 0}, "scale": 0.07}
        close(merged("task_arithmetic", models, settings=settings), merged("linear", models))

    @pytest.mark.parametrize("name", ["ties", "linear", "karcher"])
    def test_alpha_by_norm_has_no_sequential_form(self, name: str) -> None:
        settings = {"lines": {"alpha": "norm"}}
        assert not create(name, settings).sequential
        wanted = {"iterations": 0} if name == "karcher" else {}
        assert create(name, {"lines": {}, **wanted}).sequential

    def test_alpha_by_norm_of_models_that_have_not_moved(self) -> None:
        result = merged("ties", [base(), base()], settings={"lines": {"alpha": "norm"}})
        assert same(result, base())

    @given(length=st.integers(1, 2000), threads=st.integers(1, 3))
    @settings(max_examples=5, deadline=None)
    def test_alpha_by_norm_depends_on_neither_slices_nor_threads(self, length: int, threads: int) -> None:
        chosen = {"lines": {"alpha": "norm"}}
        sliced = merged("ties", experts(2), settings=chosen, slice_entries=length, threads=threads)
        assert same(sliced, merged("ties", experts(2), settings=chosen, threads=1))

    @pytest.mark.parametrize("name", ["linear", "slerp", "karcher"])
    def test_on_interpolation_it_scales_task_vectors_never_raw_weights(self, name: str) -> None:
        zero, models = base(), experts(2)
        plain = merged(name, models)
        scaled = merged(name, models, settings={"lines": {}})
        np.testing.assert_allclose(
            scaled["text_projection"] - zero["text_projection"],
            0.5 * (plain["text_projection"] - zero["text_projection"]),
            atol=1e-5,
        )
        with pytest.raises(UserError, match="LiNeS scales task vectors, and so needs the base"):
            merge(name, models, settings={"lines": {}})


@pytest.mark.parametrize("name", ALL)
def test_every_technique_says_what_it_is(name: str) -> None:
    technique: type[Technique] = available()[name]
    assert technique.name == name
    assert technique.__doc__
    assert technique.source
    assert technique().lines is None


def test_wrong_settings_name_key_value_and_what_is_accepted() -> None:
    with pytest.raises(UserError, match=r"technique: there is no 'tis'; there are .*ties"):
        create("tis", {})
    with pytest.raises(UserError, match=r"technique: ties: no setting 'denisty'; it accepts .*density"):
        create("ties", {"denisty": 0.2})
    with pytest.raises(UserError, match=r"ties: density got 1.5; .*less than or equal to 1"):
        create("ties", {"density": 1.5})
    with pytest.raises(UserError, match=r"no setting 'lines\.alpa'; it accepts lines\.alpha, lines\.beta"):
        create("ties", {"lines": {"alpa": 1}})
    with pytest.raises(UserError, match=r"lines\.alpha got 'nrm'; input should be a valid number.*, or .*'norm'"):
        create("ties", {"lines": {"alpha": "nrm"}})
    with pytest.raises(UserError, match="scale got nan; input should be a finite number"):
        create("ties", {"scale": float("nan")})
    with pytest.raises(UserError, match="slerp: t and weight say the same"):
        create("slerp", {"t": 0.2, "weight": 0.8})
    with pytest.raises(UserError, match="density ± epsilon/2"):
        create("della", {"density": 0.05, "epsilon": 0.2})
