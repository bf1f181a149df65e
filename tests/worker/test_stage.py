"""Checkpoints out of the store: whole and as their row says, or not at all."""

import hashlib
import json
from pathlib import Path

import pytest

from core.db.tables import Checkpoint
from core.errors import Conflict
from core.wiring import Parts
from worker import publish, stage


@pytest.fixture
def made(parts: Parts, tmp_path: Path) -> Checkpoint:
    """A published checkpoint of two files."""
    source = tmp_path / "source"
    source.mkdir()
    entries = []
    for name in ("state.json", "state.safetensors"):
        (source / name).write_bytes(name.encode() * 100)
        entries.append(
            {
                "path": name,
                "bytes": (source / name).stat().st_size,
                "sha256": hashlib.sha256((source / name).read_bytes()).hexdigest(),
            }
        )
    (source / "manifest.json").write_text(json.dumps({"version": 1, "files": entries}))
    prefix = f"jobs/{tmp_path.name}/gen-1/checkpoints/step-4/"
    manifest, sha256 = publish.folder(parts.store, source, prefix)
    return Checkpoint(
        job_id="ftjob-x", step=4, storage_prefix=prefix, manifest=manifest, manifest_sha256=sha256, generation=1
    )


def test_a_whole_checkpoint_arrives(parts: Parts, made: Checkpoint, tmp_path: Path) -> None:
    folder = stage.checkpoint(parts.store, made, tmp_path / "job")
    assert (folder / "state.json").read_bytes() == b"state.json" * 100
    assert (folder / "manifest.json").exists()


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_checkpoint_is_never_used(
    parts: Parts, made: Checkpoint, tmp_path: Path, name: str, damage: str
) -> None:
    key = made.storage_prefix + name
    content = parts.store.get(key)
    if damage == "gone":
        parts.store.delete(key)
    elif damage == "cut":
        parts.store.put(key, content[:-1])
    else:
        parts.store.put(key, bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(stage.CheckpointDamaged, match=name.replace(".", r"\.")):
        stage.checkpoint(parts.store, made, tmp_path / "job")


def test_a_manifest_is_written_once(parts: Parts, made: Checkpoint, tmp_path: Path) -> None:
    """A late upload under the same prefix must not replace what a row names."""
    source = tmp_path / "source"
    assert publish.folder(parts.store, source, made.storage_prefix)[1] == made.manifest_sha256
    (source / "manifest.json").write_text('{"version": 1, "files": []}')
    with pytest.raises(Conflict):
        publish.folder(parts.store, source, made.storage_prefix)
