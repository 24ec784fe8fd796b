"""Conditions of a gate: how they are written, what they compare, and what is refused before any work."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import gate
from tasks.errors import UserError
from tasks.gate import Condition, GateReference, judge, parse
from tests.test_params import loaded

METRICS = {
    "A_KA": 24.8, "A_ZS": 28.0, "geometric_mean": 26.35, "top1": {"flags": 20.0},
    "recall": {"pairs": {"image_to_text": {"5": 30.0}, "text_to_image": {"5": 40.0}}},
    "heads": {"gda": {"top1": {"16": {"flags": 70.0}}, "A_KA": {"16": 60.0}}},
}  # fmt: skip
BEFORE = {"A_KA": 22.8, "A_ZS": 30.0, "geometric_mean": 26.35, "top1": {"flags": 10.0}}


def judged(*conditions: str, same: tuple[str, ...] = gate.ROLES) -> gate.GateVerdict:
    return judge(conditions, METRICS, GateReference("state/x/0001", BEFORE, same))


names = st.sampled_from([*gate.MEANS, *gate.DIFFERENCES, "score.flags", "score.a.b-c_1"])
bounds = st.decimals(-1, 1, allow_nan=False, places=5)


@given(names, st.sampled_from(list(gate.OPERATORS)), bounds)
def test_a_condition_reads_as_it_is_written(name: str, op: str, bound: Decimal) -> None:
    condition = Condition(name, op, bound)
    assert parse(str(condition)) == condition
    assert parse(f" {name}{op}{bound:f} ") == condition
    assert parse(f"{name} {op} {bound * 100:f}%") == condition


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("A_KA >= 0.248", 0.248, True),
        ("A_KA > 24.8%", 0.248, False),
        ("geometric_mean < 0.3", 0.2635, True),
        ("score.flags >= 20%", 0.2, True),
        ("score.pairs <= 34.9%", 0.35, False),
        ("head.gda@16.flags >= 70%", 0.7, True),
        ("head.gda@16.A_KA > 60%", 0.6, False),
        ("retention_drop <= 0.02", 0.02, True),  # 30 less 28, to the last digit
        ("retention_drop < 2%", 0.02, False),
        ("accumulation_gain >= 0.02", 0.02, True),
        ("geometric_mean_gain >= 0", 0.0, True),
        ("geometric_mean_gain > -0.1%", 0.0, True),
    ],
)
def test_values_are_shares_of_one(condition: str, value: float, holds: bool) -> None:
    verdict = judged(condition)
    assert verdict.conditions == (gate.ConditionOutcome(condition, value, holds),)
    assert verdict.promoted == holds


def test_one_condition_that_fails_holds_the_state() -> None:
    verdict = judged("A_KA >= 0", "retention_drop <= 1%")
    assert verdict.as_dict() == {
        "promoted": False,
        "compared_with": "state/x/0001",
        "conditions": [
            {"condition": "A_KA >= 0", "value": 0.248, "holds": True},
            {"condition": "retention_drop <= 1%", "value": 0.02, "holds": False},
        ],
    }
    assert judge([], {}, None) == gate.GateVerdict(True, (), None)


def test_no_drop_has_no_sign() -> None:
    verdict = judge(["retention_drop <= 1%"], METRICS, GateReference("state/x/0001", METRICS, ("retention",)))
    assert str(verdict.conditions[0]) == "retention_drop <= 1% (0.00%)"


def test_a_difference_to_other_test_sets_means_nothing() -> None:
    drop, gain, both = "retention_drop <= 0", "accumulation_gain >= 1", "geometric_mean_gain >= 1"
    verdict = judged(drop, gain, both, same=("retention",))
    assert [one.holds for one in verdict.conditions] == [False, None, None]
    assert (verdict.promoted, verdict.compared_with) == (False, "state/x/0001")
    for reference in (None, GateReference("state/x/0001", BEFORE, ())):
        verdict = judge([drop, gain], METRICS, reference)
        assert (verdict.promoted, verdict.compared_with) == (True, None)
        assert [(one.value, one.holds) for one in verdict.conditions] == [(None, None)] * 2
        assert "nothing to compare with" in str(verdict.conditions[0])
    assert not judge([drop, "A_KA > 90%"], METRICS, None).promoted  # a floor stands by itself


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("A_KA = 0.2", r"gate\.require\.0: a condition is NAME OP NUMBER.*OP is <=, <, >=, > \(got 'A_KA = 0.2'\)"),
        ("A_KA", "NAME OP NUMBER"),
        ("A_KA >= __import__('os')", "NAME OP NUMBER"),
        ("accuracy >= 0.2", r"no value is called accuracy; there are A_KA, .*retention_drop.* score\.SET"),
        ("retention_drop <= 2", "2 is beyond 100%; .* write 2% or"),
        ("score.flogs >= 0.2", r"gate: score\.flogs >= 0\.2: no evaluation set is called flogs; there are "),
    ],
)
def test_what_is_no_condition_is_refused(condition: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        loaded(tmp_path, gate={"require": [condition]})


@pytest.mark.parametrize("empty", [None, {}, {"require": []}])
def test_a_gate_may_be_empty(empty: Any, tmp_path: Path) -> None:
    settings = loaded(tmp_path, gate=empty).gate
    assert settings is None or (settings.require, settings.held) == ([], "continue")


def test_what_follows_a_held_state_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate\.held: Input should be 'continue' or 'skip' \(got 'stop'\)"):
        loaded(tmp_path, gate={"held": "stop"})
    with pytest.raises(UserError, match=r"unknown key gate\.requires; accepted here: require, held"):
        loaded(tmp_path, gate={"requires": []})
