"""Following a job to its end: its events as they come, and a live progress bar."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID

from cli import curve, output
from cli.exits import Exit, Refused

if TYPE_CHECKING:
    from openai import OpenAI

POLL_SECONDS = 1.0
ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass
class View:
    """What the bar shows of a job."""

    phase: str
    step: int
    total: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    seen: str | None
    """The first of its findings, by its code"""

    @classmethod
    def of(cls, job: dict[str, Any], loss: float | None) -> "View":
        ext = job.get("ext") or {}
        progress = ext.get("progress") or {}
        return cls(
            phase=ext.get("phase") or job["status"],
            step=progress.get("step") or 0,
            total=progress.get("total_steps"),
            loss=progress.get("train_loss", loss),
            tokens_per_second=progress.get("tokens_per_second"),
            seconds_left=progress.get("seconds_remaining"),
            seen=next((finding["code"].replace("_", " ") for finding in ext.get("diagnosis") or []), None),
        )

    def facts(self) -> str:
        words = [f"loss {self.loss:.4f}" if self.loss is not None else ""]
        words.append(f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else "")
        words.append(f"{output.duration(self.seconds_left)} left" if self.seconds_left is not None else "")
        words.append(self.seen or "")
        return "  ".join(filter(None, words))


def follow(client: "OpenAI", job_id: str, *, as_json: bool) -> dict[str, Any]:
    """Show a job until it has ended and give it; raises Refused when it failed or was cancelled."""
    events = Events(client, job_id)
    job = client.fine_tuning.jobs.retrieve(job_id).model_dump(mode="json")
    with output.steps_progress(not as_json) as bar:
        task = bar.add_task(job["status"], total=None, steps="", facts="")
        while True:
            for event in events.new():
                _show_event(bar, event, as_json)
            _draw(bar, task, View.of(job, events.loss))
            if job["status"] in ENDED:
                break
            time.sleep(POLL_SECONDS)
            job = client.fine_tuning.jobs.retrieve(job_id).model_dump(mode="json")
    if as_json:
        output.json_line(job)
    _end(job, as_json)
    return job


def _draw(bar: Progress, task: TaskID, view: View) -> None:
    steps = f"step {view.step}/{view.total}" if view.total else ""
    bar.update(task, description=view.phase, total=view.total, completed=view.step, steps=steps, facts=view.facts())


def _show_event(bar: Progress, event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.json_line(event)
    elif event.get("type") != "metrics":
        # Each step's figures are in the bar.
        bar.console.print(f"{output.moment(event['created_at'])}  {event['message']}", markup=False)
        if found := (event.get("data") or {}).get("curve"):
            bar.console.print("\n".join(curve.text(found, event["data"]["value"])), markup=False, highlight=False)


def _end(job: dict[str, Any], as_json: bool) -> None:
    if job["status"] == "succeeded":
        if not as_json:
            output.line(f"{job['fine_tuned_model']}")
        return
    if job["status"] == "cancelled":
        raise Refused(f"{job['id']} was cancelled", Exit.JOB_CANCELLED)
    error = job.get("error") or {}
    raise Refused(f"{job['id']} failed: {error.get('message') or 'no reason was given'}", Exit.JOB_FAILED)


class Events:
    """A job's events, oldest first, each once."""

    def __init__(self, client: "OpenAI", job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._seen: str | None = None
        self.loss: float | None = None
        """The training loss of the newest metrics event."""

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call. The API lists the newest first: read on until one is known."""
        found: list[dict[str, Any]] = []
        for event in self._client.fine_tuning.jobs.list_events(self._job_id, limit=100):
            if event.id == self._seen:
                break
            found.append(event.model_dump(mode="json"))
        found.reverse()
        if found:
            self._seen = found[-1]["id"]
        for seen in found:
            loss = (seen.get("data") or {}).get("train_loss")
            if isinstance(loss, int | float):
                self.loss = float(loss)
        return found
