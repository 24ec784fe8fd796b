"""What runs where at 1, 10 and 100 machines, from ViT-B/32 to ViT-bigG/14, simulated from measured costs.

    .venv/bin/python benchmarks/simulate.py                    # the tables of docs/guides/scale.md
    .venv/bin/python benchmarks/simulate.py --techniques linear,ties --arrivals 50 --model ViT-L-14
    .venv/bin/python benchmarks/simulate.py --protocol ema+ema # one timeline
    .venv/bin/python benchmarks/simulate.py --validate FILE    # against what scaling.py measured
    .venv/bin/python benchmarks/simulate.py --measure          # the constants that any machine tells

TIME's grid of all eight protocols over a stream of FoMo-in-Flux's size. Which node is computed once for which cells is
the product's own plan (`tasks.grid.plan`); sizes, FLOPs and memory of models are counted on torch's meta device; what a
node costs beside its work was measured (`MeasuredRates`, whose fields are options too). What could not be measured is
assumed: the options that `--help` shows with their sources.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))

from simulation import Costs, Machine, Outcome, Shared, SimulatedNode, Site, run

from tasks.grid import cells, plan
from tasks.grid.plan import Work
from tasks.merge import Accumulator, create
from tasks.params import Base, Grid
from tasks.storage import embedded
from tasks.storage.cache import Cache, md5_of
from tasks.units import duration, size

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14")
MACHINES = (1, 10, 100)
BATCH, STEPS = 512, 28_400
"""Samples of a training step, and training steps of a whole stream, as in TIME (arXiv 2412.06712)."""
SETS = 41
"""Test sets, of equal sizes here: FoMo-in-Flux's, adaptation sets only."""
SCORED = 256
"""Images that are scored at a time."""
MEGABYTES = 400
"""Of weights that `measure` sends and fetches."""


@dataclass(frozen=True)
class Assumed:
    """Not measured here; where each comes from is in its help."""

    gpu: float = field(default=312e12 * 0.35, metadata={"help": "FLOP/s of a GPU at work: 35 %% of an A100's 312e12"})
    wire: float = field(default=1.25e9, metadata={"help": "bytes/s of a machine's network: 10 Gbit/s"})
    store: float = field(default=3.1e9, metadata={"help": "bytes/s of the store in all: one server of 25 Gbit/s"})
    cores: float = field(default=16, metadata={"help": "processor cores of each machine"})
    train: float = field(default=1.76e6, metadata={"help": "training samples of the stream: FoMo-in-Flux's"})
    test: float = field(default=453e3, metadata={"help": "test samples: FoMo-in-Flux's, adaptation sets only"})
    photograph: float = field(default=110e3, metadata={"help": "bytes of a source image: ImageNet's average"})


@dataclass(frozen=True)
class MeasuredRates:
    """Measured in this repository, on two cores of a cloud machine; the command that did is named."""

    flow: float = 1.7
    """Core seconds of the flow for each node on a worker. `scaling.py --only nodes`: rows of the flow, per node."""
    worker: float = 1.5
    """Core seconds on the worker for each node or part of one. The same: rows of the worker."""
    record: float = 4.1
    """Core seconds of the flow for each state. The same, `recording`."""
    cell_worker: float = 0.8
    """Core seconds for each node in a cell worker. `--validate` finds it."""
    requests: float = 2.5
    """Requests to Prefect for each node. The same."""
    objects: float = 70.0
    """Requests to the store for each node; for a part of one, which makes no outputs, rather too many. The same."""
    message: float = 0.33e6
    """Bytes of code in a job. The same."""
    merging: float = 77e6
    """Bytes of memory that a merge takes, whatever the models' size: `merge.py --only "ties N=32"`. What takes matrices
    apart (tsv, iso_c, opcm) took 290e6 for those of a ViT-B/32."""
    merged: float = 1.7e9
    """Bytes a second that a merge reads and writes. `merge.py --only linear`: 9 × 605 MB."""
    hashed: float = 0.6e9
    """Bytes a second that a core hashes. `simulate.py --measure`, as the next three."""
    sent: float = 49e6
    """Bytes a second that a DVC process sends to a store."""
    fetched: float = 94e6
    """Bytes a second that a DVC process fetches and hashes."""
    prepared: float = 165.0
    """Photographs a second that a core decodes and resizes."""


ASSUMED, MEASURED = Assumed(), MeasuredRates()


@dataclass(frozen=True)
class CountedModel:
    """A model and its training, counted."""

    name: str
    parameters: int
    flops: float
    """Of a training step of `BATCH` samples."""
    training: float
    """Bytes of memory that such a step takes (`tasks.train.budget.estimated`: float32, all activations kept)."""

    @property
    def weights(self) -> float:
        return 4.0 * self.parameters

    evaluation: float
    """Bytes of memory that scoring takes: the weights, and the widest activations of `SCORED` images."""

    @property
    def forward(self) -> float:
        """FLOPs of one sample's forward pass: a third of training's."""
        return self.flops / BATCH / 3


def counted(name: str) -> CountedModel:
    from tasks.model import models
    from tasks.train.budget import estimated
    from tasks.train.methods.full import Full

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        models.resolve(Base(model=name, pretrained="x.safetensors"), home, home)
        parameters = sum(p.numel() for p in models.build(home, "meta").parameters())
        cost = estimated(home, Full(), BATCH)
        vision = json.loads((home / "model.json").read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    widest = 2 * SCORED * tokens * vision["width"] * vision.get("mlp_ratio", 4.0) * 4
    return CountedModel(name, parameters, cost.flops, cost.bytes, 4 * parameters + widest)


@dataclass
class CountedCell:
    """A cell of the grid: its axes, and its nodes that cost, by step and kind."""

    init: str
    deploy: str
    technique: str
    works: dict[tuple[int, str], Work]


def planned(arrivals: int, techniques: Sequence[str]) -> list[CountedCell]:
    """The cells of TIME's grid as the product plans them."""
    stream = [{"name": f"task-{t}", "update": [f"images:task-{t}"]} for t in range(1, arrivals + 1)]
    sets = {kind: [{"name": kind, "test": ["images:test"]}] for kind in ("adaptation", "retention")}
    params = {
        "timeline": "simulated",
        "base": {"model": "ViT-B-32", "pretrained": "base.safetensors", "pretraining": ["images:pretraining"]},
        "stream": stream,
        "train": {"steps": STEPS // arrivals, "batch_size": BATCH},
        "evaluate": sets,
    }
    grid = Grid.model_validate({"technique": list(techniques), "references": []})
    wanted, _ = cells.usable(cells.expand(json.dumps(params), grid, Path()))
    made = {
        one.cell.timeline: CountedCell(one.cell.init, one.cell.deploy, one.params.time.technique.name, {})
        for one in wanted
    }
    for work in plan.plan(wanted).works:
        made[work.timeline].works[work.step, work.kind] = work
    return list(made.values())


def nodes(
    cell: CountedCell, arrivals: int, model: CountedModel, assumed: Assumed, measured: MeasuredRates
) -> list[list[SimulatedNode]]:
    """A cell's steps: what each node reads and makes, as `dvc.yaml` declares it, and how long its own work takes."""
    weights, fresh, pixels = model.weights, assumed.train / arrivals, 3 * 224**2
    decoding = measured.prepared * assumed.cores
    technique = create(cell.technique, {})
    arrays = len(technique.state) if isinstance(technique, Accumulator) and technique.sequential else None
    pools: dict[Hashable, float] = {}
    tests: dict[Hashable, float] = {("tests", number): assumed.test * pixels / SETS for number in range(SETS)}
    pieces = list(tests)
    scoring = assumed.test * model.forward / assumed.gpu
    files: dict[Hashable, float] = {"test files": assumed.test * assumed.photograph}
    steps = [[
        SimulatedNode("prepare", "tests", assumed.test / decoding, files, tests),
        SimulatedNode("evaluate", cell.works[0, "evaluate"].name, scoring, {**tests, "base": weights}, {}, pieces),
    ]]  # fmt: skip
    base: dict[Hashable, float] = {"base": weights}
    expert = running = base
    state: dict[Hashable, float] = {}
    experts: dict[Hashable, float] = {}
    for step in range(1, arrivals + 1):
        trained, merged, scored = (cell.works.get((step, kind)) for kind in plan.KINDS)
        assert trained
        assert scored
        start = {"zs": base, "ft": expert, "ema": running}[cell.init]
        history = {**base, **expert, **running, **state, **experts}
        arrival: dict[Hashable, float] = {("arrival", step): fresh * pixels}
        files = {("files", step): fresh * assumed.photograph}
        expert = {("expert", trained.name): weights}
        made = [
            SimulatedNode("prepare", ("arrival", step), fresh / decoding, files, arrival),
            SimulatedNode("initialize", ("start", trained.name), weights / measured.hashed, history, {}),
            SimulatedNode(
                "train", trained.name, trained.steps * model.flops / assumed.gpu, {**pools, **arrival, **start}, expert
            ),
        ]
        deployed = expert
        if merged:
            moved = 0.0
            outputs: dict[Hashable, float] = {}
            if "ema" in (cell.init, cell.deploy):
                running = {("running", cell.technique, cell.init, step): weights}
                outputs |= running
                moved += 4 * weights  # reads base, expert and running model
            if cell.deploy == "all":
                deployed = {("all", cell.technique, cell.init, step): weights}
                moved += (2 + len(experts)) * weights if arrays is None else (3 + 2 * arrays) * weights
                state = {("state", cell.technique, cell.init, step): arrays * weights} if arrays else {}
                outputs |= {**deployed, **state}
            elif cell.deploy == "ema":
                deployed = running
            made.append(SimulatedNode("deploy", merged.name, moved / measured.merged, {**history, **expert}, outputs))
        made.append(SimulatedNode("evaluate", scored.name, scoring, {**tests, **deployed}, {}, pieces))
        pools |= arrival
        if cell.deploy == "all" and arrays is None:
            experts |= expert
        steps.append(made)
    return steps


def simulated(
    model: CountedModel, arrivals: int, grid: Sequence[CountedCell], machines: int, assumed: Assumed, m: MeasuredRates
) -> Outcome:
    """The grid on some machines with a GPU each; with more than one, another runs the flow."""
    alone = machines == 1

    def machine() -> Machine:
        return Machine(Shared(assumed.wire), Shared(assumed.cores, 1), Shared(1, 1))

    costs = Costs(m.cell_worker if alone else m.flow, m.worker, m.record, m.hashed, m.sent, m.fetched, m.message)
    workers = [] if alone else [machine() for _ in range(machines)]
    site = Site(costs, machine(), Shared(assumed.store), machines, workers)
    return run([nodes(cell, arrivals, model, assumed, m) for cell in grid], site)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"open_clip names; by default {', '.join(MODELS)}")
    parser.add_argument("--machines", type=int, action="append", help="by default 1, 10 and 100")
    parser.add_argument("--arrivals", type=int, default=200)
    parser.add_argument("--techniques", default="linear", help="of the grid, with commas between them")
    parser.add_argument("--protocol", help="only its cells, e.g. ema+ema: a single timeline of each technique")
    for one in fields(Assumed):
        name = f"--{one.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=one.default, help=one.metadata["help"])
    for one in fields(MeasuredRates):
        parser.add_argument(f"--{one.name}", type=float, default=one.default, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--validate", type=Path, metavar="FILE", help="the results of scaling.py")
    given = parser.parse_args()
    if given.measure:
        measure()
    elif given.validate:
        validate(json.loads(given.validate.read_text(encoding="utf-8")))
    else:
        chosen = vars(given)
        assumed = Assumed(**{one.name: chosen[one.name] for one in fields(Assumed)})
        tables(given, assumed, MeasuredRates(**{one.name: chosen[one.name] for one in fields(MeasuredRates)}))


def tables(given: argparse.Namespace, assumed: Assumed, measured: MeasuredRates) -> None:
    models = [counted(name) for name in given.model or MODELS]
    print("| model | parameters | weights | a training | memory of a training step | of an evaluation | of a merge |")
    print("|---|---|---|---|---|---|---|")
    for model in models:
        training = STEPS // given.arrivals * model.flops / assumed.gpu
        print(
            f"| {model.name} | {model.parameters / 1e6:.0f} M | {size(model.weights)} | {duration(training)} "
            f"| {size(model.training)} | {size(model.evaluation)} | {size(measured.merging)} |"
        )
    grid = planned(given.arrivals, given.techniques.split(","))
    if given.protocol:
        grid = [cell for cell in grid if f"{cell.init}+{cell.deploy}" == given.protocol]
        if not grid:
            sys.exit(f"--protocol {given.protocol}: the grid has no such cells; one is ema+ema")
    print(f"\n{len(grid)} cells over {given.arrivals} arrivals, {given.techniques}\n")
    head = "model | machines | wall | stored | through the store | through the flow | requests/s: Prefect, store"
    print(f"| {head} | GPUs busy | where a cell's time goes |\n{9 * '|---'}|")
    for model in models:
        for machines in given.machines or MACHINES:
            print(
                row(model, machines, simulated(model, given.arrivals, grid, machines, assumed, measured), measured),
                flush=True,
            )


def row(model: CountedModel, machines: int, out: Outcome, measured: MeasuredRates) -> str:
    whole = sum(out.spent.values())
    most = sorted(out.spent.items(), key=lambda one: -one[1])[:3]
    return (
        f"| {model.name} | {machines} | {duration(out.seconds)} | {size(out.stored)} | {size(out.through_store)} "
        f"| {size(out.through_flow)} | {out.nodes * measured.requests / out.seconds:.2f}, "
        f"{out.jobs * measured.objects / out.seconds:.1f} "
        f"| {out.shares['what computes']:.0%} | {', '.join(f'{what} {part / whole:.0%}' for what, part in most)} |"
    )


def validate(measured: dict[str, Any]) -> None:
    """Predict what `scaling.py` measured, from what it measured of one cell worker and of nodes; print the error."""
    own: list[list[float]] = measured["own"]
    count, states = sum(map(len, own)), len(own)
    cells = [
        [
            [SimulatedNode("node", (cell, step, i), s, {}, {}) for i, s in enumerate(seconds)]
            for step, seconds in enumerate(own)
        ]
        for cell in range(measured["cells"])
    ]
    work = measured["cells"] * sum(map(sum, own))
    alone = next(seconds for kind, count, seconds, _ in measured["ran"] if (kind, count) == ("cell-workers", 1))
    cell_worker = ((alone - work) / measured["cells"] - states * measured["record"]) / count
    print(
        f"beside a node: {cell_worker:.2f} s in a cell worker, "
        f"{measured['flow']:.2f} + {measured['worker']:.2f} on a worker"
    )
    for kind, number, seconds, free in measured["ran"]:
        shared = Shared(free, 1)
        here = Machine(Shared(math.inf), shared, shared)
        workers = [Machine(Shared(math.inf), shared, shared) for _ in range(number)] if kind == "workers" else []
        flow = measured["flow"] if workers else cell_worker
        costs = Costs(flow, measured["worker"], measured["record"], math.inf, math.inf, math.inf, 0)
        out = run(cells, Site(costs, here, Shared(math.inf), number, workers))
        error = out.seconds / seconds - 1
        print(f"{number} {kind} on {free:.1f} cores: {seconds:.1f} s, predicted {out.seconds:.1f} s ({error:+.0%})")


def measure() -> None:
    """Print the constants that any machine tells; the store is the embedded one, on the same machine."""
    from tasks.prepare.imaging import decode
    from tasks.prepare.source import Context
    from tasks.storage import dvc_config, store
    from tasks.storage.dvc import Dvc
    from tasks.storage.fetching import bring
    from tests import project as projects

    with tempfile.TemporaryDirectory() as name:
        project = projects.make(Path(name) / "project")
        kept = Cache(dvc_config.cache_dir(project))
        weights = project / "weights"
        weights.write_bytes(np.random.default_rng(0).bytes(MEGABYTES << 20))
        total = weights.stat().st_size
        print(f"hashed: {total / timed(lambda: md5_of(weights)):.3g} bytes a second")
        entry = kept.put(weights)
        with store.open_store(project, dvc_config.EMBEDDED) as remote, Dvc(project) as dvc:
            dvc_config.write_workspace(project, project, remote)
            dvc("keep", project, remote=remote.name, objects=[])
            sent = timed(lambda: dvc("keep", project, remote=remote.name, objects=[entry.md5]))
            kept.path(entry.md5).unlink()
            fetched = timed(lambda: bring({"weights": entry}, kept, dvc, project, "the benchmark"))
            server = embedded.running(project)
        assert server
        psutil.Process(server.pid).wait(30)
    print(f"sent: {total / sent:.3g} bytes a second; fetched: {total / fetched:.3g}")
    photograph = io.BytesIO()
    blots = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(blots).resize((500, 375)).save(photograph, "JPEG", quality=90)
    context = Context(0, 224, "bicubic", False, Path())
    seconds = timed(lambda: [decode(photograph.getvalue(), context, "a photograph") for _ in range(200)])
    print(f"prepared: {200 / seconds:.0f} photographs of {size(photograph.tell())} a second")


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
