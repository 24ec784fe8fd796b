"""Choosing or learning a few numbers of a merge on data: the node ``fit``, between measure and deploy.

A method (`tasks.fit.methods`) finds coefficients; the node ``deploy`` merges with them like with any others. `samples`
has the samples, `scores` what a model scores on those that are held out, `node` is the node.
"""

from __future__ import annotations

from tasks.params import Params


def check(params: Params) -> list[str]:
    """Refuse, before any work, a fit that cannot work; return what is worth a warning.

    Raises:
        UserError: an unknown method or setting, nothing that is merged, or no samples that are held out.
    """
    if params.fit is None:
        return []
    from tasks.fit.method import check as check_method

    return check_method(params)


def reads_all_experts(params: Params) -> bool:
    """Whether the method of a timeline reads every expert so far, where all are merged."""
    if params.fit is None or params.time.deploy != "all":
        return False
    from tasks.fit.method import chosen

    return chosen(params.fit).learns
