"""schemathesis, all phases and all checks, against the real API: no 5xx, and nothing that its document does not say."""

import os
from pathlib import Path

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.service import running

pytestmark = pytest.mark.flow


def test_no_request_breaks_the_service_or_its_document(servers: dict[str, str], tmp_path: Path) -> None:
    cases, seed = int(os.environ.get("FUZZ_CASES", "2000")), int(os.environ.get("FUZZ_SEED", "1"))
    # Fewer rounds for many cases: each begins with reading the document and going through its examples.
    examples = 6 if cases <= 5000 else 60
    print(f"\nFUZZ_SEED={seed} FUZZ_CASES={cases}")
    with running(servers, tmp_path) as service:
        outcome = fuzz(service, tmp_path, cases=cases, seed=seed, examples=examples)
        alive = service.alive()
    print(f"{outcome.cases:,} cases on {len(outcome.operations)} operations, seed {seed}")
    assert not outcome.failures, outcome.failures[0]
    assert alive
    assert outcome.cases >= cases
    # Refusals alone would prove little: nearly every operation did what it is for at least once.
    refused = outcome.operations - outcome.accepted
    assert len(refused) <= len(outcome.operations) // 8, sorted(refused)
    print(f"never accepted: {', '.join(sorted(refused)) or 'none'}")
