"""The folder a finished run leaves: weights, tokenizer, chat template, and how it was made."""

import json
import shutil
from pathlib import Path
from typing import Any

from worker.folder import TrainSpec
from worker.train import gate, manifest, weights
from worker.train.batches import Rows
from worker.train.model import Model

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def write(
    folder: Path, model: Model, rows: Rows, spec: TrainSpec, base: Path, made: dict[str, Any], template: Path
) -> None:
    """``made``: versions, data hashes and metrics for training.json; ``template``: the job's own, if it is there.

    The folder gets its name only when what is in it was loaded and found to be what was trained.
    """
    draft = manifest.draft(folder)
    weights.write(model, draft)
    golden = gate.golden(model, rows)
    gate.write(golden, draft)
    gate.check(model, golden, draft)
    _texts(draft, base, template)
    if "merged" in spec.outputs:
        gate.merge(model, golden, base, draft, quantised=spec.adapter == "qlora")
        _texts(draft / gate.MERGED, base, template)
    # Where files lay on the training machine is nobody's business and nobody's help.
    told = spec.model_dump(mode="json", exclude={"base": {"path"}, "init": {"path"}, "resume": True, "threads": True})
    (draft / "training.json").write_text(json.dumps({"spec": told, **made}, indent=2, sort_keys=True) + "\n")
    manifest.seal(draft, folder)


def _texts(folder: Path, base: Path, template: Path) -> None:
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if template.is_file():
        # What the rows were rendered with is what the model expects, whatever the base says.
        shutil.copyfile(template, folder / template.name)
