"""An older backup is restored beside a Kafka that knows more: who was forgotten stays forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg

from backend.folds import ALL_FOLDS
from backend.forgetting import Forgetting
from backend.identity.restored_keys import RestoredKeys
from backend.journal.publisher import Publisher
from backend.journal.publisher_place import find_lag
from backend.journal.recover import recover
from backend.kit.postgres import connect
from backend.kit.secrets import SiteSecret
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.identity_site import SECRET_TEXT, process_of
from tests.integration.log_writing import CLOCK, RANDOMNESS, until
from tests.integration.test_publisher import take_backup as take_backup
from tests.security.forgetting_ground import in_the_topic, readable

pytest_plugins = ("tests.integration.kafka_broker",)

SECRET = SiteSecret(SECRET_TEXT)
UNPUBLISHED = """
SELECT (SELECT count(*) FROM data_keys WHERE NOT published)
    + (SELECT count(*) FROM key_epochs WHERE NOT published)
    + (SELECT count(*) FROM key_tombstones WHERE NOT published)
"""


async def _published(url: str, broker: Broker) -> None:
    """Kafka has every row and key of this database."""

    async def is_published() -> bool:
        async with await connect(url, application="test") as connection:
            row = await (await connection.execute(UNPUBLISHED)).fetchone()
            return (await find_lag(connection)).rows == 0 and row == (0,)

    async with process_of(url) as site:
        publisher = Publisher(url, broker.bootstrap, site.watch, CLOCK, RANDOMNESS)
        publisher.start()
        try:
            await until(is_published, timeout_s=60, what="Kafka has everything")
        finally:
            await publisher.stop()


async def test_recovering_an_old_backup_forgets_again_and_reads_everybody_else(
    database: Database, own_broker: Broker, take_backup: Callable[[], str], tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        people = {
            name: (await site.opening.open_person(name, None)).person for name in ("Anna", "Bert")
        }
    await _published(database.app_url, own_broker)
    backup = take_backup()
    async with process_of(database.app_url) as site:
        forgetting = Forgetting(site.writer, site.pool, site.identity, tmp_path)
        await forgetting.forget(people["Anna"], "cli")
        await site.identity.data_keys.epochs.rewrap()
        people["Cleo"] = (await site.opening.open_person("Cleo", None)).person
    await _published(database.app_url, own_broker)

    sealed = RestoredKeys(SECRET)
    done = await recover(backup, own_broker.bootstrap, ALL_FOLDS, sealed=sealed)
    assert done.events > 0

    async with process_of(backup) as site:
        assert await site.identity.name_of(people["Anna"]) is None
        assert await site.identity.name_of(people["Bert"]) == "Bert"
        assert await site.identity.name_of(people["Cleo"]) == "Cleo"
        forgetting = Forgetting(site.writer, site.pool, site.identity, tmp_path)
        assert await forgetting.finish_all() == 1
        await site.identity.data_keys.epochs.tend()
        people["Dora"] = (await site.opening.open_person("Dora", None)).person
    with psycopg.connect(backup) as connection:
        accounts = connection.execute("SELECT account FROM data_keys ORDER BY account").fetchall()
        (epochs,) = connection.execute("SELECT count(*) FROM key_epochs").fetchall()
    assert accounts == [(people[name],) for name in ("Bert", "Cleo", "Dora")]
    assert epochs == (1,)

    await _published(backup, own_broker)
    at_backup = Database(backup, backup, backup, "backup")
    kept = await in_the_topic(own_broker.bootstrap)
    assert await readable(at_backup, SECRET, kept) == {"Bert", "Cleo", "Dora"}
