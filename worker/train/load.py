"""The base model from a local folder, and the head on it."""

import contextlib
import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from worker.train import attention
from worker.train.faults import Refused
from worker.train.loss import Head

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass
class Base:
    path: Path
    dtype: torch.dtype
    """What it computes in. Its weights are float32 all the same where they are trained, and with float16, whose range
    is too small for all that lies between the layers."""
    network: PreTrainedModel
    quantised: bool = False


@dataclass
class Resident:
    """The base model kept for the next job. A job takes it away: the adapter changes it for good."""

    base: Base | None = field(default=None, repr=False)

    def preload(self, path: Path) -> None:
        self.base = None
        gc.collect()
        # The job that takes it is told why it can't have it.
        with contextlib.suppress(Refused):
            self.base = load_base(path, torch.float32)

    def take(self, path: Path, dtype: torch.dtype, quantised: bool = False) -> Base:
        kept, self.base = self.base, None
        if kept is not None and (kept.path, kept.dtype, kept.quantised) == (path, dtype, quantised):
            return kept
        del kept
        return load_base(path, dtype, quantised)


def load_base(path: Path, dtype: torch.dtype, quantised: bool = False) -> Base:
    """``quantised``: the layers' weights in four bits (NF4), as QLoRA has them. All weights are read from disk here."""
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32 if dtype == torch.float16 else dtype,
        attn_implementation="sdpa",
        quantization_config=_four_bits(dtype) if quantised else None,
    )
    for module in network.modules():
        # An evaluation would repack the weights for a faster product that has no gradient, and training go on with it.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # a module's own annotation denies it
    network.to(device())  # type: ignore[arg-type]  # its annotation misses the bound self
    network.config.use_cache = False
    if dtype == torch.float32:
        attention.use(network)
    _check_head(network, head(network))
    return Base(path, dtype, network, quantised)


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def head(network: PreTrainedModel) -> Head:
    module = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    config: Any = network.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:
        scale = float(config.logit_scale)  # Cohere multiplies
    elif getattr(config, "logits_scaling", None) is not None:
        scale = 1 / float(config.logits_scaling)  # Granite divides
    return Head(
        module,
        module.weight,
        getattr(module, "bias", None),
        scale,
        getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def _check_head(network: PreTrainedModel, head: Head) -> None:
    """Some models do more to their logits than :class:`Head` knows; better to refuse one than to train it wrongly."""
    training = network.training
    network.train(False)
    ids = torch.arange(4, device=head.weight.device)[None] + 4
    ours = head.logits(network.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = network(input_ids=ids, use_cache=False).logits.to(ours.dtype)
    network.train(training)
    tolerance = 1e-4 if head.weight.dtype.itemsize >= 4 else 0.05
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise Refused("unsupported_base_model", "This base model changes its logits in a way not known here.", "model")


@torch.no_grad()
def check_packing(network: PreTrainedModel) -> None:
    """Some architectures carry a state from token to token that no position ends: packed, their rows would mix."""
    training = network.training
    network.train(False)
    ids = torch.arange(8, device=network.device)[None] + 4
    places = torch.arange(4, device=network.device).repeat(2)[None]
    packed = network.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[:, 4:].float()
    alone = network.base_model(input_ids=ids[:, 4:], use_cache=False).last_hidden_state.float()
    network.train(training)
    tolerance = 1e-4 if network.dtype.itemsize >= 4 else 0.05
    if not torch.allclose(packed, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
        raise Refused("unpackable_base_model", "Rows of this base model can't be packed: they would mix.", "packing")
