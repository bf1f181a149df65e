"""Whatever is cut, flipped or missing in a checkpoint or an artifact, nothing goes on from it in silence.

Cut at every file's boundary and at a hundred bytes between, in the order of writing; one bit flipped in every file.
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
import pytest

from core.db.tables import Checkpoint
from core.errors import JobError
from core.wiring import Parts
from tests import tiny
from tests.worker.train.conftest import Ran, again
from worker import publish, stage
from worker.folder import EXIT_CHECKPOINT_REFUSED, Manifest
from worker.train import manifest
from worker.train.load import Resident
from worker.train.run import run

STEPS = 8
PREFIX = "jobs/ftjob-torn/gen-1/"


class Damage(NamedTuple):
    name: str
    after: dict[str, bytes | None]
    """Files by name: what is left of each; None: it is missing."""


def damages(files: dict[str, bytes], cuts: int, seed: int = 0) -> Iterator[Damage]:
    """Files in the order of writing, the manifest last."""
    names = list(files)
    whole = sum(map(len, files.values()))
    boundaries = [sum(len(files[name]) for name in names[:n]) for n in range(len(names))]
    for at in [*boundaries, *sorted(random.Random(seed).sample(range(1, whole - 1), cuts))]:
        left: dict[str, bytes | None] = {}
        start = 0
        for name, content in files.items():
            part = content[: max(0, at - start)]
            left[name] = None if at <= start else part
            start += len(content)
        if left != files:
            yield Damage(f"cut at byte {at}", left)
    for name, content in files.items():
        at = random.Random(f"{seed} {name}").randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        yield Damage(f"bit {at} of {name} flipped", files | {name: bytes(flipped)})


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run with a checkpoint at every step, never disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    tiny.build_job(
        folder, base, tiny.random_rows(16), epochs=2, total_steps=STEPS, lora={"dropout": 0.2},
        recovery_fraction=1 / STEPS,
    )  # fmt: skip
    assert run(folder, Resident()) == 0
    return Ran(folder, 0)


def files_of(folder: Path) -> dict[str, bytes]:
    listed = Manifest.model_validate_json((folder / manifest.NAME).read_bytes()).files
    return {path: (folder / path).read_bytes() for path in [*(entry.path for entry in listed), manifest.NAME]}


def put(parts: Parts, prefix: str, left: dict[str, bytes | None]) -> None:
    for name, content in left.items():
        if content is None:
            parts.store.delete(prefix + name)
        else:
            parts.store.put(prefix + name, content)


def row_of(folder: Path, step: int) -> Any:  # Any: as much of a Checkpoint as staging reads
    raw = (folder / manifest.NAME).read_bytes()
    return SimpleNamespace(
        job_id="ftjob-torn",
        step=step,
        storage_prefix=f"{PREFIX}checkpoints/step-{step}/",
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
    )


def staged(parts: Parts, rows: list[Checkpoint], folder: Path) -> tuple[Path | None, int]:
    """The checkpoint that an attempt would go on from, and how many were passed over."""
    for passed, row in enumerate(rows):
        try:
            return stage.checkpoint(parts.store, row, folder), passed
        except stage.CheckpointDamaged:
            continue
    return None, len(rows)


def sweep_store(parts: Parts, whole: Ran, tmp_path: Path, cuts: int) -> int:
    newest, before = (whole.folder / "checkpoints" / f"step-{step}" for step in (6, 5))
    rows = [row_of(newest, 6), row_of(before, 5)]
    good = files_of(newest)
    put(parts, rows[1].storage_prefix, dict(files_of(before)))
    tried = 0
    for n, damage in enumerate(damages(good, cuts)):
        put(parts, rows[0].storage_prefix, damage.after)
        found, passed = staged(parts, rows, tmp_path / str(n))
        assert (found and found.name, passed) == ("step-5", 1), damage.name
        assert files_of(found or tmp_path) == files_of(before), damage.name
        shutil.rmtree(tmp_path / str(n))
        tried += 1
    put(parts, rows[0].storage_prefix, dict(good))
    assert staged(parts, rows, tmp_path / "good")[1] == 0
    return tried


def test_a_torn_checkpoint_in_the_store_is_never_staged_and_the_one_before_is(
    parts: Parts, whole: Ran, tmp_path: Path
) -> None:
    assert sweep_store(parts, whole, tmp_path, cuts=100) >= 100 + 2 * len(files_of(whole.folder / "checkpoints/step-6"))


def sweep_folder(whole: Ran, tmp_path: Path, cuts: int) -> int:
    """The trainer itself is given the damaged folder, as if nobody had looked at it before."""
    source = whole.folder / "checkpoints" / "step-6"
    tried = 0
    for n, damage in enumerate(damages(files_of(source), cuts, seed=1)):
        copy = tmp_path / f"{n}" / "step-6"
        copy.mkdir(parents=True)
        for name, content in damage.after.items():
            if content is not None:
                (copy / name).write_bytes(content)
        resumed = again(whole.folder, tmp_path / f"job-{n}", copy)
        status = run(resumed, Resident())
        if status == 0:
            # A manifest that lost its last line's end still says all, and every byte of the files is right.
            raw = damage.after[manifest.NAME] or b""
            assert orjson.loads(raw) == orjson.loads((source / manifest.NAME).read_bytes()), damage.name
            assert Ran(resumed, 0).adapter_sha256 == whole.adapter_sha256, damage.name
        else:
            assert status == EXIT_CHECKPOINT_REFUSED, damage.name
            (told,) = tiny.read_events(resumed)
            assert told["data"]["code"].startswith("checkpoint_"), damage.name
        shutil.rmtree(tmp_path / f"{n}")
        shutil.rmtree(resumed)
        tried += 1
    return tried


def test_a_trainer_refuses_a_torn_folder(whole: Ran, tmp_path: Path) -> None:
    assert sweep_folder(whole, tmp_path, cuts=5) >= 15


@pytest.mark.proof
def test_a_trainer_refuses_a_torn_folder_wherever_it_is_torn(whole: Ran, tmp_path: Path) -> None:
    assert sweep_folder(whole, tmp_path, cuts=100) >= 110


def test_a_folder_that_was_torn_on_the_workers_disk_is_never_published(
    parts: Parts, whole: Ran, tmp_path: Path
) -> None:
    """Checkpoint and artifact alike: between writing and sending, a disk may change its mind."""
    for kind in ("checkpoints/step-6/", "artifact/"):
        source = whole.folder / kind
        for n, damage in enumerate(damages(files_of(source), 30)):
            copy = tmp_path / f"{n}"
            for name, content in damage.after.items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                if content is not None:
                    (copy / name).write_bytes(content)
            prefix = f"jobs/ftjob-torn/gen-{n + 2}/{kind}"
            try:
                publish.folder(parts.store, copy, prefix)
            except publish.Damaged:
                assert parts.store.size(prefix + manifest.NAME) is None, damage.name
            else:
                # Only the manifest's own layout was hit: what it says is said of the right bytes.
                published = Manifest.model_validate_json(parts.store.get(prefix + manifest.NAME))
                assert published == Manifest.model_validate_json((source / manifest.NAME).read_bytes()), damage.name
            shutil.rmtree(copy)


def test_a_torn_artifact_in_the_store_is_never_begun_from(parts: Parts, whole: Ran, tmp_path: Path) -> None:
    source = whole.folder / "artifact"
    listed = Manifest.model_validate_json((source / manifest.NAME).read_bytes()).files
    wanted = [entry.model_dump() for entry in listed if entry.path.startswith("adapter_")]
    good = {entry["path"]: (source / entry["path"]).read_bytes() for entry in wanted}
    init = {"name": "ft:tiny", "prefix": f"{PREFIX}artifact/", "sha256": "0", "files": wanted}
    tried = 0
    for n, damage in enumerate(damages(good, 100)):
        put(parts, f"{PREFIX}artifact/", damage.after)
        with pytest.raises(JobError) as refused:
            stage.origin(parts.store, tmp_path / str(n), init, optimizer=False)
        assert refused.value.error_code == "model_not_found", damage.name
        tried += 1
    put(parts, f"{PREFIX}artifact/", dict(good))
    stage.origin(parts.store, tmp_path / "good", init, optimizer=False)
    assert tried >= 104


Train = Callable[[Path], Ran]


def test_what_goes_on_from_the_one_before_ends_with_the_same_bytes(
    parts: Parts, whole: Ran, train: Train, tmp_path: Path
) -> None:
    rows = [row_of(whole.folder / "checkpoints" / f"step-{step}", step) for step in (6, 5)]
    for row in rows:
        put(parts, row.storage_prefix, dict(files_of(whole.folder / "checkpoints" / f"step-{row.step}")))
    parts.store.put(rows[0].storage_prefix + "state.safetensors", b"")
    found, passed = staged(parts, rows, tmp_path)
    assert passed == 1
    resumed = train(again(whole.folder, tmp_path / "job", found))
    assert resumed.events("started")[0]["resumed_from_step"] == 5
    assert resumed.adapter_sha256 == whole.adapter_sha256
