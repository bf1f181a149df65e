"""Tokens are prepared once and shared: what is a hit, what is not, what a damaged object leads to, when a set goes."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core import clock
from core.db.session import transaction
from core.db.tables import BaseModel, Event, File, Job, TokenSet
from core.services import token_sets
from core.states import Phase, Status
from core.storage import store as layout
from core.wiring import Parts
from tests.conftest import Account, chat_rows
from tests.rows import file_row, job_row
from tests.worker.prepared import offer
from worker import slot, tokens
from worker.prepare.folder import Facts
from worker.runner import Runner
from worker.slot import Slot

ROWS = chat_rows(12)


@pytest.fixture
def base(parts: Parts, registered: tuple[Path, Facts]) -> BaseModel:
    return offer(parts, *registered)


@pytest.fixture
def prepare(parts: Parts) -> Iterator[Runner]:
    own = Slot(0, "prepare", parts.settings)
    yield Runner(parts, own, "worker_prepare", threading.Event())
    own.close()


Make = Callable[..., str]


@pytest.fixture
def make(parts: Parts, account: Account, base: BaseModel) -> Make:
    """A job that waits to be prepared, with a file of these bytes unless it names another."""
    made = 0

    def add(content: bytes = ROWS, file_id: str | None = None, **fields: Any) -> str:
        nonlocal made
        made += 1
        with transaction(parts.sessions) as session:
            file = session.get(File, file_id) if file_id else None
            if file is None:
                sha256 = hashlib.sha256(content).hexdigest()
                file = file_row(account, file_id or f"file-{made}", sha256=sha256, bytes=len(content), format="chat")
                parts.store.put(file.storage_key, content)
                session.add(file)
                session.flush()
            plain = {"status": Status.VALIDATING, "phase": Phase.CREATED, "seed": made}
            job = job_row(account, base, file, f"ftjob-{made}", **plain | fields)
            session.add(job)
        return job.id

    return add


def _key(parts: Parts, session: Session, id: str) -> str:
    return tokens.key(session, tokens.of_job(session.get_one(Job, id)), parts.settings)


def job(parts: Parts, id: str) -> Job:
    with transaction(parts.sessions) as session:
        return session.get_one(Job, id)


def files(parts: Parts, id: str) -> dict[str, Any]:
    row = job(parts, id)
    assert row.status == Status.QUEUED, row.error
    assert row.prepared is not None
    found: dict[str, Any] = row.prepared["files"]
    return found


def end(parts: Parts, *ids: str) -> None:
    with transaction(parts.sessions) as session:
        session.execute(update(Job).where(Job.id.in_(ids)).values(status=Status.CANCELLED, phase=Phase.CANCELLED))


def sets(parts: Parts) -> list[TokenSet]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(TokenSet)))


def test_a_second_job_on_the_same_data_needs_no_child(parts: Parts, make: Make, prepare: Runner) -> None:
    first = make(options={"lora": {"rank": 4}})
    assert prepare.work_once()
    # Another file with the same content, and options that change what is learned but not the rows.
    second = make(options={"lora": {"rank": 8}, "prompt_loss_weight": 0.5, "max_steps": 3})
    child = prepare.slot.prepare()
    assert prepare.work_once()
    assert prepare.slot.prepare() is child
    assert not child.started
    assert files(parts, second) == files(parts, first)
    assert job(parts, second).data == job(parts, first).data
    resolved = job(parts, second).resolved
    assert resolved is not None
    assert (resolved["lora"]["rank"], resolved["prompt_loss_weight"], resolved["total_steps"]) == (8, 0.5, 3)
    assert parts.doorbell.kinds == ["train", "train"]  # type: ignore[attr-defined]  # the tests' own doorbell


def test_the_next_child_reads_the_tokenizer_while_it_waits(parts: Parts, make: Make, prepare: Runner) -> None:
    make()
    assert prepare.work_once()
    child, deadline = prepare.slot.prepare(), time.monotonic() + 60
    while child.loaded is None:
        assert time.monotonic() < deadline, child.log.read_text()
        time.sleep(0.05)
    assert (Path(child.loaded) / "tokenizer.json").exists()
    other = make(chat_rows(13))
    assert prepare.work_once()
    assert files(parts, other)


@pytest.mark.parametrize(
    "other",
    [
        {"content": chat_rows(13)},
        {"options": {"max_length": 200}},
        {"options": {"train_on": "all"}},
        {"options": {"data": {"over_length": "truncate"}}},
        {"options": {"data": {"max_invalid_fraction": 0.1}}},
        {"options": {"data": {"validation_fraction": 0.2}}},
        {"options": {"data": {"mix": [{"file_id": "file-1", "weight": 0.5}]}}},
        {"options": {"format": "chat"}},
        {"options": {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}},
        {"validation_file": "file-1"},
        {"project_id": "proj_other"},
    ],
    ids=str,
)
def test_other_data_templates_and_limits_are_another_set(
    parts: Parts, make: Make, other: dict[str, Any], accounts: Any
) -> None:
    accounts.make("other")
    ids = [make(), make(), make(**other)]
    with transaction(parts.sessions) as session:
        first, same, changed = (_key(parts, session, id) for id in ids)
    assert first == same
    assert first != changed


@pytest.mark.parametrize(
    "drawn", [{"validation_fraction": 0.2}, {"mix": [{"file_id": "file-1", "weight": 0.5}]}], ids=str
)
def test_rows_that_are_drawn_are_those_of_this_seed_these_weights_and_these_files(
    parts: Parts, make: Make, drawn: dict[str, Any]
) -> None:
    make()
    ids = [make(options={"data": drawn}, file_id="file-1", seed=seed) for seed in (1, 1, 2)]
    weighed = {"mix": [{"file_id": "file-1", "weight": 0.75}]}
    ids.append(make(options={"data": weighed}, file_id="file-1", seed=1))
    with transaction(parts.sessions) as session:
        first, same, *others = (_key(parts, session, id) for id in ids)
        assert first == same
        # The same name for other bytes.
        session.get_one(File, "file-1").sha256 = "0" * 64
        others.append(_key(parts, session, ids[0]))
        session.rollback()
    assert len({first, *others}) == 4


def test_a_template_that_writes_the_date_is_not_shared(parts: Parts, make: Make, prepare: Runner) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    jobs = [make(options={"chat_template": dated}, seed=1) for _ in range(2)]
    for _ in jobs:
        assert prepare.work_once()
    keys = [files(parts, id)["train.safetensors"]["key"] for id in jobs]
    assert keys[0] != keys[1]
    assert len(sets(parts)) == 2


def test_what_was_said_of_the_data_is_said_again_to_the_next_job(parts: Parts, make: Make, prepare: Runner) -> None:
    options = {"data": {"max_invalid_fraction": 0.5, "validation_fraction": 0.3}, "lora": {"rank": 2}}
    for _ in range(2):
        make(ROWS + b'{"messages": []}\n', options=options, seed=7)
        assert prepare.work_once()
    said = []
    with transaction(parts.sessions) as session:
        for n in (1, 2):
            rows = session.scalars(select(Event).where(Event.job_id == f"ftjob-{n}").order_by(Event.number))
            said.append([row.message for row in rows])
    assert any("left out" in message for message in said[0])
    assert any("held out for validation" in message for message in said[0])
    again = [message for message in said[1] if not message.startswith("The data were tokenised before")]
    assert again == said[0]


def test_another_tokenizer_or_version_of_the_code_is_another_set(
    parts: Parts, make: Make, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = make()
    with transaction(parts.sessions) as session:
        keys = {_key(parts, session, id)}
        monkeypatch.setattr(tokens, "code", lambda: "another version")
        keys.add(_key(parts, session, id))
        model = session.get_one(BaseModel, base.id)
        assert model.files is not None
        model.files = {
            "files": [
                entry | ({"sha256": "0"} if "tokenizer" in entry["path"] else {}) for entry in model.files["files"]
            ]
        }
        keys.add(_key(parts, session, id))
        assert len(keys) == 3
        session.rollback()


def test_a_cut_object_is_noticed_and_prepared_anew(parts: Parts, make: Make, prepare: Runner) -> None:
    first = make()
    prepare.work_once()
    before = files(parts, first)
    key = before["train.safetensors"]["key"]
    parts.store.put(key, parts.store.get(key)[:-1])
    second = make()
    prepare.work_once()
    after = files(parts, second)
    assert after["train.safetensors"]["key"] != key
    assert after["train.safetensors"]["sha256"] == before["train.safetensors"]["sha256"]
    assert _sha256(parts, after["train.safetensors"]["key"]) == before["train.safetensors"]["sha256"]


def _sha256(parts: Parts, key: str) -> str:
    return hashlib.sha256(parts.store.get(key)).hexdigest()


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_rows_that_are_damaged_when_training_begins_are_prepared_anew(
    parts: Parts, make: Make, prepare: Runner, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setitem(slot.MODULES, "train", "tests.worker.trivial_engine")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    train = Runner(parts, Slot(1, "train", parts.settings), "worker_train", threading.Event())
    id = make()
    prepare.work_once()
    before = files(parts, id)["train.safetensors"]
    content = parts.store.get(before["key"])
    if damage == "gone":
        parts.store.delete(before["key"])
    else:
        parts.store.put(before["key"], content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert train.work_once()
        assert (job(parts, id).status, sets(parts)) == (Status.VALIDATING, [])
        _hurry(parts, id)
        prepare.work_once()
        after = files(parts, id)["train.safetensors"]
        assert after["sha256"] == before["sha256"] == _sha256(parts, after["key"])
        _hurry(parts, id)
        assert train.work_once()
        assert job(parts, id).status == Status.SUCCEEDED
    finally:
        train.slot.close()


def test_rows_that_are_damaged_again_and_again_end_the_job(
    parts: Parts, make: Make, prepare: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Runner(parts, Slot(1, "train", parts.settings), "worker_train", threading.Event())
    id = make()
    try:
        for _ in range(parts.settings.max_attempts):
            prepare.work_once()
            parts.store.delete(files(parts, id)["train.safetensors"]["key"])
            train.work_once()
            _hurry(parts, id)
        row = job(parts, id)
        assert row.status == Status.FAILED
        assert row.error is not None
        assert row.error["code"] == "storage_error"
    finally:
        train.slot.close()


def _hurry(parts: Parts, id: str) -> None:
    with transaction(parts.sessions) as session:
        session.execute(update(Job).where(Job.id == id).values(available_at=clock.now()))


def test_two_jobs_that_prepare_at_once_end_with_one_set(parts: Parts, make: Make, prepare: Runner) -> None:
    first = make()
    prepare.work_once()
    second = make()
    kept = files(parts, first)
    with transaction(parts.sessions) as session:
        id = job(parts, first).token_set_id
        assert id is not None
        theirs = token_sets.keep(
            session,
            id,
            job(parts, second).project_id,
            session.get_one(Job, second),
            file_ids=[],
            found={},
            files={"train.safetensors": {"key": "prepared/late", "bytes": 1, "sha256": "0"}},
        )
        assert theirs.files == kept
    assert len(sets(parts)) == 1


def test_a_deleted_job_leaves_the_tokens_that_another_needs(
    parts: Parts, account: Account, make: Make, prepare: Runner
) -> None:
    first, second = make(), make()
    prepare.work_once()
    prepare.work_once()
    keys = [entry["key"] for entry in files(parts, first).values()]
    # The objects lie where the first job wrote them.
    assert all(key.startswith(layout.all_prepared(first)) for key in keys)
    end(parts, first)
    assert account.http.delete(f"/v1/fine_tuning/jobs/{first}").status_code == 200
    assert all(parts.store.size(key) is not None for key in keys)
    assert files(parts, second)["train.safetensors"]["key"] in keys
    end(parts, second)
    assert account.http.delete(f"/v1/fine_tuning/jobs/{second}").status_code == 200
    assert all(parts.store.size(key) is None for key in keys)
    assert sets(parts) == []


def test_a_deleted_file_takes_its_tokens_along_unless_a_living_job_has_an_equal_file(
    parts: Parts, account: Account, make: Make, prepare: Runner
) -> None:
    first, second = make(), make()
    prepare.work_once()
    prepare.work_once()
    key = files(parts, first)["train.safetensors"]["key"]
    end(parts, first)
    assert account.http.delete("/v1/files/file-1").status_code == 200
    assert parts.store.size(key) is not None
    end(parts, second)
    third = make(file_id="file-2")
    end(parts, third)
    with transaction(parts.sessions) as session:
        session.execute(update(TokenSet).values(file_ids=["file-2"]))
    assert account.http.delete("/v1/files/file-2").status_code == 200
    assert parts.store.size(key) is None
    assert sets(parts) == []


def test_tokens_that_nobody_uses_are_swept_after_their_days(parts: Parts, make: Make, prepare: Runner) -> None:
    id = make()
    prepare.work_once()
    long_ago = clock.in_seconds(-86400 * (parts.settings.tokens_days + 1))
    with transaction(parts.sessions) as session:
        assert token_sets.unused(session, parts.settings) == []
        session.execute(update(TokenSet).values(last_used_at=long_ago))
    with transaction(parts.sessions) as session:
        # The job waits for a train worker: as long as it does, its rows stay.
        assert token_sets.unused(session, parts.settings) == []
    keys = [entry["key"] for entry in files(parts, id).values()]
    end(parts, id)
    with transaction(parts.sessions) as session:
        assert sorted(token_sets.unused(session, parts.settings)) == sorted(keys)
    assert sets(parts) == []
