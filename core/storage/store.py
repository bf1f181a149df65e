"""What the service asks of an object store, and where each thing lies in it.

Keys are built from ids alone: a file's name is metadata and never part of a key. What a worker writes carries the
generation it wrote at, so a late worker can't touch what its successor wrote, and only a row makes a key count.

    files/<file id>                                       what users uploaded
    uploads/<upload id>/<part id>                         parts, until they are joined
    files/<file id>/gen-<g>                               the joined parts of an upload
    prepared/<job id>/gen-<g>/<name>.safetensors          rows as tokens
    jobs/<job id>/gen-<g>/checkpoints/step-<n>/<path>     the manifest last
    jobs/<job id>/gen-<g>/artifact/<path>
    jobs/<job id>/gen-<g>/metrics.csv · trainer.log
    answers/<answer id>/<name>                            an answer's parts that are too large for its row
    base-models/<sha256>/<path>                           by content, shared by all registrations of it
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from core.config import MIB

MIN_PART = 5 * MIB
"""S3 takes no smaller part of a multipart upload, but for the last one."""


class Multipart(Protocol):
    """An upload in parts. Nothing is visible under the key before :meth:`complete`."""

    def part(self, data: bytes | bytearray) -> None: ...

    def copy(self, key: str, start: int, size: int) -> None:
        """A part of ``size`` bytes that the store takes from another object, beginning at ``start``, by itself."""

    def complete(self) -> None: ...

    def abort(self) -> None: ...


class Facts(NamedTuple):
    """What the store says of an object, in the words it sends the bytes with."""

    bytes: int
    type: str
    etag: str


class Stored(NamedTuple):
    """An object as a listing has it."""

    key: str
    modified: datetime


Page = list[Stored]
"""By another name, since a store's own ``list`` hides Python's."""


class Unfinished(NamedTuple):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    id: str
    begun: datetime


class Place(NamedTuple):
    """What a key says: whose the object is, and at which generation it was written; None: at any."""

    kind: str
    """The first part of the key: ``jobs``, ``files``, …"""
    owner: str
    generation: int | None
    rest: str
    """What follows: ``artifact/config.json``, say; empty where the owner is the object."""


class Store(Protocol):
    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        """Write an object; with ``only_new``, raise ``Conflict`` when the key exists."""

    def put_file(self, key: str, path: Path, look: Callable[[], None] | None = None) -> None:
        """``look`` is called at every piece that was sent; what it raises ends the upload."""

    def multipart(self, key: str) -> Multipart: ...

    def abort_multiparts(self, key: str) -> None:
        """Forget every multipart upload to exactly this key that was begun and not completed."""

    def unfinished(self) -> Iterator[Unfinished]:
        """Every multipart upload that is still open, whatever it is for."""

    def abort(self, upload: Unfinished) -> None: ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces, in memory for one; raises ``NotFound``."""

    def get(self, key: str) -> bytes:
        """The whole object; raises ``NotFound``."""

    def download(self, key: str, path: Path) -> None:
        """Write the object to this path; raises ``NotFound``."""

    def size(self, key: str) -> int | None:
        """Bytes, or None when there is no such object."""

    def facts(self, key: str) -> Facts:
        """What is known of the object; raises ``NotFound``."""

    def delete(self, *keys: str) -> None: ...

    def list(self, prefix: str) -> Iterator[str]: ...

    def pages(self, prefix: str) -> Iterator[Page]:
        """The objects below the prefix, up to a thousand at a time."""

    def presigned(self, key: str, *, filename: str, seconds: int) -> str:
        """A URL that lets anybody GET this one object for a while, at the address clients reach."""

    def ready(self) -> None:
        """Raise ``Unavailable`` when the store does not answer."""

    def create_bucket(self) -> None: ...


_PLACE = re.compile(
    r"(?P<kind>jobs|files|uploads|prepared|answers|base-models)/(?P<owner>[^/]+)"
    r"(?:/gen-(?P<generation>\d{1,18}))?(?:/(?P<rest>.+))?"
)


def place(key: str) -> Place | None:
    """What the key says; None where it is none of this service's."""
    found = _PLACE.fullmatch(key)
    if found is None:
        return None
    generation = found["generation"]
    return Place(found["kind"], found["owner"], None if generation is None else int(generation), found["rest"] or "")


def file(file_id: str) -> str:
    return f"files/{file_id}"


def upload_part(upload_id: str, part_id: str) -> str:
    return f"uploads/{upload_id}/{part_id}"


def joined(file_id: str, generation: int) -> str:
    return f"files/{file_id}/gen-{generation}"


def prepared(job_id: str, generation: int, name: str) -> str:
    return f"{all_prepared(job_id)}gen-{generation}/{name}"


def all_prepared(job_id: str) -> str:
    return f"prepared/{job_id}/"


def all_runs(job_id: str) -> str:
    return f"jobs/{job_id}/"


def run(job_id: str, generation: int, name: str = "") -> str:
    """A place of one generation of a job: ``artifact/<path>``, ``checkpoints/step-4/<path>``, ``metrics.csv``."""
    return f"{all_runs(job_id)}gen-{generation}/{name}"


def answer(answer_id: str, name: str = "") -> str:
    """No generation in it: an answer's id is the hash of its question, so whoever writes here writes the same."""
    return f"answers/{answer_id}/{name}"


def base_model(sha256: str, path: str = "") -> str:
    return f"base-models/{sha256}/{path}"
