"""A base model without weights: a tiny byte-level tokenizer with Gemma's turn tokens, templates, facts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from core.formats import families
from worker.prepare.folder import Facts

SPECIAL = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
TEXT = "user model assistant system Hello there, the answer is yes no one two three 0123456789 ### {} \n\n"
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def tiny_tokenizer() -> Any:  # the library ships no types for what it builds
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 4], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(families.text("gemma3"), "utf-8")
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    return folder


def tiny_facts() -> Facts:
    return Facts(
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        parameters=1000,
        hidden_size=640,
        layers=2,
        vocab_size=320,
        context_length=512,
        dtype="float32",
        bos_token_id=1,
        eos_token_ids=[2, 4],
        special_tokens=TOKENS,
        adds_bos=True,
        template_origin="default:gemma3",
        chat_template=families.text("gemma3"),
        license=None,
        converter="test",
        files=[],
        bytes=0,
        sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def facts() -> Facts:
    return tiny_facts()
