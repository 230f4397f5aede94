"""`/api/admin`: grants, codes, plans and subscriptions, by administrators for others."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK

from backend.catalog.plan_text import WrittenPlans, plans_of
from backend.catalog.plans import Plans
from backend.grants import GrantAsked, Grants
from backend.http.api.door import ADMIN, AnyRequest, actor_of, idempotency_key_of
from backend.http.api.wallet import (
    Level,
    Purchased,
    SubscribeAsked,
    WalletDoor,
    buy,
    levels_of,
)
from backend.journal.kafka_place import LogPlace
from backend.ledger.code_list import LIST_MAX, CodeState, ListedCode, list_codes
from backend.ledger.codes import IssueAsked
from schemas.errors import BadRequest
from schemas.ids import PersonId
from schemas.ledger import CodeKind
from schemas.money import MicroPoints, MoneyError, format_points, parse_points
from schemas.plans import LEVEL_NAMES

CODES_SHOWN: Final = 100


class AdminDoor(msgspec.Struct, frozen=True):
    """What the routes need beside the wallet's."""

    wallet: WalletDoor
    grants: Grants
    plans: Plans


class GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`points`: a decimal string; the reason is kept sealed."""

    person: int
    points: str
    reason: str


class GrantedPoints(LogPlace, frozen=True, kw_only=True):
    points: str
    repeated: bool


class CodesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`type`: of gift codes; `expires_us`: microseconds since 1970 UTC, null: never."""

    kind: CodeKind
    points: str
    count: int
    type: str = ""
    expires_us: int | None = None


class MadeCodes(msgspec.Struct, frozen=True):
    """Shown once; under an Idempotency-Key, once per repetition."""

    batch: str
    codes: list[str]
    repeated: bool


class VoidBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either a batch, of which all unused codes end, or one code."""

    batch: str | None = None
    code: Annotated[str, msgspec.Meta(max_length=200)] | None = None


class Voided(msgspec.Struct, frozen=True):
    voided: int


class CodeEntry(msgspec.Struct, frozen=True):
    """A code without its text. Points as decimal strings, times in microseconds since 1970 UTC."""

    stream: str
    batch: str
    kind: str
    type: str
    hint: str
    points: str
    state: str
    issued_us: int
    issued_by: str
    expires_us: int | None
    person: int | None
    redeemed_us: int | None
    voided_us: int | None
    voided_by: str | None


class CodePage(msgspec.Struct, frozen=True):
    codes: list[CodeEntry]
    next: str | None
    """`cursor` of the next page; null: this is the last one."""


class SetPlans(msgspec.Struct, frozen=True):
    """What is offered now, and which levels the request changed."""

    levels: dict[str, Level]
    changed: list[str]


def admin_wallet_routes(door: AdminDoor) -> list[Any]:
    return [*_grant_routes(door), *_code_routes(door), *_plan_routes(door)]


def _grant_routes(door: AdminDoor) -> list[Any]:
    @post("/admin/grants", opt=ADMIN, operation_id="grantPoints", status_code=HTTP_200_OK)
    async def grant(request: AnyRequest, data: JSONBody[GrantBody]) -> GrantedPoints:
        """Gives points to a person."""
        asked = GrantAsked(PersonId(data.person), _points(data.points), data.reason)
        done = await door.grants.grant(
            asked, actor=actor_of(request), idempotency_key=idempotency_key_of(request)
        )
        place = await door.wallet.places.find(done.stream, done.version)
        return GrantedPoints(
            points=format_points(done.amount_upt),
            repeated=done.repeated,
            **msgspec.structs.asdict(place),
        )

    return [grant]


def _code_routes(door: AdminDoor) -> list[Any]:
    codes = door.wallet.codes

    @post("/admin/codes", opt=ADMIN, operation_id="createCodes", status_code=HTTP_200_OK)
    async def create_codes(request: AnyRequest, data: JSONBody[CodesBody]) -> Response[MadeCodes]:
        """Makes a batch of codes and shows them."""
        asked = IssueAsked(data.kind, _points(data.points), data.count, data.type, data.expires_us)
        made = await codes.issue(
            asked,
            actor=actor_of(request),
            batch=codes.new_batch(),
            idempotency_key=idempotency_key_of(request),
        )
        shown = MadeCodes(made.batch, list(made.codes), made.repeated)
        return Response(shown, headers={"cache-control": "no-store"})

    @get("/admin/codes", opt=ADMIN, operation_id="listCodes")
    async def show_codes(
        batch: FromQuery[str | None] = None,
        code_state: Annotated[CodeState | None, QueryParameter(name="state")] = None,
        cursor: FromQuery[str | None] = None,
        limit: FromQuery[int] = CODES_SHOWN,
    ) -> CodePage:
        """Codes, the newest first, and who used them; never their text."""
        if not 1 <= limit <= LIST_MAX:
            raise BadRequest(f"`limit` is between 1 and {LIST_MAX}.")
        async with door.wallet.pool.connection() as connection:
            found = await list_codes(
                connection,
                door.wallet.clock.now_us(),
                batch=batch,
                state=code_state,
                cursor=cursor,
                limit=limit,
            )
        following = found[-1].cursor if len(found) == limit else None
        return CodePage([_entry(one) for one in found], following)

    @post("/admin/codes/void", opt=ADMIN, operation_id="voidCodes", status_code=HTTP_200_OK)
    async def void_codes(request: AnyRequest, data: JSONBody[VoidBody]) -> Voided:
        """Ends codes that nobody has used; those that are void stay so."""
        actor = actor_of(request)
        if data.batch is not None and data.code is None:
            return Voided(await codes.void_batch(data.batch, actor))
        if data.code is not None and data.batch is None:
            await codes.void(data.code, actor)
            return Voided(1)
        raise BadRequest("Give either `batch` or `code`.")

    return [create_codes, show_codes, void_codes]


def _plan_routes(door: AdminDoor) -> list[Any]:
    @get("/admin/plans", opt=ADMIN, operation_id="showPlans")
    async def show_plans() -> SetPlans:
        """What every level offers, as the log has it now."""
        return SetPlans(levels_of((await door.plans.list_plans()).values()).levels, [])

    @put("/admin/plans", opt=ADMIN, operation_id="setPlans")
    async def set_plans(data: JSONBody[WrittenPlans]) -> SetPlans:
        """Defines the levels that the body names; others stay as they are."""
        done = await door.plans.define(plans_of(data))
        await door.wallet.catch_up()
        changed = [LEVEL_NAMES[level] for level in done.changed]
        return SetPlans(levels_of(done.plans.values()).levels, changed)

    @post(
        "/admin/accounts/{person:int}/subscribe",
        opt=ADMIN,
        operation_id="subscribePerson",
        status_code=HTTP_200_OK,
    )
    async def subscribe_person(
        request: AnyRequest, person: FromPath[int], data: JSONBody[SubscribeAsked]
    ) -> Purchased:
        """Buys, renews or changes a person's subscription with that person's points."""
        return await buy(door.wallet, request, PersonId(person), data)

    return [show_plans, set_plans, subscribe_person]


def _points(text: str) -> MicroPoints:
    try:
        return parse_points(text)
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error


def _entry(one: ListedCode) -> CodeEntry:
    return CodeEntry(
        stream=one.stream,
        batch=one.batch,
        kind=one.kind,
        type=one.type,
        hint=one.hint,
        points=format_points(one.amount_upt),
        state=one.state,
        issued_us=one.issued_us,
        issued_by=one.actor,
        expires_us=one.expires_us,
        person=one.person,
        redeemed_us=one.redeemed_us,
        voided_us=one.voided_us,
        voided_by=one.voided_by,
    )
