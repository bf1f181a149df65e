"""Before a model is called good: what was written, loaded by the plain libraries, says what the trainer said.

``parity.json`` keeps what was compared, so that whoever loads the files elsewhere can see whether they agree there too.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.train import weights
from worker.train.batches import Rows
from worker.train.faults import Refused
from worker.train.load import load_base
from worker.train.model import Model

PARITY = "parity.json"
MERGED = "merged"
ROWS, TOKENS = 4, 64
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""In a log-probability: sums in another order, never another model."""

Golden = list[tuple[Tensor, Tensor]]
"""Token ids [1, n] and the log-probability of each after the first [n - 1], as the trainer has it."""


@torch.no_grad()
def golden(model: Model, rows: Rows) -> Golden:
    """The beginnings of some rows, in the precision that the weights are written in."""
    model = replace(model, mixed=None)
    model.module.eval()
    found = []
    for i in range(min(ROWS, len(rows))):
        start, end = int(rows.offsets[i]), int(rows.offsets[i + 1])
        ids = torch.from_numpy(rows.input_ids[start : min(end, start + TOKENS)].astype("int64")).to(model.device)[None]
        found.append((ids, _of_targets(model.head.logits(model.hidden(ids)), ids)))
    return found


def write(golden: Golden, folder: Path) -> None:
    told = [
        {"input_ids": ids[0].tolist(), "logprobs": [round(value, 6) for value in values.tolist()]}
        for ids, values in golden
    ]
    (folder / PARITY).write_text(json.dumps({"version": 1, "rows": told}) + "\n")


def check(model: Model, golden: Golden, folder: Path) -> None:
    """Load what is in ``folder`` and compare. The model is taken apart for it: this comes at the end of a run."""
    if model.peft is None:
        _check_weights(model, folder)
        return
    plain = _reload(_without_adapter(model.peft), folder)
    _compare(plain, golden, model.head.weight.dtype, "the adapter, loaded with PEFT,")
    model.peft = plain


def merge(model: Model, golden: Golden, base: Path, folder: Path, *, quantised: bool) -> None:
    """The adapter in ``folder`` made part of the base's weights, unquantised, as a model of its own in ``merged/``."""
    dtype = model.head.weight.dtype
    adapted: nn.Module = model.module
    if quantised:
        # Its own matrices lie between those of four bits and the true ones: what counts is the true base's answer.
        adapted = _reload(load_base(base, dtype).network, folder)
        golden = [(ids, _of_targets(_logits(adapted, ids), ids)) for ids, _ in golden]
    network = cast(PreTrainedModel, cast(PeftModel, adapted).merge_and_unload(safe_merge=True))
    _compare(network, golden, dtype, "the merged model")
    network.save_pretrained(folder / MERGED, max_shard_size=weights.SHARD)


def _without_adapter(peft: PeftModel) -> PreTrainedModel:
    if peft.peft_config["default"].is_prompt_learning:
        return cast(PreTrainedModel, peft.get_base_model())
    return cast(PreTrainedModel, peft.unload())


def _reload(network: PreTrainedModel, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(network, folder).eval()


def _check_weights(model: Model, folder: Path) -> None:
    """A whole model is too large to be loaded a second time: each tensor of its files is the trainer's, to the bit."""
    here = dict(model.network.named_parameters()) | dict(model.network.named_buffers())
    for path in sorted(folder.glob(weights.MODEL)):
        for name, tensor in load_file(path).items():
            if not torch.equal(tensor, here[name].detach().cpu()):
                raise _refused(f"{name} in {path.name} is not the trainer's")


@torch.no_grad()
def _compare(network: nn.Module, golden: Golden, dtype: torch.dtype, what: str) -> None:
    network.eval()
    for ids, expected in golden:
        off = float((_of_targets(_logits(network, ids), ids) - expected).abs().max()) if len(expected) else 0.0
        if not off <= _TOLERANCES[dtype]:
            raise _refused(f"{what} gives other log-probabilities than the trainer, by {off:.2g}")


@torch.no_grad()
def _logits(network: nn.Module, ids: Tensor) -> Tensor:
    output: Any = network(input_ids=ids, attention_mask=torch.ones_like(ids))
    # Learned tokens stand in front of the row's own.
    return cast(Tensor, output.logits)[:, -ids.shape[1] :].float()


def _of_targets(logits: Tensor, ids: Tensor) -> Tensor:
    every = torch.log_softmax(logits[0, :-1].float(), dim=-1)
    return every.gather(1, ids[0, 1:, None])[:, 0]


def _refused(why: str) -> Refused:
    return Refused("artifact_differs", f"The model was trained, but what was written is not what was trained: {why}.")
