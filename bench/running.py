"""``python -m bench.running DIR``: one job folder, run as a worker's child runs it and watched from inside.

Told as JSON: seconds of each step and of its forward and backward passes, from the first step's end to the last's, the
peak of memory and what the process had after each step.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from worker.train.__main__ import keep_memory, yield_cores


def memory(field: str) -> int:
    """Bytes, from the kernel: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main(folder: Path) -> int:
    yield_cores()
    keep_memory()
    from worker.train import supervised
    from worker.train.events import Events
    from worker.train.load import Resident
    from worker.train.run import run

    passes: list[float] = [0.0]
    held: list[int] = []
    stamps: list[float] = []
    backward = supervised.Supervised.backward
    emit = Events.emit

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        told = backward(*arguments)
        passes[-1] += time.perf_counter() - began
        return told

    def stamped(self: Events, /, *what: Any, **fields: Any) -> None:
        emit(self, *what, **fields)
        if what == ("step",):
            stamps.append(time.perf_counter())
            held.append(memory("VmRSS"))
            passes.append(0.0)

    supervised.Supervised.backward = timed  # type: ignore[method-assign]
    Events.emit = stamped  # type: ignore[method-assign,assignment]
    own = os.times()
    status = run(folder, Resident())
    used = os.times()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["type"] == "step"]
    told = {
        "steps": [step["seconds"] for step in steps],
        "losses": [step["train_loss"] for step in steps],
        "passes": passes[: len(steps)],
        "wall": stamps[-1] - stamps[0] if len(stamps) > 1 else 0.0,
        "held": held,
        "peak": memory("VmHWM"),
        "cpu": used.user + used.system - own.user - own.system,
    }
    print(json.dumps(told))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
