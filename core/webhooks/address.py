"""Where a webhook may go. A URL's host is looked up once, and what comes of it is the only thing connected to.

Users choose the URL and this service has the connection, so an address that is not public is refused: behind it are
the operator's own machines. Knows no HTTP.
"""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from core.errors import BadRequest

Address = IPv4Address | IPv6Address

MAX_URL = 2048
PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A host whose last label looks like a number is an address in one of its old spellings: 2130706433, 0177.1, 0x7f.1.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
# Public by their numbers, but clouds have their machines' own agents there (Oracle's in the first, Azure's the second).
_PLATFORM = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart, and the addresses of its host, every one of which may be connected to."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the operator allows although it is not public: names of hosts, and networks; any port of theirs."""

    names: frozenset[str]
    networks: tuple[object, ...]

    @classmethod
    def parse(cls, listed: str) -> "Allowed":
        """From names and networks with commas between. ValueError: something that is neither."""
        names, networks = set(), []
        for entry in filter(None, (entry.strip() for entry in listed.split(","))):
            try:
                networks.append(ip_network(entry, strict=False))
            except ValueError:
                if not _is_name(entry):
                    raise ValueError(f"{entry!r} is neither a host's name nor a network such as 10.0.0.0/8") from None
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def has(self, host: str, address: Address) -> bool:
        return host in self.names or any(address in network for network in self.networks)  # type: ignore[operator]  # networks of both versions; an address is in none of the other's


def check(url: str, allowed: Allowed) -> Target:
    """The URL as a target. BadRequest with ``param`` url: not a good URL, unknown to the name service, not public.

    Blocks on the name service.
    """
    scheme, host, port, path = _parts(url)
    addresses = tuple(dict.fromkeys(_seen_through(address) for address in _addresses(host, port)))
    if not addresses:
        raise _refused(f"the host {host!r} has no address")
    if all(allowed.has(host, address) for address in addresses):
        return Target(scheme, host, port, path, addresses)
    # One bad address among good ones is as bad: which of them is taken would be the name service's choice.
    if not all(allowed.has(host, address) or public(address) for address in addresses):
        # The address itself is not told: it may be one that only the inner name service knows.
        raise _refused(f"the host {host!r} has an address that is not public")
    if port not in PORTS.values():
        raise _refused(f"the port {port} is not 80 or 443")
    return Target(scheme, host, port, path, addresses)


def public(address: Address) -> bool:
    """Is it a machine of the public internet? An IPv6 address that wraps an IPv4 one is as public as that."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _PLATFORM)
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return public(inner)
    return address in _GLOBAL_UNICAST and address.is_global


def _seen_through(address: Address) -> Address:
    """``::ffff:a.b.c.d`` is the IPv4 address itself, to the kernel and so to us."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path with query. Stricter than any browser: what two readers may read in two ways, such
    as a backslash, a user name or a number for a host, is refused."""
    if len(url) > MAX_URL:
        raise _refused(f"longer than {MAX_URL} characters")
    if not all("!" <= c <= "~" for c in url) or any(c in url for c in '\\"<>^`{|}'):
        raise _refused("has characters that a URL can't have; write them percent-encoded")
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        raise _refused(f"can't be read: {error}") from None
    if split.scheme not in PORTS or not url[len(split.scheme) :].startswith("://"):
        raise _refused('does not start with "https://" or "http://"')
    if "@" in split.netloc:
        raise _refused("has a user name or a password, which are not sent")
    if "#" in url:
        raise _refused('has a "#", which is never sent')
    host = (split.hostname or "").removesuffix(".")
    literal = split.netloc.startswith("[")
    if not (_is_address(host) if literal else _is_name(host) or _is_address(host)):
        raise _refused(f"has no host that can be used: {host[:100]!r}")
    path = (split.path or "/") + (f"?{split.query}" if split.query else "")
    return split.scheme, host, PORTS[split.scheme] if port is None else port, path


def _is_name(host: str) -> bool:
    labels = host.split(".")
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not _NUMBER.fullmatch(labels[-1])


def _is_address(host: str) -> bool:
    try:
        # Without a zone: fe80::1%eth0 names a network card of this machine.
        return "%" not in host and bool(ip_address(host))
    except ValueError:
        return False


def _addresses(host: str, port: int) -> list[Address]:
    if _is_address(host):
        return [ip_address(host)]
    try:
        found = lookup(host, port)
    except (OSError, UnicodeError):
        raise _refused(f"the host {host!r} is not known to the name service") from None
    # The last field of an answer starts with the address; a zone behind it would again be a card of this machine.
    return [ip_address(name.partition("%")[0]) for name in found]


def lookup(host: str, port: int) -> list[str]:
    """The name service's answer, all of it, in its order."""
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _refused(why: str) -> BadRequest:
    return BadRequest(f"url: {why}.", param="url")
