"""Rounds of ``schemathesis run``, each with the next seed, until as many cases were sent as were asked for."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import plain_environment
from tests.fuzz.service import BASE, Service

HERE = Path(__file__).parent

_BINDINGS = {
    "path.job_id": "job_id",
    "path.file_id": "file_id",
    "path.model": "model",
    "path.name": "name",
    "path.webhook_endpoint_id": "webhook_endpoint_id",
    "path.checkpoint": "model",
    "query.model": "model",
    "query.validation_file": "training_file",
    "body.url": "url",
    "body.model": "model",
    "body.training_file": "training_file",
    "body.validation_file": "training_file",
}


@dataclass
class Outcome:
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    """Operations that answered 2xx or 3xx at least once."""
    operations: set[str] = field(default_factory=set)


def fuzz(service: Service, folder: Path, *, cases: int, seed: int, examples: int) -> Outcome:
    outcome = Outcome()
    config = folder / "schemathesis.toml"
    config.write_text((HERE / "schemathesis.toml").read_text() + _dictionaries(service))
    number = 0
    while outcome.cases < cases and not outcome.failures:
        report = _round(service, folder, config, seed + number, examples)
        number += 1
        outcome.cases += report["test_cases"]["generated"]
        outcome.operations |= report["valid_rates"].keys()
        print(f"seed {seed + number - 1}: {outcome.cases:,} cases so far", flush=True)
        for operation, phases in report["valid_rates"].items():
            if any(rate["accepted"] for rate in phases.values()):
                outcome.accepted.add(operation)
        if report["exit_code"] or not report["complete"] or report["failures"] or report["errors"]:
            outcome.failures.append((folder / "output.txt").read_text())
    return outcome


def _dictionaries(service: Service) -> str:
    """Most of what names a thing names one that is there."""
    lines = ["\n"]
    for name, values in service.names.items():
        lines.append(f"[dictionaries.{name}]\nvalues = {json.dumps(values)}\n")
    lines.append("[parameters]")
    lines += [f'"{place}" = {{ dictionary = "{name}", probability = 0.8 }}' for place, name in _BINDINGS.items()]
    return "\n".join(lines) + "\n"


def _seeded(service: Service) -> dict[str, object]:
    """For ``hooks.py``, which lives in another process."""
    return {
        "own_key": service.key_id,
        "base_model": BASE,
        "training_file": service.names["training_file"][0],
        "other_project": service.other_project,
        "uploads": service.uploads,
    }


def _round(service: Service, folder: Path, config: Path, seed: int, examples: int) -> Any:
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    environment = plain_environment() | {
        "FUZZ_SEEDED": json.dumps(_seeded(service)),
        "FUZZ_KEY": service.key,
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "160",
    }
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"{service.url}/openapi.json", "--seed", str(seed), "--max-examples", str(examples)),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    with (folder / "output.txt").open("w") as output:
        code = subprocess.run(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    assert report.exists(), (folder / "output.txt").read_text()
    found = json.loads(report.read_text())
    found["exit_code"] = code
    return found
