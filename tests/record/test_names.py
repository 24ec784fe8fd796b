"""What states are called, and how many of them are listed."""

from tasks.record import names


def tags(timeline: str, steps: range, line: int = 1) -> list[str]:
    return [names.short_tag(timeline, step, line) for step in steps]


def test_many_states_are_listed_as_ranges() -> None:
    assert names.listed(tags("x", range(130))) == "state/x/0000 to 0129 (130 states)"
    assert names.listed([*tags("x", range(3)), *tags("x", range(2, 4), 2), *tags("y", range(1))]) == (
        "state/x/0000 to 0002 (3 states), state/x/0002.2, state/x/0003.2, state/y/0000"
    )
    scattered = [tag for step in range(0, 40, 2) for tag in tags("x", range(step, step + 1))]
    assert names.listed(scattered) == "state/x/0000, state/x/0002, state/x/0004, state/x/0006 and 16 more states"
    assert names.listed([]) == ""


def test_a_tag_says_timeline_line_and_step() -> None:
    assert names.parse("refs/tags/state/x/0012.3") == ("x", 3, 12)
    assert names.parse("state/x/0012.1") is None
    assert names.parse("state/x y/0012") is None
