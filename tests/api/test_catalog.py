"""/v1/fine_tuning/models"""

from typing import Any

import pytest

from core.db.session import transaction
from core.db.tables import BaseModel
from core.wiring import Parts
from tests.api.test_jobs import create, upload
from tests.conftest import Account, preference_rows


@pytest.fixture(autouse=True)
def _base(parts: Parts, base_model: BaseModel) -> None:
    facts: dict[str, Any] = {"parameters": 100, "bytes": 400, "hidden_size": 64, "layers": 2}
    facts |= {"vocab_size": 512, "context_length": 256}
    with transaction(parts.sessions) as session:
        row = session.get_one(BaseModel, base_model.id)
        facts |= {"template_origin": "default:chatml", "chat_template": "{{ messages }}"}
        row.facts, row.license = {**(row.facts or {}), **facts}, "apache-2.0"
        session.add(BaseModel(id="base_late", name="not-yet", source="path:/x", status="registering"))


def test_an_offer_says_what_can_be_done_with_a_model(account: Account) -> None:
    (offer,) = account.http.get("/v1/fine_tuning/models").json()["data"]
    assert (offer["id"], offer["aliases"]) == ("attune-tiny", ["gpt-4o-mini-2024-07-18"])
    assert (offer["license"], offer["price"]) == ("apache-2.0", None)
    assert offer["sizes"] == {
        "parameters": 100,
        "bytes": 400,
        "hidden_size": 64,
        "layers": 2,
        "vocab_size": 512,
        "context_length": 256,
    }
    assert offer["limits"]["max_length"] == {"min": 8, "max": 256}
    assert offer["methods"]["supervised"]["formats"] == ["chat", "completion", "text"]
    adapters = offer["methods"]["supervised"]["adapters"]
    assert adapters["lora"] == {"output": "adapter", "mergeable": True, "vllm": True}
    assert adapters["full"] == {"output": "model", "mergeable": False, "vllm": True}
    assert offer["chat_template"] == {"origin": "default:chatml", "text": "{{ messages }}"}


def test_what_is_offered_is_taken_and_what_is_not_is_refused(account: Account) -> None:
    (offer,) = account.http.get("/v1/fine_tuning/models").json()["data"]
    for adapter in ("lora", "qlora", "full", "layers", "ia3", "prompt", "prefix"):
        layers = {"layers": [0]} if adapter == "layers" else {}
        answer = create(account, ext={"adapter": adapter} | layers)
        assert (answer.status_code == 200) == (adapter in offer["methods"]["supervised"]["adapters"]), answer.text
    pairs = upload(account, preference_rows(12))
    for method in ("supervised", "dpo", "reinforcement"):
        file = {"training_file": pairs} if method == "dpo" else {}
        answer = create(account, method={"type": method}, **file)
        assert (answer.status_code == 200) == (method in offer["methods"]), answer.text


def test_the_bounds_are_those_of_a_job(account: Account) -> None:
    (offer,) = account.http.get("/v1/fine_tuning/models").json()["data"]
    for name, bounds in offer["limits"].items():
        if name in ("n_epochs", "batch_size"):
            most = create(account, hyperparameters={name: int(bounds["max"])})
            more = create(account, hyperparameters={name: int(bounds["max"]) + 1})
            assert (most.status_code, more.status_code) == (200, 400)
    ranks = offer["limits"]["lora.rank"]
    for rank, status in ((ranks["min"], 200), (ranks["max"], 200), (ranks["max"] + 1, 400), (ranks["min"] - 1, 400)):
        assert create(account, ext={"lora": {"rank": int(rank)}}).status_code == status


def test_the_recommended_values_can_be_used_as_they_are(account: Account) -> None:
    (offer,) = account.http.get("/v1/fine_tuning/models").json()["data"]
    answer = create(account, **offer["recommended"])
    assert answer.status_code == 200, answer.text
