"""Commands that bring a log back from Kafka: into an older backup, or into an empty database."""
# The modules that do the work load Kafka's client; only these commands pay for it.

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from backend.cli.audits import kafka_of
from backend.cli.output import answer, json_option, progress_bar
from backend.cli.site import Database, Site, located, settings_from_environment, with_site
from backend.folds import ALL_FOLDS
from backend.identity.restored_keys import RestoredKeys
from backend.journal.migrate import migrate
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import make_pool
from backend.kit.secrets import SiteSecret, load_or_make_secret
from backend.kit.settings import Settings
from backend.ledger.account import Account
from projections.declared import PROJECTIONS
from schemas.errors import SiteProblem

if TYPE_CHECKING:
    from backend.journal.recover import Recovered
    from backend.journal.restore import Restore, Restored
    from projections.rebuild import Progress

NOT_RESTORED: Final = ("sessions", "rate counters", "object bytes")
"""What Kafka never had."""
_CONNECTIONS_EACH: Final = 2


class RestoreAnswer(msgspec.Struct, frozen=True):
    """What `restore` did; `events_per_s` is about the import, without the read models."""

    site_id: str
    epoch: int
    events: int
    streams: int
    data_keys: int
    keys_missing: int
    read_models: tuple[str, ...]
    imported: int
    events_per_s: int
    duration_ms: int
    not_restored: tuple[str, ...] = NOT_RESTORED


@click.command()
@json_option
def recover(as_json: bool) -> None:
    """Import what Kafka has and the database lacks, as after restoring an older backup."""

    async def work(site: Site) -> Recovered:
        from backend.journal.recover import recover as recover_log

        async with _records_of_ours():
            bootstrap = kafka_of(site.settings)
            sealed = RestoredKeys(site.secret)
            return await recover_log(site.database.url, bootstrap, ALL_FOLDS, open_requests, sealed)

    done = with_site(work)
    words = f"{done.events} events of {done.streams} streams were imported (epoch {done.epoch})."
    answer(as_json, done, words)


@click.command()
@click.option("--from", "source", type=click.Choice(["kafka"]), required=True,
              help="Where the log still is.")  # fmt: skip
@json_option
def restore(source: str, as_json: bool) -> None:
    """Make an empty database the site again that Kafka holds; run again if it was cut off."""
    done = asyncio.run(_restore(settings_from_environment()))
    words = (
        f"{done.events} events of {done.streams} streams and {done.data_keys} data keys are "
        f"restored (epoch {done.epoch}); the read models are current.\n"
        f"Not restored: {', '.join(done.not_restored)}."
    )
    if done.keys_missing:
        words += f"\n{done.keys_missing} people have no data key: what it sealed cannot be read."
    answer(as_json, done, words)


def open_requests(stream: str, state: object) -> Iterable[str]:
    """Requests that an account holds points for: imported, they are handed to the sweep."""
    return tuple(state.holds) if isinstance(state, Account) else ()


async def _restore(settings: Settings) -> RestoreAnswer:
    from backend.journal.restore import restoring

    bootstrap, secret, clock = kafka_of(settings), _secret_of(settings), SystemClock()
    begin_s = clock.monotonic_s()
    async with located(settings) as database, _records_of_ours():
        if database.runs:
            raise SiteProblem("A site runs on this data folder: stop it before a restore.")
        await asyncio.to_thread(migrate, database.owner_url, database.url)
        sealed = RestoredKeys(secret)
        async with restoring(database.url, bootstrap, ALL_FOLDS, sealed) as running:
            imported = await _import_log(running)
            import_s = clock.monotonic_s() - begin_s
            await _make_read_models(database, clock)
            restored = await running.finish()
    return _answer_of(restored, imported, import_s, clock.monotonic_s() - begin_s)


async def _import_log(running: Restore) -> int:
    with progress_bar("restore the log") as advance:
        return await running.import_log(advance, open_requests)


async def _make_read_models(database: Database, clock: SystemClock) -> None:
    """All of them from the table, with their consumers' places where Kafka's events go on.

    Side by side: while one waits for the database, another decodes.
    """
    from projections.rebuild import places_in_kafka, rebuild
    from projections.tables import ensure_tables

    size_max = _CONNECTIONS_EACH * len(PROJECTIONS)
    async with make_pool(database.url, application="suanpan restore", size_max=size_max) as pool:
        await ensure_tables(pool)
        with progress_bar("make the read models") as advance:
            reached: dict[str, Progress] = {}

            def progress_of(name: str) -> Callable[[Progress], None]:
                def progress(so_far: Progress) -> None:
                    reached[name] = so_far
                    total = sum(one.total for one in reached.values())
                    advance(sum(one.done for one in reached.values()), total)

                return progress

            await _side_by_side(
                rebuild(pool, one, places_in_kafka(one.topics), clock, progress_of(one.name))
                for one in PROJECTIONS
            )


async def _side_by_side(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """All of them to the end; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _secret_of(settings: Settings) -> SiteSecret:
    """The site's own secret: a new one would open nothing. Raises SiteProblem."""
    if settings.secret is None and not (settings.data_dir / "secret").exists():
        raise SiteProblem(
            "SECRET is missing: set the one the site was made with, or put back the `secret` file "
            "of its data folder."
        )
    return load_or_make_secret(settings, SystemRandomness())


@asynccontextmanager
async def _records_of_ours() -> AsyncGenerator[None]:
    from backend.kit.kafka import MalformedRecord

    try:
        yield
    except MalformedRecord as error:
        raise SiteProblem(f"Kafka holds a record that is none of ours: {error}.") from error


def _answer_of(
    restored: Restored, imported: int, import_s: float, duration_s: float
) -> RestoreAnswer:
    return RestoreAnswer(
        **msgspec.structs.asdict(restored),
        read_models=tuple(projection.name for projection in PROJECTIONS),
        imported=imported,
        events_per_s=round(imported / max(import_s, 0.001)),
        duration_ms=round(duration_s * 1000),
    )
