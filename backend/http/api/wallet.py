"""`/api/wallet`: what the caller has; codes and subscriptions that its owner buys. `/api/plans`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import get, post
from litestar.params import FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK

from backend.catalog.plan_text import discounts_data, level_of, plan_data
from backend.catalog.view import CatalogView
from backend.folds import ALL_FOLDS
from backend.http.address import ClientAddresses
from backend.http.api.door import WALLET, AnyRequest, actor_of, caller_of, idempotency_key_of
from backend.http.attempts import AttemptLimits
from backend.http.relay.callers import CatchUp
from backend.journal.kafka_place import LogPlace, LogPlaces
from backend.journal.view import load_states
from backend.kit.clock import Clock
from backend.kit.postgres import Pool
from backend.ledger.account import Account
from backend.ledger.codes import Codes, Credited
from backend.ledger.points import account_state
from backend.ledger.subscriptions import Subscribed, Subscriptions
from backend.ledger.wallet import ItemUse, KeyQuotaView, SubscriptionView, wallet_of
from schemas.errors import BadRequest, CodeNotGood
from schemas.ids import PersonId
from schemas.ledger import CodeKind
from schemas.money import format_points
from schemas.plans import LEVEL_NAMES, UNLIMITED, OfferedPlan


class WalletDoor(msgspec.Struct, frozen=True):
    """What the routes need."""

    pool: Pool
    clock: Clock
    catalog: CatalogView
    catch_up: CatchUp
    codes: Codes
    subscriptions: Subscriptions
    attempts: AttemptLimits
    addresses: ClientAddresses
    places: LogPlaces


class CodeAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A code as it was typed: case, dashes and blanks do not matter."""

    code: Annotated[str, msgspec.Meta(max_length=200)]


class SubscribeAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`level`: 1 to 3, or `basic`, `standard`, `pro`; `months`: 1, 3, 6, 12 or 36."""

    level: int | str
    months: int


class Item(msgspec.Struct, frozen=True):
    """Calls of some models; `limit` and `left` are null where there is no limit."""

    id: str
    name: str
    icon: str
    models: list[str]
    used: int
    limit: int | None
    left: int | None


class OwnSubscription(msgspec.Struct, frozen=True):
    """Times in microseconds since 1970 UTC; calls are counted from `period_us` on."""

    level: int
    name: str
    plan_version: int
    until_us: int
    time_zone: str
    period_us: int
    period_end_us: int
    items: list[Item]


class OwnQuota(msgspec.Struct, frozen=True):
    """Of the key in use, points as decimal strings."""

    limit: str
    left: str
    reset: str
    period_us: int


class Wallet(msgspec.Struct, frozen=True):
    """Points as decimal strings. available = posted − held by requests that are under way."""

    person: int
    posted: str
    held: str
    available: str
    group: str
    subscription: OwnSubscription | None
    quota: OwnQuota | None
    """Null: the key in use may spend all that there is."""


class RedeemedCode(LogPlace, frozen=True, kw_only=True):
    """`available` is what the account has now."""

    points: str
    available: str
    repeated: bool
    """The same command was recorded before, and this is its answer."""


class Purchased(LogPlace, frozen=True, kw_only=True):
    """`due` = `price` − `credit`; below zero: points came back."""

    kind: str
    level: int
    months: int
    price: str
    credit: str
    due: str
    until_us: int
    available: str
    repeated: bool


class Quotation(msgspec.Struct, frozen=True):
    """What a purchase would come to now; `missing` is what the account lacks for it."""

    kind: str
    level: int
    months: int
    price: str
    credit: str
    due: str
    until_us: int
    available: str
    missing: str


class Level(msgspec.Struct, frozen=True):
    """What a level offers; `price` is CNY a month, `month_points` the same in points."""

    level: int
    version: int
    name: str
    price: str
    month_points: str
    enabled: bool
    items: list[dict[str, Any]]
    relay: bool
    """Whether calls of the relay API may use it."""
    time_zone: str
    discounts: dict[str, str]


class Levels(msgspec.Struct, frozen=True):
    levels: dict[str, Level]


def wallet_routes(door: WalletDoor) -> list[Any]:
    @get("/wallet", opt=WALLET, operation_id="showWallet")
    async def show_wallet(request: AnyRequest) -> Wallet:
        """What the account has at this moment, as the next decision will see it."""
        entry = caller_of(request)
        async with door.pool.connection() as connection:
            states = await load_states(connection, ALL_FOLDS, (entry.account,))
        state = account_state(states[entry.account][1]) if entry.account in states else Account()
        view = wallet_of(state, entry.terms, door.catalog.plans, door.clock.now_us())
        return Wallet(
            person=entry.person,
            posted=format_points(view.posted_upt),
            held=format_points(view.held_upt),
            available=format_points(view.available_upt),
            group=view.group,
            subscription=_own_subscription(view.subscription),
            quota=_own_quota(view.quota, entry.reset),
        )

    @post("/wallet/redeem", opt=WALLET, operation_id="redeemCode", status_code=HTTP_200_OK)
    async def redeem_code(request: AnyRequest, data: JSONBody[CodeAsked]) -> RedeemedCode:
        """Uses a redemption code up and credits its points."""
        return await _use_code(door, request, CodeKind.REDEEM, data.code)

    @post("/wallet/gift", opt=WALLET, operation_id="takeGift", status_code=HTTP_200_OK)
    async def take_gift(request: AnyRequest, data: JSONBody[CodeAsked]) -> RedeemedCode:
        """Uses a gift code up; a person takes one of each type."""
        return await _use_code(door, request, CodeKind.GIFT, data.code)

    @post("/wallet/subscribe", opt=WALLET, operation_id="subscribe", status_code=HTTP_200_OK)
    async def subscribe(request: AnyRequest, data: JSONBody[SubscribeAsked]) -> Purchased:
        """Buys, renews or changes the subscription with points."""
        return await buy(door, request, caller_of(request).person, data)

    @get("/wallet/quote", opt=WALLET, operation_id="quoteSubscription")
    async def quote(
        request: AnyRequest, level: FromQuery[str], months: FromQuery[int]
    ) -> Quotation:
        """What `subscribe` would charge now."""
        number = level_of(level)
        offered = await _offered(door, number)
        found = await door.subscriptions.quote(caller_of(request).person, offered, months)
        return Quotation(
            kind=found.kind,
            level=number,
            months=months,
            price=format_points(found.quote.price_upt),
            credit=format_points(found.quote.credit_upt),
            due=format_points(found.quote.due_upt),
            until_us=found.quote.segment.until_us,
            available=format_points(found.available_upt),
            missing=format_points(found.missing_upt),
        )

    @get("/plans", opt=WALLET, operation_id="listPlans", sync_to_thread=False)
    def list_plans() -> Levels:
        """What every level offers."""
        return levels_of(door.catalog.plans.values())

    return [show_wallet, redeem_code, take_gift, subscribe, quote, list_plans]


async def buy(
    door: WalletDoor, request: AnyRequest, person: PersonId, asked: SubscribeAsked
) -> Purchased:
    """A purchase with the points of `person`, in the caller's name."""
    offered = await _offered(door, level_of(str(asked.level)))
    done = await door.subscriptions.subscribe(
        person,
        offered,
        asked.months,
        actor=actor_of(request),
        idempotency_key=idempotency_key_of(request),
    )
    return _purchased(done, await door.places.find(done.stream, done.version))


def levels_of(plans: Any) -> Levels:
    """Offered plans as they are shown, by the level's name."""
    return Levels({LEVEL_NAMES[offered.ref.level]: _level(offered) for offered in plans})


async def _use_code(
    door: WalletDoor, request: AnyRequest, kind: CodeKind, text: str
) -> RedeemedCode:
    """Only what was never issued counts as a guess; it is counted before it is looked at."""
    entry = caller_of(request)
    key = idempotency_key_of(request)
    attempt = await door.attempts.check(
        "code", account=entry.account, address=door.addresses.of(request.scope)
    )
    guessed = False
    try:
        done = await door.codes.redeem(entry.person, kind, text, key)
    except CodeNotGood as error:
        guessed = error.guessed
        raise
    finally:
        if not guessed:
            await door.attempts.forgive(attempt)
    return _redeemed(done, await door.places.find(done.stream, done.version))


async def _offered(door: WalletDoor, level: int) -> OfferedPlan:
    """Asks the log once before it says no: the level may be new."""
    offered = door.catalog.plans.get(level)
    if offered is None:
        await door.catch_up()
        offered = door.catalog.plans.get(level)
    if offered is None:
        raise BadRequest(f"The level {LEVEL_NAMES[level]} is not offered.")
    return offered


def _redeemed(done: Credited, place: LogPlace) -> RedeemedCode:
    return RedeemedCode(
        points=format_points(done.amount_upt),
        available=format_points(done.available_upt),
        repeated=done.repeated,
        **msgspec.structs.asdict(place),
    )


def _purchased(done: Subscribed, place: LogPlace) -> Purchased:
    return Purchased(
        kind=done.kind,
        level=done.level,
        months=done.months,
        price=format_points(done.price_upt),
        credit=format_points(done.credit_upt),
        due=format_points(done.due_upt),
        until_us=done.until_us,
        available=format_points(done.available_upt),
        repeated=done.repeated,
        **msgspec.structs.asdict(place),
    )


def _own_subscription(view: SubscriptionView | None) -> OwnSubscription | None:
    if view is None:
        return None
    return OwnSubscription(
        level=view.level,
        name=LEVEL_NAMES[view.level],
        plan_version=view.plan_version,
        until_us=view.until_us,
        time_zone=view.time_zone,
        period_us=view.period_us,
        period_end_us=view.period_end_us,
        items=[_item(use) for use in view.items],
    )


def _item(use: ItemUse) -> Item:
    item = use.item
    limit = None if item.monthly_calls == UNLIMITED else item.monthly_calls
    return Item(
        id=item.id,
        name=item.name,
        icon=item.icon,
        models=list(item.models),
        used=use.used,
        limit=limit,
        left=None if limit is None else max(0, limit - use.used),
    )


def _own_quota(view: KeyQuotaView | None, reset: str) -> OwnQuota | None:
    if view is None:
        return None
    return OwnQuota(
        format_points(view.limit_upt), format_points(view.left_upt), reset, view.period_us
    )


def _level(offered: OfferedPlan) -> Level:
    plan = offered.plan
    return Level(
        level=offered.ref.level,
        version=offered.ref.version,
        relay=plan.relay,
        time_zone=plan.time_zone,
        discounts=discounts_data(plan),
        **plan_data(plan),
    )
