"""A token file as arrays that are mapped from disk (``worker/folder.py`` tells the layout): none of it is in memory
before it is looked at, and the system may forget it again."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "U8": np.uint8}


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, read-only. The library's own reader copies each into memory."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        name: np.frombuffer(
            whole.data,
            dtype=_TYPES[entry["dtype"]],
            count=entry["shape"][0],
            offset=8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
