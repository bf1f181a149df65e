"""The process that the fuzzer lives in. Only ``tests.fuzz.guided`` starts it, with atheris in its path."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["core.formats"]):
    from tests.fuzz.data import examine

# In memory where there is such a folder: a file is written for each input.
_SHM = Path("/dev/shm")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_SHM if _SHM.is_dir() else None) as folder:
        path = Path(folder) / "file"

        def one(data: bytes) -> None:
            examine(data, path)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
