"""`suanpan seal`: signs the heads of all streams now, where this site makes its own seals."""
# The modules that do the work load Kafka's client; only this command pays for it.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import msgspec

from backend.cli.output import answer, json_option
from backend.cli.site import Site, with_site
from backend.kit.clock import SystemRandomness
from schemas.errors import SiteProblem
from schemas.event import Position

if TYPE_CHECKING:
    from backend.journal.seal import Seal

ATTEMPTS_MAX: Final = 3


class Sealed(msgspec.Struct, frozen=True):
    """The newest seal. `made`: by this command; else it was there, and covers all there is."""

    seal: int
    position: Position
    root: str
    """Hex."""
    events: int
    streams: int
    made_at_us: int
    made: bool
    by: str
    """`site`, or `witness` where Kafka is configured."""


@click.command()
@json_option
def seal(as_json: bool) -> None:
    """Seal the log now instead of within a minute.

    Where Kafka is configured only the witness seals: then this shows its newest seal.
    """

    async def work(site: Site) -> Sealed:
        bootstrap = site.settings.kafka.bootstrap_servers
        return await (_seal_here(site) if bootstrap is None else _seal_of_witness(bootstrap))

    done = with_site(work)
    events = f"{done.events} events in {done.streams} streams, root {done.root}"
    if done.by == "witness":
        words = f"With Kafka the witness seals. Its newest seal {done.seal} covers {events}."
    elif done.made:
        words = f"Seal {done.seal} covers {events}."
    else:
        words = f"Nothing is new: seal {done.seal} covers {events}."
    answer(as_json, done, words)


async def _seal_here(site: Site) -> Sealed:
    """Raises SiteProblem where there is nothing to seal, or the log is not sound."""
    from backend.journal.seal import BrokenSeal
    from projections.sealed_files import SealFolder
    from projections.sealing import TableSealer

    folder = SealFolder(site.settings.data_dir)
    for _ in range(ATTEMPTS_MAX):
        sealer = TableSealer(
            site.database.url, site.settings.data_dir, site.clock, SystemRandomness(), rest_factor=0
        )
        before = folder.numbers()[-1:]
        try:
            made = await sealer.seal_now()
            newest = made or folder.newest()
        except BrokenSeal as error:
            raise SiteProblem(f"Nothing is sealed: {error}. See `suanpan audit`.") from error
        except SiteProblem:
            if folder.numbers()[-1:] == before:
                raise
            # The site sealed at the same moment: its seal may cover all there is.
            continue
        if alarms := sealer.health().alarms:
            raise SiteProblem(f"Nothing is sealed: {alarms[0]}. See `suanpan audit`.")
        if newest is None:
            raise SiteProblem("There is nothing to seal yet.")
        return _shown(newest, made=made is not None, by="site")
    raise SiteProblem("The site seals at this very moment; try again.")


async def _seal_of_witness(bootstrap: str) -> Sealed:
    """Raises SiteProblem where it has made none, KafkaUnavailable."""
    from backend.journal.seal import BrokenSeal, decode_seal
    from backend.kit.kafka import last_records
    from backend.kit.kafka_admin import SEALS_TOPIC

    found = (await last_records(bootstrap, SEALS_TOPIC)).get(0)
    if found is None:
        raise SiteProblem("With Kafka the witness seals, and it has made no seal yet.")
    try:
        newest = decode_seal(found.value or b"")
    except BrokenSeal as error:
        raise SiteProblem(f"Kafka's newest seal cannot be read: {error}.") from error
    return _shown(newest, made=False, by="witness")


def _shown(seal: Seal, *, made: bool, by: str) -> Sealed:
    return Sealed(
        seal=seal.number,
        position=seal.position,
        root=seal.root.hex(),
        events=seal.events,
        streams=seal.streams,
        made_at_us=seal.made_at_us,
        made=made,
        by=by,
    )
