"""PEFT's other adapters, for ``ext.peft``: which of them a job may name, and what each takes. Knows no torch.

Left out are those that change the base model's own weights to begin with, want a pass over the data first, or are made
of several adapters. ``tests/worker/train/test_peft.py`` holds the table to PEFT's own configurations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    takes: Callable[[object], bool]
    what: str


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


COUNT = Kind(lambda v: _whole(v) and 1 <= int(str(v)) <= 2**20, "an integer of at least 1")
SEED = Kind(lambda v: _whole(v) and 0 <= int(str(v)) < 2**31, "an integer of at least 0")
RATE = Kind(lambda v: _number(v) and 0 <= float(str(v)) < 1, "a number from 0 to below 1")
SCALE = Kind(lambda v: _number(v) and 0 < float(str(v)) <= 1e6, "a number above 0")
SWITCH = Kind(lambda v: isinstance(v, bool), "true or false")
NAMES = Kind(
    lambda v: v == "all-linear" or (isinstance(v, list) and 0 < len(v) <= 256 and all(isinstance(n, str) for n in v)),
    '"all-linear" or a list of module names',
)

TYPES: dict[str, dict[str, Kind]] = {
    "c3a": {"block_size": COUNT},
    "fourierft": {"n_frequency": COUNT, "scaling": SCALE, "random_loc_seed": SEED},
    "gralora": {"r": COUNT, "hybrid_r": SEED, "alpha": COUNT, "gralora_k": COUNT, "gralora_dropout": RATE},
    "hra": {"r": COUNT, "apply_GS": SWITCH},
    "loha": {"r": COUNT, "alpha": COUNT, "rank_dropout": RATE, "module_dropout": RATE},
    "lokr": {
        "r": COUNT,
        "alpha": COUNT,
        "rank_dropout": RATE,
        "module_dropout": RATE,
        "decompose_both": SWITCH,
        "decompose_factor": COUNT,
    },
    "miss": {"r": COUNT, "miss_dropout": RATE, "mini_r": COUNT},
    "oft": {"oft_block_size": COUNT, "module_dropout": RATE, "coft": SWITCH, "eps": SCALE, "block_share": SWITCH},
    "vera": {"r": COUNT, "projection_prng_key": SEED, "vera_dropout": RATE, "d_initial": SCALE},
}
"""Besides ``target_modules``, which all take."""


def faults(given: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, sentence) for all that is wrong with ``ext.peft``; the key is empty where it is the whole."""
    name = given.get("type")
    if not isinstance(name, str) or name not in TYPES:
        return [("type", f"is one of {', '.join(TYPES)}")]
    known = TYPES[name] | {"target_modules": NAMES}
    found = []
    for key, value in given.items():
        if key == "type":
            continue
        if key not in known:
            found.append((key, f"is not an option of {name}, which takes {', '.join(known)}"))
        elif not known[key].takes(value):
            found.append((key, f"is not {known[key].what}"))
    return found
