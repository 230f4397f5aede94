"""The fold of a `channel:` stream: where calls can go. Pure; the secret stays sealed."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.journal.fold import Fold
from schemas.catalog import (
    ChannelAdded,
    ChannelChanged,
    ChannelDisabled,
    ChannelEnabled,
    ChannelSettings,
)

NOTHING_SET: Final = ChannelSettings("", "", "", ())


class ImpossibleHistory(ValueError):
    """An event that cannot follow the state: the stream's bytes are not what was decided."""


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    settings: ChannelSettings = NOTHING_SET
    secret_sealed: bytes = b""
    """Empty: no secret."""
    secret_version: int = 0
    """The version that the secret is bound to."""
    enabled: bool = False
    reason: str = ""
    """Why it is disabled."""


def apply(state: Channel, event: Any, version: int, at_us: int) -> Channel:
    """The channel after one more event. Raises ImpossibleHistory."""
    if (version == 1) != isinstance(event, ChannelAdded):
        raise ImpossibleHistory("a channel is added once, first")
    match event:
        case ChannelAdded():
            return Channel(event.settings, event.secret_sealed, version, enabled=True)
        case ChannelChanged():
            changed = msgspec.structs.replace(state, settings=event.settings)
            if not event.secret_sealed:
                return changed
            return msgspec.structs.replace(
                changed, secret_sealed=event.secret_sealed, secret_version=version
            )
        case ChannelEnabled():
            return msgspec.structs.replace(state, enabled=True, reason="")
        case ChannelDisabled():
            return msgspec.structs.replace(state, enabled=False, reason=event.reason)
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a channel")


CHANNEL: Final = Fold("channel", Channel(), apply)
