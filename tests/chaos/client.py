"""A client that wants its job whatever happens to the service: it repeats what got no answer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai
from openai import OpenAI

from tests.chaos.generator import Work


@dataclass
class Submission:
    """A job on its way in, in a thread of its own; the thread that owns the stack must not wait for it."""

    client: OpenAI
    work: Work
    mark: int
    name: str
    job_id: str | None = None
    """Set when the service has said that it has the job."""
    told: list[str] = field(default_factory=list)
    """Ids of jobs that any answer named: a retry must name the first one."""
    refusal: str | None = None

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def over(self) -> bool:
        return self.job_id is not None or self.refusal is not None

    def give_up(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        try:
            file = self._insist(lambda: self._upload(self.work.rows(self.mark)))
            rows = self.work.validation()
            valid = None if rows is None else self._insist(lambda: self._upload(rows))
            job = self._create_thrice(file, valid)
        except Refused as error:
            self.refusal = str(error)
        else:
            self.job_id = job

    def _insist(self, ask: Any) -> str:  # Any: () -> str
        while not self._ended.is_set():
            try:
                return str(ask())
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError):
                time.sleep(0.3)
            except openai.APIStatusError as error:
                raise Refused(f"{error.status_code} {error.message}") from error
        raise Refused("nobody answered")

    def _create_thrice(self, file: str, valid: str | None) -> str:
        """As a hasty client does it: the same request on three connections. All must be told of one job."""
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(self._insist, lambda: self._create(file, valid)) for _ in range(3)]
        return answers[0].result()

    def _upload(self, rows: bytes) -> str:
        return self.client.files.create(file=("rows.jsonl", rows), purpose="fine-tune").id

    def _create(self, file: str, valid: str | None) -> str:
        job = self.client.fine_tuning.jobs.create(
            model="attune-tiny",
            training_file=file,
            **({} if valid is None else {"validation_file": valid}),
            seed=7,
            method=self.work.method,  # type: ignore[arg-type]
            metadata={"trial": self.name},
            extra_body={"ext": self.work.ext},
            extra_headers={"Idempotency-Key": self.name},
        )
        self.told.append(job.id)
        return job.id


class Refused(Exception):
    pass
