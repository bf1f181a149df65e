"""An object that comes in pieces of any size, in memory for one part; pieces may also be copied within the store."""

from core.config import MIB
from core.storage.store import MIN_PART, Store

_PART = 8 * MIB


class Writer:
    """``write`` and ``copy`` in the order of the bytes, then ``finish`` or ``abort``. Blocks on the store."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._upload = store.multipart(key)
        self._buffer = bytearray()
        self._begun = False

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _PART:
            self._send(_PART)

    def through(self, size: int) -> int:
        """How many first bytes of an object of this size must be written, so that the rest of it can be copied."""
        # What waits in the buffer becomes an inner part of the upload, and so does the rest.
        missing = max(0, MIN_PART - len(self._buffer)) if self._buffer else 0
        return missing if size - missing >= MIN_PART else size

    def copy(self, key: str, start: int, size: int) -> None:
        """The bytes of another object from ``start`` on. Legal after ``through`` bytes of it were written."""
        if self._buffer:
            self._send(len(self._buffer))
        self._upload.copy(key, start, size)
        self._begun = True

    def finish(self) -> None:
        if not self._begun:
            self._store.put(self._key, bytes(self._buffer))
            return
        if self._buffer:
            self._send(len(self._buffer))
        self._upload.complete()

    def abort(self) -> None:
        """Nothing of it stays, not even what was finished."""
        self._upload.abort()
        self._store.delete(self._key)

    def _send(self, size: int) -> None:
        # The buffer itself is the part, and what is too much of it begins the next: no second copy of a part.
        part, self._buffer = self._buffer, self._buffer[size:]
        del part[size:]
        self._upload.part(part)
        self._begun = True
