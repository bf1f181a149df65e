"""The tiny model as its registration leaves it, for tests in which a prepare worker works."""

from pathlib import Path

from core.db.session import transaction
from core.db.tables import BaseModel
from core.storage import store as layout
from core.wiring import Parts
from worker.prepare.folder import Facts


def offer(parts: Parts, folder: Path, facts: Facts, name: str = "attune-tiny") -> BaseModel:
    files = [entry.model_dump(mode="json") for entry in facts.files]
    for entry in files:
        parts.store.put_file(layout.base_model(facts.sha256, entry["path"]), folder / entry["path"])
    with transaction(parts.sessions) as session:
        row = BaseModel(
            id=f"base_{name}",
            name=name,
            source="path:/nowhere",
            status="ready",
            facts=facts.model_dump(mode="json"),
            files={"files": files},
            content_sha256=facts.sha256,
        )
        session.add(row)
    return row
