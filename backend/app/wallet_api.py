"""Wires the routes of the API that move points: codes, grants, plans and subscriptions."""

from __future__ import annotations

from typing import Any

from backend.app.foundation import Foundation
from backend.catalog.plans import Plans
from backend.catalog.view import CatalogView
from backend.grants import Grants
from backend.http.address import ClientAddresses
from backend.http.api.admin_wallet import AdminDoor, admin_wallet_routes
from backend.http.api.wallet import WalletDoor, wallet_routes
from backend.http.attempts import AttemptLimits
from backend.http.relay.callers import CatchUp
from backend.journal.kafka_place import LogPlaces
from backend.ledger.codes import Codes
from backend.ledger.subscriptions import Subscriptions


def wallet_api(
    base: Foundation, catalog: CatalogView, catch_up: CatchUp, addresses: ClientAddresses
) -> list[Any]:
    """Route handlers; `catch_up` makes the catalogue in memory current."""
    settings = base.settings
    has_kafka = settings.kafka.bootstrap_servers is not None
    door = WalletDoor(
        pool=base.pool,
        clock=base.clock,
        catalog=catalog,
        catch_up=catch_up,
        codes=Codes(base.writer, base.pool, base.secret, base.randomness, base.clock),
        subscriptions=Subscriptions(base.writer, base.pool, base.secret, base.clock),
        attempts=AttemptLimits(base.valkey, base.secret, base.randomness, settings.attempts),
        addresses=addresses,
        places=LogPlaces(base.pool, base.clock, has_kafka=has_kafka),
    )
    grants = Grants(base.writer, base.pool, base.identity, base.secret)
    admin = AdminDoor(door, grants, Plans(base.writer, base.pool))
    return [*wallet_routes(door), *admin_wallet_routes(admin)]
