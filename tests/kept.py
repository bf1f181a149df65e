"""Rows in every container a user may have them in, plain and compressed."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet

Objects = list[dict[str, Any]]


def jsonl(objects: Objects) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects)


def array(objects: Objects) -> bytes:
    return json.dumps(objects, ensure_ascii=False, indent=2).encode()


def line(objects: Objects) -> bytes:
    return json.dumps(objects).encode()


def table(objects: Objects, **how: Any) -> bytes:
    names = list(dict.fromkeys(name for one in objects for name in one))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, **how)
    writer.writeheader()
    for one in objects:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in one.items()})
    return out.getvalue().encode()


def parquet(objects: Objects) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), out)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return bytes(out.getvalue())


CONTAINERS: dict[str, tuple[str, Callable[[Objects], bytes]]] = {
    "jsonl": ("jsonl", jsonl),
    "array": ("json", array),
    "one line": ("json", line),
    "csv": ("csv", table),
    "semicolons": ("csv", lambda objects: table(objects, delimiter=";", quoting=csv.QUOTE_ALL)),
    "excel": ("csv", lambda objects: b"\xef\xbb\xbf" + table(objects, delimiter="\t")),
    "parquet": ("parquet", parquet),
}
COMPRESSIONS: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "plain": (None, bytes),
    "gzip": ("gzip", gzip.compress),
    "zstd": ("zstd", zstd),
}
