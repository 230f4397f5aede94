"""I8: reads the seals that there are, from the data folder and from Kafka, for the audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from backend.journal.seal import BrokenSeal, Seal, decode_seal, encode_seal
from backend.kit.kafka import read_topics
from backend.kit.kafka_admin import SEALS_TOPIC
from projections.audit.checkpoint import Anchor, Checkpoint, UnusableCheckpoint
from projections.audit.report import SEALS, Findings
from projections.sealed_files import Heads, SealFolder, tree_of
from projections.sealed_log import Note, SealedLog

SEALS_PARTITION: Final = 0


class Chain(msgspec.Struct, frozen=True):
    """One chain of seals, ready to be held against the log, and its newest seal."""

    sealed: SealedLog
    anchor: Anchor | None


def local_seals(
    data_dir: Path, site_id: UUID, findings: Findings, since: Checkpoint | None = None
) -> Chain:
    """The seals in `<data>/seals`; `since`: from the checkpoint's own seal on.

    Raises UnusableCheckpoint where the folder has another seal in that one's place.
    """
    folder = SealFolder(data_dir)
    note, heads = _noting(findings, "the data folder"), _heads(folder)
    anchor = _newest(folder)
    if since is None:
        return Chain(SealedLog(folder.seals(), site_id, note, known_heads=heads), anchor)
    first = since.anchor.seal
    try:
        is_there = folder.read(first.number) == first
    except BrokenSeal:
        is_there = False
    if not is_there:
        raise _moved(first)
    newer = folder.seals(first.number - 1)
    return Chain(_resumed(newer, site_id, note, since, heads), anchor)


async def kafka_seals(
    bootstrap: str, site_id: UUID, findings: Findings, since: Checkpoint | None = None
) -> Chain:
    """The witness's seals. Raises KafkaUnavailable, SiteProblem, UnusableCheckpoint."""
    begin = -1 if since is None else since.anchor.offset - 1
    records: list[tuple[int, bytes]] = []
    after = {(SEALS_TOPIC, SEALS_PARTITION): begin}
    async for batch in read_topics(bootstrap, (SEALS_TOPIC,), after=after):
        for record in batch:
            value = record.value or b""
            # A record that was sent twice counts once.
            if not records or records[-1][1] != value:
                records.append((record.offset, value))
    note, seals = _noting(findings, "Kafka"), (decode_seal(value) for _, value in records)
    anchor = _last(records, since)
    if since is None:
        return Chain(SealedLog(seals, site_id, note, by_partition=True), anchor)
    if not records or records[0] != (since.anchor.offset, encode_seal(since.anchor.seal)):
        raise _moved(since.anchor.seal)
    return Chain(_resumed(seals, site_id, note, since, {}), anchor)


def _resumed(
    seals: Iterator[Seal],
    site_id: UUID,
    note: Note,
    since: Checkpoint,
    known_heads: Mapping[int, Heads],
) -> SealedLog:
    """The checkpoint's heads are held against its own seal first, then the log against newer."""
    heads = {one.stream: (one.version, one.hash) for one in since.streams}
    return SealedLog(
        seals,
        site_id,
        note,
        by_partition=since.anchor.offset >= 0,
        known_heads=known_heads,
        last=since.anchor.before,
        tree=tree_of(heads),
        counted=since.counted,
    )


def _newest(folder: SealFolder) -> Anchor | None:
    """None also where it cannot be read: reading the chain says so."""
    try:
        seal = folder.newest()
        if seal is None:
            return None
        return Anchor(seal, None if seal.number == 1 else folder.read(seal.number - 1))
    except BrokenSeal:
        return None


def _last(records: list[tuple[int, bytes]], since: Checkpoint | None) -> Anchor | None:
    try:
        found = [(offset, decode_seal(value)) for offset, value in records[-2:]]
    except BrokenSeal:
        return None
    if not found:
        return None
    before = found[0][1] if len(found) > 1 else None
    if before is None and since is not None:
        return since.anchor
    return Anchor(found[-1][1], before, found[-1][0])


def _heads(folder: SealFolder) -> dict[int, Heads]:
    """The heads of the newest seals, where they are what the seal signed."""
    saved = folder.saved_heads()
    if saved is None:
        return {}
    number, heads = saved
    try:
        signed = folder.read(number)
    except BrokenSeal:
        return {}
    return {number: heads} if tree_of(heads).root() == signed.root else {}


def _moved(seal: Seal) -> UnusableCheckpoint:
    return UnusableCheckpoint(f"seal {seal.number} is not the one that the checkpoint belongs to")


def _noting(findings: Findings, where: str) -> Note:
    def note(stream: str, version: int, what: str) -> None:
        findings.add(SEALS, stream, version, f"{where}: {what}")

    return note
