"""Answers prompts on this machine with weights from disk: plain transformers and PEFT, as whoever downloads a model has
them. Knows no service."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from core.options import JobOptions
from worker.prepare import local, tokenise
from worker.train.answers import greedy


class Chat:
    """``base``: the base model's folder; ``tuned``: an adapter's or a whole model's, or None."""

    def __init__(self, base: Path, tuned: Path | None, *, both: bool = False) -> None:
        with tempfile.TemporaryDirectory(prefix="attune-") as scratch:
            read = local.model(base, Path(scratch))
            own = tuned / "chat_template.jinja" if tuned is not None else base
            # What a model was tuned with is what it expects, whatever its base says.
            template = own.read_text("utf-8") if own.is_file() else "base"
            self._encoder = tokenise.encoder(read.base, read.facts, JobOptions(chat_template=template))
        self._tokenizer: Any = Tokenizer.from_file(str(base / "tokenizer.json"))
        self._adapter = tuned is not None and (tuned / "adapter_config.json").exists()
        # Any: transformers and peft leave most of what is called here without types.
        self._model: Any = _load(base if tuned is None or self._adapter else tuned)
        configured = self._model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        self._ends = sorted({*configured, self._encoder.end_of_turn} - {None})
        if self._adapter:
            self._model = PeftModel.from_pretrained(self._model, str(tuned)).eval()
        self._base: Any = _load(base) if both and tuned is not None and not self._adapter else None

    def answer(
        self, prompt: str, say: Callable[[str], None], *, base: bool = False, most: int = 256, system: str | None = None
    ) -> bool:
        """Greedily, ``say`` getting each piece of text as it comes; whether the model ended its turn by itself."""
        messages = [{"role": "system", "content": system}] if system else []
        model = self._base if base and self._base is not None else self._model
        asked = self._encoder.prompt([*messages, {"role": "user", "content": prompt}], plain=False)
        ids = torch.tensor([asked], device=model.device)
        without: AbstractContextManager[Any] = nullcontext()
        if base and self._adapter:
            without = model.disable_adapter()
        spoken = _Spoken(self._tokenizer, self._ends, say)
        with torch.inference_mode(), without:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=spoken,
                generation_config=greedy(self._ends, most),
            )
        return spoken.ended


class _Spoken(BaseStreamer):
    """Tokens -> text as soon as it is whole: a character may take several tokens."""

    def __init__(self, tokenizer: Any, ends: list[int], say: Callable[[str], None]) -> None:
        self._tokenizer, self._ends, self._say = tokenizer, ends, say
        self._ids: list[int] | None = None
        self._said = ""
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:
            # The prompt comes first.
            self._ids = []
            return
        for token in value.flatten().tolist():
            self.ended = token in self._ends
            if not self.ended:
                self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if not text.endswith("\ufffd"):
            self._speak(text)

    def end(self) -> None:
        self._speak(self._tokenizer.decode(self._ids or []))

    def _speak(self, text: str) -> None:
        if text[len(self._said) :]:
            self._say(text[len(self._said) :])
            self._said = text


def _load(folder: Path) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    return model.to(device).eval()
