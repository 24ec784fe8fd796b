"""Files of weights with a few wrong bytes, cut off, or with bytes behind their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError


def gives_the_right_weights_or_one_sentence(path: Path, target: Path, read: Callable[[], object]) -> None:
    """However the file ``path`` is damaged, ``read`` writes to ``target`` what it writes of the whole one, or raises a
    UserError of one line that names the file, and leaves nothing."""
    whole = path.read_bytes()
    read()
    right = target.read_bytes()

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(0, len(whole)) | st.none(),
        st.binary(max_size=20),
    )
    def damaged(changes: list[tuple[int, int]], cut: int | None, more: bytes) -> None:
        content = bytearray(whole)
        for place, byte in changes:
            content[place] = byte
        path.write_bytes(bytes(content[:cut]) + more)
        target.unlink(missing_ok=True)
        said = None
        try:
            read()
        except UserError as error:
            said = str(error)
        if said is None:
            assert target.read_bytes() == right
        else:
            assert path.name in said
            assert "\n" not in said
            assert not target.exists()
        assert not list(target.parent.glob(".*"))

    damaged()
