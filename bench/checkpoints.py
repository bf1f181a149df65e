"""``make bench-checkpoints``: what recovery points cost a run, while they are uploaded to a real store.

``python -m bench.checkpoints [--model DIR] [--steps N] [--pairs N] [--adapter lora|full]`` runs pairs, one of each with
recovery points and one without. Told of each pair: seconds of both from the first step to the end, their ratio, and the
ratio when the median of the steps' own ratios is one. Two runs drift apart by more than the points cost, and most steps
have none beside them; the step that an upload goes on beside has. CHECK=1: status 1 on a miss.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from bench.figure import Figure, closed
from cli.stack.plan import SERVERS_ONLY
from cli.stack.stack import Stack
from core.config import Settings
from core.storage.s3 import S3Store
from tests import tiny
from tests.conftest import plain_environment
from worker import publish
from worker.slot import _environment


def upload(store: S3Store, folder: Path, ended: threading.Event) -> None:
    """What a supervisor does meanwhile: each checkpoint into the store as soon as it is told."""
    sent: set[str] = set()
    while True:
        last = ended.is_set()
        told = tiny.read_events(folder, "checkpoint") if (folder / "events.jsonl").exists() else []
        for event in told:
            if event["path"] not in sent:
                sent.add(event["path"])
                publish.folder(store, folder / event["path"], f"jobs/bench/gen-1/{folder.name}/{event['path']}/")
        if last:
            return
        ended.wait(0.2)


@dataclass
class Ran:
    seconds: float
    """From the first step to the last."""
    steps: list[float]
    points: list[float]
    """What the trainer itself spent on each recovery point."""


def run(store: S3Store, folder: Path, threads: int) -> Ran:
    ended = threading.Event()
    sender = threading.Thread(target=upload, args=(store, folder, ended))
    sender.start()
    command = [sys.executable, "-m", "worker.train", str(folder)]
    subprocess.run(command, check=True, env=_environment("train", threads), stderr=subprocess.DEVNULL)
    ended.set()
    sender.join()
    told = tiny.read_events(folder)
    steps = [event for event in told if event["type"] == "step"]
    took = steps[-1]["t"] - steps[0]["t"] + steps[0]["seconds"]
    points = [
        event["t"] - before["t"]
        for before, event in itertools.pairwise(told)
        if event["type"] == "checkpoint" and event["kind"] == "recovery"
    ]
    return Ran(took, [step["seconds"] for step in steps], points)


def show(points: Ran, none: Ran) -> float:
    """What the points add, as a share."""
    drift = statistics.median(a / b for a, b in zip(points.steps, none.steps, strict=True))
    whole = points.seconds / none.seconds
    added = whole / drift - 1
    print(
        f"{points.seconds:8.2f} s with {len(points.points)} points of {statistics.mean(points.points or [0.0]):.2f} s, "
        f"{none.seconds:8.2f} s without: {100 * whole - 100:+.2f} %; {100 * added:+.2f} % with the same speed",
        flush=True,
    )
    return added


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model (a tiny one unless given)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--longest", type=int, default=256)
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        stack = Stack(root / "home", plan=SERVERS_ONLY, env=plain_environment())
        stack.start()
        try:
            given = {
                name.removeprefix("ATTUNE_").lower(): v for name, v in stack.env.items() if name.startswith("ATTUNE_")
            }
            settings = Settings(**given)  # type: ignore[arg-type]  # pydantic reads texts
            store = S3Store(settings)
            store.create_bucket()
            base = asked.model or tiny.build_tiny(root / "base")
            rows = tiny.random_rows(asked.rows, shortest=asked.longest // 2, longest=asked.longest)
            ratios: list[float] = []
            for pair in range(asked.pairs):
                took: dict[str, Ran] = {}
                # Whoever is first has the colder caches: they take turns.
                for kind in ("with", "without") if pair % 2 else ("without", "with"):
                    values = {
                        "recovery_seconds": settings.recovery_seconds if kind == "with" else 1e9,
                        "recovery_fraction": settings.recovery_fraction if kind == "with" else 1.0,
                        "recovery_overhead": settings.recovery_overhead,
                    }
                    folder = tiny.build_job(
                        root / f"{kind}-{pair}", base, rows, total_steps=asked.steps, epochs=1e6,
                        max_length=asked.longest, adapter=asked.adapter, threads=threads, checkpoint_every=asked.steps,
                        lora={"rank": 16, "alpha": 32.0}, **values,
                    )  # fmt: skip
                    took[kind] = run(store, folder, threads)
                ratios.append(show(took["with"], took["without"]))
        finally:
            stack.stop()
            stack.purge()
    told = Figure(f"recovery points, {asked.adapter}: median of what they add", 100 * statistics.median(ratios), "%", 3)
    print(told, flush=True)
    return closed([told])


if __name__ == "__main__":
    sys.exit(main())
