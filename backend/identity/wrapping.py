"""The form of a wrapped data key: what it is bound to, and in which epoch it was wrapped. Pure."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from backend.kit.secrets import DataKey, EpochKey, SealBroken, SiteSecret

EPOCH_MARK: Final = b"E"
"""Followed by the epoch's 16 bytes; migration 0003 reads this form too. Keys of earlier versions
begin otherwise and are wrapped by the site's secret alone."""
_HEAD_BYTES: Final = len(EPOCH_MARK) + 16


class Epoch(msgspec.Struct, frozen=True):
    epoch: bytes
    key: EpochKey

    def __repr__(self) -> str:
        return f"Epoch({self.epoch.hex()})"


class WrappedRow(msgspec.Struct, frozen=True):
    """A data key and the epoch it needs, as they are stored; all of it is sealed."""

    account: int
    key_epoch: int
    """Which key of the account; a re-wrap leaves it."""
    wrapped: bytes
    epoch: bytes | None
    epoch_wrapped: bytes | None


def wrapped_in(epoch: Epoch, key: DataKey, aad: bytes, nonce: bytes) -> bytes:
    return EPOCH_MARK + epoch.epoch + epoch.key.wrap_data_key(key, aad, nonce)


def epoch_of(wrapped: bytes) -> bytes | None:
    """The epoch that a wrapped key needs; None: the site's secret alone."""
    if not wrapped.startswith(EPOCH_MARK):
        return None
    return wrapped[len(EPOCH_MARK) : _HEAD_BYTES]


def open_row(secret: SiteSecret, row: WrappedRow) -> DataKey:
    """Raises SealBroken: another secret, changed bytes, or its epoch was destroyed."""
    aad = wrap_aad(row.account, row.key_epoch)
    named = epoch_of(row.wrapped)
    if named is None:
        return secret.unwrap_data_key(row.wrapped, aad)
    if row.epoch_wrapped is None or row.epoch != named:
        raise SealBroken("A data key's epoch was destroyed: nothing opens it any more.")
    epoch_key = secret.unwrap_epoch_key(row.epoch_wrapped, epoch_aad(named))
    return epoch_key.unwrap_data_key(row.wrapped[_HEAD_BYTES:], aad)


def wrap_aad(account: int, key_epoch: int) -> bytes:
    """What a wrapped key is bound to."""
    return b"data key" + struct.pack(">QQ", account, key_epoch)


def epoch_aad(epoch: bytes) -> bytes:
    """What an epoch's wrapped key is bound to."""
    return b"key epoch" + epoch
