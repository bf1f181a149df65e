"""What a model answers to a few prompts, the likeliest token each time; asking leaves no trace in the training."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from worker.folder import ANSWER_TOKENS, TrainSpec
from worker.train import checkpoint
from worker.train.batches import Rows
from worker.train.model import Model


class Answerer:
    """Asks the prompts of a job; ``rows`` tell how a turn ends, ``valid`` holds the prompts that are rows of it."""

    def __init__(self, spec: TrainSpec, rows: Rows, valid: Rows | None) -> None:
        self._base = spec.base.path
        paired = 2 if spec.preference is not None and spec.preference.loss != "kto" else 1
        count = 0 if valid is None else min(spec.generate_rows, len(valid) // paired)
        self._prompts = [*spec.generate, *(_prompt(valid, paired * n) for n in range(count) if valid is not None)]
        self._ends = sorted({*spec.ends, *_end_of_turn(rows)})

    def __bool__(self) -> bool:
        return bool(self._prompts)

    @torch.inference_mode()
    def ask(self, model: Model, *, base: bool = False, look: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """{prompt, answer, tokens, ended} of each; ``base``: without the adapter. ``look`` is called before each
        prompt; it may raise. Model and random state are as before in any case."""
        rng, training = checkpoint.random_state(model), model.module.training
        without: AbstractContextManager[Any] = nullcontext()
        if base and model.peft is not None:
            without = model.peft.disable_adapter()
        model.module.eval()
        try:
            with without, model.computing:
                return [self._answer(model, prompt, look) for prompt in self._prompts]
        finally:
            model.module.train(training)
            checkpoint.set_random_state(model, rng)

    def _answer(self, model: Model, prompt: list[int], look: Callable[[], None]) -> dict[str, Any]:
        look()
        ids = torch.tensor([prompt], device=model.device)
        module: Any = model.module
        made = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy(self._ends, ANSWER_TOKENS),
        )
        new = made[0, len(prompt) :].tolist()
        ended = bool(new) and new[-1] in self._ends
        return {
            # Turns and their roles are part of what the model was asked.
            "prompt": self._text(prompt, skip_special_tokens=False),
            "answer": self._text(new[:-1] if ended else new),
            "tokens": len(new),
            "ended": ended,
        }

    def _text(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """A model may say NUL, and no text in a database can hold it."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text.replace("\0", "\ufffd")

    @cached_property
    def _tokenizer(self) -> Any:
        return Tokenizer.from_file(str(self._base / "tokenizer.json"))


def greedy(ends: list[int], most: int) -> GenerationConfig:
    """The likeliest token each time, up to ``most`` or one of ``ends``."""
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
    )


def _prompt(rows: Rows, row: int) -> list[int]:
    """What stands before a row's first answer."""
    part = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
    said = rows.completion[part].nonzero()[0]
    ids: list[int] = rows.input_ids[part].tolist()
    return ids[: max(1, int(said[0]) if len(said) else len(ids) // 2)]


def _end_of_turn(rows: Rows) -> list[int]:
    """The token that most answers end with; rows may be cut, and then they end with anything."""
    last: Counter[int] = Counter()
    for row in range(min(100, len(rows))):
        part = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        said = rows.completion[part].nonzero()[0]
        if len(said):
            last[int(rows.input_ids[part][said[-1]])] += 1
    return [token for token, count in last.most_common(1) if 2 * count > last.total()]
