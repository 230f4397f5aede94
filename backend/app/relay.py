"""Wires the relay: HTTP front, settlement flow, channels, leases and the sweeper."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

import msgspec
import structlog
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry

from backend.app.foundation import Foundation
from backend.app.records_api import records_api
from backend.app.wallet_api import wallet_api
from backend.catalog.limit_view import LimitView
from backend.catalog.price_history import PriceHistory
from backend.catalog.view import CatalogView, ChannelEntry
from backend.folds import ALL_FOLDS
from backend.http.address import ClientAddresses
from backend.http.front import Front
from backend.http.metrics import RelayMetrics, gauge
from backend.http.relay.callers import Callers
from backend.http.relay.chat import ChatFront
from backend.http.relay.gate import RateGate
from backend.http.site import RelaySite, Site, make_site
from backend.identity.key_view import KeyView
from backend.identity.person_view import PersonView
from backend.journal.view import StateView
from backend.kit.clock import Clock
from backend.kit.outbound import Deadlines, Transport
from backend.kit.outbound_http import AioHttpTransport
from backend.kit.shared_rates import SharedRates
from backend.kit.tokenizer import Tokenizer
from backend.ledger.billing import BillingDoor
from backend.ledger.leases import LeaseKeeper
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from schemas.plans import OfferedGroup, OfferedPlan
from workers.providers.demo import DemoTransport
from workers.providers.openai import ChannelTarget
from workers.relay.ending import Ending
from workers.relay.ports import Offer, OfferedChannel
from workers.relay.runner import RelayRunner
from workers.relay.streaming import Streaming
from workers.relay.upstream import Upstreams
from workers.routing import Cooldowns
from workers.sweeping import Sweeper

UPSTREAM_CONNECTIONS_MAX: Final = 2_000
DRAIN_S: Final = 120.0

_log = structlog.get_logger("app.relay")


class CatalogOffers:
    """The catalogue as the relay wants it: a model's price and its channels, each with a
    transport.
    """

    def __init__(
        self, catalog: CatalogView, clock: Clock, http: Transport, demo: Transport
    ) -> None:
        self._catalog: Final = catalog
        self._clock: Final = clock
        self._transports: Final = {"demo": demo}
        self._http: Final = http
        self._made: dict[str, tuple[object, object, Offer]] = {}

    @property
    def plans(self) -> Mapping[int, OfferedPlan]:
        return self._catalog.plans

    @property
    def groups(self) -> Mapping[str, OfferedGroup]:
        return self._catalog.groups

    def offer(self, model: str) -> Offer | None:
        # The same object until a price's time comes, and another one from then on.
        priced = self._catalog.price_of(model, self._clock.now_us())
        entries = self._catalog.channels_for(model)
        if priced is None or not entries:
            self._made.pop(model, None)
            return None
        made = self._made.get(model)
        if made is not None and made[0] is priced and made[1] is entries:
            return made[2]
        channels = tuple(self._offered(entry, model) for entry in entries)
        offer = Offer(priced.price, priced.ref, channels)
        self._made[model] = (priced, entries, offer)
        return offer

    def _offered(self, entry: ChannelEntry, model: str) -> OfferedChannel:
        target = ChannelTarget(
            entry.base_url or "demo:", entry.secret, entry.upstream_model(model), entry.api_version
        )
        transport = self._transports.get(entry.type, self._http)
        return OfferedChannel(entry.channel, entry.priority, entry.weight, target, transport)


class Relay(msgspec.Struct, frozen=True):
    """A wired relay."""

    app: ASGIApp
    front: ChatFront
    sweeper: Sweeper
    view: StateView
    spool: Spool
    leases: LeaseKeeper
    rates: SharedRates


def make_sweeper(base: Foundation, points: Points, spool: Spool) -> Sweeper:
    return Sweeper(
        base.pool,
        ALL_FOLDS,
        points,
        PriceHistory(base.pool),
        spool,
        base.settings.lease.sweep_seconds,
    )


@asynccontextmanager
async def relay_of(
    base: Foundation, site: Site, registry: CollectorRegistry
) -> AsyncGenerator[Relay]:
    """The relay on its foundation; at the end waits for the calls that are under way."""
    settings, clock = base.settings, base.clock
    keys, people, catalog = KeyView(base.secret), PersonView(), CatalogView(base.secret, clock)
    limits = LimitView()
    listeners = (keys, people, catalog, limits)
    view = StateView(base.pool, base.watch, ALL_FOLDS, clock, base.randomness, listeners)
    await view.load()
    view.start()
    tokenizer, http = Tokenizer(), AioHttpTransport(limit=UPSTREAM_CONNECTIONS_MAX)
    points = Points(base.writer, base.pool)
    lease_s = int(settings.lease.seconds)
    leases = LeaseKeeper(base.pool, clock, lease_s, settings.lease.renew_seconds)
    leases.start()
    spool = Spool(settings.data_dir / "spool")
    sweeper = make_sweeper(base, points, spool)
    sweeper.start()
    rates = SharedRates(base.valkey, clock, base.randomness)
    rates.start()
    addresses = ClientAddresses(settings.http.trusted_proxies)
    callers = Callers(keys, people, clock, view.catch_up, addresses)
    runner = _runner(
        base,
        points,
        leases,
        spool,
        tokenizer,
        CatalogOffers(catalog, clock, http, DemoTransport(tokenizer)),
    )
    front = ChatFront(
        callers,
        view.catch_up,
        catalog,
        RateGate(limits, rates, clock),
        runner,
        points,
        clock,
        base.randomness,
        RelayMetrics(registry),
        settings.relay.body_bytes_max,
    )
    _gauges(registry, base, front, leases, spool, view)
    billing = BillingDoor(base.pool, ALL_FOLDS, Decimal(settings.billing.cny_per_usd))
    api = [*wallet_api(base, catalog, view.catch_up, addresses), *records_api(base)]
    cold = make_site(site, RelaySite(callers, catalog, billing, api))
    app = Front(front, cold, clock, base.randomness)
    try:
        yield Relay(app, front, sweeper, view, spool, leases, rates)
    finally:
        left = await front.calls.drain(DRAIN_S)
        if left:
            _log.warning("calls left to the sweep", count=left)
        await sweeper.stop()
        await leases.stop()
        await rates.stop()
        await view.stop()
        await http.close()
        tokenizer.close()


def _runner(
    base: Foundation,
    points: Points,
    leases: LeaseKeeper,
    spool: Spool,
    tokenizer: Tokenizer,
    offers: CatalogOffers,
) -> RelayRunner:
    relay = base.settings.relay
    deadlines = Deadlines(relay.connect_timeout_s, relay.first_byte_timeout_s, relay.idle_timeout_s)
    cooldowns = Cooldowns(first_s=relay.cooldown_s)
    upstreams = Upstreams(cooldowns, deadlines, base.clock)
    ending = Ending(points, leases, spool, tokenizer, base.clock)
    streaming = Streaming(points, upstreams, ending, tokenizer, base.clock, relay.keepalive_s)
    return RelayRunner(
        points,
        leases,
        offers,
        upstreams,
        cooldowns,
        ending,
        streaming,
        tokenizer,
        base.clock,
        random.SystemRandom().random,
    )


def _gauges(
    registry: CollectorRegistry,
    base: Foundation,
    front: ChatFront,
    leases: LeaseKeeper,
    spool: Spool,
    view: StateView,
) -> None:
    gauge(registry, "suanpan_relay_open_calls", "Calls under way", lambda: len(front.calls))
    gauge(registry, "suanpan_leases_open", "Leases of this process", lambda: leases.open_count)
    gauge(registry, "suanpan_spool_waiting", "Settlements that wait on disk", spool.waiting)
    gauge(registry, "suanpan_writer_waiting", "Commands in the queue", lambda: base.writer.waiting)
    gauge(registry, "suanpan_writer_appends", "Appends so far", lambda: base.writer.appends)
    gauge(
        registry,
        "suanpan_writer_commands",
        "Commands recorded so far",
        lambda: base.writer.commands_landed,
    )
    gauge(registry, "suanpan_view_age_seconds", "Age of keys and prices", lambda: view.age_s)
