"""The base model from a local folder, and the adapter on it."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from worker.folder import TrainSpec
from worker.train.faults import Refused
from worker.train.loss import Head

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass
class Base:
    path: Path
    dtype: torch.dtype
    network: PreTrainedModel


@dataclass
class Resident:
    """The base model kept for the next job. A job takes it away: the adapter changes it for good."""

    base: Base | None = field(default=None, repr=False)

    def preload(self, path: Path) -> None:
        self.base = None
        gc.collect()
        self.base = load_base(path, torch.float32)

    def take(self, path: Path, dtype: torch.dtype) -> Base:
        kept, self.base = self.base, None
        if kept is not None and kept.path == path and kept.dtype == dtype:
            return kept
        del kept
        return load_base(path, dtype)


def load_base(path: Path, dtype: torch.dtype) -> Base:
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation="sdpa",
    )
    network.to(device())  # type: ignore[arg-type]  # its annotation misses the bound self
    network.config.use_cache = False
    return Base(path, dtype, network)


@dataclass
class Model:
    """A base model with its adapter: what is trained, and how hidden states and logits are had from it."""

    peft: PeftModel
    network: PreTrainedModel
    head: Head
    trainable: dict[str, nn.Parameter]
    device: torch.device

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.peft.parameters())

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.trainable.values())

    @property
    def vocabulary(self) -> int:
        return len(self.head.weight)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The last layer's output [rows, tokens, width]. No attention mask: padding is at the end (``MicroBatch``)."""
        output = self.network.base_model(input_ids=input_ids, use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def with_adapter(base: Base, spec: TrainSpec) -> Model:
    """Attach what ``spec`` trains. The seed is set here, before the adapter's first random number."""
    network = base.network
    torch.manual_seed(spec.seed)
    lora = spec.lora
    peft = get_peft_model(
        network,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            # Loaders of adapters expect a whole number where it is one; PEFT itself takes any.
            lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else cast(int, lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=_targets(network, lora.target_modules),
            use_rslora=lora.rslora,
            use_dora=lora.dora,
        ),
    )
    # The adapter's file tells the public name; the folder it was trained from means nothing to its reader.
    peft.peft_config["default"].base_model_name_or_path = spec.base.name
    trainable = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    for p in trainable.values():
        # In bfloat16 an update of a thousandth of a weight would round to nothing.
        p.data = p.data.float()
    if spec.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    return Model(cast(PeftModel, peft), network, _head(network), trainable, device())


def _targets(network: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Modules to adapt, by the last part of their names: what every loader of adapters understands."""
    if isinstance(wanted, str):
        head = network.get_output_embeddings()  # type: ignore[no-untyped-call]
        linear = {name for name, m in network.named_modules() if isinstance(m, nn.Linear) and m is not head}
        return sorted({name.rpartition(".")[2] for name in linear})
    names = [name for name, _ in network.named_modules()]
    if missing := [w for w in wanted if not any(name == w or name.endswith(f".{w}") for name in names)]:
        raise Refused(
            "unknown_target_modules",
            f"The base model has no module named {', '.join(missing)}.",
            "lora.target_modules",
        )
    return wanted


def _head(network: PreTrainedModel) -> Head:
    module = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    config: Any = network.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:
        scale = float(config.logit_scale)  # Cohere multiplies
    elif getattr(config, "logits_scaling", None) is not None:
        scale = 1 / float(config.logits_scaling)  # Granite divides
    head = Head(
        module,
        module.weight,
        getattr(module, "bias", None),
        scale,
        getattr(config, "final_logit_softcapping", None),
    )
    _check_head(network, head)
    return head


@torch.no_grad()
def _check_head(network: PreTrainedModel, head: Head) -> None:
    """Some models do more to their logits than :class:`Head` knows; better to refuse one than to train it wrongly."""
    training = network.training
    network.train(False)
    ids = torch.arange(4, device=head.weight.device)[None] + 4
    theirs = network(input_ids=ids, use_cache=False).logits.float()
    ours = head.logits(network.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    network.train(training)
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 0.05
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise Refused("unsupported_base_model", "This base model changes its logits in a way not known here.", "model")
