"""/v1/fine_tuning/jobs, on a real database, without workers."""

import threading
from typing import Any

import pytest
from sqlalchemy import func, select

from core.db.session import transaction
from core.db.tables import BaseModel, Event, Job
from core.wiring import Parts
from tests.conftest import Account, Accounts, Rings, chat_rows


@pytest.fixture(autouse=True)
def _base(base_model: BaseModel) -> None:
    """Every test here has a base model to name."""


def upload(account: Account, content: bytes | None = None, name: str = "train.jsonl") -> str:
    answer = account.http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, content or chat_rows(12))}
    )
    assert answer.status_code == 200, answer.text
    file_id: str = answer.json()["id"]
    return file_id


def create(account: Account, **body: Any) -> Any:
    wanted = {"model": "attune-tiny", "training_file": body.pop("training_file", None) or upload(account), **body}
    headers = wanted.pop("headers", {})
    return account.http.post("/v1/fine_tuning/jobs", json=wanted, headers=headers)


def refused(answer: Any, param: str | None, *words: str, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    for word in words:
        assert word in error["message"]
    return error


def test_a_new_job_has_openais_shape_and_rings_prepare(account: Account, parts: Parts) -> None:
    file_id = upload(account)
    job = create(account, training_file=file_id, suffix="triage", seed=7, metadata={"team": "x"}).json()
    assert job["object"] == "fine_tuning.job"
    assert job["status"] == "validating_files"
    assert job["hyperparameters"] == {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job["method"]["type"] == "supervised"
    assert (job["seed"], job["metadata"], job["training_file"]) == (7, {"team": "x"}, file_id)
    assert job["result_files"] == []
    for nullable in ("error", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file", "integrations"):
        assert job[nullable] is None
    assert job["organization_id"]
    assert job["ext"]["phase"] == "created"
    assert isinstance(parts.doorbell, Rings)
    assert parts.doorbell.kinds == ["prepare"]
    assert account.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job


def test_an_alias_is_answered_as_it_was_asked_and_the_events_say_what_it_means(account: Account) -> None:
    job = create(account, model="gpt-4o-mini-2024-07-18").json()
    assert job["model"] == "gpt-4o-mini-2024-07-18"
    assert job["ext"]["base_model"] == "attune-tiny"
    events = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert any("'attune-tiny'" in event["message"] for event in events)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "gpt-9"}, "model", ("gpt-9", "attune-tiny")),
        ({"training_file": "file-none"}, "training_file", ("file-none",)),
        ({"suffix": ""}, "suffix", ("1 char",)),
        ({"seed": -1}, "seed", ("-1",)),
        ({"seed": "7"}, "seed", ("'7'",)),
        ({"metadata": {"a": 1}}, "metadata.a", ()),
        ({"metadata": {"a" * 65: "b"}}, "metadata." + "a" * 64, ("64",)),
        ({"method": {"type": "dpo"}}, "training_file", ("chat rows", "dpo with the loss sigmoid", "preference rows")),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}},
            "method.dpo.hyperparameters.beta",
            ("0",),
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}},
            "method.supervised.hyperparameters.beta",
            ("for the method dpo",),
        ),
        ({"ext": {"preference": {"loss": "kto"}}}, "ext.preference.loss", ("for method dpo",)),
        ({"method": {"type": "reinforcement"}}, "method.type", ("reinforcement",)),
        ({"method": {"type": "magic"}}, "method.type", ("magic",)),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2.5}}}},
            "method.supervised.hyperparameters.n_epochs",
            ("2.5", "1 to 50"),
        ),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", ("257",)),
        ({"ext": {"lora": {"rnak": 8}}}, "ext.lora.rnak", ("ext.lora.rank",)),
        ({"ext": {"lora": {"rank": 0}}}, "ext.lora.rank", ("1 to 512",)),
        ({"ext": {"adapter": "full", "lora": {"rank": 8}}}, "ext.lora.rank", ("adapter lora or qlora", "adapter full")),
        ({"ext": {"adapter": "layers"}}, "ext.layers", ("is missing",)),
        ({"ext": {"early_stopping": {}}}, "ext.early_stopping", ("validation_file", "validation_fraction")),
        ({"ext": {"epochs": 2}, "hyperparameters": {"n_epochs": 3}}, "ext.epochs", ("exclude",)),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", ()),
        ({"validation_file": "file-none"}, "validation_file", ("file-none",)),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    account: Account, body: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    refused(create(account, **body), param, *words)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b'{"model": "a\\u0000"}', b"\xff"])
def test_an_unreadable_body_is_a_400_in_the_envelope(account: Account, raw: bytes) -> None:
    refused(account.http.post("/v1/fine_tuning/jobs", content=raw), None)


def test_a_job_on_a_bad_file_names_every_bad_line(account: Account) -> None:
    lines = chat_rows(12).splitlines()
    lines[3] = b'{"messages": [{"role": "bot", "content": "x"}]}'
    lines[8] = b"{"
    file_id = upload(account, b"\n".join(lines))
    error = refused(create(account, training_file=file_id), "training_file", "line 4:", "line 9:", '"bot"')
    assert error["code"] == "invalid_training_file"


def test_too_few_examples_are_refused_in_openais_words(account: Account) -> None:
    error = refused(create(account, training_file=upload(account, chat_rows(7))), "training_file")
    assert error["message"] == "Training file has 7 example(s), but must have at least 10 examples."
    assert error["code"] == "invalid_n_examples"


def test_a_file_of_another_purpose_is_refused(account: Account) -> None:
    answer = account.http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a.jsonl", chat_rows(12))})
    refused(create(account, training_file=answer.json()["id"]), "training_file", "user_data")


def test_an_unknown_top_level_key_is_accepted_and_told(account: Account) -> None:
    job = create(account, user_provided="x").json()
    events = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert [event["level"] for event in events if "user_provided" in event["message"]] == ["warn"]


def test_the_header_says_what_ext_says(account: Account) -> None:
    job = create(account, headers={"X-Attune-Ext": '{"lora": {"rank": 4}}'}).json()
    assert job["ext"]["options"] == {"lora": {"rank": 4}}
    refused(create(account, headers={"X-Attune-Ext": '{"lora": {"rnak": 4}}'}), "ext.lora.rnak")
    refused(create(account, ext={}, headers={"X-Attune-Ext": "{}"}), "ext")


def test_a_retry_of_the_sdk_finds_the_first_job(account: Account) -> None:
    file_id = upload(account)
    first = create(account, training_file=file_id).json()
    again = create(account, training_file=file_id, headers={"x-stainless-retry-count": "1"}).json()
    anew = create(account, training_file=file_id).json()
    assert again["id"] == first["id"]
    assert anew["id"] != first["id"]


def test_an_idempotency_key_makes_one_job(account: Account) -> None:
    file_id = upload(account)
    key = {"Idempotency-Key": "k1"}
    first = create(account, training_file=file_id, headers=key).json()
    assert create(account, training_file=file_id, headers=key).json()["id"] == first["id"]
    refused(create(account, training_file=file_id, seed=1, headers=key), None, status=422)


def test_concurrent_duplicates_make_one_job(account: Account, parts: Parts) -> None:
    file_id = upload(account)
    found: list[str] = []

    def post() -> None:
        found.append(create(account, training_file=file_id, headers={"Idempotency-Key": "same"}).json()["id"])

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # All of them were answered, and with the same job.
    assert len(found) == 8
    assert len(set(found)) == 1
    with transaction(parts.sessions) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_cancelling_a_waiting_job_is_at_once_and_final(account: Account) -> None:
    job = create(account).json()
    cancelled = account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"] >= job["created_at"]
    assert account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


def test_cancelling_an_ended_job_is_a_conflict_that_is_not_retried(account: Account, parts: Parts) -> None:
    job = create(account).json()
    with transaction(parts.sessions) as session:
        session.get_one(Job, job["id"]).status = "failed"
        session.get_one(Job, job["id"]).phase = "failed"
    answer = account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    refused(answer, None, "failed", status=409)
    assert answer.headers["x-should-retry"] == "false"


def test_pages_show_every_job_once_newest_first(account: Account) -> None:
    file_id = upload(account)
    made = [create(account, training_file=file_id, seed=n).json()["id"] for n in range(5)]
    seen, after = [], None
    while True:
        page = account.http.get(
            "/v1/fine_tuning/jobs", params={"limit": 2, **({"after": after} if after else {})}
        ).json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = seen[-1]
    assert seen == made[::-1]


def test_an_unknown_cursor_is_an_error_and_not_page_one(account: Account) -> None:
    job = create(account).json()
    for path in ("jobs", f"jobs/{job['id']}/events", f"jobs/{job['id']}/checkpoints"):
        refused(account.http.get(f"/v1/fine_tuning/{path}", params={"after": "ftjob-none"}), "after")


def test_metadata_filters_the_list(account: Account) -> None:
    file_id = upload(account)
    tagged = create(account, training_file=file_id, metadata={"team": "a", "n": "1"}).json()["id"]
    create(account, training_file=file_id, metadata={"team": "b"})
    bare = create(account, training_file=file_id).json()["id"]
    for params, expected in (({"metadata[team]": "a"}, [tagged]), ({"metadata": "null"}, [bare])):
        page = account.http.get("/v1/fine_tuning/jobs", params=params).json()
        assert [job["id"] for job in page["data"]] == expected


def test_events_are_numbered_without_gaps(account: Account, parts: Parts) -> None:
    job = create(account).json()
    account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    page = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()
    numbers = [event["data"]["number"] for event in page["data"]]
    assert numbers == list(range(len(numbers), 0, -1))
    with transaction(parts.sessions) as session:
        assert session.scalar(select(func.count()).select_from(Event)) == len(numbers)


def test_another_projects_job_is_not_there(accounts: Accounts, account: Account) -> None:
    job = create(account).json()
    stranger = accounts.make("stranger")
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/checkpoints"), ("POST", "/cancel")):
        answer = stranger.http.request(method, f"/v1/fine_tuning/jobs/{job['id']}{path}")
        missing = stranger.http.request(method, f"/v1/fine_tuning/jobs/ftjob-none{path}")
        assert answer.status_code == missing.status_code == 404
        assert answer.json()["error"]["message"].replace(job["id"], "ftjob-none") == missing.json()["error"]["message"]
    assert stranger.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    refused(create(stranger, training_file=job["training_file"]), "training_file")
