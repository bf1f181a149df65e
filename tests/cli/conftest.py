"""One running stack for the tests that only look at it or talk to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stack.stack import Stack
from tests.cli.running import Up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    started = Up(tmp_path_factory.mktemp("shared") / "home")
    yield started
    started.stop()
    Stack(started.home).purge()


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """A home for one test; its data are deleted, those outside it too."""
    home = tmp_path / "home"
    yield home
    if home.exists():
        Stack(home).purge()
