"""``make bench-train-peers``: the reference job by the engine and by other trainers, one after another on one machine.

``python -m bench.peers [--data FILE] [NAME…]`` runs some of :data:`PEERS`; "default" is TRL as it comes, in float32.
Each peer has an environment of its own under ``.cache`` and its best settings known here: rows one at a time without
padding, a fused optimizer, no gradient checkpointing, and glibc told to keep memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.figure import closed
from bench.train import BATCH, LONGEST, ROOT, ROWS, STEPS, THREADS, Bench, chats, documents, figures, say, size
from tests import aside, tiny
from worker.slot import ALLOCATOR
from worker.train.batches import Order

_DATASETS = (
    "datasets==4.0.0 dill==0.3.8 multiprocess==0.70.16 fsspec==2025.3.0 xxhash pandas pyarrow aiohttp aiosignal "
    "frozenlist multidict yarl propcache aiohappyeyeballs attrs python-dateutil six pytz tzdata"
)
ENVIRONMENTS = {
    "trainer": "",
    "trl": f"trl==1.16.0 {_DATASETS}",
    "llamafactory": (
        "llamafactory==0.9.5 transformers==5.6.0 peft==0.18.1 trl==0.24.0 accelerate==1.11.0 tokenizers==0.22.2 "
        "huggingface-hub<2,>=1 einops fire termcolor omegaconf antlr4-python3-runtime==4.9.3 torchdata==0.11.0 "
        "tyro==0.8.14 docstring-parser shtab rich sentencepiece tiktoken scipy modelscope hf-transfer sse-starlette "
        f"pillow matplotlib pyparsing cycler kiwisolver contourpy fonttools {_DATASETS}"
    ),
}
"""What each peer needs beside, or in place of, this project's own packages."""
_TUNED = {"batch": 1, "accumulation": BATCH, "checkpointing": False}
_ONEDNN = _TUNED | {"products": "medium"}
PEERS = {
    "llamafactory": ("llamafactory", _TUNED),
    "trainer": ("trainer", _TUNED),
    "trl": ("trl", _TUNED),
    "llamafactory-onednn": ("llamafactory", _ONEDNN),
    "trainer-onednn": ("trainer", _ONEDNN),
    "trl-onednn": ("trl", _ONEDNN),
    "default": ("trl", {"batch": BATCH, "accumulation": 1, "checkpointing": True}),
}
"""None of them asks oneDNN for products by itself; who knows of it can have them do so
(``worker/train/products.py``)."""


def run(name: str, bench: Bench, talks: list[list[str]], order: list[int]) -> dict[str, Any]:
    """``order``: of the rows, which are met one after another as the engine meets them."""
    module, values = PEERS[name]
    out = bench.scratch / f"peer-{name}"
    out.mkdir()
    spec = {
        "base": str(bench.base),
        "rows": [bench.long[row] for row in order],
        "talks": [talks[row] for row in order],
        "steps": STEPS,
        "out": str(out / "run"),
        **values,
    }
    (out / "spec.json").write_text(json.dumps(spec))
    paths = [str(ROOT)]
    if needs := ENVIRONMENTS[module]:
        paths.insert(0, str(aside.installed(f"bench-{module}", *needs.split())))
    given = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    given |= {"DISABLE_VERSION_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name != "default":
        given |= ALLOCATOR
    command = [sys.executable, "-m", "bench.peer", module, str(out / "spec.json")]
    done = subprocess.run(command, env=given, cwd=out, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.peers")
    parser.add_argument("names", nargs="*", choices=[*PEERS, []])
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    names = args.names or list(PEERS)
    with tempfile.TemporaryDirectory(prefix="attune-peers-") as scratch:
        bench = Bench(Path(scratch), args.data)
        given = (chats(args.data) if args.data else documents())[:ROWS]
        talks = [[one["content"] for one in talk["messages"][-2:]] for talk in given]
        tokens, _ = size(bench.long)
        print(f"    {len(bench.long)} rows, {tokens} tokens, cut at {LONGEST}; {STEPS} steps of {BATCH}")
        exact = bench.run(bench.long)
        order = [row for _, rows in Order(ROWS, BATCH, tiny.SEED).steps(0, STEPS) for row in rows]
        found = {}
        for name in names:
            found[name] = run(name, bench, talks, order)
            say(name, tokens / found[name]["seconds"], "tokens/s", None)
            say("    its peak of memory", found[name]["peak"] / 1e9, "GB", None)
            for step in (0, -1):
                which = "last" if step else "first"
                say(
                    f"    its {which} loss over the engine's",
                    found[name]["losses"][step] / exact["losses"][step],
                    "",
                    None,
                )
        few = bench.run(bench.long, head_gradient="filtered")
        # The engine ran first and last: the better of two, as nothing makes a run quicker than it is.
        again = bench.run(bench.long)
        seconds = min(sum(exact["steps"]), sum(again["steps"]))
        say("the engine, exact", tokens / seconds, "tokens/s", None)
        say("    its peak of memory", exact["peak"] / 1e9, "GB", None)
        say("the engine, filtered", tokens / sum(few["steps"]), "tokens/s", None)
        tuned = {name: one for name, one in found.items() if name != "default"}
        if tuned:
            best = min(tuned, key=lambda name: float(tuned[name]["seconds"]))
            say(f"exact over {best}, the best peer here", tuned[best]["seconds"] / seconds, "", 1.15, at_least=True)
            say("    memory over its", exact["peak"] / tuned[best]["peak"], "", 0.65)
            say("filtered over it", tuned[best]["seconds"] / sum(few["steps"]), "", 1.5, at_least=True)
        if "default" in found:
            say("exact over TRL as it comes", found["default"]["seconds"] / seconds, "", 4, at_least=True)
    return closed(figures)


if __name__ == "__main__":
    sys.exit(main())
