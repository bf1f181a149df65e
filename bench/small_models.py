"""Two small base models, pretrained here in a minute or two on made-up talk, and rows for tuning them on something new.

    python -m bench.small_models [--to DIR]

A random model can't be tuned as a real one is: it has nothing to begin from. These two have learned to read words and
to follow simple instructions ("repeat", "how many", …); the tasks of :data:`NEW` were never shown to them. Each is made
once and kept under ``.cache/small_models`` by the hash of this file. Knows nothing about the engine.
"""

import argparse
import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests import tiny

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "small_models"
VOCABULARY = 768
STEPS, BATCH = 1200, 16
NAMES = ("small-llama", "small-qwen")

_NOUNS = re.findall(
    r"\w+",
    """
    apple bird boat book bottle box bread bridge bus cat chair child city cloud coat corn cow cup desk dog door
    dress duck egg farm fish flag flower fork friend game garden gate girl glass goat grass hand hat hill horse
    house island key king knife lake lamp leaf letter lion map milk moon mountain mouse music name night oil onion
    orange paper park pen picture pig plane plant plate pond queen rain ring river road rock roof room rope rose
    salt sand school sea seed ship shirt shoe shop sky snow soap song spoon star stone street sugar sun table tea
    tent tiger town train tree valley village wall watch water wheel wind window winter wolf wood
    """,
)
_COLOURS = re.findall(r"\w+", "red blue green black white brown yellow grey pink golden silver purple")
_NUMBERS = re.findall(r"\w+", "zero one two three four five six seven eight nine ten eleven twelve")

Talk = tuple[str, str]
"""What the user says, and the answer"""


def _words(chance: Random, least: int, most: int) -> list[str]:
    return [chance.choice(_NOUNS) for _ in range(chance.randint(least, most))]


def _repeat(chance: Random) -> Talk:
    words = " ".join(_words(chance, 1, 5))
    return f"repeat: {words}", words


def _count(chance: Random) -> Talk:
    words = _words(chance, 1, 8)
    return f"how many words: {' '.join(words)}", _NUMBERS[len(words)]


def _add(chance: Random) -> Talk:
    a, b = chance.randint(0, 6), chance.randint(0, 6)
    return f"{_NUMBERS[a]} plus {_NUMBERS[b]}", _NUMBERS[a + b]


def _first(chance: Random) -> Talk:
    words = _words(chance, 2, 5)
    return f"first word: {' '.join(words)}", words[0]


def _colour(chance: Random) -> Talk:
    noun, colour = chance.choice(_NOUNS), chance.choice(_COLOURS)
    return f"the {noun} is {colour}. which colour is the {noun}?", f"the {noun} is {colour}."


def _next(chance: Random) -> Talk:
    n = chance.randint(0, 8)
    return f"count on: {' '.join(_NUMBERS[n : n + 2])}", " ".join(_NUMBERS[n + 2 : n + 5])


def _swap(chance: Random) -> Talk:
    words = _words(chance, 2, 4)
    return f"other way round: {' '.join(words)}", " ".join(reversed(words))


def _order(chance: Random) -> Talk:
    words = sorted(set(_words(chance, 2, 4)))
    count, thing, colour = chance.randint(2, 9), words[0], chance.choice(_COLOURS)
    said = f"i need {_NUMBERS[count]} {colour} {thing}s for the {words[-1]}"
    return said, json.dumps({"item": thing, "count": count, "colour": colour})


def _last(chance: Random) -> Talk:
    words = _words(chance, 2, 5)
    return f"last word: {' '.join(words)}", words[-1]


def _style(chance: Random) -> Talk:
    noun, colour = chance.choice(_NOUNS), chance.choice(_COLOURS)
    return f"tell me of the {noun}", f"o {noun}, o {noun}, how {colour} you are. so sings the {chance.choice(_NOUNS)}."


KNOWN: dict[str, Callable[[Random], Talk]] = {
    "repeat": _repeat,
    "count": _count,
    "add": _add,
    "first": _first,
    "colour": _colour,
    "next": _next,
}
NEW: dict[str, Callable[[Random], Talk]] = {"swap": _swap, "order": _order, "last": _last, "style": _style}


def talks(task: str, count: int, seed: int, apart: Sequence[Talk] = ()) -> list[Talk]:
    """Different ones, and none of ``apart``: of a task with few of them, fewer may come."""
    chance, known, found = Random(f"{task} {seed}"), set(apart), list[Talk]()
    for _ in range(50 * count):
        if len(found) == count:
            break
        if (talk := (KNOWN | NEW)[task](chance)) not in known:
            known.add(talk)
            found.append(talk)
    return found


def model(name: str, cache: Path = CACHE) -> Path:
    """The folder of one of :data:`NAMES`, made when it isn't there: the same bytes each time on one machine."""
    folder = cache / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12] / name
    if not (folder / "pretrained.json").exists():
        draft = folder.with_name(f"{name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _pretrain(name, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return folder


def encode(folder: Path, talk: Sequence[Talk]) -> list[tiny.Row]:
    """Rows as the engine learns them: the answer with its end of turn is the completion."""
    tokenizer = _tokenizer(folder / "tokenizer.json")
    return [_row(tokenizer, one) for one in talk]


@functools.cache
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _row(tokenizer: Any, talk: Talk) -> tiny.Row:
    prompt: list[int] = tokenizer.encode(
        f"<|bos|><|im_start|>user\n{talk[0]}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    ).ids
    answer: list[int] = tokenizer.encode(f"{talk[1]}<|im_end|>", add_special_tokens=False).ids
    end: list[int] = tokenizer.encode("\n", add_special_tokens=False).ids
    return [*prompt, *answer, *end], [0] * len(prompt) + [1] * len(answer) + [0] * len(end)


def _pretrain(name: str, folder: Path) -> None:
    import torch

    began, threads = time.perf_counter(), torch.get_num_threads()
    # The number of threads decides the last digits, and one of them is enough for models of this size.
    torch.set_num_threads(1)
    chance = Random(name)
    kinds = list(KNOWN.values())
    corpus = [kinds[n % len(kinds)](chance) for n in range(STEPS * BATCH)]
    _write_tokenizer(folder, corpus)
    rows = encode(folder, corpus)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = _network(name)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        losses = []
        for step in range(STEPS):
            rate = 2e-3 * min(1.0, (step + 1) / 60) * (1 - 0.95 * step / STEPS)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, labels = _batch(rows[step * BATCH : (step + 1) * BATCH])
            loss = network(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(labels), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
    network.save_pretrained(folder)
    torch.set_num_threads(threads)
    told = {"steps": STEPS, "loss": float(np.mean(losses[-50:])), "seconds": round(time.perf_counter() - began, 1)}
    (folder / "pretrained.json").write_text(json.dumps(told) + "\n")


def _batch(rows: Sequence[tiny.Row]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens are learned, as a base model learns them."""
    width = max(len(row[0]) for row in rows)
    ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -100, np.int64)
    for n, row in enumerate(rows):
        ids[n, : len(row[0])] = row[0]
        labels[n, : len(row[0])] = row[0]
    return ids, labels


def _network(name: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": tiny.PAD,
        "bos_token_id": tiny.BOS,
        "eos_token_id": tiny.END,
        "dtype": "float32",
    }
    if name == "small-llama":
        shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
        return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **shape, **common))
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3}
    return Qwen2ForCausalLM(Qwen2Config(num_attention_heads=6, num_key_value_heads=2, **shape, **common))


def _write_tokenizer(folder: Path, corpus: Sequence[Talk]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=tiny.SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{said} {answer}" for said, answer in corpus[:4000]), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tiny.SPECIAL[tiny.PAD],
        "bos_token": tiny.SPECIAL[tiny.BOS],
        "eos_token": tiny.SPECIAL[tiny.END],
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrains the two small models.")
    parser.add_argument("--to", type=Path, default=CACHE)
    folder = parser.parse_args().to
    for name in NAMES:
        made = model(name, folder)
        print(made, (made / "pretrained.json").read_text().strip())


if __name__ == "__main__":
    main()
