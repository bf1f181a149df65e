"""attune-tiny: a whole base model small enough to train in a test, and job folders for it.

A Llama of two layers and 64 channels with random weights, a byte-level vocabulary of 512 learned from the text below
(so any text can be encoded), and a ChatML-like template that marks what the assistant says. The same bytes each time.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

NAME = "attune-tiny"
VOCABULARY = 512
PAD, BOS, TURN, END = 0, 1, 2, 3
SEED = 7
"""Of jobs that are given none"""
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]

TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- (message['content'] or '') + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- (message['content'] or '') + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

TEXT = """\
A model learns from examples. Each example is a short talk between a user and an assistant: the user asks, the
assistant answers, and the answer ends with a mark that says whose turn is over. system user assistant tool.
What is the capital of France? Paris. What is two plus three? Five. Please write the answer as JSON with the keys
"category", "priority", "team" and "summary". The order has not arrived yet and the customer would like to know when
it will. I can't sign in to my account since yesterday; the page says that my password is wrong. Could you tell me how
to change the address on my invoice? Thank you for your help, the problem is solved. We are sorry for the delay and
have sent the parcel again today. The quick brown fox jumps over the lazy dog. One, two, three, four, five, six, seven,
eight, nine, ten. Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. {"role": "user", "content": "Hello"}
"""


def build_tiny(out: Path) -> Path:
    """Write the model into ``out`` (made if need be) and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # Wider than usual: with 0.02 all logits of so small a model are nearly equal, and no test sees a difference.
        initializer_range=0.1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        network = LlamaForCausalLM(config)
        # A frozen head of 64 channels could not tell one token from 511 others with certainty: its logits were too
        # near each other, and no training could bring the loss under 1.
        torch.nn.init.constant_(network.model.norm.weight, 3.0)
        network.save_pretrained(out)
    _tokenizer().save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL[PAD],
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[END],
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return out


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


Row = tuple[Sequence[int], Sequence[int]] | tuple[Sequence[int], Sequence[int], Sequence[float]]
"""Tokens, 1 where the assistant speaks, and if wanted the message weight of each token."""


def write_rows(path: Path, rows: Sequence[Row], label: Sequence[int] | None = None) -> str:
    """A token file, with ``label`` one of preferences; returns its sha256."""
    ends = np.cumsum([len(row[0]) for row in rows])
    weights = [row[2] if len(row) == 3 else [1.0] * len(row[0]) for row in rows]
    save_file(
        {
            "input_ids": np.concatenate([np.asarray(row[0], np.int32) for row in rows]),
            "completion": np.concatenate([np.asarray(row[1], np.uint8) for row in rows]),
            "message_weight": np.concatenate([np.asarray(w, np.float32) for w in weights]),
            "offsets": np.concatenate([[0], ends]).astype(np.int64),
            "lines": np.arange(1, len(rows) + 1, dtype=np.int64),
        }
        | ({} if label is None else {"label": np.asarray(label, np.uint8)}),
        path,
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_pairs(count: int, seed: int = 0) -> list[Row]:
    """Wanted and unwanted answers of their own lengths to each of ``count`` prompts, in turn."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for _ in range(count):
        prompt = [BOS, *random.integers(4, VOCABULARY, int(random.integers(2, 12))).tolist()]
        for _ in range(2):
            answer = [*random.integers(4, VOCABULARY, int(random.integers(1, 16))).tolist(), END]
            rows.append(([*prompt, *answer], [0] * len(prompt) + [1] * len(answer)))
    return rows


def random_rows(count: int, seed: int = 0, shortest: int = 6, longest: int = 40) -> list[Row]:
    """Ragged rows of random tokens, the second part of each a completion that ends the turn."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for _ in range(count):
        length = int(random.integers(shortest, longest + 1))
        prompt = int(random.integers(2, length - 2))
        tokens = [BOS, *random.integers(4, VOCABULARY, length - 2).tolist(), END]
        rows.append((tokens, [0] * prompt + [1] * (length - prompt)))
    return rows


def build_job(
    folder: Path,
    base: Path,
    rows: Sequence[Row],
    valid: Sequence[Row] | None = None,
    *,
    label: Sequence[int] | None = None,
    epochs: float = 1.0,
    lora: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A job folder ready for ``python -m worker.train``; ``values`` replace fields of the spec."""
    from worker.folder import TrainSpec

    folder.mkdir(parents=True, exist_ok=True)
    data = {"train": write_rows(folder / "train.safetensors", rows, label)}
    if valid is not None:
        shown = None if label is None else [n % 2 == 0 for n in range(len(valid))]
        data["valid"] = write_rows(folder / "valid.safetensors", valid, shown)
    batch_size = values.get("batch_size", 4)
    fields: dict[str, Any] = {
        "job_id": "ftjob-test",
        "base": {"name": NAME, "path": base, "sha256": "0" * 64},
        "lora": {"rank": 8, "alpha": 16.0} | (lora or {}),
        "prompt_loss_weight": 0.1,
        "seed": SEED,
        "epochs": epochs,
        "total_steps": max(1, round(epochs * -(-len(rows) // batch_size))),
        "batch_size": batch_size,
        "micro_batch_size": 1,
        "max_length": 512,
        # Forcing files to disk is what a tiny run would spend its time on: a test asks for recovery points by name.
        "recovery_fraction": 1.0,
        "optim": {"learning_rate": 1e-3, "warmup_steps": 2} | (optim or {}),
        "threads": 1,
        "data_sha256": data,
    }
    spec = TrainSpec.model_validate(fields | values)
    (folder / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n")
    return folder


def read_events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [event for event in events if kind in (None, event["type"])]
