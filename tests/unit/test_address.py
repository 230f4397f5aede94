"""Where a request comes from: what proxies may say, and what nobody else may."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.http.address import (
    ClientAddresses,
    address_allowed,
    limited_as,
    networks_of,
    parse_address,
)

PROXIES = ("10.0.0.0/8", "2001:db8:ffff::/48")
PROXY = "10.0.0.1"


def found(
    peer: str | None, *headers: tuple[str, str], trusted: tuple[str, ...] = PROXIES
) -> str | None:
    scope: Any = {
        "type": "http",
        "client": None if peer is None else (peer, 1234),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    address = ClientAddresses(trusted).of(scope)
    return None if address is None else str(address)


def forwarded_for(value: str) -> tuple[str, str]:
    return "x-forwarded-for", value


def forwarded(value: str) -> tuple[str, str]:
    return "forwarded", value


def test_without_trusted_proxies_only_the_connection_counts() -> None:
    headers = forwarded_for("1.1.1.1"), forwarded("for=2.2.2.2")
    assert found("192.0.2.9", *headers, trusted=()) == "192.0.2.9"
    assert found("127.0.0.1", *headers, trusted=()) == "127.0.0.1"


def test_a_stranger_who_sends_forwarding_headers_is_not_believed() -> None:
    assert found("192.0.2.9", forwarded_for("1.1.1.1"), forwarded("for=1.1.1.1")) == "192.0.2.9"


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("1.1.1.1, 192.0.2.9", "192.0.2.9"),
        ("1.1.1.1, 192.0.2.9, 10.0.0.2", "192.0.2.9"),
        ("1.1.1.1,192.0.2.9 ,10.0.0.2,  10.9.9.9", "192.0.2.9"),
        ("192.0.2.9:5555", "192.0.2.9"),
        ("[2001:db8::7]:5555", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("192.0.2.9, ::ffff:10.0.0.2", "192.0.2.9"),
        ("192.0.2.9, 2001:db8:ffff::2", "192.0.2.9"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.9, unknown", PROXY),
        ("192.0.2.9, garbage, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.9,", PROXY),
        ("", PROXY),
        ("é", PROXY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_to_the_first_stranger(
    value: str, client: str
) -> None:
    assert found(PROXY, forwarded_for(value)) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=192.0.2.9", "192.0.2.9"),
        ("For=192.0.2.9;proto=https;by=10.0.0.1", "192.0.2.9"),
        ("for=1.1.1.1, for=192.0.2.9", "192.0.2.9"),
        ("for=1.1.1.1;x=1, proto=http ; for=192.0.2.9, for=10.0.0.2", "192.0.2.9"),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        ('for="192.0.2.9:4711";host="a,b;c"', "192.0.2.9"),
        ('for="192\\.0.2.9"', "192.0.2.9"),
        ("for=_hidden", PROXY),
        ("for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("for=192.0.2.9, proto=https", PROXY),
        ('for="1.1.1.1, for=192.0.2.9', "192.0.2.9"),
        ('for=1.1.1.1;x=", for=192.0.2.9;by="_a"', "192.0.2.9"),
        ('for="[2001:db8::7', PROXY),
    ],
)
def test_forwarded_is_read_as_rfc_7239_writes_it(value: str, client: str) -> None:
    assert found(PROXY, forwarded(value)) == client


def test_several_lines_of_a_header_are_one_list() -> None:
    assert found(PROXY, forwarded_for("1.1.1.1"), forwarded_for("192.0.2.9")) == "192.0.2.9"


def test_where_the_two_headers_disagree_neither_is_believed() -> None:
    """A proxy writes one and passes the other on: which one, only the operator knows."""
    assert found(PROXY, forwarded_for("192.0.2.9"), forwarded("for=1.1.1.1")) is None
    assert found(PROXY, forwarded_for("192.0.2.9"), forwarded("for=192.0.2.9")) == "192.0.2.9"


def test_a_mapped_peer_is_the_ipv4_address_it_maps() -> None:
    assert found("::ffff:10.0.0.1", forwarded_for("192.0.2.9")) == "192.0.2.9"
    assert found("::ffff:192.0.2.9") == "192.0.2.9"


def test_a_peer_without_an_address_has_none() -> None:
    assert found(None, forwarded_for("192.0.2.9")) is None


@given(st.text(alphabet='0123456789abcdef.:,;="[]\\ forunkw', max_size=60))
def test_no_header_can_claim_an_address_from_outside_the_proxies(text: str) -> None:
    """Whatever a stranger put in, what our proxy appended to it is what counts."""
    assert found(PROXY, forwarded_for(f"{text}, 192.0.2.9")) == "192.0.2.9"
    assert found(PROXY, forwarded(f"{text}, for=192.0.2.9")) == "192.0.2.9"
    with_lines = forwarded(text), forwarded("for=192.0.2.9;proto=https")
    assert found(PROXY, *with_lines) == "192.0.2.9"


@pytest.mark.parametrize(
    ("addresses", "address", "allowed"),
    [
        ((), None, True),
        ((), "192.0.2.9", True),
        (("192.0.2.0/24",), "192.0.2.9", True),
        (("192.0.2.0/24",), "192.0.3.9", False),
        (("192.0.2.9",), "192.0.2.9", True),
        (("198.51.100.0/24", "2001:db8::/32"), "2001:db8::1", True),
        (("::ffff:192.0.2.0/120",), "192.0.2.9", True),
        (("192.0.2.0/24",), None, False),
        (("0.0.0.0/0",), "2001:db8::1", False),
    ],
)
def test_a_list_of_networks_allows_what_lies_in_one_of_them(
    addresses: tuple[str, ...], address: str | None, allowed: bool
) -> None:
    given_address = None if address is None else ip_address(address)
    assert address_allowed(addresses, given_address) is allowed


def test_an_ipv6_customer_is_counted_by_the_whole_prefix() -> None:
    one, other = parse_address("2001:db8:1:2::1"), parse_address("2001:db8:1:2:ffff::9")
    assert limited_as(one) == limited_as(other) == "2001:db8:1:2::/64"
    assert limited_as(parse_address("2001:db8:1:3::1")) != limited_as(one)
    assert limited_as(parse_address("::1")) == "::/64"
    assert limited_as(parse_address("::ffff:192.0.2.9")) == "192.0.2.9"
    assert limited_as(None) == "unknown"


def test_a_text_that_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="not appear to be"):
        networks_of(("example.org",))
