"""``make bench-api``: what the API does under load. CHECK=1 ends with status 1 when a figure is missed.

``python -m bench.api PART…`` runs some of jobs, events, files, uploads, lists. One core for the API, the other for the
clients; PostgreSQL, Redis and the store share both.
"""

import asyncio
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from boto3.s3.transfer import TransferConfig
from sqlalchemy import text

from bench.app import EMPTY
from bench.figure import Figure, closed
from bench.load import saturate, steadily
from cli.stack.plan import SERVERS_ONLY
from cli.stack.stack import Stack
from core import ids
from core.config import MIB, Settings
from core.db.session import engine, sessions, transaction
from core.services import keys, tenants
from core.storage.s3 import S3Store
from migrations.__main__ import migrate, prepare

API_CORE, CLIENT_CORE = 0, 1
GIB = 1024 * MIB


class Bench:
    def __init__(self, settings: Settings, key: str, port: int, pid: int, spool: Path) -> None:
        self.settings, self.key, self.port, self.pid, self.spool = settings, key, port, pid, spool
        self.base = f"http://127.0.0.1:{port}"
        self.figures: list[Figure] = []

    def say(self, *figure: Any, **more: Any) -> None:
        self.figures.append(Figure(*figure, **more))
        sys.stdout.write(f"{self.figures[-1]}\n")
        sys.stdout.flush()

    @property
    def where(self) -> tuple[str, int, str]:
        return "127.0.0.1", self.port, self.key

    def memory(self) -> int:
        """Resident bytes of the API process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


def main() -> int:
    os.sched_setaffinity(0, {CLIENT_CORE} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
    rows = int(os.environ.get("BENCH_JOBS", "1000000"))
    upload = int(os.environ.get("BENCH_UPLOAD_BYTES", str(2 * GIB)))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, serving(Path(folder)) as bench:
        job_id = small_database(bench)
        parts = {
            "jobs": lambda: one_job(bench, job_id),
            "events": lambda: events_to_clients(bench, job_id),
            "files": lambda: uploads(bench, job_id, upload),
            "uploads": lambda: parallel_parts(bench, 2 * upload),
            "lists": lambda: lists(bench, job_id, rows),
        }
        for name in sys.argv[1:] or parts:
            parts[name]()
    return closed(bench.figures)


@contextmanager
def serving(folder: Path) -> Iterator[Bench]:
    """Servers, a database, and the API on its core."""
    stack = Stack(folder / "home", plan=SERVERS_ONLY)
    stack.start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = stack.env | {"ATTUNE_BOOTSTRAP_ADMIN_KEY": ids.secret_key(), "ATTUNE_S3_BUCKET": "bench"}
    fields = {name.removeprefix("ATTUNE_").lower(): value for name, value in env.items() if name.startswith("ATTUNE_")}
    settings = Settings(**fields)
    bound = engine(settings)
    migrate(bound)
    prepare(settings, bound)
    with transaction(sessions(bound)) as session:
        _, key = keys.create(session, tenants.default(session, "bench").id, "bench", ["read", "train"])
    command = [sys.executable, "-m", "uvicorn", "bench.app:create_app", "--factory", "--port", str(port)]
    # As ``python -m api`` has it.
    command += ["--timeout-keep-alive", "75"]
    spool = folder / "tmp"
    spool.mkdir()
    with (folder / "api.log").open("w") as log:
        api = subprocess.Popen(
            ["taskset", "-c", str(API_CORE), *command, "--log-level", "warning", "--no-access-log"],
            env=env | {"TMPDIR": str(spool)},
            stdout=log,
            stderr=log,
            # As the stack starts it: Linux shares the processor between sessions.
            start_new_session=True,
        )
    try:
        bench = Bench(settings, key, port, api.pid, spool)
        wait_for(lambda: httpx.get(f"{bench.base}/readyz").status_code == 200)
        yield bench
    finally:
        api.terminate()
        api.wait()
        bound.dispose()
        stack.stop()
        stack.purge()


def wait_for(true: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("not in time")


def small_database(bench: Bench) -> str:
    """A thousand jobs with five events each; returns the newest."""
    fill(bench, 1000)
    return newest_job(bench)


def fill(bench: Bench, jobs: int) -> None:
    """Rows straight into the tables: the API is measured at reading."""
    bound = engine(bench.settings)
    with bound.begin() as connection:
        have = connection.scalar(text("SELECT count(*) FROM jobs")) or 0
        project = connection.scalar(text("SELECT id FROM projects LIMIT 1"))
        connection.execute(
            text(
                "INSERT INTO base_models (id, name, source, status) VALUES ('base_b', 'bench', 'path:/', 'ready') "
                "ON CONFLICT DO NOTHING"
            )
        )
        connection.execute(
            text(
                "INSERT INTO files (id, project_id, purpose, filename, bytes, sha256, storage_key, status, created_at) "
                "SELECT 'file-' || n, :p, 'fine-tune', 'a', 1, '0', 'k', 'processed', now() - make_interval(secs => n) "
                "FROM generate_series(CAST(:a AS int), CAST(:b AS int)) n"
            ),
            {"p": project, "a": have, "b": jobs - 1},
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, project_id, model, base_model_id, training_file, seed, method, options, status, "
                "phase, event_count, created_at) SELECT 'ftjob-' || n, :p, 'bench', 'base_b', 'file-' || n, 0, "
                '\'{"type":"supervised","supervised":{"hyperparameters":{}}}\', \'{}\', \'succeeded\', '
                "'completed', 5, now() - make_interval(secs => n) "
                "FROM generate_series(CAST(:a AS int), CAST(:b AS int)) n"
            ),
            {"p": project, "a": have, "b": jobs - 1},
        )
        connection.execute(
            text(
                "INSERT INTO events (job_id, number, id, level, message) SELECT 'ftjob-' || n, k, "
                "'ftevent-' || n || '-' || k, 'info', 'm' FROM generate_series(CAST(:a AS int), CAST(:b AS int)) n, "
                "generate_series(1, 5) k"
            ),
            {"a": have, "b": jobs - 1},
        )
        if not have:
            # One job with many events and checkpoints, to page through.
            connection.execute(
                text(
                    "INSERT INTO events (job_id, number, id, level, message) SELECT 'ftjob-0', k, 'ftevent-0-' || k, "
                    "'info', 'm' FROM generate_series(6, 5000) k"
                )
            )
            connection.execute(text("UPDATE jobs SET event_count = 5000 WHERE id = 'ftjob-0'"))
            connection.execute(
                text(
                    "INSERT INTO checkpoints (id, job_id, step, epoch, kind, generation, storage_prefix, manifest, "
                    "manifest_sha256, metrics) SELECT 'ftckpt_' || k, 'ftjob-0', k, k, 'epoch', 1, 'p', '{}', '0', "
                    "'{}' FROM generate_series(1, 200) k"
                )
            )
    with bound.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    bound.dispose()


def newest_job(bench: Bench) -> str:
    answer = httpx.get(
        f"{bench.base}/v1/fine_tuning/jobs?limit=1", headers={"Authorization": f"Bearer {bench.key}"}
    ).json()
    job_id: str = answer["data"][0]["id"]
    return job_id


def one_job(bench: Bench, job_id: str) -> None:
    path = f"/v1/fine_tuning/jobs/{job_id}"
    ratios, rates = [], []
    # In turn, so that a machine that slows down slows both.
    for _ in range(3):
        empty = asyncio.run(saturate(*bench.where, EMPTY, 32, 4))
        job = asyncio.run(saturate(*bench.where, path, 32, 4))
        assert empty.failures == job.failures == 0
        ratios.append(job.rate / empty.rate)
        rates.append((job.rate, empty.rate))
    ratio = sorted(ratios)[1]
    bench.say("GET job, 32 connections: rate over that of an empty route", ratio, "", 0.5, at_least=True)
    bench.say("  GET job", sorted(rates)[1][0], "req/s", None)
    bench.say("  empty route", sorted(rate for _, rate in rates)[1], "req/s", None)
    with training():
        steady = asyncio.run(steadily(*bench.where, path, 200, 10))
    bench.say("GET job at 200 req/s while both cores are busy training: p99", 1000 * steady.quantile(0.99), "ms", 50)


@contextmanager
def training() -> Iterator[None]:
    """A process that multiplies matrices on every core, and stands back as far as a trainer does."""
    code = (
        "import torch\nfrom core.priority import stand_back\nfrom worker.child import NICE\nstand_back(NICE)\n"
        "a = torch.randn(1024, 1024)\nwhile True: a @ a"
    )
    # No taskset, unlike this process: it may use every core.
    cores = ",".join(map(str, range(os.cpu_count() or 1)))
    process = subprocess.Popen(["taskset", "-c", cores, sys.executable, "-c", code], start_new_session=True)
    time.sleep(5)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def events_to_clients(bench: Bench, job_id: str, clients: int = 500) -> None:
    """From the commit of an event to the moment it is at every one of the waiting clients."""
    bound = engine(bench.settings)
    with bound.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET status = 'running', phase = 'training' WHERE id = :id"), {"id": job_id}
        )
    arrivals: list[float] = []

    async def listen(ready: asyncio.Event, waiting: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        writer.write(
            f"GET /v1/fine_tuning/jobs/{job_id}/events?stream=true HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 5000\r\n"
            f"Authorization: Bearer {bench.key}\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        waiting.append(1)
        if len(waiting) == clients:
            ready.set()
        while b"bench-event" not in (await reader.readline()):
            continue
        arrivals.append(time.time())
        writer.close()

    async def run() -> float:
        ready, waiting = asyncio.Event(), list[int]()
        tasks = [asyncio.create_task(listen(ready, waiting)) for _ in range(clients)]
        await asyncio.wait_for(ready.wait(), 60)
        await asyncio.sleep(1)
        committed = await asyncio.to_thread(append)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        return committed

    def append() -> float:
        from core.db.tables import Job
        from core.services import events

        with transaction(sessions(bound)) as session:
            events.append(session, session.get_one(Job, job_id), "bench-event")
        return time.time()

    committed = asyncio.run(run())
    late = sorted(arrived - committed for arrived in arrivals)
    bench.say(f"event at the last of {clients} waiting clients after its commit", 1000 * late[-1], "ms", 300)
    bench.say("  at the median client", 1000 * late[len(late) // 2], "ms", None)
    with bound.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET status = 'succeeded', phase = 'completed' WHERE id = :id"), {"id": job_id}
        )
    bound.dispose()


def uploads(bench: Bench, job_id: str, size: int) -> None:
    def sender() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.sender", bench.base, str(size)]
        return subprocess.Popen(
            command,
            env=os.environ | {"BENCH_KEY": bench.key},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    with Memory(bench) as memory:
        sending = sender()
        time.sleep(3)
        steady = asyncio.run(steadily(*bench.where, f"/v1/fine_tuning/jobs/{job_id}", 200, 10))
        assert sending.poll() is None, "the upload was over before the measurement"
        sending.communicate()
        # Throughput of an upload that has the machine to itself, against the plain library in the same run.
        seconds = float(sender().communicate()[0])
    bench.say("  median", 1000 * steady.quantile(0.5), "ms", None)
    bench.say("GET job at 200 req/s during an upload: p99", 1000 * steady.quantile(0.99), "ms", 100)
    bench.say(f"API memory grown during a {size / GIB:g} GiB upload", memory.grown, "MiB", 64)
    bench.say("temporary files made", memory.temporary_files, "", 0)
    plain = boto3_multipart(bench.settings, os.urandom(MIB), size)
    bench.say("upload throughput over that of plain boto3 multipart", plain / seconds, "", 0.7, at_least=True)
    bench.say("  through the API", size / MIB / seconds, "MiB/s", None)
    bench.say("  plain boto3", size / MIB / plain, "MiB/s", None)


class Memory:
    """The API's greatest growth while this is open, and the temporary files it made."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._before = self._peak = self._bench.memory()
        self._files = set[Path]()
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self._peak = max(self._peak, self._bench.memory())
            self._files.update(self._bench.spool.iterdir())

    @property
    def temporary_files(self) -> int:
        return len(self._files)

    @property
    def grown(self) -> float:
        """MiB"""
        return (self._peak - self._before) / MIB


def parallel_parts(bench: Bench, size: int, at_once: int = 4) -> None:
    """An upload of this size in parts of 64 MiB, some of them at once; joining them is the prepare worker's part."""
    headers = {"Authorization": f"Bearer {bench.key}"}
    part = os.urandom(MIB) * 64
    body = {"filename": "big.bin", "purpose": "user_data", "mime_type": "application/octet-stream", "bytes": size}
    with httpx.Client(base_url=bench.base, headers=headers, timeout=600) as client:
        upload = client.post("/v1/uploads", json=body).json()["id"]

        def send(_: int) -> str:
            answer = client.post(f"/v1/uploads/{upload}/parts", files={"data": ("blob", part)})
            assert answer.status_code == 200, answer.text
            made: str = answer.json()["id"]
            return made

        began = time.perf_counter()
        with Memory(bench) as memory, ThreadPoolExecutor(at_once) as threads:
            made = list(threads.map(send, range(size // len(part))))
        seconds = time.perf_counter() - began
        assert client.post(f"/v1/uploads/{upload}/cancel").status_code == 200
    assert len(made) == size // len(part)
    bench.say(f"API memory grown during {size / GIB:g} GiB by Uploads, {at_once} at once", memory.grown, "MiB", 64)
    bench.say("temporary files made", memory.temporary_files, "", 0)
    plain = boto3_parallel(bench.settings, part, size, at_once)
    bench.say("Uploads' throughput over that of plain boto3, as parallel", plain / seconds, "", 0.7, at_least=True)
    bench.say("  through the API", size / MIB / seconds, "MiB/s", None)
    bench.say("  plain boto3", size / MIB / plain, "MiB/s", None)


def boto3_parallel(settings: Settings, part: bytes, size: int, at_once: int) -> float:
    """Seconds for the same bytes straight to the store: boto3's own transfer, as many requests at once."""
    store = S3Store(settings)
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=at_once)
    began = time.perf_counter()
    for n in range(size // len(part)):
        store._client.upload_fileobj(io.BytesIO(part), settings.s3_bucket, f"bench/part-{n}", Config=config)
    seconds = time.perf_counter() - began
    store.delete(*(f"bench/part-{n}" for n in range(size // len(part))))
    return seconds


def boto3_multipart(settings: Settings, block: bytes, size: int) -> float:
    store = S3Store(settings)
    began = time.perf_counter()
    upload = store.multipart("bench/plain")
    part = block * 8
    for _ in range(size // len(part)):
        upload.part(part)
    upload.complete()
    seconds = time.perf_counter() - began
    store.delete("bench/plain")
    return seconds


def lists(bench: Bench, job_id: str, rows: int) -> None:
    def paths() -> dict[str, str]:
        deep = {"jobs": "ftjob-900", "files": "file-900"}
        return {
            "jobs, first page": "/v1/fine_tuning/jobs?limit=20",
            "jobs, deep page": f"/v1/fine_tuning/jobs?limit=20&after={deep['jobs']}",
            "files, first page": "/v1/files?limit=20",
            "files, deep page": f"/v1/files?limit=20&after={deep['files']}",
            "events, first page": f"/v1/fine_tuning/jobs/{job_id}/events?limit=20",
            "events, deep page": "/v1/fine_tuning/jobs/ftjob-0/events?limit=20&after=ftevent-0-100",
            "checkpoints, first page": "/v1/fine_tuning/jobs/ftjob-0/checkpoints?limit=20",
            "checkpoints, deep page": "/v1/fine_tuning/jobs/ftjob-0/checkpoints?limit=20&after=ftckpt_50",
        }

    small = {name: median(bench, path) for name, path in paths().items()}
    began = time.perf_counter()
    fill(bench, rows)
    sys.stdout.write(f"  {rows:,} jobs and {5 * rows:,} events made in {time.perf_counter() - began:.0f} s\n")
    for name, path in paths().items():
        bench.say(f"list {name}: p50 at {rows:,} jobs over that at 1,000", median(bench, path) / small[name], "", 1.2)
    tuned_models(bench)
    bench.say("GET /v1/models with 1,000 tuned models: p50", 1000 * median(bench, "/v1/models", 20), "ms", 100)


def median(bench: Bench, path: str, count: int = 200) -> float:
    with httpx.Client(headers={"Authorization": f"Bearer {bench.key}"}) as client:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            answer = client.get(bench.base + path)
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
    return sorted(seconds)[count // 2]


def tuned_models(bench: Bench) -> None:
    bound = engine(bench.settings)
    with bound.begin() as connection:
        connection.execute(
            text(
                "UPDATE jobs SET fine_tuned_model = 'ft:bench:bench::' || id "
                "WHERE id IN (SELECT 'ftjob-' || n FROM generate_series(0, 999) n)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO tuned_models (id, project_id, job_id, base_model_id, storage_prefix, manifest) "
                "SELECT fine_tuned_model, project_id, id, base_model_id, 'p', '{}' FROM jobs "
                "WHERE fine_tuned_model IS NOT NULL"
            )
        )
    bound.dispose()


if __name__ == "__main__":
    sys.exit(main())
