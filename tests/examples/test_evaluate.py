"""Answering: what a batch, padding or a shared beginning must never change."""

from pathlib import Path

import evaluate
import pytest
from evaluate import Answerer, Example

from tests.tiny import build_tiny

ROWS = [Example(message, "") for message in ("Hello", "My order has not arrived and I want my money back.", "Two + 2?")]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    return Answerer(build_tiny(tmp_path_factory.mktemp("tiny")))


def test_a_batch_answers_as_each_row_alone(answerer: Answerer) -> None:
    together = answerer.chat(ROWS)
    assert together == [answerer.chat([row])[0] for row in ROWS]
    assert len(set(together)) == len(ROWS)


def test_a_shared_beginning_answers_as_if_each_row_had_it(answerer: Answerer) -> None:
    """The prompts are made so that the tokens are the same whether or not text is cut where the shared part ends."""
    prompts = [f"\n{row.message}\n" for row in ROWS]
    shared = "Each message is answered as JSON."
    ends = [answerer.tokenizer.eos_token_id]
    whole = answerer._answer("", [shared + prompt for prompt in prompts], ends, lambda rows: None)
    reused = answerer._answer(shared, prompts, ends, lambda rows: None)
    assert reused == whole
    assert reused != answerer._answer("", prompts, ends, lambda rows: None)


def test_a_shared_beginning_serves_several_batches(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = answerer.few_shot(ROWS, "Message: Hi\nRecord: {}\n\n")
    monkeypatch.setattr(evaluate, "BATCH", 2)
    told: list[int] = []
    assert answerer.few_shot(ROWS, "Message: Hi\nRecord: {}\n\n", told.append) == at_once
    assert told == [2, 3]


def test_a_few_shot_answer_is_one_line(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base models go on with a next message of their own making."""
    monkeypatch.setattr(answerer, "_answer", lambda *_: [' {"a":1}\n\nMessage: and so on', "\n{}"])
    assert answerer.few_shot(ROWS[:2], "") == ['{"a":1}', "{}"]


def test_an_answer_counts_only_when_it_is_exact() -> None:
    expected = [Example("", '{"a":1}')] * 4
    assert evaluate.exact_match([' {"a":1}\n', '{"a": 1}', '{"a":1}.', ""], expected) == 0.25


def test_the_few_shot_prompt_has_an_example_of_each_team_from_the_training_rows() -> None:
    training = evaluate.examples(Path(evaluate.HERE) / "train.jsonl")
    prompt = evaluate.few_shot(training)
    assert prompt.count("Record: ") == len(evaluate.TEAMS)
    for team in evaluate.TEAMS:
        assert f'Record: {{"team":"{team}"' in prompt
    held_out = evaluate.examples(Path(evaluate.HERE) / "held_out.jsonl")
    assert not any(row.message in prompt for row in held_out)
