"""Evaluation of the deployed model: zero-shot, and by heads on features.

`zeroshot` scores a test set with classes, with templates of `prompts` and on samples of `shares`; `retrieval` scores
one without. `towers` computes features, `memory` keeps freed memory for reuse, `metrics` computes the summary,
`predictions` keeps the classes that were predicted, `parts` divides the work, and `node` is the node ``evaluate``.

`head` says what a head is, `heads` has them, `support` what they learn from, `spaces` the features that they work on,
`headstate` what a step hands to the next, `headfile` the file of a head, and `fewshot` is the node ``heads``.
"""

from __future__ import annotations

from tasks.errors import UserError
from tasks.params import Evaluate


def check(evaluate: Evaluate, *, aligned: bool) -> dict[str, list[str]]:
    """Check the heads before any work; returns the numbers of shots at which each is scored, by name.

    ``aligned`` says whether deployed models share a space (``deploy.compatible_with``).

    Raises:
        UserError: an unknown head or setting, or a head on aligned features where there are none.
    """
    if not evaluate.heads:
        return {}
    from tasks.evaluate import head  # imports torch

    chosen = {one.shown: head.chosen(one) for one in evaluate.heads}
    for name, one in chosen.items():
        if one.features == "aligned" and not aligned:
            raise UserError(
                f"evaluate.heads: {name}: features: aligned needs deployed models that share a space; set"
                " deploy: {compatible_with: first}"
            )
    return {
        name: [str(shots) for shots in one.shots] if isinstance(one, head.SupportHead) else ["0"]
        for name, one in chosen.items()
    }
