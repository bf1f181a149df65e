"""Reports, verdicts and previews through the API, worked out by a real worker and its child."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.db.session import transaction
from core.db.tables import BaseModel
from core.formats import families
from core.services import replies
from core.storage import store as layout
from core.wiring import Parts
from tests.api.test_jobs import create, upload
from tests.conftest import Account, chat_rows
from tests.worker.prepare.conftest import tiny_facts, tiny_tokenizer
from worker import answering
from worker.runner import Runner

MODEL = "attune-tiny"
TEMPLATE = families.text("gemma3")
CONTEXT = 120


pytestmark = pytest.mark.usefixtures("no_wait")


@pytest.fixture(autouse=True)
def model(parts: Parts, tmp_path: Path) -> str:
    """A base model whose tokenizer is in the store."""
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    contents = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes(), "chat_template.jinja": TEMPLATE.encode()}
    whole = hashlib.sha256(repr(sorted(contents)).encode()).hexdigest()
    entries = []
    for path, content in contents.items():
        parts.store.put(layout.base_model(whole, path), content)
        entries.append({"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    facts = tiny_facts().model_copy(update={"context_length": CONTEXT, "sha256": whole})
    row = BaseModel(
        id="base_tiny",
        name=MODEL,
        source="path:/nowhere",
        aliases=["gpt-4o-mini"],
        status="ready",
        facts=facts.model_dump(mode="json"),
        files={"files": entries},
        content_sha256=whole,
    )
    with transaction(parts.sessions) as session:
        session.add(row)
    return MODEL


Ask = Callable[..., Any]


@pytest.fixture
def ask(account: Account, runner: Runner) -> Ask:
    """Ask, have it worked on, ask again."""

    def asked(path: str, body: dict[str, Any] | None = None, **query: Any) -> httpx.Response:
        def send() -> httpx.Response:
            if body is None:
                return account.http.get(f"/v1{path}", params=query)
            return account.http.post(f"/v1{path}", json=body)

        answer = send()
        if answer.status_code == 202:
            assert runner.work_once()
            answer = send()
        return answer

    return asked


def talk(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


LONG = talk("Hello there", "yes " * 200)


# -- report


def test_the_report_shows_how_each_base_model_sees_the_rows(account: Account, ask: Ask) -> None:
    rows = [talk(f"Hello there {n}", "the answer is no") for n in range(12)]
    silent = talk("Hello", "no").replace('"content": "no"', '"content": "no", "weight": 0')
    file_id = upload(account, lines(*rows[:6], LONG, *rows[6:], silent))
    report = ask(f"/files/{file_id}/report", model=["gpt-4o-mini"]).json()
    assert report["object"] == "file.report"
    assert report["roles"] == {"user": 14, "assistant": 14}
    (seen,) = report["models"]
    assert (seen["model"], seen["context_length"], seen["max_length"]) == (MODEL, CONTEXT, CONTEXT)
    assert (seen["dropped"]["count"], seen["dropped"]["lines"]) == (1, [7])
    assert (seen["masked"]["count"], seen["masked"]["lines"]) == (1, [14])
    assert seen["examples"] == 12
    assert 0 < seen["trained_tokens"] < seen["tokens"]
    assert sum(one["rows"] for one in seen["lengths"]["histogram"]) == 14
    assert seen["lengths"]["longest"] > CONTEXT
    assert all(one["least"] <= one["most"] for one in seen["lengths"]["histogram"])
    every = [json.loads(line) for line in httpx.get(report["findings"]["url"]).text.splitlines()]
    named = {(one["finding"], one["line"]): one for one in every if one.get("model") == MODEL}
    assert named.keys() == {("dropped", 7), ("masked", 14)}
    assert named["dropped", 7]["tokens"] == seen["lengths"]["longest"]


def test_every_finding_can_be_downloaded(account: Account, ask: Ask) -> None:
    bad = ['{"messages": [{"role": "bot", "content": "x"}]}'] * 1500
    file_id = upload(account, lines(talk("a", "b"), *bad, talk("a", "b")))
    report = ask(f"/files/{file_id}/report").json()
    assert len(report["faults"]) == 1000
    assert report["fault_count"] > 1000
    every = [json.loads(line) for line in httpx.get(report["findings"]["url"]).text.splitlines()]
    assert sum(one["finding"] == "fault" for one in every) == report["fault_count"]
    assert [one["line"] for one in every if one["finding"] == "duplicate"] == [1502]
    assert report["findings"]["expires_in"] > 0


def test_a_report_too_large_for_its_row_comes_from_the_store(
    account: Account, ask: Ask, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "IN_ROW_BYTES", 10)
    file_id = upload(account)
    report = ask(f"/files/{file_id}/report").json()
    assert report["rows"] == 12
    assert len(list(parts.store.list("answers/"))) >= 2
    account.http.delete(f"/v1/files/{file_id}")


def test_rows_shared_with_a_validation_file_are_reported(account: Account, ask: Ask) -> None:
    file_id, other = upload(account, chat_rows(12)), upload(account, chat_rows(3))
    report = ask(f"/files/{file_id}/report", validation_file=other).json()
    assert [row["line"] for row in report["validation"]["shared"]["rows"]] == [1, 2, 3]


def test_a_report_on_a_faulty_file_names_every_line(account: Account, ask: Ask) -> None:
    file_id = upload(account, lines(talk("a", "b"), "not json", '{"messages": []}'))
    assert account.http.get(f"/v1/files/{file_id}").json()["status"] == "error"
    report = ask(f"/files/{file_id}/report", model=MODEL).json()
    assert [fault["line"] for fault in report["faults"]][:2] == [2, 3]
    assert report["faults"][0]["excerpt"] == "not json"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"model": "no-such"}, "model"),
        ({"model": ["attune-tiny"] * 5}, "model"),
        ({"validation_file": "file-none"}, "validation_file"),
    ],
)
def test_what_a_report_names_must_be_there(account: Account, query: dict[str, Any], param: str) -> None:
    answer = account.http.get(f"/v1/files/{upload(account)}/report", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


# -- validate


def test_good_data_are_told_to_be_good(account: Account, ask: Ask) -> None:
    file_id = upload(account)
    verdict = ask(f"/files/{file_id}/validate", {"model": MODEL, "method": {"type": "supervised"}}).json()
    assert (verdict["object"], verdict["ok"], verdict["faults"]) == ("file.verdict", True, [])
    assert verdict["survey"]["models"][0]["examples"] == 12


def test_what_a_job_would_fail_on_is_told_before(account: Account, ask: Ask) -> None:
    rows = [talk(f"Hello there {n}", "yes") for n in range(12)]
    file_id = upload(account, lines(*rows, LONG, LONG))
    strict = {"model": MODEL, "ext": {"data": {"over_length": "error"}, "max_length": 60}}
    verdict = ask(f"/files/{file_id}/validate", strict).json()
    assert not verdict["ok"]
    (fault,) = verdict["faults"]
    assert (fault["code"], fault["param"], fault["count"], fault["lines"]) == (
        "over_length",
        "training_file",
        2,
        [13, 14],
    )
    mild = {"model": MODEL, "ext": {"data": {"over_length": "truncate"}, "max_length": 60}}
    verdict = ask(f"/files/{file_id}/validate", mild).json()
    assert verdict["ok"]
    warned = {warning["code"]: warning for warning in verdict["warnings"]}
    assert warned["truncated"]["lines"] == [13, 14]
    assert warned["duplicates"]["lines"] == [14]
    few = upload(account, lines(*rows[:9], LONG))
    verdict = ask(f"/files/{few}/validate", {"model": MODEL}).json()
    assert [fault["code"] for fault in verdict["faults"]] == ["invalid_n_examples"]


def test_a_format_that_the_method_does_not_take_is_told(account: Account, ask: Ask) -> None:
    pair = {
        "input": {"messages": [{"role": "user", "content": "a"}]},
        "preferred_output": [{"role": "assistant", "content": "b"}],
        "non_preferred_output": [{"role": "assistant", "content": "c"}],
    }
    file_id, other = upload(account, lines(*[json.dumps(pair)] * 12)), upload(account)
    verdict = ask(f"/files/{file_id}/validate", {"model": MODEL, "validation_file": other}).json()
    found = [(fault["param"], fault["code"]) for fault in verdict["faults"]]
    assert found == [("training_file", "wrong_format"), ("validation_file", "wrong_format")]
    # Both answers of a pair are measured.
    assert verdict["survey"]["models"][0]["examples"] == 12


def test_the_verdict_agrees_with_the_job(account: Account, ask: Ask) -> None:
    """What is refused at creation is refused here, in the same words."""
    for more in ({"ext": {"lora": {"rnak": 8}}}, {"method": {"type": "reinforcement"}}, {"ext": {"lora": {"rank": 0}}}):
        file_id = upload(account)
        asked = account.http.post(f"/v1/files/{file_id}/validate", json={"model": MODEL, **more})
        made = create(account, training_file=file_id, **more)
        assert asked.status_code == made.status_code == 400
        assert asked.json() == made.json()


def test_a_template_that_refuses_rows_names_each_of_them(account: Account, ask: Ask) -> None:
    template = "{% if 'x' in messages[0].content %}{{ raise_exception('no x here') }}{% endif %}" + TEMPLATE
    rows = [talk(f"Hello {'x' if n in (3, 5) else n}", "yes") for n in range(14)]
    body = {"model": MODEL, "ext": {"chat_template": template}}
    verdict = ask(f"/files/{upload(account, lines(*rows))}/validate", body).json()
    (fault,) = verdict["faults"]
    assert (fault["code"], fault["lines"]) == ("template_error", [4, 6])
    assert "no x here" in fault["message"]
    assert verdict["survey"]["models"][0]["examples"] == 12


def test_a_template_that_rewrites_history_is_told_by_its_code(account: Account, ask: Ask) -> None:
    template = (
        "{% for m in messages %}{{ 'last ' if loop.last and m.role == 'assistant' }}"
        "{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}last assistant>{% endif %}"
    )
    long = json.loads(talk("Hello", "yes"))
    long["messages"] *= 2
    rows = [talk(f"Hello {n}", "yes") for n in range(12)]
    body = {"model": MODEL, "ext": {"chat_template": template}}
    verdict = ask(f"/files/{upload(account, lines(*rows, json.dumps(long)))}/validate", body).json()
    # The answers can be told all the same, so it is a warning and no fault.
    assert [
        (found["code"], found["lines"]) for found in verdict["warnings"] if found["code"].startswith("template")
    ] == [("template_rewrites_history", [13])]


def test_a_template_without_end_is_stopped_and_said(account: Account, ask: Ask) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    body = {"model": MODEL, "ext": {"chat_template": endless}}
    answer = ask(f"/files/{upload(account)}/validate", body)
    assert answer.status_code == 400
    assert "seconds" in answer.json()["error"]["message"]


# -- preview


def test_a_preview_shows_tokens_weights_and_what_is_trained_on(account: Account, ask: Ask) -> None:
    body = {"model": MODEL, "training_file": upload(account), "limit": 2, "ext": {"prompt_loss_weight": 0.25}}
    preview = ask("/fine_tuning/preview", body).json()
    assert (preview["object"], preview["format"], preview["more"]) == ("fine_tuning.preview", "chat", True)
    assert [row["line"] for row in preview["rows"]] == [1, 2]
    row = preview["rows"][0]
    assert "".join(token["text"] for token in row["tokens"]) == row["text"]
    trained = "".join(token["text"] for token in row["tokens"] if token["trained"])
    assert trained == "1<end_of_turn>"
    (span,) = row["spans"]
    assert row["text"][span["start"] : span["end"]].startswith("1<end_of_turn>")
    assert row["tokens"][0]["weight"] == 0
    assert {token["weight"] for token in row["tokens"][1:]} == {0.25, 1.0}
    assert row["length"] == len(row["tokens"])


def test_rows_can_be_sent_along(account: Account, ask: Ask) -> None:
    rows = [{"prompt": "Hello", "completion": " there"}, {"prompt": 1}]
    preview = ask("/fine_tuning/preview", {"model": MODEL, "rows": rows}).json()
    assert preview["format"] == "completion"
    (row,) = preview["rows"]
    # BOS and EOS of plain text are shown, though they are not in the text.
    assert [row["tokens"][0]["text"], row["tokens"][-1]["text"]] == ["<bos>", "<eos>"]
    assert "".join(token["text"] for token in row["tokens"] if token["trained"]) == " there<eos>"
    assert preview["faults"][0]["line"] == 2
    assert not preview["more"]


@pytest.mark.parametrize(("over", "fate"), [("truncate", "truncated"), ("drop", "dropped")], ids=["truncate", "drop"])
def test_what_becomes_of_a_long_row_is_shown(ask: Ask, over: str, fate: str) -> None:
    ext = {"max_length": 50, "data": {"over_length": over}}
    preview = ask("/fine_tuning/preview", {"model": MODEL, "rows": [json.loads(LONG)], "ext": ext}).json()
    (row,) = preview["rows"]
    assert row["fate"] == fate
    assert row["length"] > 50
    assert len(row["tokens"]) == (50 if fate == "truncated" else row["length"])


def test_a_foreign_file_is_shown_as_it_will_be_converted(account: Account, ask: Ask) -> None:
    rows = [json.dumps({"instruction": f"Say {n}.", "input": "", "output": str(n)}) for n in range(12)]
    body = {"model": MODEL, "training_file": upload(account, lines(*rows)), "limit": 1}
    preview = ask("/fine_tuning/preview", body).json()
    assert preview["converted_from"] == "alpaca"
    assert preview["conversion"]
    assert "Say 0." in preview["rows"][0]["text"]


def test_a_preview_is_of_a_file_or_of_rows(account: Account) -> None:
    for body in ({}, {"rows": [{"text": "a"}], "training_file": "file-x"}):
        answer = account.http.post("/v1/fine_tuning/preview", json={"model": MODEL, **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "training_file"


def test_a_preview_of_a_large_file_fetches_its_beginning_only(
    account: Account, ask: Ask, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BEGINNING", 400)
    # From here on the worker has the tokenizer, and what it fetches is data.
    ask("/fine_tuning/preview", {"model": MODEL, "rows": [{"text": "a"}]})
    fetched: list[object] = []
    stream = parts.store.stream

    def streamed(key: str) -> Iterator[bytes]:
        for piece in stream(key):
            fetched.append(len(piece))
            yield piece

    monkeypatch.setattr(parts.store, "download", lambda key, path: fetched.append(key))
    monkeypatch.setattr(parts.store, "stream", streamed)
    body = {"model": MODEL, "training_file": upload(account, chat_rows(30_000)), "limit": 3}
    preview = ask("/fine_tuning/preview", body).json()
    assert [row["line"] for row in preview["rows"]] == [1, 2, 3]
    assert preview["faults"] == []
    # The first piece of three.
    assert fetched == [1024 * 1024]


# -- what all of it is for


def test_a_user_who_reads_only_the_report_can_mend_the_file(account: Account, ask: Ask) -> None:
    """Lines are left out or mended by what the report says of them, and by nothing else."""
    rows: list[Any] = [json.loads(talk(f"What is {n} and {n}?", f"It is {2 * n}.")) for n in range(30)]
    rows[3]["messages"][1]["role"] = "Assistant"
    rows[5]["messages"][0].pop("content")
    rows[8] = "this is not JSON"
    rows[11] = {"messages": []}
    rows[14]["messages"].append({"role": "user", "content": "and then?"})
    rows[17]["messages"][1]["weight"] = 7
    rows[20] = {"question": "a", "answer": "b"}
    rows[23] = rows[22]
    rows[26] = json.loads(LONG)
    content = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    body = {"model": MODEL, "ext": {"data": {"over_length": "error"}}}
    file_id = upload(account, lines(*content))
    verdict = ask(f"/files/{file_id}/validate", body).json()
    assert not verdict["ok"]
    mended = mend(content, verdict["survey"])
    again = upload(account, lines(*mended))
    assert account.http.get(f"/v1/files/{again}").json()["status"] == "processed"
    verdict = ask(f"/files/{again}/validate", body).json()
    assert verdict["ok"], verdict["faults"]
    assert verdict["survey"]["duplicates"]["count"] == 0
    assert len(mended) >= 24
    assert create(account, training_file=again).status_code == 200


def mend(content: list[str], report: dict[str, Any]) -> list[str]:
    lost = {row["line"] for row in report["duplicates"]["rows"]}
    for seen in report["models"]:
        lost |= set(seen["dropped"]["lines"])
    mended = {number: line for number, line in enumerate(content, start=1)}
    for fault in report["faults"]:
        number = fault["line"]
        if fault["code"] == "unknown_role":
            row = json.loads(mended[number])
            # The report shows what is there and lists what may be.
            wrong = json.loads(fault["excerpt"])
            assert wrong.lower() in fault["message"].split(" is not one of ")[1]
            for message in row["messages"]:
                message["role"] = wrong.lower() if message["role"] == wrong else message["role"]
            mended[number] = json.dumps(row)
        elif fault["code"] == "invalid_weight":
            row = json.loads(mended[number])
            place = int(fault["path"].split("[")[1].split("]")[0])
            row["messages"][place].pop("weight")
            mended[number] = json.dumps(row)
        elif fault["code"] == "last_message_not_assistant":
            row = json.loads(mended[number])
            row["messages"].pop()
            mended[number] = json.dumps(row)
        else:
            lost.add(number)
    return [line for number, line in mended.items() if number not in lost]
