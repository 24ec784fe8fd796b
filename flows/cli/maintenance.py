"""The verbs ``doctor`` and ``gc``: maintenance of a project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.terminal import out, print_json

if TYPE_CHECKING:
    from tasks.record import Finding, SweepPlan


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what a crash or a person left behind, and repair it; status 1 while anything is left."""
    from flows.prefect import runs
    from tasks import console, record
    from tasks.storage.git import top_level
    from tasks.units import counted

    with console.shown() as progress:
        report = record.doctor(top_level(Path.cwd()), repair=repair, progress=progress, also=[runs.unended])
    if as_json:
        findings = [{**finding.as_dict(), "repaired": repair and why is None, "left": why if repair else None}
                    for finding, why in report.findings]  # fmt: skip
        print_json({"healthy": report.healthy, "findings": findings, "skipped": report.skipped})
    else:
        for finding, why in report.findings:
            out.print(f"{finding.what}: {finding.where}")
            out.print(f"    {finding.meaning}")
            out.print(f"    {_remedy(finding, why, repair=repair)}")
        for sentence in report.skipped:
            out.print(f"not looked at: {sentence}")
        left = sum(why is not None for _, why in report.findings)
        out.print(f"{counted(left, 'finding')} left" if left else "healthy")
    if not report.healthy:
        raise typer.Exit(1)


def _remedy(finding: Finding, why: str | None, *, repair: bool) -> str:
    if finding.repair is None:
        return f"by hand: {finding.remedy}"
    if not repair:
        return f"--repair would {finding.remedy}"
    return f"repaired: {finding.remedy}" if why is None else f"not repaired: {why}"


def gc(
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Of each timeline, only the newest N states keep their weights.")
    ] = None,
    keep_tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="A state that keeps its weights as well; repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it nothing is touched.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="From the store too, not only from the cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free what no state of any timeline refers to, and with --keep-last the weights of older states."""
    from tasks.params import load
    from tasks.record import prune
    from tasks.storage import dvc_config
    from tasks.storage.git import top_level

    project = top_level(Path.cwd())
    plan = prune(project, keep_last=keep_last, keep_tags=keep_tag or (), delete=delete, everywhere=remote)
    url = dvc_config.remote(project, load(project / "params.yaml").store.remote).url
    if as_json:
        print_json(_as_dict(plan, deleted=delete))
        return
    for line in _lines(plan, str(dvc_config.cache_dir(project)), url, delete=delete, everywhere=remote):
        out.print(line)


def _as_dict(plan: SweepPlan, *, deleted: bool) -> dict[str, object]:
    return {
        "deleted": deleted,
        "cache": dict(plan.cache),
        "remote": dict(plan.remote),
        "letting_go": [state.tag for state in plan.letting_go],
        "staying": list(plan.staying),
        "kept": {"unfinished": dict(plan.unfinished), "young": dict(plan.young), "only_here": dict(plan.only_here)},
    }


def _lines(plan: SweepPlan, cache: str, url: str, *, delete: bool, everywhere: bool) -> Iterator[str]:
    freed = "freed" if delete else "can be freed"
    where = "lets its weights go for good" if everywhere else "keeps its weights in the store alone"
    for state in plan.letting_go:
        yield f"{state.tag} {where}"
    yield from plan.staying
    yield f"cache   {_count(plan.cache)} {freed} ({cache})"
    yield f"store   {_count(plan.remote)} {freed if everywhere else 'can be freed with --remote'} ({url})"
    if plan.unfinished:
        yield f"stays   {_count(plan.unfinished)} that finished nodes of an interrupted run made; `run` takes them up"
    if plan.only_here:
        yield f"stays   {_count(plan.only_here)} of older states that the store lacks; `chronomerge doctor --repair`"
    if plan.young:
        yield f"stays   {_count(plan.young)} in the store that are less than a day old: another machine may want them"
    if everywhere and not delete:
        for md5, size in sorted(plan.remote.items()):
            yield f"  {md5[:2]}/{md5[2:]} {size}"
    if everywhere:
        yield f"this assumes that only this repository and those it pushes states to keep anything in {url}"
    if not delete and (plan.cache or plan.remote):
        yield "nothing was touched; --delete deletes"


def _count(objects: Mapping[str, int]) -> str:
    from tasks.units import counted, size

    return f"{counted(len(objects), 'object')}, {size(sum(objects.values()))}"
