"""`suanpan restore --from kafka`: an empty database, Kafka and SECRET give the site back."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.journal.chain import hash_of
from backend.journal.keys_topic import KeyRecord, key_record
from backend.journal.migrate import migrate
from backend.journal.publisher_place import RESTORING
from backend.kit.kafka_admin import OUR_TOPICS, TopicSpec, ensure_topics
from backend.kit.kafka_outlet import outgoing_of
from backend.kit.postgres import connect
from projections.audit.report import SEALS
from projections.replay import replay_kafka, replay_table
from schemas.catalog import ChannelSettings
from schemas.errors import IdempotencyConflict, Unavailable
from schemas.identity import PersonForgotten
from schemas.ids import account_stream, person_stream
from scripts.kafka import Broker
from tests.conftest import Database
from tests.given import (
    MODEL,
    PER_TOKEN,
    POINT,
    granting,
    opening,
)
from tests.integration.audited_site import Site, audited, readable
from tests.integration.identity_site import SECRET_TEXT, process_of
from tests.integration.log_writing import until
from tests.integration.restore_ground import (
    PASSWORD,
    Command,
    Lost,
    calls_of,
    count_of,
    do,
    grant_to,
    keys_in,
    lived,
    send,
    site_in_kafka,
    site_row,
)
from tests.integration.test_seals_from_kafka import filled, published, witness_on, witnessed

pytest_plugins = ("tests.integration.kafka_broker",)

OTHER_SECRET = "w3Hn8Zq5Kd1Vx6Rb9Tm2Lf7Pc4Js0Gy+"
RESTORE = ("restore", "--from", "kafka")


@pytest.fixture
def restoring(empty_database: Database, own_broker: Broker, tmp_path: Path) -> Command:
    return Command(empty_database, own_broker, tmp_path / "restored")


def _assert_untouched(database: Database, site: tuple[UUID, int, str | None]) -> None:
    assert site_row(database.app_url) == site
    for table in ("event_log", "streams", "commands", "leases", "data_keys"):
        assert count_of(database.app_url, table) == 0, table


async def test_everything_comes_back_and_the_site_goes_on(
    database: Database,
    empty_database: Database,
    own_broker: Broker,
    restoring: Command,
    tmp_path: Path,
) -> None:
    lost = await lived(database)
    await filled(database, own_broker.bootstrap)
    await witnessed(witness_on(own_broker, tmp_path), 1, lost.events)
    before = Command(database, own_broker, tmp_path / "lost").json("balance", "--user", "anna")

    answered = restoring.json(*RESTORE)

    site_id, old_epoch, _ = site_row(database.app_url)
    assert answered["not_restored"] == ["sessions", "rate counters", "object bytes"]
    assert (answered["site_id"], answered["events"]) == (str(site_id), lost.events)
    assert (answered["epoch"], answered["data_keys"]) == (old_epoch + 1, 2)
    assert site_row(empty_database.app_url) == (site_id, old_epoch + 1, None)
    assert restoring.json("balance", "--user", "anna") == before
    url = empty_database.app_url
    replayed = await replay_table(url, ALL_FOLDS)
    assert (replayed.digest, replayed.differences) == (lost.digest, ())
    await _expect_people_keys_and_secrets(url, lost)
    await _expect_repeats(url, lost)
    report = await audited(url, bootstrap=own_broker.bootstrap)
    assert report.ok, report.first

    # The publisher goes on where Kafka ends: it sends what is new, and nothing again.
    async with published(empty_database, own_broker.bootstrap) as publisher:
        async with process_of(url) as site:
            await do(site, granting(lost.person, POINT))
            new = (await site.opening.open_person("Carla", None)).person
        assert new not in (lost.person, lost.forgotten, lost.key)
        # A name, a person and an account, and the grant.
        await until(lambda: _sent(publisher, 4), what="the publisher goes on")
        assert publisher.status.state == "publishing"
    kafka = await replay_kafka(url, own_broker.bootstrap, ALL_FOLDS)
    assert (kafka.events, kafka.differences) == (lost.events + 4, ())
    await witnessed(witness_on(own_broker, tmp_path), 2, lost.events + 4)
    after = await audited(url, bootstrap=own_broker.bootstrap)
    assert [check for check in after.checks if check.id == SEALS and not check.ok] == []


async def _sent(publisher: Any, rows: int) -> bool:
    assert publisher.status.rows_sent <= rows
    return publisher.status.rows_sent == rows


async def _expect_people_keys_and_secrets(url: str, lost: Lost) -> None:
    async with process_of(url) as site:
        assert await site.identity.check_password("anna", PASSWORD) == lost.person
        assert await site.identity.check_password("anna", "another") is None
        assert await site.identity.name_of(lost.person) == "Anna"
        assert await site.identity.find_key(lost.key_text) == lost.key
        (channel,) = await site.catalog.list_channels()
        assert site.catalog.secret_of(channel) == "channel-secret"
        newest = await site.catalog.newest_price(MODEL)
        assert newest is not None
        assert (newest[0].version, newest[1]) == (2, PER_TOKEN)


async def _expect_repeats(url: str, lost: Lost) -> None:
    """An old command changes nothing; the open hold is given to the sweep."""
    events = count_of(url, "event_log")
    async with process_of(url) as site:
        again = await grant_to(site, lost.person)
        assert again == msgspec.structs.replace(lost.granted, repeated=True)
        with pytest.raises(IdempotencyConflict):
            await grant_to(site, lost.person, points=8)
        with pytest.raises(IdempotencyConflict):
            await grant_to(site, lost.forgotten)
    assert count_of(url, "event_log") == events
    with psycopg.connect(url) as connection:
        leases = connection.execute(
            "SELECT request_id::text, stream, until <= clock_timestamp() FROM leases"
        ).fetchall()
    assert leases == [(lost.open_request, account_stream(lost.person), True)]


async def test_a_secret_that_is_wrong_or_missing_is_refused_and_the_database_stays_empty(
    database: Database, empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    await lived(database)
    await filled(database, own_broker.bootstrap)
    migrate(empty_database.owner_url, empty_database.app_url)
    untouched = site_row(empty_database.app_url)

    restoring.environment["SECRET"] = OTHER_SECRET
    assert "SECRET is not the one" in restoring.refused(*RESTORE)
    _assert_untouched(empty_database, untouched)
    del restoring.environment["SECRET"]
    assert "SECRET is missing" in restoring.refused(*RESTORE)
    _assert_untouched(empty_database, untouched)


async def test_a_log_without_data_keys_is_checked_by_what_the_site_itself_sealed(
    database: Database, empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    async with process_of(database.app_url) as site:
        settings = ChannelSettings("first", "openai", "http://127.0.0.1:9/v1", (MODEL,))
        await site.opening.add_channel(settings, "channel-secret")
    await readable(database.app_url)
    await filled(database, own_broker.bootstrap)

    restoring.environment["SECRET"] = OTHER_SECRET
    assert "SECRET is not the one" in restoring.refused(*RESTORE)
    assert count_of(empty_database.app_url, "event_log") == 0
    restoring.environment["SECRET"] = SECRET_TEXT
    assert restoring.json(*RESTORE)["events"] == 1


async def test_a_database_that_has_events_or_is_in_use_is_refused(
    database: Database, own_broker: Broker, tmp_path: Path
) -> None:
    await lived(database)
    await filled(database, own_broker.bootstrap)
    events = count_of(database.app_url, "event_log")
    command = Command(database, own_broker, tmp_path / "again")

    assert "`suanpan recover` imports what it lacks" in command.refused(*RESTORE)
    async with await connect(database.app_url, application="suanpan writer"):
        assert "`suanpan writer` is using this database" in command.refused(*RESTORE)
    assert count_of(database.app_url, "event_log") == events
    assert site_row(database.app_url)[2] is None


async def test_a_kafka_without_a_site_is_refused(
    empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    assert "has no topic suanpan.ledger" in restoring.refused(*RESTORE)
    await ensure_topics(own_broker.bootstrap, 1)
    assert "nothing to restore" in restoring.refused(*RESTORE)
    await send(own_broker, outgoing_of(calls_of(uuid4(), 1)[0]))
    assert "does not say which site" in restoring.refused(*RESTORE)
    assert count_of(empty_database.app_url, "event_log") == 0


async def test_topics_with_other_partitions_are_refused(
    own_broker: Broker, restoring: Command
) -> None:
    specs = [
        TopicSpec(spec.name, 4, spec.cleanup_policy) if spec.name == "suanpan.ledger" else spec
        for spec in OUR_TOPICS
    ]
    await ensure_topics(own_broker.bootstrap, 1, specs=specs)
    assert "suanpan.ledger has 4 partitions where a site has 16" in restoring.refused(*RESTORE)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"payload": b'{"amount_upt":9,"kind":"operator","actor":"cli"}'}, "the hash it claims"),
        ({"prev_hash": bytes(32)}, "is not chained to the event before it"),
        ({"version": 3}, "follows version 1"),
        ({"command_id": UUID(int=7)}, "the hash it claims"),
    ],
)
async def test_a_forged_record_is_named_and_the_site_stays_closed(
    empty_database: Database,
    own_broker: Broker,
    restoring: Command,
    change: dict[str, object],
    what: str,
) -> None:
    site_id = uuid4()
    rows = calls_of(site_id, 20)
    forged = msgspec.structs.replace(rows[1], **change)
    await site_in_kafka(own_broker, [rows[0], forged, *rows[2:]], site_id)

    said = restoring.refused(*RESTORE)
    assert f"account:1 version {forged.version} (suanpan.ledger/{forged.shard}) " in said
    assert what in said
    assert site_row(empty_database.app_url)[2] == RESTORING
    assert "being restored" in restoring.refused("recover")
    await _expect_closed(empty_database.app_url)


async def test_two_events_under_one_version_are_named(
    own_broker: Broker, restoring: Command
) -> None:
    site_id = uuid4()
    rows = calls_of(site_id, 20)
    twin = msgspec.structs.replace(rows[0], payload=rows[0].payload + b" ")
    twin = msgspec.structs.replace(twin, hash=hash_of(twin))
    await site_in_kafka(own_broker, [*rows, twin], site_id)
    assert "two different events 1 of account:1" in restoring.refused(*RESTORE)


async def test_records_that_were_sent_twice_are_taken_once(
    empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    site_id = uuid4()
    rows = calls_of(site_id, 3_000)
    await site_in_kafka(own_broker, rows, site_id)
    # As after a lost epoch: the last records are of an older one than some before them.
    later = [msgspec.structs.replace(row, epoch=4) for row in rows]
    await send(own_broker, *(outgoing_of(row) for row in (*later, *rows)))
    answered = restoring.json(*RESTORE)
    assert (answered["events"], answered["epoch"]) == (3_000, 5)
    kafka = await replay_kafka(empty_database.app_url, own_broker.bootstrap, ALL_FOLDS)
    assert (kafka.events, kafka.differences) == (3_000, ())


async def _expect_closed(url: str) -> None:
    async with process_of(url) as site:
        with pytest.raises(Unavailable, match="being restored"):
            await site.writer.submit(opening(99_999_999))


async def test_a_restore_that_is_killed_goes_on_where_it_was_and_the_site_stays_closed(
    empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    site_id, url = uuid4(), empty_database.app_url
    rows = calls_of(site_id, 12_000)
    await site_in_kafka(own_broker, rows, site_id)
    migrate(empty_database.owner_url, url)

    for condition in (
        "(SELECT count(*) FROM event_log) > 0",
        "(SELECT count(*) FROM event_log) > 6000",
        "(SELECT count(*) FROM commands) = 12000",
        "EXISTS (SELECT FROM consumer_places WHERE consumer = 'statement:rebuild')",
    ):
        await _killed_when(restoring, url, condition)
        assert site_row(url)[2] == RESTORING
        await _expect_closed(url)
        events = count_of(url, "event_log")
        # A publisher that starts now leaves Kafka and the half of a log alone.
        async with published(empty_database, own_broker.bootstrap) as publisher:
            await until(lambda: _is(publisher, "read-only"), what="the publisher waits")
        assert count_of(url, "event_log") == events

    answered = restoring.json(*RESTORE)
    assert (answered["events"], answered["imported"]) == (12_000, 0)
    table = await replay_table(url, ALL_FOLDS)
    kafka = await replay_kafka(url, own_broker.bootstrap, ALL_FOLDS)
    assert (kafka.digest, kafka.differences) == (table.digest, table.differences)
    assert kafka.position == table.position
    assert kafka.events == 12_000
    report = await audited(url, bootstrap=own_broker.bootstrap)
    # These made-up calls name prices that no stream has; all else is in order.
    assert {check.id for check in report.checks if not check.ok} <= {"I3", "I13"}
    assert "has events already" in restoring.refused(*RESTORE)


async def _is(publisher: Any, state: str) -> bool:
    return publisher.status.state == state


async def _killed_when(command: Command, url: str, condition: LiteralString) -> None:
    """Starts a restore and kills it at once when the condition holds."""
    wanted = sql.SQL(condition)
    process = command.start(*RESTORE)
    try:
        with psycopg.connect(url, autocommit=True) as connection:

            async def happened() -> bool:
                assert process.poll() is None, "it ended before it could be killed"
                row = connection.execute(sql.SQL("SELECT {}").format(wanted)).fetchone()
                return row == (True,)

            await until(happened, what=condition, timeout_s=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)


async def test_the_key_of_a_forgotten_person_does_not_come_back(
    database: Database, empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    lost = await lived(database)
    async with process_of(database.app_url) as site:
        carla = (await site.opening.open_person("Carla", PASSWORD)).person
    await readable(database.app_url)
    await filled(database, own_broker.bootstrap)
    (record,) = [one for one in await keys_in(own_broker) if one[0] == f"account:{carla}/1"]
    # Bert by an event, his key still in the topic; Carla by a tombstone, an old record behind it.
    async with process_of(database.app_url) as site:
        event = PersonForgotten("cli")
        await Site(site.writer).record(person_stream(lost.forgotten), event)
    await filled(database, own_broker.bootstrap)
    tombstone = key_record(KeyRecord(carla, 1, None))
    await send(own_broker, tombstone, msgspec.structs.replace(tombstone, value=record[1]))

    answered = restoring.json(*RESTORE)

    assert (answered["data_keys"], answered["keys_missing"]) == (1, 1)
    with psycopg.connect(empty_database.app_url) as connection:
        accounts = connection.execute("SELECT account FROM data_keys").fetchall()
    assert accounts == [(lost.person,)]
    async with process_of(empty_database.app_url) as site:
        assert await site.identity.name_of(lost.person) == "Anna"
        assert await site.identity.name_of(carla) is None


async def test_keys_that_were_wrapped_anew_come_back_and_a_destroyed_epoch_does_not(
    database: Database, empty_database: Database, own_broker: Broker, restoring: Command
) -> None:
    lost = await lived(database)
    await filled(database, own_broker.bootstrap)
    async with process_of(database.app_url) as site:
        assert (await site.identity.data_keys.epochs.rewrap()).epochs_destroyed == 1
    async with published(database, own_broker.bootstrap):
        await until(lambda: _told(database.app_url), what="Kafka is told")

    assert restoring.json(*RESTORE)["data_keys"] == 2

    assert count_of(empty_database.app_url, "key_epochs") == 1
    async with process_of(empty_database.app_url) as site:
        assert await site.identity.name_of(lost.person) == "Anna"
        assert await site.identity.data_keys.epochs.tend() is None


async def _told(url: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT NOT EXISTS (SELECT FROM key_tombstones WHERE NOT published)"
            " AND NOT EXISTS (SELECT FROM data_keys WHERE NOT published)"
        ).fetchone()
    return row == (True,)
