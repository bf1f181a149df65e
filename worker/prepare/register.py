"""A base model's source -> a normalised folder and the facts about it. Never remote code, never pickle.

Sources: ``gguf:FILE``, ``gguf:DISTRIBUTION``, ``path:DIR``, ``hf:REPO``. The folder holds safetensors weights,
config.json, generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja. ``hf:`` downloads
through huggingface_hub, safetensors and text only; it is the one source that the tests can't run.
"""

import hashlib
import json
import math
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from core.errors import JobError
from core.formats import families
from worker.folder import FileEntry
from worker.prepare import probe, shape
from worker.prepare.folder import Facts

CONVERTER = "attune-2"
"""Changes whenever the same source would give another folder."""

_TEMPLATE_CHARACTERS = 262_144
"""The catalog shows the text. Models' own templates have up to 20,000 characters."""

Progress = Callable[[float, str], None]
Json = dict[str, Any]  # files of other projects' making

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
)
# In a normalised folder tokenizer.json says all that these say.
_REDUNDANT = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_LICENSES = {
    "gemma": "Gemma Terms of Use (https://ai.google.dev/gemma/terms): they bind whoever uses the model, passes it on, "
    "or passes on what is made from it",
}
_PROBES = (
    "The quick brown fox  jumps over 13 lazy dogs.\n\n\tIndented, “quoted” — naïve café, 東京, 🙂👩‍👩‍👧.",
    ' leading and trailing space {"json": [1, 2.5, null]} \n',
)


def convert(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    license: str | None = None,
    cache: Path | None = None,
    progress: Progress = lambda percent, message: None,
) -> Facts:
    """Fills ``out``, which must not exist. With a ``cache``, a source seen before is only linked there."""
    kind, _, name = source.partition(":")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="register-") as scratch:
        found = _find(kind, name, revision, Path(scratch), progress)
        key = _key(found, chat_template, license)
        kept = cache / "models" / key if cache is not None else None
        if kept is not None and (kept / "facts.json").is_file():
            progress(90, "found in the cache")
            # The shape is read off the files anew: what is told of a model may grow without another conversion.
            facts = Facts.model_validate(_json(kept / "facts.json") | {"shape": None})
            _link(kept / "model", out)
            return facts.model_copy(update={"shape": shape.of(out)})
        made = Path(scratch) / "model"
        made.mkdir()
        facts = _convert(kind, found, made, Path(scratch), chat_template, license, progress)
        if kept is not None:
            _keep(kept, made, facts)
        made.rename(out)
    return facts


def _find(kind: str, name: str, revision: str | None, scratch: Path, progress: Progress) -> list[Path]:
    """The files the folder is made from; a GGUF file may be in pieces."""
    progress(0, "looking for the model")
    if kind == "gguf":
        from worker.prepare import gguf

        return gguf.parts(name)
    if kind == "path":
        folder = Path(name)
    elif kind == "hf":
        folder = _download(name, revision, scratch / "download")
    else:
        raise JobError(f'"{kind}:" is not one of gguf:, path:, hf:', code="invalid_source", param="source")
    if not (folder / "config.json").is_file():
        raise JobError(f"{name} has no config.json", code="invalid_source", param="source")
    found = sorted({path for pattern in (*_WEIGHTS, *_TEXTS) for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in found):
        message = (
            f"{name} has no safetensors weights; pickled weights (.bin, .pt) are not read, since they can run code"
        )
        raise JobError(message, code="invalid_model", param="source")
    return found


def _download(repository: str, revision: str | None, folder: Path) -> Path:
    import huggingface_hub
    import huggingface_hub.errors

    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=[*_WEIGHTS, *_TEXTS]
        )
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        message = f"{repository} can't be downloaded: {str(error)[:300]}"
        raise JobError(message, code="invalid_source", param="source") from error
    return Path(found)


def _key(files: list[Path], chat_template: str | None, license: str | None) -> str:
    digest = hashlib.sha256(json.dumps([CONVERTER, chat_template, license]).encode())
    for path in files:
        digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _convert(
    kind: str,
    found: list[Path],
    made: Path,
    scratch: Path,
    chat_template: str | None,
    license: str | None,
    progress: Progress,
) -> Facts:
    own: str | None = None
    if kind == "gguf":
        from worker.prepare import gguf

        whole = found[0]
        if len(found) > 1:
            progress(5, "joining the pieces of the GGUF file")
            whole = scratch / "model.gguf"
            gguf.join(found, whole)
        own, declared = gguf.convert(whole, made, scratch, progress)
    else:
        progress(10, "copying the model")
        for path in found:
            # A downloaded file is ours to link; a folder that was pointed at stays its owner's.
            (_copy if kind == "hf" else shutil.copyfile)(path, made / path.name)
        declared = _license_in_readme(made / "README.md")
        (made / "README.md").unlink(missing_ok=True)
        progress(50, "reading the tokenizer")
        own = _normalise(made)
    progress(80, "checking the tokenizer")
    config, tokenizer_config = _json(made / "config.json"), _json(made / "tokenizer_config.json")
    special = special_tokens(tokenizer_config)
    adds_bos = _check_tokenizer(made, special)
    origin = _template(made, config, own, chat_template)
    eos = _generation_config(made, config, special, (made / "chat_template.jinja").read_text("utf-8"))
    progress(90, "hashing the files")
    return _facts(made, config, special, adds_bos, origin, eos, license or _LICENSES.get(declared or "", declared))


def own_template(folder: Path, tokenizer_config: Json) -> Any:  # Any: a string where the model is sound
    """The model's own chat template: a file of its own, else what the tokenizer's configuration names."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
        template = named.get("default", next(iter(named.values()), None))
    return template


def family_template(folder: Path, config: Json) -> tuple[str, str]:
    """Text and origin of the template that a model without one of its own gets."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    name = families.choose(str(config.get("model_type", "")), lambda token: tokenizer.token_to_id(token) is not None)
    return families.text(name), f"default:{name}"


def language_part(config: Json) -> Json:
    """Models of several modalities keep the language model's numbers in a section of their own."""
    return config["text_config"] if isinstance(config.get("text_config"), dict) else config


def _normalise(folder: Path) -> str | None:
    """Makes tokenizer.json what AutoTokenizer would use and takes out all that could run code. Answers the model's
    own chat template."""
    config = _json(folder / "config.json")
    if "quantization_config" in config:
        message = "the model's weights are quantised; register the original instead"
        raise JobError(message, code="invalid_model", param="source")
    _forget_code(folder / "config.json", config)
    tokenizer_config = _json(folder / "tokenizer_config.json")
    template = own_template(folder, tokenizer_config)
    tokenizer_config.pop("chat_template", None)
    _forget_code(folder / "tokenizer_config.json", tokenizer_config)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
    except Exception as error:  # a malformed tokenizer fails anywhere in two libraries, as anything
        message = f"the model's tokenizer can't be read: {type(error).__name__}: {str(error)[:300]}"
        raise JobError(message, code="invalid_model", param="source") from error
    if not (folder / "tokenizer.json").is_file():
        message = "the model's tokenizer has no tokenizer.json and can't be turned into one"
        raise JobError(message, code="invalid_model", param="source")
    # What was read is now in tokenizer.json whole, so the class that reads just this file is the right one.
    written = _json(folder / "tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("is_local", "local_files_only", "backend"):
        written.pop(name, None)
    _write_json(folder / "tokenizer_config.json", written)
    for name in _REDUNDANT:
        (folder / name).unlink(missing_ok=True)
    return template if isinstance(template, str) else None


def _forget_code(path: Path, config: Json) -> None:
    """``auto_map`` names Python files of the repository; none is copied and none is ever run."""
    config.pop("auto_map", None)
    _write_json(path, config)


def special_tokens(tokenizer_config: Json) -> dict[str, str]:
    """Names a chat template may use, as transformers gives them to it."""
    found = {}
    named = {name: value for name, value in tokenizer_config.items() if name.endswith("_token")}
    named |= (
        tokenizer_config.get("extra_special_tokens") or {}
        if isinstance(tokenizer_config.get("extra_special_tokens"), dict)
        else {}
    )
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _check_tokenizer(folder: Path, special: dict[str, str]) -> bool:
    """Whether plain text gets BOS. Also sees that the bare tokenizer.json, which prepare uses, and transformers,
    which users use, give the same tokens."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    texts = [*_PROBES, "".join(special.values()).join(_PROBES)]
    for text in texts:
        for add in (False, True):
            if bare.encode(text, add_special_tokens=add).ids != theirs.encode(text, add_special_tokens=add):
                message = "the model's tokenizer.json and transformers disagree about tokens"
                raise JobError(message, code="invalid_model", param="source")
    bos = special.get("bos_token")
    return bos is not None and bare.encode("a").tokens[:1] == [bos]


def _template(folder: Path, config: Json, own: str | None, given: str | None) -> str:
    """Writes chat_template.jinja and says where it is from."""
    if given is not None:
        text, origin = given, "given"
    elif own:
        text, origin = own, "model"
    else:
        text, origin = family_template(folder, config)
    if len(text) > _TEMPLATE_CHARACTERS:
        message = f"the chat template has {len(text):,} characters; {_TEMPLATE_CHARACTERS:,} are the most"
        raise JobError(message, code="invalid_chat_template", param="chat_template")
    (folder / "chat_template.jinja").write_text(text, "utf-8")
    return origin


def _generation_config(folder: Path, config: Json, special: dict[str, str], template: str) -> list[int]:
    """Makes plain generation stop at the template's end of turn, and answers all the tokens it stops at."""
    from tokenizers import Tokenizer

    path = folder / "generation_config.json"
    generation = _json(path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stops: list[int] = []
    for value in (generation.get("eos_token_id", config.get("eos_token_id")),):
        stops += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    if not stops and (eos := special.get("eos_token")) and (number := tokenizer.token_to_id(eos)) is not None:
        stops.append(number)
    turn = probe.end_of_turn(template, special)
    # Only a token of its own can stop generation; a template whose turns end in plain text has none.
    if turn and (number := tokenizer.token_to_id(turn)) is not None and number not in stops:
        stops.append(number)
    for name in ("_from_model_config", "output_attentions", "output_hidden_states"):
        generation.pop(name, None)
    generation |= {"eos_token_id": stops}
    for name in ("bos_token_id", "pad_token_id"):
        if name not in generation and isinstance(config.get(name), int):
            generation[name] = config[name]
    _write_json(path, generation)
    return stops


def _facts(
    folder: Path,
    config: Json,
    special: dict[str, str],
    adds_bos: bool,
    origin: str,
    eos: list[int],
    license: str | None,
) -> Facts:
    from tokenizers import Tokenizer

    text = language_part(config)
    parameters, dtype = _weigh(sorted(folder.glob("*.safetensors")))
    bos = special.get("bos_token")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for path in folder.iterdir():
        path.chmod(0o644)
    files = [
        FileEntry(path=path.name, bytes=path.stat().st_size, sha256=_sha256(path)) for path in sorted(folder.iterdir())
    ]
    listing = "".join(f"{entry.sha256}  {entry.path}\n" for entry in files)
    try:
        return Facts(
            architecture=(config.get("architectures") or [config["model_type"]])[0],
            model_type=config["model_type"],
            parameters=parameters,
            hidden_size=text["hidden_size"],
            layers=text["num_hidden_layers"],
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            dtype=dtype,
            bos_token_id=tokenizer.token_to_id(bos) if bos else None,
            eos_token_ids=eos,
            special_tokens=special,
            adds_bos=adds_bos,
            template_origin=origin,
            chat_template=(folder / "chat_template.jinja").read_text("utf-8"),
            license=license,
            converter=CONVERTER,
            files=files,
            bytes=sum(entry.bytes for entry in files),
            sha256=hashlib.sha256(listing.encode()).hexdigest(),
            shape=shape.of(folder),
        )
    except KeyError as error:
        message = f"config.json has no {error.args[0]}: this is not a language model that can be trained here"
        raise JobError(message, code="invalid_model", param="source") from None


def _weigh(files: Iterable[Path]) -> tuple[int, str]:
    """Parameters and the most common type of the weights, from the headers alone."""
    sizes: dict[str, int] = {}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for tensor in header.values():
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    common = max(sizes, key=lambda dtype: sizes[dtype])
    return sum(sizes.values()), names.get(common, common)


def _license_in_readme(path: Path) -> str | None:
    """The licence a model card's head names."""
    if not path.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", path.read_text("utf-8", "replace"), re.DOTALL)
    line = re.search(r"^license(?:_name)?:\s*[\"']?([\w.\-]+)", head.group(1), re.MULTILINE) if head else None
    return line.group(1) if line else None


def _keep(kept: Path, made: Path, facts: Facts) -> None:
    """Puts a finished conversion into the cache: whole or not at all, whoever else does the same."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="new-") as new:
        entry = Path(new) / "entry"
        entry.mkdir()
        _link(made, entry / "model")
        (entry / "facts.json").write_text(facts.model_dump_json(), "utf-8")
        try:
            entry.rename(kept)
        except OSError:
            # Another process has put the same conversion there first; its bytes are as good.
            if not (kept / "facts.json").is_file():
                raise


def _link(source: Path, out: Path) -> None:
    out.mkdir()
    for path in source.iterdir():
        _copy(path, out / path.name)


def _copy(source: Path, out: Path) -> None:
    """Hard links weights, which nobody changes, where the file system can; copies everything else."""
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), out)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, out)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> Json:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise JobError(f"{path.name} is not a JSON object", code="invalid_model", param="source")
    return value


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
