"""Answers the held-out messages and counts exact matches. Plain transformers and peft; nothing here needs the service.

    python examples/triage/evaluate.py BASE_FOLDER [ADAPTER_FOLDER]

An answer counts when it is the expected JSON to the last character, spaces around it aside.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEAMS = ("billing", "delivery", "technical", "account")
# The longest expected answer has 22 tokens; whoever has not finished here has missed.
MOST_TOKENS = 28
# Weights are read once a token for the whole batch, so wide batches win; 60 short prompts need little memory.
BATCH = 60


@dataclass(frozen=True)
class Example:
    message: str
    record: str


def examples(path: Path) -> list[Example]:
    lines = (json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines())
    return [Example(message=asked["content"], record=said["content"]) for asked, said in lines]


def shots(training: list[Example]) -> list[Example]:
    """One training example for each team, the first of each."""
    return [next(row for row in training if f'"team":"{team}"' in row.record) for team in TEAMS]


def few_shot(training: list[Example]) -> str:
    """What stands before each message in the few-shot prompt. Plain text, which is what a base model has learned."""
    head = (
        "Each customer message is turned into one JSON record. team is billing, delivery, technical or account; "
        "priority is urgent, normal or low; product is the name in the message; "
        "refund tells whether the customer asks for money back.\n\n"
    )
    return head + "".join(f"Message: {shot.message}\nRecord: {shot.record}\n\n" for shot in shots(training))


def exact_match(answers: list[str], expected: list[Example]) -> float:
    return sum(answer.strip() == row.record for answer, row in zip(answers, expected, strict=True)) / len(expected)


class Answerer:
    """A model and its tokenizer, answering greedily and in batches."""

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        """``tokenizer``: a folder with tokenizer and chat template, when they are not to be the base model's own."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Any: transformers and peft leave most of what is called here without types.
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer or folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        self.model.eval()  # type: ignore[no-untyped-call]  # so it is in transformers

    def adapt(self, folder: Path) -> None:
        """From here on answers the tuned model: the base with the adapter of that folder on it."""
        from peft import PeftModel

        self.model = PeftModel.from_pretrained(self.model, str(folder))
        self.model.eval()

    def chat(self, rows: list[Example], done: Callable[[int], None] = lambda rows: None) -> list[str]:
        """The message alone, as the training rows have it."""
        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": row.message}], tokenize=False, add_generation_prompt=True
            )
            for row in rows
        ]
        # Gemma ends a turn with a mark of its own; where that is no single token, the model is of another family.
        mark = self._ids("<end_of_turn>")
        ends = [self.tokenizer.eos_token_id, *(mark if len(mark) == 1 else [])]
        return self._answer("", prompts, ends, done)

    def few_shot(self, rows: list[Example], shared: str, done: Callable[[int], None] = lambda rows: None) -> list[str]:
        """The message after ``shared``, which :func:`few_shot` has made; an answer ends with its line."""
        prompts = [f"Message: {row.message}\nRecord:" for row in rows]
        ends = [self.tokenizer.eos_token_id, *self._ids("\n"), *self._ids("\n\n")]
        answers = self._answer(self.tokenizer.bos_token + shared, prompts, ends, done)
        return [answer.lstrip().partition("\n")[0] for answer in answers]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _answer(self, shared: str, prompts: list[str], ends: list[int], done: Callable[[int], None]) -> list[str]:
        import torch

        tokenizer, answers = self.tokenizer, list[str]()
        with torch.inference_mode():
            prefix, cache = self._prefix(self._ids(shared))
            for start in range(0, len(prompts), BATCH):
                batch = prompts[start : start + BATCH]
                read = tokenizer(batch, add_special_tokens=False, padding=True, return_tensors="pt")
                given: dict[str, Any] = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
                if cache is not None:
                    # The shared beginning is read once; each row goes on from a copy of what was kept of it.
                    rows = copy.deepcopy(cache)
                    rows.batch_repeat_interleave(len(batch))
                    before = prefix.expand(len(batch), -1)
                    given["input_ids"] = torch.cat([before, given["input_ids"]], dim=1)
                    given["attention_mask"] = torch.cat([torch.ones_like(before), given["attention_mask"]], dim=1)
                    given["past_key_values"] = rows
                out = self.model.generate(
                    **given,
                    max_new_tokens=MOST_TOKENS,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                )
                answers += tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
                done(len(answers))
        return answers

    def _prefix(self, ids: list[int]) -> tuple[Any, Any]:
        import torch

        if not ids:
            return None, None
        prefix = torch.tensor([ids])
        return prefix, self.model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts exact matches on the held-out messages.")
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("adapter", type=Path, nargs="?", help="folder of the adapter")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = examples(HERE / "held_out.jsonl")
    answerer = Answerer(options.base, options.adapter)
    shared = few_shot(examples(HERE / "train.jsonl"))
    ways: dict[str, Callable[[], list[str]]] = {
        "base": lambda: answerer.chat(rows),
        "base few-shot": lambda: answerer.few_shot(rows, shared),
    }
    if options.adapter:
        ways["tuned"] = lambda: answerer.chat(rows)
    for name, way in ways.items():
        if name == "tuned":
            answerer.adapt(options.adapter)
        began = time.monotonic()
        answers = way()
        print(f"{name:14s} {exact_match(answers, rows):6.1%}  {time.monotonic() - began:.1f} s  e.g. {answers[0]!r}")


if __name__ == "__main__":
    main()
