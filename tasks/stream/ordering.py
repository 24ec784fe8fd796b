"""What a stream ordering is. One file in `tasks.stream.orderings` defines one, and nothing else needs to know of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tasks.choice import Choice, available, create
from tasks.params import Named
from tasks.stream.material import Material


class Ordering(Choice):
    """In which order classes arrive; its fields are its settings."""

    key: ClassVar[str] = "--order"
    package: ClassVar[str] = "tasks.stream.orderings"

    @abstractmethod
    def order(self, material: Material) -> list[int]:
        """Every index into ``material.pairs`` once, in the order of arrival: a pure function of material and settings.

        Raises:
            UserError: what it goes by is not there.
        """


def named(name: str, settings: Mapping[str, Any]) -> Ordering:
    """An ordering by name.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    chosen = Named.model_validate({**settings, "name": name})
    return create(Ordering, chosen)  # type: ignore[type-abstract]


def known() -> Mapping[str, type[Ordering]]:
    """All orderings, by name."""
    return available(Ordering)
