"""Rows to tokens: one BOS, the right tokens learned with the right weight, the same tokens as transformers."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from core.formats import families
from core.formats.conversation import Message
from core.formats.report import Code
from core.formats.rows import Chat, Completion, Labelled, Preference, Row, Text
from worker.prepare.folder import Counts, Facts
from worker.prepare.spool import Spool, Tokens, cut
from worker.prepare.tokenise import Batcher, Encoder, RowFault, _Spans

GEMMA = families.text("gemma3")
PLAIN = families.text("plain")
BOS, EOS, START, END = 1, 2, 3, 4


def message(role: str, content: str, **fields: Any) -> Message:
    return {"role": role, "content": content, **fields}


TALK = [
    message("system", "one"),
    message("user", "Hello there"),
    message("assistant", "yes"),
    message("user", "the answer"),
    message("assistant", "no"),
]


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Any:
    return Tokenizer.from_file(str(base / "tokenizer.json"))


def encode(base: Path, facts: Facts, row: Row, template: str = GEMMA, **options: Any) -> Tokens:
    return Encoder(base, facts, template, **options).encode([(1, row)])[0]


def learned(tokens: Tokens, tokenizer: Any) -> str:
    return str(tokenizer.decode(tokens.ids[tokens.completion == 1].tolist(), skip_special_tokens=False))


def test_chat_learns_what_the_assistant_says_and_its_end(base: Path, facts: Facts, tokenizer: Any) -> None:
    tokens = encode(base, facts, Chat(TALK, None))
    assert learned(tokens, tokenizer) == "yes<end_of_turn>no<end_of_turn>"
    assert (tokens.ids == BOS).sum() == 1
    assert tokens.ids[0] == BOS
    # The line break after the end of a turn is the template's, not the assistant's.
    assert tokens.completion[-1] == 0
    assert tokens.weight.tolist() == [1.0] * len(tokens.ids)
    assert (tokens.ids.dtype, tokens.weight.dtype, tokens.completion.dtype) == (np.int32, np.float32, np.uint8)


def test_train_on_chooses_the_turns(base: Path, facts: Facts, tokenizer: Any) -> None:
    last = encode(base, facts, Chat(TALK, None), train_on="last_assistant")
    assert learned(last, tokenizer) == "no<end_of_turn>"
    everything = encode(base, facts, Chat(TALK, None), train_on="all")
    assert everything.completion.all()
    assert encode(base, facts, Completion("one", " two"), train_on="all").completion[1:].all()


def test_a_messages_weight_holds_for_its_header_text_and_end(base: Path, facts: Facts, tokenizer: Any) -> None:
    talk = [*TALK[:2], {**TALK[2], "weight": 0.25}, {**TALK[3], "weight": 0.5}, TALK[4]]
    tokens = encode(base, facts, Chat(talk, None))
    for weight, text in (
        (0.25, "<start_of_turn>model\nyes<end_of_turn>\n"),
        (0.5, "<start_of_turn>user\nthe answer<end_of_turn>\n"),
    ):
        ids = tokens.ids[tokens.weight == np.float32(weight)].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    ends = np.flatnonzero((tokens.ids == END) & (tokens.completion == 1))
    assert tokens.weight[ends].tolist() == [0.25, 1.0]


def test_weights_on_answers_survive_a_template_that_rewrites_history(base: Path, facts: Facts) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}model {% generation %}{{ m.content }}"
        "<end_of_turn>{% endgeneration %}{% else %}{{ m.content if loop.revindex < 3 else 'no' }}{% endif %}"
        "{% endfor %}"
    )
    talk = [*TALK[1:2], {**TALK[2], "weight": 0.0}, *TALK[3:]]
    tokens = encode(base, facts, Chat(talk, None), template)
    ends = np.flatnonzero(tokens.ids == END)
    assert tokens.weight[ends].tolist() == [0.0, 1.0]
    with pytest.raises(RowFault) as refused:
        encode(base, facts, Chat([{**TALK[1], "weight": 0.5}, *TALK[2:]], None), template)
    assert (refused.value.line, refused.value.code) == (1, Code.TEMPLATE_REWRITES_HISTORY)


def test_a_completion_ends_with_eos_and_has_one_bos(base: Path, facts: Facts, tokenizer: Any) -> None:
    tokens = encode(base, facts, Completion("the answer is", " yes"))
    assert learned(tokens, tokenizer) == " yes<eos>"
    assert tokens.ids[0] == BOS
    assert (tokens.ids == BOS).sum() == (tokens.ids == EOS).sum() == 1
    # Users who write the special tokens themselves do not get them twice.
    written = encode(base, facts, Completion("<bos>the answer is", " yes<eos>"))
    assert written.ids.tolist() == tokens.ids.tolist()
    assert written.completion.tolist() == tokens.completion.tolist()


def test_text_is_learned_whole(base: Path, facts: Facts, tokenizer: Any) -> None:
    tokens = encode(base, facts, Text("Hello there"))
    assert learned(tokens, tokenizer) == "Hello there<eos>"
    assert tokens.completion.tolist() == [0] + [1] * (len(tokens.ids) - 1)


def test_a_tokenizer_without_bos_adds_none(base: Path, facts: Facts) -> None:
    tokens = encode(base, facts.model_copy(update={"adds_bos": False}), Text("Hello"))
    assert BOS not in tokens.ids


def test_a_token_that_begins_in_the_prompt_is_not_learned_and_is_named(
    base: Path, facts: Facts, tokenizer: Any
) -> None:
    encoder = Encoder(base, facts, GEMMA)
    whole = encoder.encode([(7, Completion("the ans", "wer is"))])[0]
    assert encoder.straddling.lines == [7]
    assert learned(whole, tokenizer) == " is<eos>"
    assert encoder.encode([(8, Completion("the answer", " is"))])
    assert encoder.straddling.count == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("ab the{}东🙂é\u0301 ", min_size=1, max_size=40), st.data())
def test_a_token_belongs_to_the_span_it_begins_in(tokenizer: Any, text: str, data: Any) -> None:
    """However many spans are asked for: a few are looked up one by one, many in the list of all offsets."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    place = st.integers(0, len(text))
    few, many = _Spans(encoding, len(text), 1), _Spans(encoding, len(text), 1_000)
    for start, end in data.draw(st.lists(st.tuples(place, place).map(sorted), min_size=1, max_size=4)):
        expected = [start <= first < end for first, _ in encoding.offsets]
        for spans in (few, many):
            chosen = np.zeros(len(encoding), bool)
            chosen[spans.beginning_in(start, end)] = True
            assert chosen.tolist() == expected
            assert spans.straddled(start) == any(first < start < last for first, last in encoding.offsets)


YES, NO = [message("assistant", "yes")], [message("assistant", "no")]
LONG = [message("assistant", "a much longer answer, which nobody wanted to have")]


def test_of_two_answers_only_the_answers_are_learned(base: Path, facts: Facts) -> None:
    """An earlier answer in the prompt is part of the prompt."""
    row = Preference(TALK[:4], None, YES, LONG)
    encoder = Encoder(base, facts, GEMMA)
    ((_, _, (wanted, unwanted)),) = encoder.encode_rows([(1, row)], [])
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    learned = [tokenizer.decode(list(part.ids[part.completion == 1])) for part in (wanted, unwanted)]
    assert learned[0].startswith("yes")
    assert learned[1].startswith("a much longer answer")
    prompts = [list(part.ids[part.completion == 0]) for part in (wanted, unwanted)]
    assert prompts[0][:20] == prompts[1][:20]


def spooled(tmp_path: Path, base: Path, facts: Facts, rows: list[Row], **write: Any) -> tuple[Counts, dict[str, Any]]:
    singly = write.pop("singly", False)
    with Spool(tmp_path, "train") as spool:
        batcher = Batcher(Encoder(base, facts, GEMMA), spool, singly=singly)
        for line, row in enumerate(rows, 1):
            batcher.add(line, row)
        batcher.flush()
        fields = {"max_length": 512, "over_length": "drop", "keep_first": True} | write
        counts = spool.write(tmp_path / "out.safetensors", **fields)
    return counts, load_file(tmp_path / "out.safetensors")


def test_pairs_lie_side_by_side_and_are_left_out_together(tmp_path: Path, base: Path, facts: Facts) -> None:
    rows: list[Row] = [
        Preference(TALK[:2], None, YES, NO),
        Preference(TALK[:2], None, YES, LONG),
        Preference(TALK[:2], None, NO, YES),
    ]
    counts, file = spooled(tmp_path, base, facts, rows)
    assert counts.examples == 3
    assert file["lines"].tolist() == [1, 1, 2, 2, 3, 3]
    assert file["label"].tolist() == [1, 0] * 3
    lengths = np.diff(file["offsets"])
    counts, file = spooled(tmp_path, base, facts, rows, max_length=int(lengths[3]) - 1)
    assert (counts.examples, counts.dropped.lines) == (2, [2])
    assert file["lines"].tolist() == [1, 1, 3, 3]


def test_two_answers_that_are_cut_keep_the_same_of_their_prompt(tmp_path: Path, base: Path, facts: Facts) -> None:
    row = Preference(TALK[:4], None, YES, LONG)
    _, whole = spooled(tmp_path, base, facts, [row])
    lengths = np.diff(whole["offsets"])
    limit = int(lengths[1]) - 10
    counts, file = spooled(tmp_path, base, facts, [row], max_length=limit, over_length="truncate")
    assert counts.truncated.lines == [1]
    parts = [slice(*file["offsets"][n : n + 2]) for n in range(2)]
    assert max(part.stop - part.start for part in parts) <= limit
    prompts = [file["input_ids"][part][: int(np.argmax(file["completion"][part]))] for part in parts]
    assert prompts[0].tolist() == prompts[1].tolist()
    assert all(file["completion"][part].any() for part in parts)


def test_for_kto_each_answer_is_a_row_with_its_label(tmp_path: Path, base: Path, facts: Facts) -> None:
    rows: list[Row] = [
        Preference(TALK[:2], None, YES, LONG),
        Labelled("two and two", " is four", True),
        Labelled(TALK[:2], LONG, False),
    ]
    counts, file = spooled(tmp_path, base, facts, rows, singly=True)
    assert counts.examples == 4
    assert (file["lines"].tolist(), file["label"].tolist()) == ([1, 1, 2, 3], [1, 0, 1, 0])


@pytest.fixture(scope="session")
def theirs(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


WORDS = st.text(string.ascii_letters + string.digits + " \n\t{}<>#東🙂é", min_size=1, max_size=10)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), WORDS), max_size=5)
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TURNS, answer=WORDS, weight=WEIGHTS, template=st.sampled_from([GEMMA, PLAIN]))
def test_invariants_of_generated_conversations(
    base: Path, facts: Facts, theirs: Any, turns: list[tuple[str, str]], answer: str, weight: float, template: str
) -> None:
    messages = [message(role, content) for role, content in turns] + [message("assistant", answer, weight=weight)]
    tokens = encode(base, facts, Chat(messages, None), template)
    expected = theirs.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert tokens.ids.tolist() == expected["input_ids"]
    assert (tokens.ids == BOS).sum() == 1
    # One end of turn an answer, each the last learned token of its turn, the last one with the message's weight.
    end = END if template is GEMMA else EOS
    runs = np.flatnonzero(np.diff(np.append(tokens.completion, 0).astype(np.int8)) == -1)
    assert (tokens.ids[runs] == end).all()
    assert len(runs) == sum(item["role"] == "assistant" for item in messages)
    assert tokens.weight[runs[-1]] == np.float32(weight)


def spool(folder: Path, rows: list[tuple[int, list[int]]], **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Rows as (tokens, completion) -> spool counts and the token file."""
    with Spool(folder, "train") as held:
        for line, (length, completion) in enumerate(rows, 1):
            ids = np.arange(100, 100 + length, dtype=np.int32)
            held.add(line, [Tokens(ids, np.ones(length, np.float32), np.array(completion, np.uint8))])
        counts = held.write(folder / "train.safetensors", keep_first=True, **options)
    assert not list(folder.glob("*.spool"))
    return held, counts, load_file(folder / "train.safetensors")


def test_the_token_file_is_as_the_trainer_reads_it(tmp_path: Path) -> None:
    _, counts, file = spool(tmp_path, [(4, [0, 0, 1, 1]), (3, [0, 1, 1])], max_length=8, over_length="drop")
    assert {name: (str(value.dtype), value.tolist()) for name, value in file.items()} == {
        "input_ids": ("int32", [100, 101, 102, 103, 100, 101, 102]),
        "message_weight": ("float32", [1.0] * 7),
        "completion": ("uint8", [0, 0, 1, 1, 0, 1, 1]),
        "offsets": ("int64", [0, 4, 7]),
        "lines": ("int64", [1, 2]),
    }
    assert (counts.examples, counts.tokens, counts.trained_tokens, counts.longest) == (2, 7, 4, 4)


def test_rows_that_teach_nothing_are_left_out_and_named(tmp_path: Path) -> None:
    held, counts, file = spool(
        tmp_path, [(3, [0, 0, 0]), (3, [0, 0, 1]), (3, [1, 0, 0])], max_length=8, over_length="drop"
    )
    assert counts.masked.lines == [1, 3]
    assert file["lines"].tolist() == [2]
    assert held.shares() == (2, 1)


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_long_rows_are_dropped_and_named(tmp_path: Path, policy: str) -> None:
    _, counts, file = spool(tmp_path, [(3, [0, 1, 1]), (9, [0] * 5 + [1] * 4)], max_length=8, over_length=policy)
    assert (counts.dropped.count, counts.dropped.lines, counts.truncated.count) == (1, [2], 0)
    assert (counts.examples, counts.longest) == (1, 9)
    assert file["lines"].tolist() == [1]


def test_long_rows_are_cut_and_named(tmp_path: Path) -> None:
    _, counts, file = spool(tmp_path, [(20, [0] * 16 + [1] * 4), (3, [0, 1, 1])], max_length=8, over_length="truncate")
    assert (counts.truncated.lines, counts.dropped.count, counts.tokens) == ([1], 0, 11)
    # BOS, the end of the prompt, the whole answer.
    assert file["input_ids"].tolist()[:8] == [100, 113, 114, 115, 116, 117, 118, 119]
    assert file["completion"].tolist()[:8] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert file["offsets"].tolist() == [0, 8, 11]


@given(st.integers(2, 60), st.integers(8, 40), st.data())
def test_a_cut_keeps_the_length_the_beginning_and_some_of_the_answer(prompt: int, length: int, data: Any) -> None:
    answer = data.draw(st.integers(max(1, length - prompt + 1), length + 50))
    taught = np.array([0] * prompt + [1] * answer, np.uint8)
    kept = np.concatenate([np.arange(start, end) for start, end in cut(taught, length, True)])
    assert len(kept) == length
    assert kept[0] == 0
    assert (np.diff(kept) > 0).all()
    assert taught[kept].sum() >= min(answer, length // 2)
    if prompt + min(answer, length // 2) <= length:
        assert kept.tolist() == list(range(length))


def test_nothing_left_is_a_good_empty_file(tmp_path: Path) -> None:
    _, counts, file = spool(tmp_path, [], max_length=8, over_length="drop")
    assert (counts.examples, counts.tokens, file["offsets"].tolist()) == (0, 0, [0])
