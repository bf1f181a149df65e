"""What a family's template makes of the golden conversations, and the files that keep it.

``python -m tests.core.formats.goldens [FAMILY=FOLDER …]`` writes them anew from the templates as they are; read the
difference. A folder has a real model's tokenizer.json, without which the real tokens stay as they were.
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.formats import families
from core.formats.templates import Template
from tests.core.formats import stand_ins
from tests.core.formats.conversations import CONVERSATIONS
from worker.prepare.spool import Tokens
from worker.prepare.tokenise import Encoder

FOLDER = Path(__file__).with_name("golden")


def read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return value


def write(name: str, value: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")


def text(family: str) -> dict[str, Any]:
    """Text and learned spans of each conversation."""
    template = Template(families.text(family), stand_ins.names(family))
    drawn = {}
    for name, row in CONVERSATIONS.items():
        rendered = template.render(row.messages, row.tools)
        said = [f"{span.message}: {rendered.text[span.start : span.end]}" for span in rendered.spans]
        drawn[name] = {"text": rendered.text, "learned": said}
    return drawn


def tokens(encoder: Encoder) -> dict[str, Any]:
    """Ids and which of them are learned, each conversation one line."""
    return {name: line(encoder.encode([(1, row)])[0]) for name, row in CONVERSATIONS.items()}


def line(row: Tokens) -> str:
    """``1 17 203 [45 3]0.5``: ids, those in brackets learned, with the weight after the bracket unless it is 1."""
    parts, edges = [], np.flatnonzero(np.diff(row.completion.astype(np.int8))) + 1
    for start, end in zip([0, *edges], [*edges, len(row.ids)], strict=True):
        ids = " ".join(map(str, row.ids[start:end].tolist()))
        (weight,) = set(row.weight[start:end].tolist()) if row.completion[start] else (1.0,)
        suffix = "" if weight == 1.0 else f"{weight:g}"
        parts.append(f"[{ids}]{suffix}" if row.completion[start] else ids)
    return " ".join(parts)


def encoder(family: str, folder: Path) -> Encoder:
    return Encoder(stand_ins.base(family, folder), stand_ins.facts(family), families.text(family))


def real(family: str, folder: Path) -> dict[str, Any]:
    """In the vocabulary of a real model of the family."""
    return tokens(Encoder(folder, stand_ins.facts(family), families.text(family)))


def mistral_tokens(family: str, tokenizer: Any) -> dict[str, Any]:
    """In mistral-common's vocabulary, which has no tokenizer.json: control tokens part the text into pieces."""
    template, tekken = Template(families.text(family), stand_ins.names(family)), tokenizer.instruct_tokenizer.tokenizer
    control = {name: tekken.get_special_token(name) for name in _CONTROL}
    parts = re.compile("(" + "|".join(map(re.escape, control)) + ")")
    drawn = {}
    for name, row in CONVERSATIONS.items():
        rendered = template.render(row.messages, row.tools)
        ids: list[int] = []
        weight: list[float] = []
        completion: list[int] = []
        at = 0
        for piece in parts.split(rendered.text):
            new = [control[piece]] if piece in control else tekken.encode(piece, bos=False, eos=False)
            span = next((span for span in rendered.spans if span.start <= at < span.end), None)
            ids += new
            completion += [int(span is not None)] * len(new)
            weight += [1.0 if span is None else row.messages[span.message].get("weight", 1.0)] * len(new)
            at += len(piece)
        drawn[name] = line(Tokens(np.array(ids), np.array(weight), np.array(completion, np.uint8)))
    return drawn


_CONTROL = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def main(given: list[str]) -> None:
    folders = dict(argument.split("=", 1) for argument in given)
    for family in families.NAMES:
        before = read(family) if (FOLDER / f"{family}.json").exists() else {}
        with tempfile.TemporaryDirectory() as scratch:
            drawn = {"text": text(family), "stand-in tokens": tokens(encoder(family, Path(scratch)))}
            if family in folders:
                drawn["real tokens"] = real(family, Path(folders[family]))
            elif family.startswith("mistral") and importlib.util.find_spec("mistral_common") is not None:
                from tests.core.formats.judge_templates import mistral_tokenizer

                drawn["real tokens"] = mistral_tokens(family, mistral_tokenizer(family, Path(scratch)))
            elif "real tokens" in before:
                drawn["real tokens"] = before["real tokens"]
        write(family, drawn)


if __name__ == "__main__":
    main(sys.argv[1:])
