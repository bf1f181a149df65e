"""Estimates: what the job would take, on the workers that there are, and what would do where it would not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.db.session import transaction
from core.db.tables import BaseModel, Worker
from core.wiring import Parts
from tests.api.test_jobs import create, refused, upload
from tests.conftest import Account, chat_rows
from tests.worker.prepared import offer
from worker.prepare.folder import Facts
from worker.runner import Runner

MACHINE = {"flops": {"fp32": 1.8e11}, "bytes_per_second": 6e10, "op_seconds": 8e-6, "resident_bytes": 376_000_000}


pytestmark = pytest.mark.usefixtures("no_wait")


@pytest.fixture
def base(parts: Parts, registered: tuple[Path, Facts]) -> BaseModel:
    return offer(parts, *registered)


def train_worker(parts: Parts, memory_bytes: int = 8 * 10**9, **fields: Any) -> None:
    plain = {"kind": "train", "slots": 1, "device": "cpu (2 cores)", "version": "source", "machine": MACHINE}
    with transaction(parts.sessions) as session:
        session.add(Worker(id="worker_t", name="t", memory_bytes=memory_bytes, **plain | fields))


def ask(account: Account, runner: Runner, **body: Any) -> Any:
    wanted = {"model": "attune-tiny", **body}
    wanted["training_file"] = body.get("training_file") or upload(account)
    first = account.http.post("/v1/fine_tuning/jobs/estimate", json=wanted)
    if first.status_code == 202:
        assert runner.work_once()
        first = account.http.post("/v1/fine_tuning/jobs/estimate", json=wanted)
    assert first.status_code == 200, first.text
    return first.json()


def test_a_dry_run_is_an_estimate_and_makes_nothing(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    train_worker(parts)
    body = {"model": "attune-tiny", "training_file": upload(account, chat_rows(24)), "ext": {"max_steps": 4}}
    estimated = ask(account, runner, **body)
    dry = body | {"ext": {"max_steps": 4, "dry_run": True}}
    answer = account.http.post("/v1/fine_tuning/jobs", json=dry)
    assert (answer.status_code, answer.json()) == (200, estimated)
    assert account.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    wrong = account.http.post("/v1/fine_tuning/jobs", json=dry | {"model": "no-such-model"})
    assert wrong.status_code == 400


def test_an_estimate_says_what_the_job_will_take(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    train_worker(parts)
    file_id = upload(account, chat_rows(24))
    ext = {"lora": {"rank": 4}, "epochs": 2}
    found = ask(account, runner, training_file=file_id, ext=ext)
    assert (found["feasible"], found["reason"], found["choices"]) == (True, None, [])
    assert found["tokens"]["examples"] == 24
    assert found["tokens"]["total"] == 2 * found["tokens"]["per_epoch"]
    assert (found["steps"], found["epochs"]) == (6, 2)
    assert 376e6 < found["memory"]["total"] < 600e6
    assert 0 < found["step_seconds"] < found["seconds"] < 60
    assert found["workers"] == [
        {"device": "cpu (2 cores)", "memory_bytes": 8 * 10**9, "slots": 1, "fits": True, "seconds": found["seconds"]}
    ]
    assert found["queue"] == {"jobs_before": 0, "seconds": 0}
    assert {one["code"] for one in found["advice"]} >= {"try_prompting_first", "method"}


def test_a_rate_that_is_looked_for_costs_its_steps(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    train_worker(parts)
    file = upload(account, chat_rows(24))
    plain, found = (
        ask(account, runner, training_file=file, ext={"max_steps": 4, "optim": {"learning_rate": rate}})
        for rate in (1e-3, "find")
    )
    assert found["seconds"] - plain["seconds"] > 5 * plain["step_seconds"] == 5 * found["step_seconds"]
    assert found["resolved"]["optim"]["find"] is True


def test_the_job_after_an_estimate_is_what_was_estimated_and_needs_no_preparing(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    file_id = upload(account)
    found = ask(account, runner, training_file=file_id, seed=5)
    job = create(account, training_file=file_id, seed=5).json()
    child = runner.slot.prepare()
    assert runner.work_once()
    assert not child.started
    ext = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["ext"]
    assert ext["resolved"] == found["resolved"]
    assert ext["data"]["train"]["tokens"] == found["tokens"]["per_epoch"]
    # And the other way round: what a job has prepared answers another estimate without a child.
    ask(account, runner, training_file=file_id, ext={"lora": {"rank": 2}})
    assert not child.started


def test_what_is_mixed_and_held_out_is_counted_and_what_the_job_then_has(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    train_worker(parts)
    mine, other = upload(account, chat_rows(40)), upload(account, chat_rows(30, name="other"))
    ext = {"data": {"mix": [{"file_id": other, "weight": 0.5}], "validation_fraction": 0.25}}
    found = ask(account, runner, training_file=mine, ext=ext, seed=3)["tokens"]
    assert set(found["sources"]) == {"training_file", other}
    assert sum(found["sources"].values()) == found["examples"]
    assert 0 < found["validation"] < 30
    job = create(account, training_file=mine, ext=ext, seed=3).json()
    child = runner.slot.prepare()
    assert runner.work_once()
    assert not child.started
    data = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["ext"]["data"]
    assert (data["train"]["examples"], data["valid"]["examples"]) == (found["examples"], found["validation"])


@pytest.mark.parametrize(("memory", "slots"), [(490_000_000, 1), (980_000_000, 2)])
def test_what_does_not_fit_is_refused_with_the_smallest_change_that_does(
    parts: Parts, account: Account, runner: Runner, base: BaseModel, memory: int, slots: int
) -> None:
    long = [{"messages": [{"role": "user", "content": "one two three " * 60}, {"role": "assistant", "content": "ok"}]}]
    content = "".join(json.dumps(row) + "\n" for row in long * 32).encode()
    train_worker(parts, memory, slots=slots)
    wanted = {"micro_batch_size": 16, "packing": False}
    hyperparameters = {"n_epochs": 1, "batch_size": 16}
    found = ask(
        account,
        runner,
        training_file=upload(account, content),
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        ext=wanted,
    )
    assert found["feasible"] is False
    assert found["reason"]["code"] == "not_enough_memory"
    assert found["seconds"] is None
    first = found["choices"][0]
    assert set(first["change"]["ext"]) <= {"micro_batch_size", "gradient_checkpointing"}
    assert first["change"]["ext"]["micro_batch_size"] < 16
    assert first["memory_bytes"] <= 0.9 * memory / slots
    # What was proposed is feasible indeed.
    again = ask(
        account,
        runner,
        training_file=upload(account, content),
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        ext=wanted | first["change"]["ext"],
    )
    assert again["feasible"] is True


def test_where_smaller_pieces_do_not_help_each_thing_that_would_is_proposed(
    parts: Parts, account: Account, runner: Runner, base: BaseModel, registered: tuple[Path, Facts]
) -> None:
    """Shorter rows, a lower rank, a smaller model: each of them feasible when it is sent."""
    folder, facts = registered
    assert facts.shape is not None
    shape = facts.shape.model_copy(update={"parameters": 50_000})
    # Other bytes under another name: only its numbers matter here.
    smaller = facts.model_copy(update={"parameters": 50_000, "shape": shape, "sha256": "0" * 64})
    offer(parts, folder, smaller, "attune-smaller")
    row = {"messages": [{"role": "user", "content": "one two three " * 60}, {"role": "assistant", "content": "ok"}]}
    wanted: dict[str, Any] = {
        "model": "attune-tiny",
        "training_file": upload(account, (json.dumps(row) + "\n").encode() * 32),
        "ext": {"micro_batch_size": 1, "gradient_checkpointing": True, "lora": {"rank": 64}, "epochs": 1},
    }
    train_worker(parts)
    needed = ask(account, runner, **wanted)["memory"]["total"]
    with transaction(parts.sessions) as session:
        session.get_one(Worker, "worker_t").memory_bytes = round((needed - 20_000) / 0.9)
    found = ask(account, runner, **wanted)
    assert found["reason"]["code"] == "not_enough_memory"
    changes = [one["change"] for one in found["choices"]]
    assert [sorted(change.get("ext", change)) for change in changes] == [
        ["data", "max_length"],
        ["lora"],
        ["adapter"],
        ["model"],
    ]
    for change in changes:
        other = {**wanted, **change, "ext": wanted["ext"] | change.get("ext", {})}
        assert ask(account, runner, **other)["feasible"] is True, change


def test_without_a_worker_nothing_is_feasible(parts: Parts, account: Account, runner: Runner, base: BaseModel) -> None:
    found = ask(account, runner)
    assert (found["feasible"], found["reason"]["code"]) == (False, "no_worker")
    train_worker(parts, machine=None)
    found = ask(account, runner)
    # It fits, and how long it takes is told when the worker has measured itself.
    assert (found["feasible"], found["seconds"]) == (True, None)


def test_a_price_goes_by_the_operators_rates(
    parts: Parts, account: Account, runner: Runner, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_worker(parts)
    file_id = upload(account)
    assert ask(account, runner, training_file=file_id)["price"] is None
    monkeypatch.setattr(parts.settings, "price_per_hour", 3600.0)
    monkeypatch.setattr(parts.settings, "price_per_million_tokens", 1e6)
    monkeypatch.setattr(parts.settings, "price_currency", "EUR")
    found = ask(account, runner, training_file=file_id)
    rates = {"currency": "EUR", "per_hour": 3600.0, "per_million_tokens": 1e6}
    assert found["price"]["rates"] == rates
    assert found["price"]["amount"] == pytest.approx(found["seconds"] + found["tokens"]["total"], abs=0.1)
    (offered,) = account.http.get("/v1/fine_tuning/models").json()["data"]
    assert offered["price"] == rates


def test_a_job_that_waits_is_counted_before_this_one(
    parts: Parts, account: Account, runner: Runner, base: BaseModel
) -> None:
    train_worker(parts)
    file_id = upload(account)
    create(account, training_file=file_id)
    found = ask(account, runner, training_file=file_id)
    assert found["queue"]["jobs_before"] == 1
    before = ask(account, runner, training_file=file_id, ext={"resources": {"priority": "high"}})
    assert before["queue"]["jobs_before"] == 0


def test_what_creating_would_refuse_is_refused_the_same_way(account: Account, base: BaseModel) -> None:
    body = {"model": "attune-tiny", "training_file": upload(account), "ext": {"lora": {"rank": 0}}}
    refused(account.http.post("/v1/fine_tuning/jobs/estimate", json=body), "ext.lora.rank")
    refused(account.http.post("/v1/fine_tuning/jobs/estimate", json=body | {"model": "none", "ext": {}}), "model")


def test_data_that_the_job_would_fail_on_are_the_estimates_error(
    account: Account, runner: Runner, base: BaseModel
) -> None:
    body = {"model": "attune-tiny", "training_file": upload(account), "ext": {"max_length": 8}}
    assert account.http.post("/v1/fine_tuning/jobs/estimate", json=body).status_code == 202
    runner.work_once()
    error = refused(account.http.post("/v1/fine_tuning/jobs/estimate", json=body), "training_file", "8 tokens")
    assert error["code"] == "invalid_n_examples"


def test_another_project_gets_no_estimate_of_my_file(accounts: Any, account: Account, base: BaseModel) -> None:
    other = accounts.make("other")
    body = {"model": "attune-tiny", "training_file": upload(account)}
    refused(other.http.post("/v1/fine_tuning/jobs/estimate", json=body), "training_file")
