"""Where a request comes from. Forwarding headers count only as far as trusted proxies wrote them.

Decides nothing but the address: who may do what from where is said elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, Final, cast

from litestar.types import Scope

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IPV6_PREFIX: Final = 64
"""What one IPv6 customer gets at least: every address in it may be the same person."""

_PORT: Final = re.compile(r":\d{1,5}$")
# RFC 7239 §4: pairs of token and value, the value a token or a quoted string.
_PAIR: Final = re.compile(
    r'\s*(?P<name>[!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|'
    r"(?P<token>[^\s;,\"]*))\s*(?P<end>[;,]|$)"
)


class ClientAddresses:
    """Finds the client's address. `trusted`: networks of the proxies in front of us, as CIDRs."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._trusted: Final = networks_of(tuple(trusted))

    def of(self, scope: Scope) -> Address | None:
        """The right-most hop that is not a trusted proxy; None where nobody can tell which that is.

        Each proxy appends whom it was called by, so everything left of the first hop that we do
        not trust was written by a stranger.
        """
        # The key is optional in ASGI; Litestar's type says otherwise.
        client: tuple[str, int] | None = cast("dict[str, Any]", scope).get("client")
        peer = None if client is None else parse_address(client[0])
        if peer is None or not _within(self._trusted, peer):
            return peer
        return self._forwarded(scope["headers"], peer)

    def _forwarded(self, headers: Iterable[tuple[bytes, bytes]], peer: Address) -> Address | None:
        given = list(headers)
        listed = _values(given, b"x-forwarded-for")
        standard = _values(given, b"forwarded")
        by_list = None if listed is None else self._nearest(listed.split(","), peer)
        by_standard = None if standard is None else self._nearest(_hops(standard), peer)
        if by_list is not None and by_standard is not None and by_list != by_standard:
            # A proxy writes one of them and passes the other on as the client sent it. The proxy's
            # own address it is not: that would open keys which are bound to the proxy's network.
            return None
        return by_list or by_standard or peer

    def _nearest(self, hops: Sequence[str], peer: Address) -> Address:
        """Walks from the right as long as the hop is a proxy of ours."""
        nearest = peer
        for hop in reversed(hops):
            address = parse_address(hop)
            if address is None:
                return nearest
            nearest = address
            if not _within(self._trusted, address):
                return nearest
        return nearest


def address_allowed(addresses: tuple[str, ...], address: Address | None) -> bool:
    """Whether an address is in one of the networks (CIDRs); an empty list allows every address."""
    if not addresses:
        return True
    return address is not None and _within(networks_of(addresses), address)


def limited_as(address: Address | None) -> str:
    """The name under which attempts from an address are counted: itself, or its IPv6 /64."""
    match address:
        case None:
            return "unknown"
        case IPv4Address():
            return str(address)
        case IPv6Address():
            return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))


@lru_cache(maxsize=4_096)
def networks_of(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """The networks of CIDRs or single addresses; IPv4-mapped ones are IPv4. Raises ValueError."""
    return tuple(_plain_network(ip_network(text.strip(), strict=False)) for text in texts)


@lru_cache(maxsize=4_096)
def parse_address(text: str) -> Address | None:
    """An address as proxies write it: with a port, in brackets, mapped; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = _PORT.sub("", text)
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _plain_network(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((int(mapped), network.prefixlen - 96))
    return network


def _within(networks: Iterable[Network], address: Address) -> bool:
    return any(address in network for network in networks)


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """All lines of a header as one list (RFC 9110 §5.3), or None."""
    lines = [value.decode("latin-1") for given, value in headers if given == name]
    return ",".join(lines) if lines else None


def _hops(forwarded: str) -> list[str]:
    """The `for` of each element of `Forwarded`, left to right; "" where there is none.

    What cannot be read makes everything before it untrusted: only hops after it are given.
    """
    hops: list[str] = []
    hop, at = "", 0
    while at < len(forwarded):
        pair = _PAIR.match(forwarded, at)
        if pair is None:
            comma = forwarded.find(",", at)
            hops = [""]
            hop = ""
            at = len(forwarded) if comma < 0 else comma + 1
            continue
        if pair["name"].lower() == "for":
            quoted = pair["quoted"]
            hop = pair["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = pair.end()
        if pair["end"] != ";":
            hops.append(hop)
            hop = ""
    return hops
