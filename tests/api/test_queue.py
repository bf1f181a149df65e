"""/v1/fine_tuning/queue, and a waiting job's place in it."""

import time
from typing import Any

import pytest
from sqlalchemy import update

from core import clock
from core.config import Settings
from core.cost import Machine
from core.db import tenancy
from core.db.session import transaction
from core.db.tables import BaseModel, Job, Worker
from core.queue import claims
from core.services import moves
from core.states import Phase, Status
from core.wiring import Parts
from tests.api.test_jobs import create, upload
from tests.conftest import Account, Accounts


@pytest.fixture(autouse=True)
def _base(base_model: BaseModel) -> None:
    """Every test here has a base model to name."""


def queued(parts: Parts, account: Account, count: int, **body: Any) -> list[str]:
    file_id = upload(account)
    ids = [create(account, training_file=file_id, seed=n, **body).json()["id"] for n in range(count)]
    with transaction(parts.sessions) as session:
        for id in ids:
            moves.move(tenancy.get(session, Job, account.tenant, id, lock=True), Status.QUEUED, Phase.QUEUED)
    return ids


def worker(parts: Parts, *, slots: int = 1, **fields: Any) -> None:
    row = {"id": "worker_a", "name": "secret-host", "kind": "train", "device": "cpu", "memory_bytes": 1, "version": "1"}
    with transaction(parts.sessions) as session:
        session.add(Worker(slots=slots, **(row | fields)))


def place(account: Account, id: str) -> Any:
    return account.http.get(f"/v1/fine_tuning/jobs/{id}").json()["ext"]["queue"]


def claim(parts: Parts, settings: Settings) -> str:
    with transaction(parts.sessions) as session:
        job = claims.next_job(session, Status.QUEUED, "worker_a", settings)
        assert job is not None
        moves.move(job, Status.RUNNING, Phase.TRAINING)
        return job.id


def test_places_are_the_order_in_which_workers_take_jobs(
    parts: Parts, settings: Settings, accounts: Accounts, account: Account
) -> None:
    normal = queued(parts, account, 2)
    low = queued(parts, account, 1, ext={"resources": {"priority": "low"}})
    high = queued(parts, accounts.make("rival"), 1, ext={"resources": {"priority": "high"}})
    paused = queued(parts, account, 1)
    account.http.post(f"/v1/fine_tuning/jobs/{paused[0]}/pause")
    assert [place(account, id)["position"] for id in normal + low] == [2, 3, 4]
    assert place(account, paused[0]) is None
    listed = {job["id"]: job["ext"]["queue"] for job in account.http.get("/v1/fine_tuning/jobs").json()["data"]}
    assert [listed[id]["position"] for id in normal + low] == [2, 3, 4]
    taken = [claim(parts, settings) for _ in range(4)]
    assert taken == high + normal + low
    assert place(account, normal[0]) is None


def test_the_start_is_when_a_slot_is_free(parts: Parts, settings: Settings, account: Account) -> None:
    first, second, third, fourth = queued(parts, account, 4)
    assert place(account, first) == {"position": 1, "estimated_start": None}
    worker(parts, slots=2)
    now = time.time()
    assert abs(place(account, first)["estimated_start"] - now) < 30
    assert abs(place(account, second)["estimated_start"] - now) < 30
    assert place(account, third)["estimated_start"] is None
    assert [claim(parts, settings), claim(parts, settings)] == [first, second]
    assert place(account, third) == {"position": 1, "estimated_start": None}
    with transaction(parts.sessions) as session:
        for id, seconds in ((first, 600), (second, 300)):
            session.execute(update(Job).where(Job.id == id).values(estimated_finish=clock.in_seconds(seconds)))
    assert abs(place(account, third)["estimated_start"] - now - 300) < 30
    assert abs(place(account, fourth)["estimated_start"] - now - 600) < 30


def test_who_waits_starts_when_those_before_have_ended(parts: Parts, settings: Settings, account: Account) -> None:
    worker(parts, slots=2)
    jobs = queued(parts, account, 6)
    seconds = [100, 1000, 300, 50, None, 10]
    with transaction(parts.sessions) as session:
        for id, expected in zip(jobs, seconds, strict=True):
            session.execute(update(Job).where(Job.id == id).values(expected_seconds=expected))

    def starts() -> list[int | None]:
        found = account.http.get("/v1/fine_tuning/queue").json()["waiting"]["yours"]
        return [one["estimated_start"] and round(one["estimated_start"] - time.time(), -1) for one in found]

    # Two slots: 0-100, 0-1000, 100-400, 400-450, 450-nobody knows, 1000-1010.
    assert starts() == [0, 0, 100, 400, 450, 1000]
    # A run of which nothing is told yet ends when it was expected to; one that is half done has half of that left.
    assert claim(parts, settings) == jobs[0]
    assert starts() == [0, 100, 400, 450, 1000]
    with transaction(parts.sessions) as session:
        session.execute(update(Job).where(Job.id == jobs[1]).values(progress={"percent": 50}))
    assert starts() == [0, 100, 400, 450, 500]


def test_own_jobs_are_named_and_others_counted(
    parts: Parts, settings: Settings, accounts: Accounts, account: Account
) -> None:
    rival = accounts.make("rival")
    mine, theirs = queued(parts, account, 2), queued(parts, rival, 3)
    worker(parts, slots=2)
    assert [claim(parts, settings) for _ in range(3)] == [mine[0], theirs[0], mine[1]]
    fresh = create(account, seed=9).json()["id"]
    answer = account.http.get("/v1/fine_tuning/queue")
    for id in theirs:
        assert id not in answer.text
    assert "secret-host" not in answer.text
    view = answer.json()
    assert view["object"] == "fine_tuning.queue"
    assert [job["id"] for job in view["running"]["yours"]] == mine
    assert view["running"]["others"] == 1
    assert [(job["id"], job["status"], job["position"]) for job in view["waiting"]["yours"]] == [
        (fresh, "validating_files", 1)
    ]
    assert view["waiting"]["others"] == 2
    (only,) = view["workers"]
    assert (only["kind"], only["slots"], only["busy"], only["status"]) == ("train", 2, 3, "online")
    other = rival.http.get("/v1/fine_tuning/queue").json()
    assert [job["position"] for job in other["waiting"]["yours"]] == [1, 2]
    assert (other["waiting"]["others"], other["running"]["others"]) == (1, 2)


def test_a_job_that_no_registered_worker_could_ever_run_is_refused(parts: Parts, account: Account) -> None:
    with transaction(parts.sessions) as session:
        session.execute(update(BaseModel).values(facts={"parameters": 8_000_000_000}))
    file_id = upload(account)
    # Nobody has registered yet, so nothing can be said.
    assert create(account, training_file=file_id).status_code == 200
    worker(parts, memory_bytes=24_000_000_000, slots=2)
    refused = create(account, training_file=file_id, seed=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_worker_fits")
    assert "16.0 GB" in refused.json()["error"]["message"]
    assert "12.0 GB" in refused.json()["error"]["message"]
    # In four bits it may fit; and so it does where one that is away now has the room.
    assert create(account, training_file=file_id, seed=2, ext={"adapter": "qlora"}).status_code == 200
    worker(parts, id="worker_b", name="large", memory_bytes=24_000_000_000)
    assert create(account, training_file=file_id, seed=3).status_code == 200


def test_qlora_is_refused_where_no_device_can_do_four_bits(parts: Parts, account: Account) -> None:
    machine = Machine(flops={"fp32": 1e11}, bytes_per_second=1e10, op_seconds=1e-5, resident_bytes=1, four_bits=False)
    file_id = upload(account)
    worker(parts, machine=machine.model_dump())
    refused = create(account, training_file=file_id, ext={"adapter": "qlora"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_worker_fits"
    assert refused.json()["error"]["param"] == "ext.adapter"
    assert create(account, training_file=file_id).status_code == 200
    worker(parts, id="worker_b", name="other", machine=machine.model_dump() | {"four_bits": True})
    assert create(account, training_file=file_id, ext={"adapter": "qlora"}, seed=1).status_code == 200


def test_fp16_is_refused_where_no_device_computes_in_it(parts: Parts, account: Account) -> None:
    machine = Machine(flops={"fp32": 1e11}, bytes_per_second=1e10, op_seconds=1e-5, resident_bytes=1)
    file_id = upload(account)
    worker(parts, machine=machine.model_dump())
    refused = create(account, training_file=file_id, ext={"precision": "fp16"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_worker_fits"
    assert refused.json()["error"]["param"] == "ext.precision"
    assert create(account, training_file=file_id, ext={"precision": "bf16"}).status_code == 200
    worker(parts, id="worker_b", name="other", machine=machine.model_dump() | {"flops": {"fp32": 1e11, "fp16": 4e11}})
    assert create(account, training_file=file_id, ext={"precision": "fp16"}, seed=1).status_code == 200
