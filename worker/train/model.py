"""What is trained and how it is asked: a network, its head, and the adapter on it where there is one."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional
from transformers import PreTrainedModel

from worker.train import products
from worker.train.loss import Head


@dataclass
class Model:
    """``peft`` is None where the network's own weights are trained."""

    network: PreTrainedModel
    peft: PeftModel | None
    head: Head
    trainable: dict[str, nn.Parameter]
    device: torch.device
    mixed: torch.dtype | None = None
    """What float32 weights are computed with in, where it is another: bfloat16 or float16."""
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    """Of float16: keeps small gradients out of the zeros of its range. Elsewhere it does nothing."""

    @property
    def module(self) -> nn.Module:
        return self.network if self.peft is None else self.peft

    @property
    def learned(self) -> int:
        """Learned tokens that stand before each row"""
        return 0 if self.peft is None else getattr(self.peft.peft_config["default"], "num_virtual_tokens", None) or 0

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.trainable.values())

    @property
    def vocabulary(self) -> int:
        return len(self.head.weight)

    @property
    def computing(self) -> AbstractContextManager[object]:
        """Around a forward pass: matrix products in what the job computes in."""
        return nullcontext() if self.mixed is None else torch.autocast(self.device.type, self.mixed)

    def hidden(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The last layer's output [rows, tokens, width]. No attention mask: padding is at the end, and packed rows are
        told apart by ``position_ids`` (``MicroBatch``)."""
        tokens = input_ids.shape[1]
        more = products.padded(tokens) - tokens
        if more and (position_ids is not None or self._knows(tokens + more)):
            # Nothing sees these; among packed rows they are one of their own.
            input_ids = functional.pad(input_ids, (0, more))
            if position_ids is not None:
                position_ids = torch.cat([position_ids, torch.arange(more, device=self.device)[None]], 1)
        with self.computing:
            output = self._hidden(input_ids, position_ids)
        return output[:, :tokens].to(self.head.weight.dtype)

    def _knows(self, tokens: int) -> bool:
        """Whether the model has a position for each token of rows so long."""
        positions = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        return positions is None or tokens + self.learned <= positions

    def _hidden(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        network = self.network.base_model
        kind = None if self.peft is None else self.peft.peft_config["default"].peft_type
        if kind == PeftType.PROMPT_TUNING:
            # The learned tokens stand in front of each row; nothing is predicted from any but the last of them.
            learned = self.peft.get_prompt(batch_size=len(input_ids))  # type: ignore[union-attr]
            embedded = self.network.get_input_embeddings()(input_ids)
            both = torch.cat([learned.to(embedded.dtype), embedded], dim=1)
            output = network(inputs_embeds=both, use_cache=False)
            return cast(Tensor, output.last_hidden_state)[:, learned.shape[1] :]
        if kind == PeftType.PREFIX_TUNING:
            learned = self.peft.get_prompt(batch_size=len(input_ids))  # type: ignore[union-attr]
            return cast(Tensor, network(input_ids=input_ids, past_key_values=learned).last_hidden_state)
        packed = {}
        if position_ids is not None:
            starts = (position_ids[0] == 0).nonzero()[:, 0]
            # Transformers keeps packed rows apart only where there is neither a mask nor a cache; attention of our own
            # goes by where they begin and end.
            ends = functional.pad(starts, (0, 1), value=position_ids.shape[1])
            packed = {"position_ids": position_ids, "cu_seq_lens_q": ends}
        return cast(Tensor, network(input_ids=input_ids, use_cache=False, **packed).last_hidden_state)
