"""A line more in params.yaml, and not a byte of the rest changed."""

from pathlib import Path

import pytest

from tasks.arrive.stream_file import appended, rewritten
from tasks.errors import UserError
from tasks.params import Arrival, parse

PATH = Path("params.yaml")
BEFORE = """\
# An experiment.
timeline: x   # with a comment
base: {model: m.json,   pretrained: w.safetensors}
"""
AFTER = """\
train: {steps: 3}  # steps

evaluate:
    adaptation: [{name: a, test: ["images:a"]}]
    retention:  [{name: b, test: ['images:b']}]
"""
NEW = Arrival(name="new", update=["images:data/arrivals/new", {"source": "table", "path": "a.csv", "label": "a: b"}])
LINE = '{name: new, update: ["images:data/arrivals/new", {source: table, path: a.csv, label: "a: b"}]}'


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("stream: []\n", f"stream:\n  - {LINE}\n"),
        ("stream: []   # nothing yet\n", f"stream:\n  - {LINE}   # nothing yet\n"),
        ("stream: [{name: a, expert: e}]  # one\n", f"stream: [{{name: a, expert: e}}, {LINE}]  # one\n"),
        ("stream: [\n  {name: a, expert: e},  # one\n]\n", f"stream: [\n  {{name: a, expert: e}}, {LINE},  # one\n]\n"),
        (
            "stream:  # what arrives\n  - {name: a, expert: e}   # one\n  # later\n\n",
            f"stream:  # what arrives\n  - {{name: a, expert: e}}   # one\n  - {LINE}\n  # later\n\n",
        ),
        (
            "stream:\n- name: a\n  update:\n  - icons:food # sweet\n\n",
            f"stream:\n- name: a\n  update:\n  - icons:food # sweet\n- {LINE}\n\n",
        ),
        (
            "stream:\n    -   name: a\n        expert: >-\n          e\n# end\n",
            f"stream:\n    -   name: a\n        expert: >-\n          e\n    - {LINE}\n# end\n",
        ),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_the_rest_stays_byte_for_byte(stream: str, expected: str, last: bool) -> None:
    def whole(part: str) -> str:
        return BEFORE + AFTER + part if last else BEFORE + part + AFTER

    made = appended(whole(stream), NEW, PATH)
    assert made == whole(expected)
    assert parse(made, PATH).stream[-1] == NEW
    other = NEW.model_copy(update={"name": "newer"})
    assert [one.name for one in parse(appended(made, other, PATH), PATH).stream[-2:]] == ["new", "newer"]


def test_no_newline_at_the_end() -> None:
    assert appended(BEFORE + AFTER + "stream:\n  - {name: a, expert: e} # x", NEW, PATH).endswith(f"# x\n  - {LINE}\n")


def test_where_there_is_no_place_it_says_what_to_add() -> None:
    text = BEFORE + "stream: &all\n  - &a {name: a, expert: e}\n  - {<<: *a, name: b}\n" + AFTER
    with pytest.raises(UserError, match="finds no place for another arrival") as caught:
        appended(text, NEW, PATH)
    assert f"by hand: {LINE}" in str(caught.value)


def test_a_name_that_is_there_already() -> None:
    with pytest.raises(UserError, match="params"):
        appended(BEFORE + "stream: [{name: new, expert: e}]\n" + AFTER, NEW, PATH)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (
            "stream:  # what arrives\n  - {name: a, expert: e}   # one\n  # of b\n  - name: b\n    update:\n"
            "      - icons:food  # x\n  - {name: c, expert: f}   # three\n# end\n",
            "stream:  # what arrives\n  # of b\n  - {name: b, update: ['icons:food'], from_state: state/x/0002}  # x\n"
            "  - {name: c, expert: f, from_state: state/x/0003}   # three\n# end\n",
        ),
        (
            "stream: [{name: a, expert: e}, {name: b, update: ['icons:food']}, {name: c, expert: f}]  # all\n",
            "stream: [{name: b, update: ['icons:food'], from_state: state/x/0002}, "
            "{name: c, expert: f, from_state: state/x/0003}]  # all\n",
        ),
    ],
)
def test_one_is_taken_out_and_later_ones_change_where_they_stand(stream: str, expected: str) -> None:
    before = parse(BEFORE + stream + AFTER, PATH).stream
    later = [one.model_copy(update={"from_state": f"state/x/000{i}"}) for i, one in enumerate(before[1:], start=2)]
    expected = expected.replace("'icons:food'", '"icons:food"')  # as it is written
    assert rewritten(BEFORE + stream + AFTER, later, PATH) == BEFORE + expected + AFTER


def test_the_last_one_of_a_list_is_taken_out() -> None:
    for stream, expected in (
        ("stream: [{name: a, expert: e}, {name: b, expert: f}]\n", "stream: [{name: a, expert: e}]\n"),
        ("stream:\n- {name: a, expert: e}\n- {name: b, expert: f} # x\n", "stream:\n- {name: a, expert: e}\n"),
    ):
        before = parse(BEFORE + stream + AFTER, PATH).stream
        assert rewritten(BEFORE + stream + AFTER, before[:1], PATH) == BEFORE + expected + AFTER


def test_a_stream_that_cannot_be_changed_says_what_to_do_by_hand() -> None:
    text = BEFORE + "stream: &all\n  - &a {name: a, expert: e}\n  - {<<: *a, name: b}\n" + AFTER
    with pytest.raises(UserError, match="by hand, take out a"):
        rewritten(text, parse(text, PATH).stream[1:], PATH)
