"""An API process of its own on its own database, holding one of everything that a request can name."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from core import ids
from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.db.tables import ApiKey, Attempt, BaseModel, Checkpoint, Job, Metric, Project, TunedModel, Worker
from core.services import events, files, tenants
from core.states import Phase, Status
from core.storage import store as layout
from core.storage.s3 import S3Store
from core.wiring import Parts
from migrations.__main__ import migrate, prepare
from tests.conftest import Rings, chat_rows, fresh_database, plain_environment
from tests.live import free_port

ROOT = Path(__file__).resolve().parents[2]
BASE = "attune-tiny"
ALIAS = "gpt-4o-mini-2024-07-18"

# One of each way that a job can stand, with the phase it is shown in.
_STANDINGS = (
    (Status.VALIDATING, Phase.CREATED),
    (Status.QUEUED, Phase.QUEUED),
    (Status.QUEUED, Phase.PAUSED),
    (Status.RUNNING, Phase.TRAINING),
    (Status.SUCCEEDED, Phase.COMPLETED),
    (Status.FAILED, Phase.FAILED),
    (Status.CANCELLED, Phase.CANCELLED),
)


@dataclass
class Service:
    url: str
    key: str
    key_id: str
    log: Path
    other_project: str = "proj_other"
    uploads: list[dict[str, object]] = field(default_factory=list)
    """Uploads that need nothing but to be completed."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """What a path parameter or a field of this name can be, so that not every request names a thing that is not."""

    def alive(self) -> bool:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.get(f"{self.url}/v1/fine_tuning/jobs", headers=headers, timeout=30).status_code == 200


@contextmanager
def running(servers: dict[str, str], folder: Path) -> Iterator[Service]:
    """The service, seeded and ready; ends with its process."""
    key = ids.secret_key()
    environment = servers | {
        "ATTUNE_DATABASE_URL": fresh_database(servers, f"fuzz_{folder.name}".replace("-", "_")),
        "ATTUNE_S3_BUCKET": "fuzz",
        "ATTUNE_HOME": str(folder / "home"),
        "ATTUNE_BOOTSTRAP_ADMIN_KEY": key,
        "ATTUNE_PORT": str(free_port()),
        # No worker answers here, and a request that waits for one only takes time.
        "ATTUNE_ANSWER_WAIT_SECONDS": "0",
        # Webhooks go to the service itself: it is the only receiver that is sure to be there.
        "ATTUNE_WEBHOOK_ALLOW": "127.0.0.1",
    }
    settings = Settings(**{name.removeprefix("ATTUNE_").lower(): value for name, value in environment.items()})
    bound = engine(settings)
    migrate(bound)
    prepare(settings, bound)
    parts = Parts(settings, sessions(bound), S3Store(settings), Rings())
    service = Service(f"http://127.0.0.1:{settings.port}", key, "", folder / "api.log")
    with service.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env=plain_environment() | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        _until_ready(service, process)
        seed(service, parts)
        yield service
    finally:
        parts.close()
        process.terminate()
        process.wait(30)


def _until_ready(service: Service, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, service.log.read_text()
        try:
            if httpx.get(f"{service.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(service.log.read_text())


def seed(service: Service, parts: Parts) -> None:
    """Files through the API; the rows that only workers write, directly."""
    with transaction(parts.sessions) as session:
        own = session.query(ApiKey).one()
        project = session.get_one(Project, own.project_id)
        service.key_id = own.id
        session.add(Project(id=service.other_project, organization_id=project.organization_id, name="other"))
        session.add(
            BaseModel(
                id="base_tiny",
                name=BASE,
                source="path:/nowhere",
                aliases=[ALIAS],
                status="ready",
                facts={"sha256": "0" * 64, "parameters": 200_000, "context_length": 512},
                files={"files": [{"path": "config.json", "bytes": 2, "sha256": "0" * 64}]},
                content_sha256="0" * 64,
            )
        )
        session.add(
            Worker(
                id=ids.worker(),
                name="fuzz",
                kind="train",
                slots=1,
                device="cpu",
                memory_bytes=1 << 30,
                base_models=[BASE],
                version="0.1.0",
            )
        )
        tenant = tenants.of_project(session, project.id)
    headers = {"authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=f"{service.url}/v1", headers=headers) as http:
        made = [
            http.post("/files", data={"purpose": "fine-tune"}, files={"file": ("train.jsonl", chat_rows(12))}).json()
            for _ in range(3)
        ]
        for _ in range(10):
            body = {"bytes": 3, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
            upload = http.post("/uploads", json=body).json()["id"]
            part = http.post(f"/uploads/{upload}/parts", files={"data": ("upload", b"abc")}).json()["id"]
            service.uploads.append({"id": upload, "part_ids": [part]})
        hook = {"name": "own", "url": f"{service.url}/hook", "event_types": ["fine_tuning.job.succeeded"]}
        endpoints = [http.post("/webhook_endpoints", json=hook).json()["id"] for _ in range(5)]
    file_ids = [file["id"] for file in made]
    job_ids, models = [], [BASE, ALIAS]
    with transaction(parts.sessions) as session:
        for status, phase in _STANDINGS * 8:
            job = Job(
                id=ids.job(),
                project_id=tenant.project_id,
                model=BASE,
                base_model_id="base_tiny",
                training_file=file_ids[0],
                seed=1,
                method={"type": "supervised", "supervised": {"hyperparameters": {}}},
                options={},
                status=status,
                phase=phase,
                event_count=0,
            )
            session.add(job)
            session.flush()
            for number in range(3):
                events.append(session, job, f"Event {number}")
            if status in (Status.RUNNING, Status.SUCCEEDED):
                _tried(job, session)
            if status == Status.SUCCEEDED:
                job.fine_tuned_model = f"ft:{BASE}:attune::{job.id[-8:]}"
                models.append(job.fine_tuned_model)
                models.append(f"{job.fine_tuned_model}:ckpt-step-2")
                key = layout.run(job.id, 1, "metrics.csv")
                parts.store.put(layout.run(job.id, 1, "trainer.log"), b"step 1\n")
                session.add_all(_measured(job, step) for step in (1, 2))
                parts.store.put(key, b"step,train_loss\n")
                file = files.add_result(session, job, "metrics.csv", key, 16, "0" * 64)
                session.flush()
                job.result_files = [file.id]
                file_ids.append(file.id)
                session.add(
                    TunedModel(
                        id=job.fine_tuned_model,
                        project_id=tenant.project_id,
                        job_id=job.id,
                        base_model_id="base_tiny",
                        storage_prefix=layout.run(job.id, 1, "artifact/"),
                        manifest={"files": [{"path": "metrics.csv", "bytes": 16, "sha256": "0" * 64}]},
                    )
                )
            if status == Status.FAILED:
                job.error = {"code": "invalid_training_file", "message": "line 3: no messages", "param": None}
            job_ids.append(job.id)
    service.names |= {
        "job_id": job_ids,
        "file_id": file_ids,
        "model": models,
        "name": [BASE],
        "training_file": file_ids[1:3],
        "webhook_endpoint_id": endpoints,
        "url": [f"{service.url}/hook"],
    }


def _tried(job: Job, session: object) -> None:
    assert hasattr(session, "add")
    session.add(Attempt(job_id=job.id, n=1, generation=1, worker_id="worker_fuzz", steps=2, tokens=100))
    session.add(
        Checkpoint(
            id=ids.checkpoint(),
            job_id=job.id,
            step=2,
            epoch=1.0,
            kind="epoch",
            generation=1,
            storage_prefix=layout.run(job.id, 1, "checkpoints/step-2/"),
            manifest={"files": []},
            manifest_sha256="0" * 64,
            metrics={"train_loss": 0.5, "train_accuracy": 0.9},
        )
    )


def _measured(job: Job, step: int) -> Metric:
    return Metric(
        job_id=job.id,
        step=step,
        generation=1,
        epoch=0.5 * step,
        train_loss=1.0 / step,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=100,
        trained_tokens=50,
        seconds=0.1,
    )
