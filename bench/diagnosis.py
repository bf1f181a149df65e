"""Does the diagnosis name what is wrong? Short real runs, made so that it is known, and what is said of each.

    python -m bench.diagnosis --record          train all runs anew and keep their curves (an hour)
    python -m bench.diagnosis                   the figures, from the kept curves
    python -m bench.diagnosis --pictures        docs/diagnosis/*.svg, one run of each kind

Thresholds (``core/diagnosis.py``) were set on the runs of the half ``tune`` alone; the figures are of the other half of
the seeds and of a model that was not used for it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import small_models
from core.diagnosis import Curve, diagnose
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
CURVES = ROOT / "tests" / "core" / "curves.json"
PICTURES = ROOT / "docs" / "diagnosis"
HALVES = {
    "tune": ("small-llama", (1, 2)),
    "seeds": ("small-llama", (3, 4)),
    "model": ("small-qwen", (5, 6)),
    "new seeds": ("small-llama", (11, 12)),
    "new model": ("small-qwen", (13, 14)),
    "later seeds": ("small-llama", (21, 22, 31, 32)),
    "later model": ("small-qwen", (23, 24, 33, 34)),
    # Trained when thresholds and rules stood, and none was changed since.
    "last seeds": ("small-llama", (41, 42)),
    "last model": ("small-qwen", (43, 44)),
}
RATE = 4e-3
"""A good one for both models: five times less learns as much more slowly, five times more still learns."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How a run is made; ``label`` follows from it."""

    label: str
    task: str
    rate: float = RATE
    rows: int = 240
    valid: int = 60
    epochs: float = 3
    twins: tuple[int, int] = (0, 0)
    """So many of the rows are there so many times more."""
    ends: bool = True
    """Whether answers end in the end of turn"""
    optim: Json = field(default_factory=dict)
    values: Json = field(default_factory=dict)


WAYS = {
    "healthy-last": Way("healthy", "last"),
    "healthy-order": Way("healthy", "order"),
    # A few rows are twice there, as in most data.
    "healthy-style": Way("healthy", "style", rate=RATE / 2, twins=(8, 1), epochs=4),
    "healthy-unvalidated": Way("healthy", "order", valid=0, epochs=4),
    "fluctuating-last": Way("fluctuating", "last", rate=RATE * 3, optim={"schedule": "constant"}),
    "fluctuating-swap": Way("fluctuating", "swap", rate=RATE * 3, optim={"schedule": "constant"}),
    "diverged-last": Way("diverged", "last", rate=RATE * 30),
    "diverged-order": Way("diverged", "order", rate=1.0, optim={"schedule": "constant"}),
    "slow-last": Way("slow", "last", rate=RATE / 100),
    "slow-order": Way("slow", "order", rate=RATE / 100, valid=0),
    "improving-order": Way("improving", "order", rate=RATE / 4, epochs=1, optim={"schedule": "constant"}),
    "improving-style": Way("improving", "style", rate=RATE / 4, epochs=1, optim={"schedule": "constant"}),
    "overfitting-last": Way("overfitting", "last", rows=30, epochs=30),
    "overfitting-swap": Way("overfitting", "swap", rows=30, epochs=30),
    "still": Way("adapter_still", "last", rate=1e-9),
    "duplicates": Way("duplicates", "swap", rows=108, twins=(8, 20), epochs=3),
    "valid-small": Way("validation_small", "last", valid=5),
    "no-end": Way("no_end_of_turn", "last", ends=False),
}


def record(way: Way, name: str, model: str, seed: int, folder: Path) -> Json:
    """One run: what the service would know of it."""
    from worker.train.load import Resident
    from worker.train.run import run

    base = small_models.model(model)
    train = small_models.talks(way.task, way.rows, seed)
    valid = small_models.talks(way.task, way.valid, seed + 1000, train) if way.valid else []
    train += train[: way.twins[0]] * way.twins[1]
    rows, held = (_rows(base, talk, way.ends) for talk in (train, valid))
    job = tiny.build_job(
        folder, base, rows, held or None, epochs=way.epochs, seed=seed, prompt_loss_weight=0.0,
        batch_size=8, micro_batch_size=8, eval_every=max(1, round(way.epochs * len(rows) / 8 / 10)),
        recovery_fraction=0.1, optim={"learning_rate": way.rate, "warmup_steps": 4} | way.optim, **way.values,
    )  # fmt: skip
    run(job, Resident())
    told = tiny.read_events(job)
    started, last = (next(event for event in told if event["type"] == "started"), told[-1])
    steps = [event for event in told if event["type"] == "step"]
    saved = [(event["step"], event["metrics"]["adapter_moved"]) for event in told if event["type"] == "checkpoint"]
    spec = json.loads((job / "spec.json").read_text())
    return {
        "name": name,
        "label": way.label,
        "model": model,
        "seed": seed,
        "total_steps": spec["total_steps"],
        "steps_per_epoch": -(-len(rows) // 8),
        "facts": {key: started[key] for key in ("rows", "duplicates", "valid_rows", "shared") if key in started},
        "losses": [_short(event["train_loss"]) for event in steps],
        "grad_norms": [_short(event["grad_norm"]) for event in steps],
        "rates": [_short(event["learning_rate"]) for event in steps],
        "evals": [[event["step"], _short(event["valid_loss"])] for event in told if event["type"] == "eval"],
        "moved": [[step, _short(moved)] for step, moved in saved],
        "learned": {key: _short(value) for key, value in last.get("learned", {}).items()},
        "error": last["code"] if last["type"] == "error" else None,
    }


def _rows(base: Path, talk: Sequence[small_models.Talk], ends: bool) -> list[tiny.Row]:
    rows = small_models.encode(base, talk)
    if ends:
        return rows
    # As a chat template leaves them that marks no end of turn.
    said = [row[1].index(1) + sum(row[1]) - 1 for row in rows]
    return [(row[0][:end], row[1][:end]) for row, end in zip(rows, said, strict=True)]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def record_all(only: str, halves: Sequence[str]) -> Iterator[Json]:
    for half in halves:
        model, seeds = HALVES[half]
        for seed in seeds:
            for name, way in WAYS.items():
                if only not in name:
                    continue
                folder = Path(tempfile.mkdtemp(prefix="diagnosis-"))
                try:
                    yield {"half": half} | record(way, name, model, seed, folder / "job")
                finally:
                    shutil.rmtree(folder)


def curve(run: Json, until: int | None = None) -> Curve:
    """What is known of a kept run after step ``until``; None: at its end."""
    last = len(run["losses"]) if until is None else until
    return Curve(
        total_steps=run["total_steps"],
        steps_per_epoch=run["steps_per_epoch"],
        steps=range(1, last + 1),
        losses=run["losses"][:last],
        grad_norms=run["grad_norms"][:last],
        evals=[(step, loss) for step, loss in run["evals"] if step <= last],
        moved=[(step, share) for step, share in run["moved"] if step <= last],
        facts=run["facts"],
        learned=run["learned"] if until is None else {},
        ended=until is None,
        error=run["error"] if until is None else None,
    )


def codes(run: Json, until: int | None = None) -> list[str]:
    return [finding.code for finding in diagnose(curve(run, until))]


def alarms(run: Json) -> list[tuple[int, str]]:
    """While it trained: steps at which something was said of a run that is healthy, and what."""
    every = max(1, run["total_steps"] // 20)
    told = ((step, codes(run, step)) for step in range(every, len(run["losses"]), every))
    return [(step, code) for step, found in told for code in found if code != "healthy"]


def kept(path: Path = CURVES) -> list[Json]:
    runs: list[Json] = json.loads(path.read_text())
    return runs


def show(runs: Sequence[Json]) -> bool:
    """The figures; whether they are reached."""
    good = True
    for half in HALVES:
        mine = [run for run in runs if run["half"] == half]
        named = [run for run in mine if run["label"] in codes(run)]
        first = [run for run in mine if codes(run)[:1] == [run["label"]]]
        healthy = [run for run in mine if run["label"] == "healthy"]
        false = [run for run in healthy if codes(run) != ["healthy"] or alarms(run)]
        print(
            f"{half:9} {len(mine)} runs: {len(named)} named rightly ({len(named) / max(1, len(mine)):.0%}), in "
            f"{len(first)} of them before anything else; a false alarm on {len(false)} of {len(healthy)} healthy runs"
        )
        for run in mine:
            if codes(run)[:1] != [run["label"]]:
                print(f"       {run['name']} (seed {run['seed']}): {', '.join(codes(run)) or 'nothing said'}")
        for run in false:
            print(f"       {run['name']} (seed {run['seed']}), while it trained: {alarms(run)}")
        good &= half == "tune" or (len(named) >= 0.9 * len(mine) and not false)
    return good


def picture(run: Json) -> str:
    """Training loss as a line, validation loss as points, over the steps; both from 0."""
    width, height, edge = 320, 140, 24
    losses = [loss for loss in run["losses"] if loss is not None]
    most = max([*losses, *(loss for _, loss in run["evals"])])

    def at(step: int, loss: float) -> str:
        x, y = step / run["total_steps"], loss / most
        return f"{edge + (width - 2 * edge) * x:.0f},{height - edge - (height - 2 * edge) * y:.0f}"

    line = " ".join(at(step, loss) for step, loss in enumerate(losses, 1))
    points = "".join(
        f'<circle cx="{x}" cy="{y}" r="3" fill="#d55e00"/>'
        for x, y in (at(step, loss).split(",") for step, loss in run["evals"])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{edge} {edge}V{height - edge}H{width - edge}" fill="none" stroke="#999"/>'
        f'<text x="{edge + 4}" y="{edge - 8}">{run["label"]}: loss up to {most:.3g}, {len(losses)} of '
        f"{run['total_steps']} steps</text>"
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.5"/>{points}</svg>\n'
    )


def draw(runs: Sequence[Json]) -> None:
    PICTURES.mkdir(exist_ok=True)
    for code in dict.fromkeys(way.label for way in WAYS.values()):
        run = next(run for run in runs if run["label"] == code and codes(run)[:1] == [code])
        (PICTURES / f"{code}.svg").write_text(picture(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="Train all runs anew.")
    parser.add_argument("--only", default="", help="Runs whose name has this in it.")
    parser.add_argument("--halves", nargs="*", choices=HALVES, help="Those to train; the others stay as they are.")
    parser.add_argument("--pictures", action="store_true", help="Draw one run of each kind.")
    parser.add_argument("--curves", type=Path, default=CURVES)
    wanted = parser.parse_args()
    if wanted.record:
        import torch

        torch.set_num_threads(1)
        runs = [run for run in kept(wanted.curves) if run["half"] not in wanted.halves] if wanted.halves else []
        for run in record_all(wanted.only, wanted.halves or list(HALVES)):
            runs.append(run)
            print(run["half"], run["name"], run["seed"], codes(run), flush=True)
            lines = (json.dumps(one, separators=(",", ":")) for one in runs)
            wanted.curves.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    if wanted.pictures:
        draw(kept(wanted.curves))
    if not show(kept(wanted.curves)) and os.environ.get("CHECK") == "1":
        sys.exit(1)


if __name__ == "__main__":
    main()
