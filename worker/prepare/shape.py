"""The shape of a base model, from its config.json and the headers of its weights. Reads no weight."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.cost import Linear, Shape

_ATTENTION = {"full_attention", "sliding_attention"}
_STATES = ("A_log", "dt_bias", "time_decay", "time_mix_key")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.\d+\.(?:.*\.)?(?P<name>[^.]+)\.weight$")


def of(folder: Path) -> Shape | None:
    """None for an architecture whose layers are not a stack of attention and feed-forward: nothing can be told."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    # Models of several modalities keep the language model's numbers in a section of their own.
    text: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    linears: dict[tuple[str, int, int], int] = {}
    parameters = 0
    # A convolution over tokens, or a state that one hands to the next, knows of no row's end; it has weights of other
    # sizes than a matrix, or calls its layers by another name.
    packs = set(text.get("layer_types") or []) <= _ATTENTION
    for name, sizes in _tensors(folder):
        count = 1
        for size in sizes:
            count *= size
        parameters += count
        found = _LAYER.search(name)
        packs = packs and len(sizes) <= 2 and not name.endswith(_STATES)
        if found is not None and len(sizes) == 2:
            key = (found["name"], sizes[1], sizes[0])
            linears[key] = linears.get(key, 0) + 1
    try:
        heads = text["num_attention_heads"]
        size = text.get("head_dim") or text["hidden_size"] // heads
        window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
        kinds = text.get("layer_types") or ["sliding_attention"] * text["num_hidden_layers"]
        windowed = kinds.count("sliding_attention") if window else 0
        return Shape(
            parameters=parameters,
            layers=text["num_hidden_layers"],
            hidden_size=text["hidden_size"],
            vocab_size=text["vocab_size"],
            attention_width=heads * size,
            key_width=(text.get("num_key_value_heads") or heads) * size,
            feed_forward=text["intermediate_size"],
            heads=heads,
            window=window,
            windowed=windowed,
            packs=packs,
            linears=[
                Linear(name=name, count=count, inputs=inputs, outputs=outputs)
                for (name, inputs, outputs), count in sorted(linears.items())
            ],
        )
    except (KeyError, TypeError):
        return None


def _tensors(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tensor["shape"]
