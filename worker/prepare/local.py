"""A model's folder on this machine, looked at without a service: what a tokenizer and a template need, and no more."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from core.errors import JobError
from worker.prepare import register
from worker.prepare.folder import Facts, Model

Json = dict[str, Any]  # Any: JSON


def model(folder: Path, scratch: Path) -> Model:
    """A folder as ``save_pretrained`` writes it; ``scratch`` takes what the folder lacks."""
    config, tokenizer_config = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise JobError(f"{folder} has no tokenizer.json", code="invalid_source", param="model")
    base = scratch / folder.resolve().name
    base.mkdir(parents=True)
    (base / "tokenizer.json").symlink_to(source.resolve())
    special = register.special_tokens(tokenizer_config)
    own = register.own_template(folder, tokenizer_config)
    text, origin = (own, "model") if isinstance(own, str) else register.family_template(base, config)
    (base / "chat_template.jinja").write_text(text, "utf-8")
    return Model(name=folder.resolve().name, base=base, facts=_facts(base, config, special, origin))


def _facts(base: Path, config: Json, special: dict[str, str], origin: str) -> Facts:
    text, kind = register.language_part(config), str(config.get("model_type", ""))
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    bos = special.get("bos_token")
    return Facts(
        architecture=(config.get("architectures") or [kind])[0],
        model_type=kind,
        parameters=0,
        hidden_size=int(text.get("hidden_size", 0)),
        layers=int(text.get("num_hidden_layers", 0)),
        vocab_size=tokenizer.get_vocab_size(),
        context_length=_context(text, base),
        dtype="",
        bos_token_id=tokenizer.token_to_id(bos) if bos else None,
        eos_token_ids=[],
        special_tokens=special,
        adds_bos=bos is not None and tokenizer.encode("a").tokens[:1] == [bos],
        template_origin=origin,
        chat_template=(base / "chat_template.jinja").read_text("utf-8"),
        license=None,
        converter="local",
        files=[],
        bytes=0,
        sha256="0" * 64,
    )


def _context(text: Json, folder: Path) -> int:
    length = text.get("max_position_embeddings")
    if not isinstance(length, int):
        message = f"{folder.name}: config.json has no max_position_embeddings, so it can't be told what is too long"
        raise JobError(message, code="invalid_source", param="model")
    return length


def _json(path: Path) -> Json:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text("utf-8"))
    return value if isinstance(value, dict) else {}
