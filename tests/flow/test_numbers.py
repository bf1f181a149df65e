"""Each process counts what it does, and Prometheus can fetch it: one job moves the numbers of all four."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import chat_rows
from tests.live import Live

pytestmark = pytest.mark.flow

PROCESSES = ("api", "prepare", "train", "reconciler")


def scrape(live: Live, process: str) -> dict[str, float]:
    """The sum over all labels of each sample that the process has."""
    port = int(live.env["ATTUNE_METRICS_PORT"]) + PROCESSES.index(process)
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_a_job_moves_the_numbers(live: Live) -> None:
    before = {process: scrape(live, process) for process in PROCESSES}

    def moved(process: str, name: str) -> float:
        return scrape(live, process).get(f"attune_{name}", 0.0) - before[process].get(f"attune_{name}", 0.0)

    file = live.client.files.create(file=("train.jsonl", chat_rows(20)), purpose="fine-tune")
    job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file.id)
    assert live.wait(job.id).status == "succeeded"
    live.until(lambda: moved("train", "jobs_ended_total"), 30, "the worker has counted the job")
    assert moved("api", "requests_total") >= 3
    assert moved("api", "request_seconds_count") >= 3
    assert moved("prepare", "claims_total") >= 1
    assert moved("train", "claims_total") == 1
    assert moved("train", "claim_seconds_count") == 1
    assert moved("train", "steps_total") == live.job(job.id).ext["progress"]["total_steps"]
    assert moved("train", "tokens_total") > 0
    assert moved("train", "jobs_ended_total") == 1
    assert moved("train", "phase_seconds_count") >= 3
    assert scrape(live, "train")["attune_tokens_per_second"] > 0
    live.until(lambda: moved("reconciler", "sweeps_total"), 30, "a sweep")
    swept = scrape(live, "reconciler")
    assert (swept["attune_database_up"], swept["attune_workers"]) == (1, 2)
