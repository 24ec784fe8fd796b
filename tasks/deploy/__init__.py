"""The deployed copy of a time step: the merge, and a rotation that keeps embeddings comparable.

`rotation` is the closed form, `folding` puts it into a model's two projections, `probe` draws the images that it is
fitted on, and `node` is the node ``deploy``. The merge itself is `tasks.merge`'s.

Importing it costs nothing; torch is imported where there is something to rotate.
"""

from __future__ import annotations

from pathlib import Path

from tasks.deploy.conditions import check

__all__ = ["check", "require_foldable"]


def require_foldable(model: Path) -> None:
    """Check that a rotation can be folded into the model of a model folder.

    Raises:
        UserError: it cannot; says why.
    """
    from tasks.deploy import folding  # imports torch

    folding.of_folder(model)
