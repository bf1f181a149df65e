"""A load generator: keep-alive HTTP/1.1 on plain asyncio streams, light enough to leave a core to the server."""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What one run saw. Latencies are seconds, sorted."""

    seconds: float
    latencies: list[float]
    failures: int

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(q * len(self.latencies)))]


class Connection:
    def __init__(self, host: str, port: int, key: str) -> None:
        self._where = (host, port)
        self._head = f"Host: {host}:{port}\r\nAuthorization: Bearer {key}\r\n\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._where)
        assert self._reader is not None
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def saturate(host: str, port: int, key: str, path: str, connections: int, seconds: float) -> Load:
    """Every connection asks again as soon as it is answered."""
    latencies: list[float] = []
    failures = 0
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal failures
        connection = Connection(host, port, key)
        while (began := time.perf_counter()) < end:
            status, _ = await connection.get(path)
            latencies.append(time.perf_counter() - began)
            failures += status != 200
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(connections)))
    return Load(time.perf_counter() - began, sorted(latencies), failures)


async def steadily(host: str, port: int, key: str, path: str, rate: float, seconds: float) -> Load:
    """Requests at fixed moments, whatever the answers take: latency counts from the moment a request was due."""
    latencies: list[float] = []
    failures = 0
    idle: list[Connection] = []
    start = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal failures
        connection = idle.pop() if idle else Connection(host, port, key)
        status, _ = await connection.get(path)
        latencies.append(time.perf_counter() - due)
        failures += status != 200
        idle.append(connection)

    tasks = []
    for n in range(int(rate * seconds)):
        due = start + n / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return Load(time.perf_counter() - start, sorted(latencies), failures)
