"""Events as they happen, as server-sent events for any number of waiting clients; and word of answers that are there.

One connection of this process listens to PostgreSQL, and a job is read once for all who follow it. Nobody holds a
thread or a pooled connection while waiting. What was missed is asked for by number, so a signal that is lost or comes
twice does no harm.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

import psycopg
import structlog
from anyio import to_thread
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from core.db.session import reading
from core.db.tenancy import Tenant
from core.errors import NotFound
from core.schemas import events as shape
from core.services import events, keys, replies
from core.wiring import Parts

log = structlog.get_logger()

HEARTBEAT_SECONDS = 15.0
"""Silence after which a comment goes out, so that no proxy takes the connection for dead."""
POLL_SECONDS = 1.0
"""How often followed jobs are looked at while there is nobody who listens."""
KEYS_SECONDS = 5.0
"""How often the keys of those who follow are looked at: a revoked key gets no further events."""
_PAGE = 500
_KEPT = 500


class Frame(NamedTuple):
    number: int
    text: bytes


class Topic:
    """What the followers of one job share: its newest events, and the signal that there may be more."""

    def __init__(self, parts: Parts, tenant: Tenant, job_id: str) -> None:
        self.followers = 0
        self.changed = asyncio.Event()
        """Set at the next signal; whoever wants the one after that takes the next object."""
        self.newest = 0
        self.ended = False
        self._parts = parts
        self._tenant = tenant
        self._job_id = job_id
        self._signals = 0
        self._looked = -1
        self._lock = asyncio.Lock()
        # The newest frames, numbered without gaps.
        self._tail: list[Frame] = []

    def signal(self) -> None:
        self._signals += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def after(self, number: int) -> list[Frame]:
        """Some of the events after this number, in order; none when there are none yet."""
        if frames := self._known(number):
            return frames
        async with self._lock:
            # Followers that waited here find what the first of them has read.
            if frames := self._known(number):
                return frames
            if number >= self.newest and self._looked == self._signals:
                return []
            signals = self._signals
            frames = await to_thread.run_sync(self._read, number)
            self._looked = signals
            self._keep(frames)
            return frames

    def _read(self, number: int) -> list[Frame]:
        try:
            with reading(self._parts.sessions) as session:
                news = events.since(session, self._tenant, self._job_id, number, limit=_PAGE)
        except NotFound:
            # It was deleted, which only an ended job can be.
            self.newest, self.ended = number, True
            return []
        self.newest, self.ended = max(self.newest, news.newest), news.ended
        return [
            Frame(row.number, format_sse_event(data_str=shape.of(row).model_dump_json(), id=str(row.number)))
            for row in news.events
        ]

    def _known(self, number: int) -> list[Frame]:
        if not self._tail or not self._tail[0].number <= number + 1 <= self._tail[-1].number:
            return []
        return self._tail[number + 1 - self._tail[0].number :]

    def _keep(self, frames: list[Frame]) -> None:
        last = self._tail[-1].number if self._tail else 0
        if not frames or frames[-1].number <= last:
            return
        if frames[0].number > last + 1:
            self._tail = []
        self._tail += [frame for frame in frames if frame.number > last]
        if len(self._tail) > 2 * _KEPT:
            del self._tail[:-_KEPT]


class Bell:
    """Rung when an answer is there, for the requests of this process that wait for it."""

    def __init__(self) -> None:
        self.waiters = 0
        self.next = asyncio.Event()
        """Set at the next ring; whoever wants the one after that takes the next object."""

    def ring(self) -> None:
        rung, self.next = self.next, asyncio.Event()
        rung.set()


class Live:
    """The streams of this process, and its requests that wait."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._topics: dict[str, Topic] = {}
        self._keys: Counter[str] = Counter()
        """How many follow with each key."""
        self._revoked: set[str] = set()
        self._bells: dict[str, Bell] = {}
        self._listening = False
        self._ending = False
        self._listener: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to listen. Without that, or while the database is away, streams live on polling."""
        self._listener = asyncio.create_task(self._listen())

    def end(self) -> None:
        """End all streams and waits, soon: their clients come back to another process, or to the next one."""
        self._ending = True
        self._signal_all()

    async def close(self) -> None:
        self.end()
        for task in (self._listener, self._poller):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def follow(self, tenant: Tenant, job_id: str, after: int) -> AsyncGenerator[bytes]:
        """The job's events after this number, then each as it comes, until its last one."""
        yield format_sse_event(retry=1000)
        clock = asyncio.get_running_loop().time
        number, beat = after, clock() + HEARTBEAT_SECONDS
        with self._followed(tenant, job_id) as topic:
            while not self._ending and tenant.key_id not in self._revoked:
                # Taken before the look, so that what comes during the look is not slept through.
                changed, until = topic.changed, beat
                try:
                    frames = await topic.after(number)
                except SQLAlchemyError as error:
                    log.warning("live.database_away", job_id=job_id, error=type(error).__name__)
                    frames, until = [], min(beat, clock() + POLL_SECONDS)
                if frames:
                    yield b"".join(frame.text for frame in frames)
                    number, beat = frames[-1].number, clock() + HEARTBEAT_SECONDS
                if topic.ended and number >= topic.newest:
                    return
                if frames:
                    continue
                try:
                    async with asyncio.timeout_at(until):
                        await changed.wait()
                except TimeoutError:
                    if clock() >= beat:
                        yield format_sse_event(comment="")
                        beat = clock() + HEARTBEAT_SECONDS

    @contextlib.contextmanager
    def bell(self, answer_id: str) -> Iterator[Bell]:
        """For as long as this is entered, the bell hears of this answer."""
        bell = self._bells.setdefault(answer_id, Bell())
        bell.waiters += 1
        try:
            yield bell
        finally:
            bell.waiters -= 1
            if not bell.waiters:
                del self._bells[answer_id]

    async def rung(self, ring: asyncio.Event, until: float) -> bool:
        """Wait for a bell's next ring, which may be a false one; False when the time is over, or this process ends."""
        clock = asyncio.get_running_loop().time
        # Without a listener nobody rings, so the answer is looked for now and then.
        limit = until if self._listening else min(until, clock() + POLL_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(limit):
                await ring.wait()
        return not self._ending and clock() < until

    def _signal_all(self) -> None:
        for topic in self._topics.values():
            topic.signal()
        for bell in self._bells.values():
            bell.ring()

    @contextlib.contextmanager
    def _followed(self, tenant: Tenant, job_id: str) -> Iterator[Topic]:
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = Topic(self._parts, tenant, job_id)
        topic.followers += 1
        self._keys[tenant.key_id] += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            yield topic
        finally:
            topic.followers -= 1
            if not topic.followers:
                del self._topics[job_id]
            self._keys[tenant.key_id] -= 1
            if not self._keys[tenant.key_id]:
                del self._keys[tenant.key_id]

    async def _listen(self) -> None:
        url = make_url(self._parts.settings.database_url).set(drivername="postgresql")
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    url.render_as_string(hide_password=False),
                    autocommit=True,
                    application_name="attune-live",
                    connect_timeout=5,
                    # A server that vanished without a word is noticed within half a minute.
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                )
                async with connection:
                    await connection.execute(f"LISTEN {events.CHANNEL}")
                    await connection.execute(f"LISTEN {replies.CHANNEL}")
                    self._listening = True
                    # Nobody told what happened until now.
                    self._signal_all()
                    async for told in connection.notifies():
                        if told.payload in self._topics:
                            self._topics[told.payload].signal()
                        elif told.payload in self._bells:
                            self._bells[told.payload].ring()
            except (psycopg.Error, OSError) as error:
                log.warning("live.not_listening", error=type(error).__name__)
            finally:
                self._listening = False
                # From now on whoever waits looks for itself.
                self._signal_all()
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        """Looks at all keys in use, and stands in for the listener; each is one query for all who follow."""
        clock = asyncio.get_running_loop().time
        keys_looked = clock()
        while self._topics:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if clock() - keys_looked >= KEYS_SECONDS:
                    await self._look_at_keys()
                    keys_looked = clock()
                if not self._listening:
                    await self._look_at_jobs()
            except SQLAlchemyError as error:
                log.warning("live.database_away", error=type(error).__name__)

    async def _look_at_keys(self) -> None:
        in_use = set(self._keys)
        standing = await to_thread.run_sync(self._standing, in_use)
        self._revoked = in_use - standing
        if self._revoked:
            for topic in self._topics.values():
                topic.signal()

    def _standing(self, key_ids: set[str]) -> set[str]:
        with reading(self._parts.sessions) as session:
            return keys.standing(session, key_ids)

    async def _look_at_jobs(self) -> None:
        newest = await to_thread.run_sync(self._newest, list(self._topics))
        for job_id, topic in self._topics.items():
            if newest.get(job_id) != topic.newest:
                topic.signal()

    def _newest(self, job_ids: list[str]) -> dict[str, int]:
        with reading(self._parts.sessions) as session:
            return events.newest(session, job_ids)


class EventStream(EventSourceResponse):
    """A response that ends its generator when the client is gone, not when the garbage collector comes by."""

    def __init__(self, frames: AsyncGenerator[bytes]) -> None:
        # A proxy that gathers bytes before it passes them on would hold events back.
        super().__init__(frames, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()
