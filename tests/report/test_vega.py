"""The page's script is kept in the user's cache, and made again where what is kept is not what was written."""

import functools
from pathlib import Path

import pytest
import vl_convert

from tasks import layout
from tasks.report import vega


def test_the_script_is_made_once_and_again_after_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vl_convert, "javascript_bundle", functools.cache(vl_convert.javascript_bundle))
    made = vega.script.__wrapped__()
    assert "vegaEmbed" in made
    (kept,) = layout.user_cache("vega").glob("*.js")
    written = kept.read_bytes()
    with monkeypatch.context() as context:
        context.delattr(vl_convert, "javascript_bundle")
        assert vega.script.__wrapped__() == made
    for damaged in (written[:-1], written.replace(b"vegaEmbed", b"somethingE", 1), b"", b"\xff"):
        kept.write_bytes(damaged)
        assert vega.script.__wrapped__() == made
        assert kept.read_bytes() == written


def test_a_cache_that_cannot_be_written_only_costs_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "vegaEmbed" in vega.script.__wrapped__()
