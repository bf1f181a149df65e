"""The templates that ship: which one a model gets, what it writes, what of it is learned."""

import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.formats import families
from core.formats.conversation import Message
from core.formats.rows import Chat
from core.formats.templates import Template
from tests.core.formats import goldens, judge_templates, stand_ins
from tests.core.formats.conversations import CONVERSATIONS, TIDE, WEATHER, call, say
from tests.core.formats.peers import PEERS, Peer
from worker.prepare.tokenise import Encoder

BEGIN_WITH_BOS = {"gemma3", "llama3", "deepseek", "mistral", "mistral_v3", "plain"}
TRIM = {"gemma3", "llama3", "plain"}
"""They trim what is said, as the templates of the first two models do."""

every_family = pytest.mark.parametrize("family", families.NAMES)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    folder = tmp_path_factory.mktemp("families")
    return {family: goldens.encoder(family, folder / family) for family in families.NAMES}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("theirs")
    loaded = {}
    for family in families.NAMES:
        loaded[family] = AutoTokenizer.from_pretrained(stand_ins.base(family, folder / family))
        loaded[family].chat_template = families.text(family)
    return loaded


@every_family
def test_golden_text_and_learned_spans(family: str) -> None:
    assert goldens.text(family) == goldens.read(family)["text"]


@every_family
def test_golden_tokens(family: str, encoders: dict[str, Encoder]) -> None:
    assert goldens.tokens(encoders[family]) == goldens.read(family)["stand-in tokens"]


def test_golden_conversations_hold_what_they_should() -> None:
    """A set without tools or weights would prove less than it seems to."""
    messages = [message for row in CONVERSATIONS.values() for message in row.messages]
    assert {message["role"] for message in messages} == {"system", "developer", "user", "assistant", "tool"}
    assert {message.get("weight") for message in messages} == {None, 0.0, 0.5}
    assert any(row.tools for row in CONVERSATIONS.values())
    assert any(len(message.get("tool_calls", [])) > 1 for message in messages)
    assert any(message["role"] == "system" and not message["content"] for message in messages)
    assert len(families.FAMILIES) >= 8


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_peers_write_the_same_or_the_difference_has_a_reason(peer: Peer) -> None:
    told = goldens.read("peers")[str(peer)]
    assert told["text"].keys() | told["refuses"].keys() == CONVERSATIONS.keys()
    assert bool(told["learned"]) == peer.marks
    for aspect in ("text", "learned"):
        found = judge_templates.verdicts(peer, aspect, told[aspect])
        assert "" not in found.values(), {name: reason for name, reason in found.items() if reason == ""}


@pytest.mark.parametrize("family", [family for family in families.NAMES if family != "plain"])
@pytest.mark.parametrize("name", ["one turn", "system", "turns", "unicode", "markup", "tools offered"])
def test_some_peer_writes_and_learns_the_same(family: str, name: str) -> None:
    """Plain conversations leave no room for opinions."""
    told = goldens.read("peers")
    peers = [peer for peer in PEERS if peer.family == family]
    for aspect in ("text", "learned"):
        assert any(
            judge_templates.verdicts(peer, aspect, told[str(peer)][aspect]).get(name, "") is None for peer in peers
        )


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.package == "mistral-common"], ids=str)
def test_golden_tokens_are_those_of_mistral_common(peer: Peer, tmp_path: Path) -> None:
    tokenizer = judge_templates.mistral_tokenizer(peer.family, tmp_path)
    golden = goldens.read(peer.family)["real tokens"]
    assert goldens.mistral_tokens(peer.family, tokenizer) == golden
    verdicts = judge_templates.verdicts(peer, "text", goldens.read("peers")[str(peer)]["text"])
    same = [name for name, reason in verdicts.items() if reason is None]
    assert len(same) >= 13
    for name in same:
        assert judge_templates.mistral_ids(tokenizer, CONVERSATIONS[name]) == ids(golden[name])


def ids(line: str) -> list[int]:
    return [int(one) for one in re.sub(r"\][\d.]*", "]", line).replace("[", " ").replace("]", " ").split()]


def chosen(model_type: str, *tokens: str) -> str:
    return families.choose(model_type, lambda token: token in tokens)


@every_family
def test_a_model_of_the_family_gets_its_template(family: str) -> None:
    special = stand_ins.SPECIAL[family]
    tokenizer = stand_ins.tokenizer(family)
    assert families.choose(special.model_type, lambda token: tokenizer.token_to_id(token) is not None) == family


def test_a_template_whose_tokens_the_vocabulary_lacks_is_never_chosen() -> None:
    assert chosen("llama") == chosen("gemma3_text", "<start_of_turn>") == chosen("qwen3") == "plain"
    # A Llama whose vocabulary was made for ChatML, and two families' tokens in one vocabulary.
    assert chosen("llama", "<|im_start|>", "<|im_end|>") == "chatml"
    assert chosen("qwen2", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁sep｜>") == "deepseek"
    assert chosen("qwen2", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>") == "chatml"
    assert chosen("phi3", "<|im_start|>", "<|im_end|>", "<|im_sep|>") == "phi4"


@every_family
def test_the_end_of_turn_is_the_familys_token(family: str) -> None:
    template = Template(families.text(family), stand_ins.names(family))
    assert template.marked
    assert template.end_of_turn == stand_ins.SPECIAL[family].end
    assert stand_ins.tokenizer(family).token_to_id(template.end_of_turn) is not None


@every_family
def test_arguments_may_be_the_string_that_openais_format_has(family: str) -> None:
    template = Template(families.text(family), stand_ins.names(family))
    talk = CONVERSATIONS["call"].messages
    arguments = json.dumps({"city": "Oslo"})
    as_string = [*talk[:2], {**talk[2], "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}]
    as_object = [
        *talk[:2],
        {**talk[2], "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
    ]
    assert template.text(as_string) == template.text(as_object)


@every_family
def test_a_missing_or_null_content_is_no_text(family: str) -> None:
    template = Template(families.text(family), stand_ins.names(family))
    talk = [CONVERSATIONS["call"].messages[1], CONVERSATIONS["call"].messages[2]]
    without = {key: value for key, value in talk[1].items() if key != "content"}
    assert template.text([talk[0], without]) == template.text([talk[0], {**without, "content": None}])
    assert template.text([talk[0], without]) == template.text(talk)


WORDS = st.text(string.ascii_letters + string.digits + " \n\t\"'{}<|>/\\[]#é東🙂", min_size=1, max_size=12)
WEIGHTS = st.sampled_from([0.0, 0.25, 1.0])


@st.composite
def conversations(draw: st.DrawFn) -> Chat:
    """Turns of any order, calls with their results, reasoning, weights; the last word is the assistant's."""
    messages: list[Message] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from("susuacraa"), max_size=5))):
        text = draw(WORDS)
        match kind:
            case "s":
                messages.append(say("system", draw(st.just("") | WORDS)))
            case "u":
                messages.append(say("user", text))
            case "a":
                messages.append(say("assistant", text, weight=draw(WEIGHTS)))
            case "r":
                messages.append(say("assistant", text, reasoning_content=draw(WORDS), weight=draw(WEIGHTS)))
            case "c":
                calls = [call(f"c{number}{i}", "weather", city=draw(WORDS)) for i in range(draw(st.integers(1, 2)))]
                messages.append(say("assistant", draw(st.just("") | WORDS), tool_calls=calls, weight=draw(WEIGHTS)))
                messages += [say("tool", draw(WORDS), tool_call_id=one["id"]) for one in calls]
    messages.append(say("assistant", draw(WORDS), weight=draw(WEIGHTS)))
    return Chat(messages, draw(st.sampled_from([None, [WEATHER], [WEATHER, TIDE]])))


def expected(family: str, message: Message) -> list[str]:
    """What must be learned of an assistant message, in order."""
    content = message["content"].strip() if family in TRIM else message["content"]
    names = [one["function"]["name"] for one in message.get("tool_calls", [])]
    return [message.get("reasoning_content", ""), content, *names]


@every_family
@settings(max_examples=30, deadline=None)
@given(row=conversations())
def test_invariants_of_generated_conversations(
    encoders: dict[str, Encoder], theirs: dict[str, Any], family: str, row: Chat
) -> None:
    special, tokenizer = stand_ins.SPECIAL[family], stand_ins.tokenizer(family)
    template = Template(families.text(family), stand_ins.names(family))
    rendered = template.render(row.messages, row.tools)
    straddled = encoders[family].straddling.count
    tokens = encoders[family].encode([(1, row)])[0]
    straddled = encoders[family].straddling.count - straddled

    # A conversation's beginning renders to a beginning, with the generation prompt too where an answer follows.
    assert rendered.remarks == ()
    for count in range(1, len(row.messages)):
        assert rendered.text.startswith(template.text(row.messages[:count], row.tools))
        if row.messages[count]["role"] == "assistant":
            assert rendered.text.startswith(template.text(row.messages[:count], row.tools, generate=True))

    # Rendered, then encoded, is what transformers encodes; one BOS, or none where the family writes none.
    ids = theirs[family].apply_chat_template(row.messages, tools=row.tools, tokenize=True, return_dict=True)
    assert tokens.ids.tolist() == ids["input_ids"]
    assert tokens.ids.tolist() == tokenizer.encode(rendered.text, add_special_tokens=False).ids
    if special.bos and special.bos != special.end:
        assert (tokens.ids == tokenizer.token_to_id(special.bos)).sum() == (family in BEGIN_WITH_BOS)
        assert (tokens.ids[0] == tokenizer.token_to_id(special.bos)) == (family in BEGIN_WITH_BOS)

    # The last learned token of each assistant turn is its end of turn, with the message's weight.
    speakers = [message for message in row.messages if message["role"] == "assistant"]
    ends = np.flatnonzero((tokens.ids == tokenizer.token_to_id(special.end)) & (tokens.completion == 1))
    assert tokens.weight[ends].tolist() == [message.get("weight", 1.0) for message in speakers]
    last_learned = np.flatnonzero(np.diff(np.append(tokens.completion, 0).astype(np.int8)) == -1)
    assert set(last_learned) <= set(ends)

    # The text under the learned tokens is what the user's assistant says.
    assume(not straddled)
    begin = 0
    for end, message in zip(ends, speakers, strict=True):
        learned = np.flatnonzero(tokens.completion[begin:end]) + begin
        said = str(tokenizer.decode(tokens.ids[learned].tolist(), skip_special_tokens=False))
        if not message.get("tool_calls") and "reasoning_content" not in message:
            assert said == expected(family, message)[1]
        at = 0
        for part in expected(family, message):
            at = said.index(part, at)
        begin = end + 1


@every_family
def test_what_is_learned_is_what_transformers_marks(family: str, encoders: dict[str, Encoder], theirs: Any) -> None:
    for name, row in CONVERSATIONS.items():
        marked = theirs[family].apply_chat_template(
            row.messages, tools=row.tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ours = encoders[family].encode([(1, row)])[0]
        assert marked["assistant_masks"] == ours.completion.tolist(), name
