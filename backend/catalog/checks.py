"""What an operator may say of a channel, a model or a group; else BadRequest with one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest
from schemas.plans import Group
from schemas.prices import PPM

OPENAI: Final = "openai"
DEMO: Final = "demo"
TYPES: Final = (OPENAI, DEMO)

MODEL_CHARS_MAX: Final = 256
MODELS_MAX: Final = 1_000
NAME_CHARS_MAX: Final = 64
URL_CHARS_MAX: Final = 2_000
SECRET_CHARS_MAX: Final = 4_096
WEIGHT_MAX: Final = 1_000_000
PRIORITY_MAX: Final = 1_000_000
MULTIPLIER_PPM_MAX: Final = 1_000 * PPM
_GROUP_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
"""The names that keys may be bound to."""
_HOST_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_IPV6_NETLOC: Final = re.compile(r"\[(?P<host>[0-9A-Fa-f:.]+)\](?::[0-9]+)?")


def check_channel(settings: ChannelSettings) -> ChannelSettings:
    """The settings in their kept form: URL without a slash at its end."""
    if settings.type not in TYPES:
        raise BadRequest(f"A channel's type is one of: {', '.join(TYPES)}.")
    if not 1 <= len(settings.name) <= NAME_CHARS_MAX or not settings.name.isprintable():
        raise BadRequest(f"A channel's name has 1 to {NAME_CHARS_MAX} printable characters.")
    if settings.name != settings.name.strip() or settings.name.isdigit():
        raise BadRequest("A channel's name is no number and has no blank at its ends.")
    if not 1 <= settings.weight <= WEIGHT_MAX:
        raise BadRequest(f"A channel's weight is a whole number from 1 to {WEIGHT_MAX}.")
    if abs(settings.priority) > PRIORITY_MAX:
        raise BadRequest(f"A channel's priority is between -{PRIORITY_MAX} and {PRIORITY_MAX}.")
    version = settings.api_version
    if version is not None and not (0 < len(version) <= 64 and version.isprintable()):
        raise BadRequest("A channel's API version is a short text such as 2024-10-21.")
    _check_models(settings)
    base_url = "" if settings.type == DEMO else check_base_url(settings.base_url)
    return msgspec.structs.replace(settings, base_url=base_url)


def check_base_url(text: str) -> str:
    """An address to which `/chat/completions` is appended, without a slash at its end."""
    if len(text) > URL_CHARS_MAX or not text.isascii() or any(ord(char) <= 32 for char in text):
        raise BadRequest("The base URL is too long, or has blanks or characters beyond ASCII.")
    parts = _split(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest("The base URL starts with http:// or https:// and names a host.")
    if parts.username is not None or parts.password is not None:
        raise BadRequest("The base URL holds no user or password; give the secret by itself.")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise BadRequest("The base URL has no query and no fragment.")
    if not (_is_ipv6(parts.netloc) or _is_plain_host(parts.hostname)):
        raise BadRequest(
            "The base URL's host is a name such as api.example.com, or an address written in full "
            "such as 10.0.0.1 or [2001:db8::1]."
        )
    return text.rstrip("/")


def check_secret_text(text: str) -> str:
    """A channel's secret as it goes into a header; empty: none."""
    if len(text) > SECRET_CHARS_MAX or not text.isascii() or not text.isprintable():
        raise BadRequest("The secret is one line of printable ASCII characters.")
    if " " in text:
        raise BadRequest("The secret has a blank in it; give the key alone.")
    return text


def check_model(model: str) -> str:
    if not 1 <= len(model) <= MODEL_CHARS_MAX or not model.isprintable():
        raise BadRequest(f"A model's name has 1 to {MODEL_CHARS_MAX} printable characters.")
    if model != model.strip() or "," in model:
        raise BadRequest("A model's name has no comma, and no blank at its ends.")
    return model


def check_group_name(name: str) -> str:
    if not _GROUP_NAME.fullmatch(name):
        raise BadRequest("A group's name has 1 to 32 characters of a-z, 0-9, `_` and `-`.")
    return name


def check_list_name(name: str) -> str:
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise BadRequest(f"A price list's name has 1 to {NAME_CHARS_MAX} printable characters.")
    return name


def check_group(group: Group) -> Group:
    """A multiplier of 0 makes everything free for the group; no models: every model."""
    if not 0 <= group.multiplier_ppm <= MULTIPLIER_PPM_MAX:
        raise BadRequest(f"A group's multiplier is between 0 and {MULTIPLIER_PPM_MAX // PPM}.")
    models = [check_model(model) for model in group.models]
    if len(models) > MODELS_MAX or len(set(models)) < len(models):
        raise BadRequest(f"A group names at most {MODELS_MAX} models, each once.")
    return group


def parse_models(text: str) -> tuple[str, ...]:
    """Model names from `a,b`; blanks around them and empty ones are left out."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def parse_mapping(lines: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(asked, upstream) pairs from `from>to`, one or more per text, apart by commas or lines."""
    pairs: list[tuple[str, str]] = []
    for line in lines:
        for entry in line.replace("\n", ",").split(","):
            if not entry.strip():
                continue
            asked, sign, upstream = (part.strip() for part in entry.partition(">"))
            if not (asked and sign and upstream):
                raise BadRequest(f"{entry.strip()[:80]!r} is no mapping; write from>to.")
            pairs.append((asked, upstream))
    return tuple(pairs)


def _check_models(settings: ChannelSettings) -> None:
    models = [check_model(model) for model in settings.models]
    if not 1 <= len(models) <= MODELS_MAX or len(set(models)) < len(models):
        raise BadRequest(f"A channel names 1 to {MODELS_MAX} models, each once.")
    asked = [pair[0] for pair in settings.mapping]
    if len(set(asked)) < len(asked):
        raise BadRequest("A model is mapped once.")
    for model, upstream in settings.mapping:
        check_model(upstream)
        if model not in models:
            raise BadRequest(f"The mapping names {model[:80]!r}, which is not among the models.")


def _is_plain_host(host: str) -> bool:
    """A name or an IPv4 address that every reader takes for the same host: `0x7f.1`, `127.1` and
    `127.0.0.1.` are not (https://url.spec.whatwg.org/#ends-in-a-number-checker).
    """
    labels = host.split(".")
    if not all(_HOST_LABEL.fullmatch(label) for label in labels):
        return False
    if not _NUMBER_LABEL.fullmatch(labels[-1]):
        return True
    try:
        return str(IPv4Address(host)) == host
    except ValueError:
        return False


def _is_ipv6(netloc: str) -> bool:
    """An address in brackets that is not an IPv4 address in disguise."""
    found = _IPV6_NETLOC.fullmatch(netloc)
    try:
        return found is not None and IPv6Address(found["host"]).ipv4_mapped is None
    except ValueError:
        return False


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        # Asked for here, because only reading it tells whether the port is a number.
        if parts.port == 0:
            raise BadRequest("The base URL's port is not 0.")
    except ValueError as error:
        raise BadRequest(f"The base URL is not valid: {error}.") from error
    return parts
