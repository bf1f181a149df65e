"""What becomes a file of a job besides its weights."""

import json

from core.db.session import transaction
from core.db.tables import BaseModel, Event
from core.wiring import Parts
from tests.conftest import Account
from tests.rows import file_row, job_row
from worker import publish


def test_answers_that_were_given_again_after_a_resume_are_in_the_file_once(
    parts: Parts, account: Account, base_model: BaseModel
) -> None:
    def said(step: int, by: str, answer: str) -> dict[str, object]:
        one = {"prompt": "p", "answer": answer, "tokens": 1, "ended": True}
        return {"step": step, "by": by, "answers": [one, one | {"answer": "b"}]}

    told = [
        said(0, "base", "x"),
        said(4, "model", "lost"),
        {"step": 4},
        None,
        said(10, "model", "z"),
        said(4, "model", "y"),
    ]
    with transaction(parts.sessions) as session:
        file = file_row(account, "file-1")
        session.add(file)
        session.flush()
        session.add(job_row(account, base_model, file, "ftjob-1"))
        session.flush()
        for number, data in enumerate(told, 1):
            session.add(Event(job_id="ftjob-1", number=number, id=f"e{number}", level="info", message="m", data=data))
    with transaction(parts.sessions) as session:
        made = publish.answers(session, "ftjob-1")
    assert made is not None
    lines = [json.loads(line) for line in made.splitlines()]
    assert [(line["step"], line["by"], line["number"], line["answer"]) for line in lines] == [
        (0, "base", 1, "x"),
        (0, "base", 2, "b"),
        (4, "model", 1, "y"),
        (4, "model", 2, "b"),
        (10, "model", 1, "z"),
        (10, "model", 2, "b"),
    ]


def test_a_job_that_asked_nothing_has_no_file_of_answers(parts: Parts, account: Account, base_model: BaseModel) -> None:
    with transaction(parts.sessions) as session:
        file = file_row(account, "file-1")
        session.add(file)
        session.flush()
        session.add(job_row(account, base_model, file, "ftjob-1"))
    with transaction(parts.sessions) as session:
        assert publish.answers(session, "ftjob-1") is None
