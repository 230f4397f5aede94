"""What an owner may ask of a key, checked and put into the form it is kept in. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Network, ip_network
from typing import Final

import msgspec

from backend.identity.key import SCOPES_AT_FIRST
from backend.identity.names import check_label
from schemas.errors import BadRequest
from schemas.identity import Reset, Scope
from schemas.money import AMOUNT_UPT_MAX, MicroPoints

KEY_MODELS_MAX: Final = 500
KEY_ADDRESSES_MAX: Final = 100
KEY_CONCURRENCY_MAX: Final = 100_000

_GROUP: Final = re.compile(r"[a-z0-9_-]{1,32}")
_MAPPED_BITS: Final = 96
"""`::ffff:0:0/96` holds the IPv4 addresses (RFC 4291 §2.5.5.2)."""


class KeyAsked(msgspec.Struct, frozen=True):
    """What an owner wants of a key; no models: every model. `expires_us`: since 1970 UTC."""

    name: str = ""
    models: tuple[str, ...] = ()
    expires_us: int | None = None
    scopes: tuple[Scope, ...] = SCOPES_AT_FIRST
    quota_upt: MicroPoints | None = None
    """What it may spend in a period of `reset`; None: all that the account has."""
    reset: Reset = Reset.NEVER
    addresses: tuple[str, ...] = ()
    """Networks (CIDR) or single addresses it may be used from; empty: everywhere."""
    concurrency: int | None = None
    """Requests under way at once; None: no limit."""
    group: str = ""
    """Empty: the account's own. Whether there is such a group is the catalogue's matter."""


def checked(asked: KeyAsked, now_us: int) -> KeyAsked:
    """The same, with scopes and addresses in one order and form. Raises BadRequest."""
    check_label(asked.name)
    _check_models(asked.models)
    _check_spending(asked)
    if asked.expires_us is not None and asked.expires_us <= now_us:
        raise BadRequest("A key expires in the future.")
    if asked.concurrency is not None and not 1 <= asked.concurrency <= KEY_CONCURRENCY_MAX:
        raise BadRequest(f"A key's concurrency is from 1 to {KEY_CONCURRENCY_MAX:,}.")
    if asked.group and not _GROUP.fullmatch(asked.group):
        raise BadRequest("A group's name has 1 to 32 characters of a-z, 0-9, `_` and `-`.")
    return msgspec.structs.replace(
        asked, scopes=_scopes(asked.scopes), addresses=canonical_networks(asked.addresses)
    )


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """Scopes from `relay,wallet`. Raises BadRequest."""
    names = [name for part in text.split(",") if (name := part.strip())]
    unknown = [name for name in names if name not in set(Scope)]
    if unknown:
        known = ", ".join(Scope)
        raise BadRequest(f"There is no scope {unknown[0][:40]!r}; there are {known}.")
    return _scopes(Scope(name) for name in names)


def canonical_networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Each network once, as `10.0.0.0/8` or `2001:db8::/32`, in the order given.

    A single address is a network of one; an IPv4 address written as IPv6 is the IPv4 address it
    means. Raises BadRequest.
    """
    found = tuple(dict.fromkeys(_canonical(text.strip()) for text in texts))
    if len(found) > KEY_ADDRESSES_MAX:
        raise BadRequest(f"A key names at most {KEY_ADDRESSES_MAX} networks.")
    return found


def _canonical(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("an interface's name means nothing elsewhere")
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise BadRequest(
            f"{text[:60]!r} is no network; write 203.0.113.7, 10.0.0.0/8 or 2001:db8::/32."
        ) from error
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return str(network) if mapped is None else f"{mapped}/{network.prefixlen - _MAPPED_BITS}"


def _scopes(scopes: Iterable[Scope]) -> tuple[Scope, ...]:
    given = set(scopes)
    if not given:
        raise BadRequest("A key has at least one scope.")
    return tuple(scope for scope in Scope if scope in given)


def _check_models(models: tuple[str, ...]) -> None:
    if len(models) > KEY_MODELS_MAX or len(set(models)) < len(models):
        raise BadRequest(f"A key names at most {KEY_MODELS_MAX} models, each once.")
    if any(not model or not model.isprintable() for model in models):
        raise BadRequest("A model's name is not empty and has no control characters.")


def _check_spending(asked: KeyAsked) -> None:
    if asked.quota_upt is None:
        if asked.reset is not Reset.NEVER:
            raise BadRequest("A reset needs a quota: say how many points the key may spend.")
    elif not 0 < asked.quota_upt <= AMOUNT_UPT_MAX:
        raise BadRequest("A key's quota is more than zero points, and no more than can be held.")
