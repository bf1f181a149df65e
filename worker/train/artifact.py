"""The folder a finished run leaves: weights, tokenizer, chat template, and how it was made."""

import json
import shutil
from pathlib import Path
from typing import Any

from worker.folder import TrainSpec
from worker.train import manifest, weights
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


def write(folder: Path, model: Model, spec: TrainSpec, base: Path, made: dict[str, Any], template: Path) -> None:
    """``made``: versions, data hashes and metrics for training.json; ``template``: the job's own, if it is there."""
    draft = manifest.draft(folder)
    weights.write(model, draft)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, draft / name)
    if template.is_file():
        # What the rows were rendered with is what the adapter expects, whatever the base says.
        shutil.copyfile(template, draft / template.name)
    # Where files lay on the training machine is nobody's business and nobody's help.
    told = spec.model_dump(mode="json", exclude={"base": {"path"}, "resume": True, "threads": True})
    (draft / "training.json").write_text(json.dumps({"spec": told, **made}, indent=2, sort_keys=True) + "\n")
    manifest.seal(draft, folder)
