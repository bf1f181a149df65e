"""Ids that carry their kind, and API keys with a checksum that secret scanners can recognise."""

import hashlib
import secrets
import string
import sys
import zlib

_BASE62 = string.digits + string.ascii_letters
_KEY_PREFIX = "sk-attune-"


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def job() -> str:
    return f"ftjob-{_random(24)}"


def event() -> str:
    return f"ftevent-{_random(24)}"


def checkpoint() -> str:
    return f"ftckpt_{_random(24)}"


def file() -> str:
    return f"file-{_random(24)}"


def upload() -> str:
    return f"upload_{_random(24)}"


def upload_part() -> str:
    return f"part_{_random(24)}"


def permission() -> str:
    return f"cp_{_random(24)}"


def api_key() -> str:
    return f"key_{_random(16)}"


def project() -> str:
    return f"proj_{_random(16)}"


def organization() -> str:
    return f"org-{_random(16)}"


def worker() -> str:
    return f"worker_{_random(16)}"


def work_item() -> str:
    return f"item_{_random(24)}"


def webhook_endpoint() -> str:
    return f"we_{_random(24)}"


def webhook_delivery() -> str:
    return f"wh_{_random(24)}"


def webhook_event() -> str:
    return f"evt_{_random(24)}"


def base_model() -> str:
    return f"base_{_random(16)}"


def request() -> str:
    return f"req_{_random(24)}"


def secret_key() -> str:
    """A new API key: prefix, 43 characters (256 bits) of entropy, 6 of CRC-32."""
    body = _random(43)
    return f"{_KEY_PREFIX}{body}{_checksum(body)}"


def looks_like_key(key: str) -> bool:
    """False for keys this service can't have made: they need no database look-up."""
    body = key.removeprefix(_KEY_PREFIX)
    return key.startswith(_KEY_PREFIX) and len(body) == 49 and _checksum(body[:43]) == body[43:]


def key_hash(key: str) -> bytes:
    """A plain SHA-256 is right for 256-bit random keys: slow hashes only help secrets that can be guessed."""
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits += _BASE62[digit]
    return digits


if __name__ == "__main__":
    # For operators who must give the first admin key before there is a service to make it.
    sys.stdout.write(secret_key() + "\n")
