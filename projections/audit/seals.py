"""I8: reads the seals that there are, from the data folder and from Kafka, for the audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from backend.journal.seal import BrokenSeal, Seal, decode_seal
from backend.kit.kafka import read_topics
from backend.kit.kafka_admin import SEALS_TOPIC
from projections.audit.report import SEALS, Findings
from projections.sealed_files import Heads, SealFolder, tree_of
from projections.sealed_log import Note, SealedLog


def local_seals(data_dir: Path, site_id: UUID, findings: Findings) -> SealedLog:
    """The seals in `<data>/seals`, ready to be held against the log."""
    folder = SealFolder(data_dir)
    return SealedLog(
        folder.seals(), site_id, _noting(findings, "the data folder"), known_heads=_heads(folder)
    )


async def kafka_seals(bootstrap: str, site_id: UUID, findings: Findings) -> SealedLog:
    """The witness's seals. Raises KafkaUnavailable, SiteProblem."""
    records: list[bytes] = []
    async for batch in read_topics(bootstrap, (SEALS_TOPIC,)):
        records.extend(record.value or b"" for record in batch)
    return SealedLog(_decoded(records), site_id, _noting(findings, "Kafka"), by_partition=True)


def _decoded(records: list[bytes]) -> Iterator[Seal]:
    """In the topic's order; a record that was sent twice counts once."""
    before = b""
    for record in records:
        if record != before:
            yield decode_seal(record)
        before = record


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


def _noting(findings: Findings, where: str) -> Note:
    def note(stream: str, version: int, what: str) -> None:
        findings.add(SEALS, stream, version, f"{where}: {what}")

    return note
