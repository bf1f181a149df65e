"""What of a base model is trained: an adapter on it, some of its layers, or all of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from torch import nn
from torch.amp import GradScaler
from transformers import PreTrainedModel

from worker.folder import TrainSpec
from worker.train import load, weights
from worker.train.faults import Refused
from worker.train.load import Base, device, head
from worker.train.model import Model

IA3_TARGETS = ("k_proj", "v_proj", "down_proj")
"""Keys, values and the second half of the feed-forward part, as in the paper (arXiv 2205.05638)."""


def attach(base: Base, spec: TrainSpec) -> Model:
    """What ``spec`` trains on ``base``. The seed is set here, before the adapter's first random number."""
    torch.manual_seed(spec.seed)
    network = base.network
    peft = _adapted(network, spec) if spec.adapter in _CONFIGS else None
    if peft is None:
        _choose(network, spec)
    module: nn.Module = network if peft is None else peft
    # Fresh parts of an adapter come ready to train, with their dropout on; who trains says so.
    module.eval()
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for p in trainable.values():
        # In bfloat16 an update of a thousandth of a weight would round to nothing.
        p.data = p.data.float()
    if spec.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    found = head(network)
    found.filtered = spec.head_gradient == "filtered"
    if found.filtered and not found.frozen:
        raise Refused("trainable_head", "A head that is trained needs its own gradient whole.", "head_gradient")
    if spec.packing:
        load.check_packing(network)
    half, where = base.dtype == torch.float16, device()
    mixed = base.dtype if half or (peft is None and base.dtype == torch.bfloat16) else None
    return Model(network, peft, found, trainable, where, mixed, GradScaler(where.type, enabled=half))


def begin_from(model: Model, folder: Path, name: str) -> None:
    """Put an earlier job's weights in place of fresh ones."""
    try:
        weights.read(model, folder)
    except (KeyError, RuntimeError, OSError) as error:
        message = f"The weights of {name} don't fit what this job trains: {error}."
        raise Refused("init_mismatch", message, "init_from") from error


def _adapted(network: PreTrainedModel, spec: TrainSpec) -> PeftModel:
    try:
        peft = get_peft_model(network, _CONFIGS[spec.adapter](network, spec))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        if spec.peft is None:
            raise
        message = f"PEFT can't make this adapter on this base model: {error}".rstrip(".") + "."
        raise Refused("unsupported_peft", message, "peft") from error
    # The adapter's file tells the public name; the folder it was trained from means nothing to its reader.
    peft.peft_config["default"].base_model_name_or_path = spec.base.name
    return cast(PeftModel, peft)


def _lora(network: PreTrainedModel, spec: TrainSpec) -> PeftConfig:
    lora = spec.lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        # Loaders of adapters expect a whole number where it is one; PEFT itself takes any.
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else cast(int, lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=_targets(network, lora.target_modules),
        layers_to_transform=None if spec.layers is None else _layers(network, spec.layers),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )


def _ia3(network: PreTrainedModel, spec: TrainSpec) -> PeftConfig:
    wanted = spec.lora.target_modules
    if isinstance(wanted, str):
        present = {name.rpartition(".")[2] for name, _ in network.named_modules()}
        # A model that names its parts in its own way: PEFT's table of models knows, or says that it doesn't.
        targets = [name for name in IA3_TARGETS if name in present] or None
    else:
        targets = _targets(network, wanted)
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=targets,
        feedforward_modules=None if targets is None else [name for name in targets if _in_feedforward(network, name)],
    )


def _in_feedforward(network: PreTrainedModel, target: str) -> bool:
    """Whether the module belongs to a block's feed-forward part, whose inputs are scaled instead of its outputs."""
    return any(
        (".mlp." in name or ".feed_forward." in name) and (name == target or name.endswith(f".{target}"))
        for name, _ in network.named_modules()
    )


def _prompt(network: PreTrainedModel, spec: TrainSpec) -> PeftConfig:
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=spec.virtual_tokens,
        # Words of the vocabulary to begin with: from random numbers it learns next to nothing.
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
    )


def _prefix(network: PreTrainedModel, spec: TrainSpec) -> PeftConfig:
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=spec.virtual_tokens)


def _other(network: PreTrainedModel, spec: TrainSpec) -> PeftConfig:
    """What this project knows by name only; PEFT itself says what it makes of the values."""
    given = dict(spec.peft or {})
    kind = PeftType(str(given.pop("type")).upper())
    targets = _targets(network, given.pop("target_modules", "all-linear"))
    # Any of PEFT's classes, each with fields of its own.
    make: Callable[..., PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    return make(task_type="CAUSAL_LM", target_modules=targets, **given)


_CONFIGS: dict[str, Callable[[PreTrainedModel, TrainSpec], PeftConfig]] = {
    "lora": _lora,
    "qlora": _lora,
    "ia3": _ia3,
    "prompt": _prompt,
    "prefix": _prefix,
    "peft": _other,
}


def _targets(network: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Modules to adapt, by the last part of their names: what every loader of adapters understands."""
    if isinstance(wanted, str):
        output = network.get_output_embeddings()  # type: ignore[no-untyped-call]
        linear = {name for name, m in network.named_modules() if isinstance(m, nn.Linear) and m is not output}
        return sorted({name.rpartition(".")[2] for name in linear})
    names = [name for name, _ in network.named_modules()]
    if missing := [w for w in wanted if not any(name == w or name.endswith(f".{w}") for name in names)]:
        raise Refused(
            "unknown_target_modules",
            f"The base model has no module named {', '.join(missing)}.",
            "lora.target_modules",
        )
    return wanted


def _choose(network: PreTrainedModel, spec: TrainSpec) -> None:
    """Train the network's own weights: all of them, or those of some layers."""
    network.requires_grad_(spec.layers is None)
    if spec.layers is not None:
        blocks = _blocks(network)
        for index in _layers(network, spec.layers):
            blocks[index].requires_grad_(True)


def _layers(network: PreTrainedModel, wanted: list[int]) -> list[int]:
    """Layer numbers from 0 on; a negative one counts from the last."""
    count = len(_blocks(network))
    if outside := [index for index in wanted if not -count <= index < count]:
        raise Refused(
            "unknown_layers",
            f"The base model has {count} layers, from 0 to {count - 1}: no layer {outside[0]}.",
            "layers",
        )
    return sorted({index % count for index in wanted})


def _blocks(network: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers: the longest list of modules in the network."""
    lists: list[Any] = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return cast(nn.ModuleList, max(lists, key=len))
