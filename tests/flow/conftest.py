"""What flows share besides the live stack of ``tests/live.py``."""

import pytest

from tests.live import ROOT, Live, Watch, start

__all__ = ["ROOT", "Live", "Watch", "start"]


@pytest.fixture(scope="session")
def unkilled(live: Live) -> tuple[str, bytes]:
    """The adapter's hash and the metrics of a run that nobody disturbed."""
    from tests.flow import longer

    job = live.wait(longer.submit(live))
    assert job.status == "succeeded", job.error
    return longer.weights(live, job), live.client.files.content(job.result_files[0]).read()
