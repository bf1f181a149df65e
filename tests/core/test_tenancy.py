"""The one door: code that acts for a tenant never selects a tenant's rows by itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWNED = {"Answer", "File", "Job", "Permission", "TunedModel", "Upload", "WebhookEndpoint"}

# These act for the service itself: they take rows by an id that another row of the service names, or sweep all of them.
WORKERS_SIDE = {
    "deliveries.py",
    "joins.py",
    "litter.py",
    "replies.py",
    "progress.py",
    "runs.py",
    "sweeps.py",
    "token_sets.py",
    "workers.py",
}

WATCHED = [
    *sorted((ROOT / "api").rglob("*.py")),
    *sorted(path for path in (ROOT / "core" / "services").glob("*.py") if path.name not in WORKERS_SIDE),
]


def bypasses(source: str) -> list[int]:
    """Lines that select or get a tenant's rows without the door."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        whose = (
            node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
        )
        first = node.args[0] if node.args else None
        table = first.id if isinstance(first, ast.Name) else None
        if table in OWNED and (
            name in ("select", "update", "delete") or (whose == "session" and name.startswith("get"))
        ):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", WATCHED, ids=lambda path: str(path.relative_to(ROOT)))
def test_tenants_rows_come_through_the_door(path: Path) -> None:
    assert bypasses(path.read_text()) == []


def test_the_check_sees_a_bypass() -> None:
    assert bypasses("session.scalar(select(Job).where(Job.id == id))") == [1]
    assert bypasses("session.get_one(File, id)") == [1]
    assert bypasses("tenancy.get(session, Job, tenant, id)\nselect(Event)") == []
