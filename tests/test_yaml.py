"""YAML of others: what a text says is no more than it looks like."""

import pytest

from tasks import yaml

NINE_LINES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)


@pytest.mark.parametrize("text", [NINE_LINES, f"{NINE_LINES}of: *a8\n", "a: &a [*a]\n", "a: &a {b: [*a]}\n"])
def test_aliases_that_stand_for_a_billion_values_are_refused(text: str) -> None:
    """A message that quotes such a value would have no end."""
    with pytest.raises(yaml.YAMLError, match=r"aliases .* stand for more than"):
        yaml.load(text)


def test_aliases_of_a_sane_text_are_what_they_stand_for() -> None:
    assert yaml.load("a: &a [1, 2]\nb: *a\nc: {d: *a}\n") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}
    assert yaml.load("") is None
