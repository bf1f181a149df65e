"""A GGUF file -> a model's folder in float32, through transformers, without its slow walk over the vocabulary.

transformers reads a GGUF file's metadata several times, an object for each of the vocabulary's entries. So it gets a
copy without the vocabulary for the weights, and the tokenizer is built by its own quick reader. Imports torch.
"""

import importlib.metadata
import json
import mmap
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import JobError

Progress = Callable[[float, str], None]

_MAGIC = b"GGUF"
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_WIDTH = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_PART = re.compile(r"\.gguf(\.part\d+)?$")
# Vocabulary, scores, kinds and merges: long arrays that only the tokenizer needs.
_VOCABULARY = re.compile(r"^tokenizer\.ggml\.(tokens|scores|token_type|merges|precompiled_charsmap)$")


def parts(source: str) -> list[Path]:
    """The files of a ``gguf:`` source: one file, or the pieces in an installed distribution and what it requires."""
    if Path(source).is_file():
        return [Path(source)]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", source):
        raise JobError(f"there is no file {source}", code="invalid_source", param="source")
    found: list[Path] = []
    names = [source]
    try:
        names += [re.split(r"[^A-Za-z0-9._-]", need)[0] for need in importlib.metadata.requires(source) or []]
        for name in names:
            files = importlib.metadata.files(name) or []
            found += [Path(str(file.locate())) for file in files if _PART.search(file.name)]
    except importlib.metadata.PackageNotFoundError as error:
        message = f"there is neither a file nor an installed package {error.name or source}"
        raise JobError(message, code="invalid_source", param="source") from None
    if not found:
        raise JobError(f"the package {source} has no .gguf file", code="invalid_source", param="source")
    return sorted(found, key=lambda path: path.name)


def join(pieces: list[Path], out: Path) -> None:
    with out.open("wb") as file:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, file, 4 * 1024 * 1024)


class _Field(NamedTuple):
    key: str
    start: int
    end: int
    elements: int
    """1 unless it is an array."""


def _fields(data: bytes | memoryview, path: Path) -> tuple[int, list[_Field], int]:
    """Number of tensors, the metadata's fields and where they end."""
    if bytes(data[:4]) != _MAGIC:
        raise JobError(f"{path.name} is not a GGUF file", code="invalid_model", param="source")
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise JobError(f"{path.name} is GGUF version {version}; 2 and 3 are known", code="invalid_model")
    position, fields = 24, []
    for _ in range(count):
        start = position
        (length,) = struct.unpack_from("<Q", data, position)
        key = bytes(data[position + 8 : position + 8 + length]).decode()
        (kind,) = struct.unpack_from("<I", data, position + 8 + length)
        position, elements = _skip(data, position + 12 + length, kind)
        fields.append(_Field(key, start, position, elements))
    return tensors, fields, position


def _skip(data: bytes | memoryview, position: int, kind: int) -> tuple[int, int]:
    """Where a value ends, and how many elements it has."""
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", data, position)
        return position + 8 + length, 1
    if kind != _ARRAY:
        return position + _WIDTH[kind], 1
    element, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if element in _WIDTH:
        return position + count * _WIDTH[element], count
    for _ in range(count):
        position, _ = _skip(data, position, element)
    return position, count


def without_vocabulary(path: Path, out: Path) -> bool:
    """Copies the file less its vocabulary, whose size is kept; False when there is no vocabulary to leave out."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = memoryview(mapped)
        try:
            tensors, fields, end = _fields(data, path)
            table_end = end
            for _ in range(tensors):
                (length,) = struct.unpack_from("<Q", data, table_end)
                (dimensions,) = struct.unpack_from("<I", data, table_end + 8 + length)
                table_end += 8 + length + 4 + 8 * dimensions + 12
            alignment = 32
            architecture = ""
            kept, size = [], 0
            for item in fields:
                if item.key == "general.alignment":
                    (alignment,) = struct.unpack_from("<I", data, item.end - 4)
                if item.key == "general.architecture":
                    architecture = bytes(data[item.start + 8 + len(item.key) + 12 : item.end]).decode()
                if _VOCABULARY.match(item.key):
                    size = item.elements if item.key.endswith(".tokens") else size
                else:
                    kept.append(bytes(data[item.start : item.end]))
            if not size:
                return False
            key = f"{architecture}.vocab_size".encode()
            if all(item.key != key.decode() for item in fields):
                kept.append(struct.pack("<Q", len(key)) + key + struct.pack("<II", _UINT32, size))
            header = _MAGIC + struct.pack("<IQQ", 3, tensors, len(kept)) + b"".join(kept) + bytes(data[end:table_end])
            with out.open("wb") as target:
                target.write(header + b"\0" * (-len(header) % alignment))
                begin = table_end + (-table_end % alignment)
                for start in range(begin, len(data), 1 << 24):
                    target.write(data[start : start + (1 << 24)])
        finally:
            data.release()
    return True


def convert(path: Path, out: Path, scratch: Path, progress: Progress) -> tuple[str | None, str | None]:
    """Writes weights, config and tokenizer to ``out``. Answers the file's chat template and licence, if it has any."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    progress(10, "reading the GGUF file")
    try:
        metadata, _ = read_gguf_metadata(str(path))
        architecture, described, config = get_gguf_tokenizer(str(path))
        backend, more = convert_gguf_tokenizer(architecture, described)
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise JobError(f"{path.name} can't be read: {error}", code="invalid_model", param="source") from error
    template = config.pop("chat_template", None)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=backend,
        **{name: value for name, value in {**config, **more}.items() if value is not None},
        model_max_length=metadata.get(f"{architecture}.context_length", 2048),
    )
    tokenizer.save_pretrained(out)
    _name_the_class(out / "tokenizer_config.json")

    progress(30, "converting the weights to float32")
    slim = scratch / "weights.gguf"
    # Architectures with a quick reader of their own count the vocabulary there.
    source = path if architecture in GGUF_CONFIG_ARCHS or not without_vocabulary(path, slim) else slim
    try:
        model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
        if model.config.get_text_config().vocab_size != len(described["tokens"]) and source == slim:
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        message = f"transformers can't load this GGUF file: {str(error)[:300]}"
        raise JobError(message, code="invalid_model", param="source") from error
    finally:
        slim.unlink(missing_ok=True)
    progress(60, "writing the weights")
    _save(model, out)
    return template, metadata.get("general.license")


def _save(model: Any, out: Path) -> None:  # a transformers model: its classes are chosen at run time
    """What ``save_pretrained`` would write: it refuses a model that was read from quantised blocks, even though
    these weights are plain floats now."""
    from huggingface_hub import save_torch_state_dict

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config._name_or_path = ""
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    state = dict(model.state_dict())
    # A tied head is the embedding once more; from_pretrained ties it again.
    kept: dict[int, str] = {}
    for name, tensor in list(state.items()):
        if kept.setdefault(tensor.data_ptr(), name) != name:
            del state[name]
    save_torch_state_dict(state, out, max_shard_size="5GB", metadata={"format": "pt"})


def _name_the_class(path: Path) -> None:
    """The plain class reads tokenizer.json as it stands, in transformers 4 and 5 alike."""
    config = json.loads(path.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("is_local", "local_files_only", "backend"):
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
