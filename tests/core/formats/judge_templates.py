"""The shipped templates beside those that trl, llamafactory and mistral-common carry: the same text, the same learned?

    python -m tests.core.formats.judge_templates [--peers DIR] [--write]

Whatever of the three can be imported is asked (CONTRIBUTING says how to install them aside); ``--write`` keeps what
they rendered as hashes in golden/peers.json, which the tests hold the golden files to. Nothing of their text is kept.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from core.formats.rows import Chat
from tests.core.formats import goldens, stand_ins
from tests.core.formats.conversations import CONVERSATIONS
from tests.core.formats.peers import PEERS, Peer, why


class Said(NamedTuple):
    text: str
    learned: list[str] | None


class Refused(Exception):
    """The peer can't write this conversation, or says that it won't."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="a folder they are installed in; this project's own packages go first")
    parser.add_argument("--write", action="store_true", help="keep the hashes in golden/peers.json")
    parser.add_argument("--show", help="print both texts where they differ, of the peers whose name has this in it")
    options = parser.parse_args()
    if options.peers is not None:
        sys.path.append(options.peers)
    unexplained = 0
    kept = goldens.read("peers") if (goldens.FOLDER / "peers.json").exists() else {}
    for peer in PEERS:
        if importlib.util.find_spec(peer.package.replace("-", "_")) is None:
            print(f"{peer}: not installed")
            continue
        said, refused = asked(peer)
        kept[str(peer)] = {
            "version": importlib.metadata.version(peer.package),
            "text": {name: text_hash(one, CONVERSATIONS[name]) for name, one in said.items()},
            "learned": {name: learned_hash(one) for name, one in said.items() if one.learned is not None},
            "refuses": refused,
        }
        unexplained += report(peer, kept[str(peer)])
        if options.show is not None and options.show in str(peer):
            show(peer, said)
    if options.write:
        goldens.write("peers", {str(peer): kept[str(peer)] for peer in PEERS if str(peer) in kept})
    return int(unexplained > 0)


def asked(peer: Peer) -> tuple[dict[str, Said], dict[str, str]]:
    ask = {"trl": trl, "llamafactory": llamafactory, "mistral-common": mistral_common}[peer.package](peer)
    said, refused = {}, {}
    for name, row in CONVERSATIONS.items():
        try:
            said[name] = ask(row)
        except Refused as why_not:
            refused[name] = str(why_not)[:150]
    return said, refused


def verdicts(peer: Peer, aspect: str, theirs: dict[str, str]) -> dict[str, str | None]:
    """For each conversation the peer can write: None where it writes the same, else the reason, empty if unknown."""
    golden = goldens.read(peer.family)["text"]
    found: dict[str, str | None] = {}
    for name, digest in theirs.items():
        ours = Said(golden[name]["text"], [one.partition(": ")[2] for one in golden[name]["learned"]])
        mine = text_hash(ours, CONVERSATIONS[name]) if aspect == "text" else learned_hash(ours)
        found[name] = None if mine == digest else why(peer, aspect, name)
    return found


def report(peer: Peer, told: dict[str, Any]) -> int:
    """Prints what one peer says; answers how many differences have no reason."""
    print(f"{peer} ({told['version']}), family {peer.family}")
    unexplained = 0
    for aspect in ("text", "learned"):
        found = verdicts(peer, aspect, told[aspect])
        if found:
            print(f"    {aspect}: {sum(reason is None for reason in found.values())} of {len(found)} are the same")
        for reason in dict.fromkeys(reason for reason in found.values() if reason is not None):
            names = [name for name in found if found[name] == reason]
            print(f"        {reason or '??? no reason is written down'} ({', '.join(names)})")
            unexplained += len(names) if not reason else 0
    for reason in dict.fromkeys(told["refuses"].values()):
        print(
            f"    refuses: {reason} ({', '.join(name for name in told['refuses'] if told['refuses'][name] == reason)})"
        )
    return unexplained


def show(peer: Peer, said: dict[str, Said]) -> None:
    golden = goldens.read(peer.family)["text"]
    for name, theirs in said.items():
        print(f"---- {name}\n{golden[name]['text']!r}\n{theirs.text!r}\n{golden[name]['learned']}\n{theirs.learned}")


def text_hash(said: Said, row: Chat) -> str:
    """Of what can be compared: not how functions are described, which is everybody's own prose, nor white space after
    the last token of the last turn."""
    text = said.text
    if row.tools:
        first = next(message["content"] for message in row.messages if message["role"] == "user")
        text = text[text.index(first) :]
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]


def learned_hash(said: Said) -> str:
    """A line break after the end of turn is part of the turn to some."""
    return hashlib.sha256(json.dumps([one.rstrip() for one in said.learned or []]).encode()).hexdigest()[:16]


def trl(peer: Peer) -> Callable[[Chat], Said]:
    # The file alone: importing the package imports trainers.
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).with_name("chat_templates") / f"{peer.name}.jinja"
    source, names = path.read_text("utf-8"), stand_ins.names(peer.family)

    def ask(row: Chat) -> Said:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        # As transformers' users have to, and as ours need not.
        messages = [
            {**message, "role": "system"} if message["role"] == "developer" else message for message in row.messages
        ]
        try:
            texts, marks = render_jinja_template(
                [messages], row.tools, None, source, return_assistant_tokens_mask=peer.marks, **names
            )
        except (TemplateError, TypeError) as error:
            raise Refused(str(error)) from None
        return Said(texts[0], [texts[0][start:end] for start, end in marks[0]] if peer.marks else None)

    return ask


class _Characters:
    """A tokenizer for which every character is a token, so that llamafactory's pieces can be read again."""

    def __init__(self, family: str) -> None:
        self._names = stand_ins.names(family)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return list(text)

    def convert_tokens_to_ids(self, token: str) -> str:
        return token

    @property
    def bos_token_id(self) -> str | None:
        return self._names.get("bos_token")

    @property
    def eos_token_id(self) -> str:
        # llamafactory makes the first stop word the end of sequence.
        return self._names["eos_token"]


def llamafactory(peer: Peer) -> Callable[[Chat], Said]:
    for name in ("torchaudio",):
        # Wanted for sound alone; its package has to fit the installed torch to the digit.
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
    from llamafactory.data.template import TEMPLATES

    template, tokenizer = TEMPLATES[peer.name], _Characters(peer.family)

    def ask(row: Chat) -> Said:
        messages, system = [], ""
        for index, message in enumerate(row.messages):
            if message.get("reasoning_content"):
                raise Refused("it takes reasoning as part of the content")
            if message["role"] in ("system", "developer"):
                if index:
                    raise Refused("one system text, before all messages")
                system = message["content"]
            elif message.get("tool_calls"):
                if message["content"]:
                    raise Refused("a call has no text beside it")
                functions = [
                    {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
                    for call in message["tool_calls"]
                ]
                messages.append({"role": "function", "content": json.dumps(functions, ensure_ascii=False)})
            else:
                role = {"tool": "observation"}.get(message["role"], message["role"])
                messages.append({"role": role, "content": message["content"]})
        if any(
            (message["role"] in ("assistant", "function")) != bool(index % 2) for index, message in enumerate(messages)
        ):
            raise Refused("questions and answers alternate, a question first")
        tools = json.dumps(row.tools, ensure_ascii=False) if row.tools else None
        pairs = template.encode_multiturn(tokenizer, messages, system, tools)
        text = "".join("".join(prompt) + "".join(answer) for prompt, answer in pairs)
        return Said(text, ["".join(answer) for _, answer in pairs])

    return ask


def mistral_common(peer: Peer) -> Callable[[Chat], Said]:
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = mistral_tokenizer(peer.family, Path(folder))

    def ask(row: Chat) -> Said:
        try:
            ids = mistral_ids(tokenizer, row)
        except (MistralCommonException, ValueError, AssertionError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from None
        return Said(tokenizer.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP), None)

    return ask


def mistral_ids(tokenizer: Any, row: Chat) -> list[int]:
    """What mistral-common itself makes of a row."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    request = ChatCompletionRequest.from_openai(openai_messages(row), tools=row.tools)
    return list(tokenizer.encode_chat_completion(request).tokens)


def mistral_tokenizer(family: str, folder: Path) -> Any:
    """mistral-common's own, of the version whose format the family's template writes; ``folder`` is for a copy."""
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    # The package carries this vocabulary, which has all versions' control tokens, under version 3 alone.
    carried = json.loads((MistralTokenizer._data_path() / "tekken_240718.json").read_text("utf-8"))
    carried["config"]["version"] = "v3" if family == "mistral_v3" else "v7"
    (folder / "tekken.json").write_text(json.dumps(carried), "utf-8")
    return MistralTokenizer.from_file(str(folder / "tekken.json"), mode=ValidationMode.finetuning)


def openai_messages(row: Chat) -> list[dict[str, Any]]:
    """The row as OpenAI's format has it: arguments are strings."""
    messages = []
    for message in row.messages:
        given = {key: value for key, value in message.items() if key != "weight"}
        if "reasoning_content" in given:
            raise Refused("no text for reasoning")
        if "tool_calls" in given:
            given["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in given["tool_calls"]
            ]
        messages.append(given)
    return messages


if __name__ == "__main__":
    sys.exit(main())
