"""Stand-in tokenizers: a small byte-level vocabulary trained here, with each family's own special tokens.

What a template does to tokens is decided by which of its marks are single tokens, as in the real ones. Also the folder
and the facts of a base model of the family, as prepare wants them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from core.formats import families
from worker.prepare.folder import Facts

TEXT = """\
You are a friendly assistant for the harbour office. What is the weather like in Oslo today, and in Bergen tomorrow?
It is sunny in Oslo, 21 degrees. Let me look that up. user assistant system tool model developer ipython think name
arguments parameters {"name": "weather", "arguments": {"city": "Oslo"}} functions called ### Functions ```json

One\n\ntwo\n\nthree.\n\n\nfour:\n  five\n  six

"""


class Special(NamedTuple):
    """A family's special tokens; ``end`` is what an assistant turn ends with."""

    model_type: str
    bos: str | None
    eos: str
    end: str
    others: tuple[str, ...] = ()


_DEEPSEEK = tuple(
    f"<｜tool▁{what}▁{side}｜>" for what in ("calls", "call", "outputs", "output") for side in ("begin", "end")
)
_MISTRAL = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")

SPECIAL = {
    "gemma3": Special("gemma3_text", "<bos>", "<eos>", "<end_of_turn>"),
    "llama3": Special("llama", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "deepseek": Special(
        "deepseek_v3", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", _DEEPSEEK
    ),
    "mistral": Special("mistral", "<s>", "</s>", "</s>", (*_MISTRAL, "[/SYSTEM_PROMPT]")),
    "mistral_v3": Special("mistral", "<s>", "</s>", "</s>", _MISTRAL),
    "granite": Special("granite", "<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    "phi4": Special("phi3", "<|endoftext|>", "<|im_end|>", "<|im_end|>"),
    "phi": Special("phi3", "<s>", "<|endoftext|>", "<|end|>"),
    "chatml": Special("qwen3", None, "<|im_end|>", "<|im_end|>", ("<|endoftext|>",)),
    "plain": Special("unheard_of", "<s>", "</s>", "</s>"),
}


def names(family: str) -> dict[str, str]:
    """What the family's template may name."""
    special = SPECIAL[family]
    return {"eos_token": special.eos} | ({"bos_token": special.bos} if special.bos else {})


@cache
def tokenizer(family: str) -> Any:  # the library ships no types for what it builds
    special = SPECIAL[family]
    own = next((item.tokens for item in families.FAMILIES if item.name == family), ())
    tokens = dict.fromkeys(["<pad>", *filter(None, [special.bos]), special.eos, *own, *special.others])
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(tokens) + 256 + 80,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Whole, so that line breaks are learned together with what is around them, as real vocabularies have them.
    made.train_from_iterator([TEXT], trainer)
    return made


def base(family: str, folder: Path) -> Path:
    """A base model's folder without weights and without a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(family).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", **names(family)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def facts(family: str) -> Facts:
    special, made = SPECIAL[family], tokenizer(family)
    return Facts(
        architecture="Model",
        model_type=special.model_type,
        parameters=1,
        hidden_size=8,
        layers=1,
        vocab_size=made.get_vocab_size(),
        context_length=4096,
        dtype="float32",
        bos_token_id=made.token_to_id(special.bos) if special.bos else None,
        eos_token_ids=[made.token_to_id(special.eos)],
        special_tokens=names(family),
        adds_bos=False,
        template_origin=f"default:{family}",
        chat_template=families.text(family),
        license=None,
        converter="test",
        files=[],
        bytes=0,
        sha256="0" * 64,
    )
