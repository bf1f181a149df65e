"""``python -m bench.reading FILE…``: one process that checks files; for each a line of JSON with what it took.

A process of its own, since a process never gets smaller than it was at its largest.
"""

import json
import sys
import time
from pathlib import Path

from core.formats.reading import read_file


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        began = time.process_time()
        report = read_file(path)
        took = time.process_time() - began
        print(
            json.dumps(
                {
                    "name": path.name,
                    "bytes": report.bytes,
                    "seconds": took,
                    "peak": peak(),
                    "rows": report.rows,
                    "faults": report.fault_count,
                }
            )
        )


def peak() -> int:
    """Resident bytes of this process at its largest. Its children's count is not in it, nor its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    main()
