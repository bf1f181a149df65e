"""``python -m bench.sender BASE BYTES``: uploads a file of random bytes and prints how many seconds that took.

A process of its own: in the one that measures, its sending would be counted as the API's slowness.
"""

import os
import sys
import time
from collections.abc import Iterator

import httpx

from core.config import MIB

_HEAD = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
)


def body(size: int) -> Iterator[bytes]:
    block = os.urandom(MIB)
    yield _HEAD
    for _ in range(size // MIB):
        yield block
    yield b"\r\n--b--\r\n"


def main(base: str, size: str) -> None:
    headers = {
        "Authorization": f"Bearer {os.environ['BENCH_KEY']}",
        "content-type": "multipart/form-data; boundary=b",
    }
    began = time.perf_counter()
    answer = httpx.post(f"{base}/v1/files", content=body(int(size)), headers=headers, timeout=1200)
    assert answer.status_code == 200, answer.text
    sys.stdout.write(f"{time.perf_counter() - began}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
