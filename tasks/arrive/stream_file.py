"""One more arrival in the ``stream`` of params.yaml, and not a byte of the rest changed: comments and layout are a
person's.

A YAML library that writes the file anew keeps comments, but not how a person aligned them. So the place is taken from
the parsed file's marks, one line is put in there, and the result must parse to what it was and the arrival.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tasks.errors import UserError
from tasks.params import Arrival, parse


def appended(text: str, arrival: Arrival, path: Path) -> str:
    """The text of a params file with one more arrival at the end of its stream; ``path`` is what messages call it.

    Raises:
        UserError: it is no params file, has an arrival of that name, or is written in a way that leaves no place.
    """
    before = parse(text, path)
    line = _flow(arrival.model_dump(mode="json", exclude_defaults=True))
    try:
        after = _inserted(text, line)
        fits = parse(after, path) == before.model_copy(update={"stream": [*before.stream, arrival]})
    except (YAMLError, _NoPlaceError, UserError):
        fits = False
    if not fits:
        raise UserError(f"{path}: finds no place for another arrival; add this to its stream by hand: {line}")
    return after


def rewritten(text: str, stream: Sequence[Arrival], path: Path) -> str:
    """The text of a params file whose stream is another: arrivals left out or changed, by name, and none added.

    Raises:
        UserError: it is no params file, or is written in a way that does not show where an arrival is.
    """
    before = parse(text, path)
    wanted = {arrival.name: arrival for arrival in stream}
    after = text
    try:
        items = _items(text)
        for place, (arrival, node) in reversed(list(enumerate(zip(before.stream, items.value, strict=True)))):
            if arrival.name not in wanted:
                after = _without(after, items, place)
            elif wanted[arrival.name] != arrival:
                line = _flow(wanted[arrival.name].model_dump(mode="json", exclude_defaults=True))
                after = after[: node.start_mark.index] + line + after[_end(node) :]
        fits = parse(after, path) == before.model_copy(update={"stream": list(stream)})
    except (YAMLError, _NoPlaceError, UserError, ValueError):
        fits = False
    if not fits:
        gone = [one.name for one in before.stream if one.name not in wanted]
        lines = [
            _flow(one.model_dump(mode="json", exclude_defaults=True)) for one in stream if one not in before.stream
        ]
        raise UserError(
            f"{path}: cannot change its stream; by hand, take out {', '.join(gone) or 'nothing'}"
            + (f" and write {'; '.join(lines)}" if lines else "")
        )
    return after


def _items(text: str) -> SequenceNode:
    root = YAML().compose(text)
    stream = next((value for key, value in root.value if key.value == "stream"), None)
    if not isinstance(stream, SequenceNode):
        raise _NoPlaceError
    return stream


def _without(text: str, stream: SequenceNode, place: int) -> str:
    """The text without one item; what stands after it may have changed already."""
    node = stream.value[place]
    start, end = node.start_mark.index, _end(node)
    if not stream.flow_style:
        first = text.rfind("\n", 0, start) + 1
        return text[:first] + text[text.find("\n", end) + 1 or len(text) :]
    if place + 1 < len(stream.value):
        return text[:start] + text[stream.value[place + 1].start_mark.index :]
    return text[: _end(stream.value[place - 1]) if place else start] + text[end:]


class _NoPlaceError(Exception):
    """The stream is not written as a list."""


def _flow(content: dict[str, Any]) -> str:
    """YAML on one line."""
    yaml: Any = YAML()
    yaml.default_flow_style = True
    yaml.width = 1 << 20
    written = io.StringIO()
    yaml.dump(_quoted(content), written)
    return written.getvalue().strip()


def _quoted(content: Any) -> Any:
    """Inside [ ] and { } a text with a colon needs quotes."""
    if isinstance(content, dict):
        return {key: _quoted(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_quoted(value) for value in content]
    return DoubleQuotedScalarString(content) if isinstance(content, str) and ":" in content else content


def _inserted(text: str, line: str) -> str:
    stream = _items(text)
    if stream.flow_style and stream.value:
        end = stream.value[-1].end_mark.index
        return f"{text[:end]}, {line}{text[end:]}"
    if stream.flow_style:
        return f"{text[: stream.start_mark.index].rstrip(' ')}\n  - {line}{text[stream.end_mark.index :]}"
    end = _end(stream)
    if text[end - 1] != "\n":  # past a comment behind the last arrival
        end = text.find("\n", end) + 1 or len(text)
    newline = "" if text[end - 1] == "\n" else "\n"
    return f"{text[:end]}{newline}{' ' * stream.start_mark.column}- {line}\n{text[end:]}"


def _end(node: Node) -> int:
    """Where the last of a node is: blocks end, to the parser, only where the next begins."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)
