"""``python -m tests.fuzz.guided``: the checker under a fuzzer that is led by coverage (atheris, on libFuzzer).

FUZZ_EXECUTIONS inputs, begun from the corpus of bad files and good ones; FUZZ_SEED repeats a run. Inputs that reached
something new stay in ``.cache/fuzz``, one that broke something is named. ``python -m tests.fuzz.guided FILE…`` examines
files it named once more, without the fuzzer.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import aside
from tests.core.formats.hostile import changes, files, good, lines
from tests.fuzz.data import FORMATS, examine

ROOT = Path(__file__).resolve().parents[2]
ATHERIS = "atheris==3.0.0"
"""Not one of the project's own packages: it has wheels for a few machines only, and nothing else needs it."""
LONGEST = 64 * 1024
ROUND = 100_000
"""Executions of one process: memory that it loses would otherwise be counted as the checker's."""


def main() -> int:
    if named := sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            for name in named:
                print(examine(Path(name).read_bytes(), Path(folder) / "file").summary(5))
        return 0
    executions, seed = int(os.environ.get("FUZZ_EXECUTIONS", "1000000")), int(os.environ.get("FUZZ_SEED", "1"))
    cache = ROOT / ".cache" / "fuzz"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(aside.installed("atheris", ATHERIS)), str(ROOT)])}
    found = cache / "reached"
    found.mkdir(parents=True, exist_ok=True)
    print(f"FUZZ_SEED={seed} FUZZ_EXECUTIONS={executions}", flush=True)
    done, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for data in seeds():
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        words.write_text("".join(f'"{word}"\n' for word in _words()))
        while done < executions:
            command = [
                *(sys.executable, "-m", "tests.fuzz.under", str(found), str(corpus), f"-dict={words}"),
                *(f"-runs={min(ROUND, executions - done)}", f"-seed={seed + done // ROUND}", f"-max_len={LONGEST}"),
                *("-timeout=20", "-rss_limit_mb=1024", f"-artifact_prefix={cache}/", "-print_final_stats=1"),
            ]
            ran = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, check=False)
            said = ran.stderr.decode(errors="replace")
            counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
            done += int(counted[1]) if counted else 0
            covered = re.findall(r"ft: (\d+) corp: (\d+)", said) or [("0", "0")]
            features, kept = covered[-1]
            seconds = time.monotonic() - began
            print(f"{done:,} executions, {features} features, {kept} inputs kept, {seconds:.0f} s", flush=True)
            if ran.returncode or counted is None:
                print(re.sub(r"(?m)^#\d+\t.*\n", "", said)[-6000:], file=sys.stderr)
                return 1
    return 0


def seeds() -> Iterator[bytes]:
    """The corpus of bad files, and good ones: the fuzzer has to see how far a file can get."""
    for bad in [*lines.cases(), *changes.cases(), *files.cases()]:
        if isinstance(bad.data, bytes) and len(bad.data) < LONGEST:
            yield b"\0" + bad.data
    rows = [value for name, value in vars(good).items() if name.isupper() and isinstance(value, dict)]
    for number, row in enumerate(rows):
        line = good.dump(row)
        yield b"\0" + line + b"\n" + line
        yield bytes([number % len(FORMATS)]) + b"[" + line + b",\n" + line + b"]"


def _words() -> list[str]:
    """Field names and values that no mutation would come upon."""
    text = b"".join(seeds()).decode(errors="replace")
    words = sorted(set(re.findall(r'"([A-Za-z_]{2,30})"', text)))
    return [*words, *(f'\\"{word}\\":' for word in words), "\\\\u0000", "\\\\ud800"]


if __name__ == "__main__":
    sys.exit(main())
