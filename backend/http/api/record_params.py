"""Query parameters of lists of records, and what all such lists answer with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from backend.explorer import Explorer
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Pool
from backend.ledger.exports import ExportFolder
from backend.ledger.record_filters import RecordQuery
from schemas.errors import BadRequest
from schemas.ids import PersonId, account_stream

PAGE_ROWS: Final = 50

IsStale = Callable[[str, str, int], Awaitable[bool]]
"""(projection, account, version) → whether, after a short wait, its table still lacks that."""

Asked = NamedDependency[RecordQuery]
"""What the filters of a list say."""
Limit = Annotated[int, QueryParameter(description="How many at most: 1 to 1,000.")]
Before = Annotated[str | None, QueryParameter(description="`next` of the page before.")]
After = Annotated[
    int | None,
    QueryParameter(
        description="A version of the account: waited for up to 300 ms, else `stale` is true."
    ),
]
At = Annotated[str | None, QueryParameter(description="An ISO 8601 time; now, if none is given.")]
Exact = Annotated[bool, QueryParameter(description="Fold the account's events up to that time.")]
StepName = Annotated[str, QueryParameter(description="`hour` or `day`.")]
Person = Annotated[int | None, QueryParameter(description="Only this person's.")]
Since = Annotated[str | None, QueryParameter(description="From this ISO 8601 time on.")]
Until = Annotated[str | None, QueryParameter(description="Before this ISO 8601 time.")]


class RecordsDoor(msgspec.Struct, frozen=True):
    """What the routes need."""

    pool: Pool
    clock: Clock
    randomness: Randomness
    explorer: Explorer
    files: ExportFolder
    is_stale: IsStale

    async def stale(self, projection: str, account: str | None, after: int | None) -> bool:
        """Raises BadRequest where a version is given and no account."""
        if after is None:
            return False
        if account is None:
            raise BadRequest("`after` is a version of one account: say whose by `person`.")
        return await self.is_stale(projection, account, after)


def account_of(person: int | None) -> str | None:
    """The account of a person; None for everybody's."""
    return None if person is None else account_stream(PersonId(person))


def statement_query(
    since: Since = None,
    until: Until = None,
    kind: FromQuery[str | None] = None,
    key: FromQuery[int | None] = None,
    model: FromQuery[str | None] = None,
    channel: FromQuery[int | None] = None,
    request_id: FromQuery[str | None] = None,
    basis: FromQuery[str | None] = None,
    at_least: FromQuery[str | None] = None,
    at_most: FromQuery[str | None] = None,
    direction: FromQuery[str | None] = None,
) -> RecordQuery:
    return RecordQuery(
        since=since,
        until=until,
        kind=kind,
        key=key,
        model=model,
        channel=channel,
        request_id=request_id,
        basis=basis,
        at_least=at_least,
        at_most=at_most,
        direction=direction,
    )


def request_query(
    since: Since = None,
    until: Until = None,
    outcome: FromQuery[str | None] = None,
    key: FromQuery[int | None] = None,
    model: FromQuery[str | None] = None,
    channel: FromQuery[int | None] = None,
    request_id: FromQuery[str | None] = None,
    basis: FromQuery[str | None] = None,
    at_least: FromQuery[str | None] = None,
    at_most: FromQuery[str | None] = None,
) -> RecordQuery:
    return RecordQuery(
        since=since,
        until=until,
        outcome=outcome,
        key=key,
        model=model,
        channel=channel,
        request_id=request_id,
        basis=basis,
        at_least=at_least,
        at_most=at_most,
    )


def usage_query(
    since: Since = None,
    until: Until = None,
    key: FromQuery[int | None] = None,
    model: FromQuery[str | None] = None,
    channel: FromQuery[int | None] = None,
) -> RecordQuery:
    return RecordQuery(since=since, until=until, key=key, model=model, channel=channel)


def entry_query(
    since: Since = None,
    until: Until = None,
    type: FromQuery[str | None] = None,  # noqa: A002
) -> RecordQuery:
    return RecordQuery(since=since, until=until, type=type)


def _asked(provider: Callable[..., RecordQuery]) -> dict[str, Any]:
    return {"asked": Provide(provider, sync_to_thread=False)}


ASKED_OF_STATEMENT: Final = _asked(statement_query)
ASKED_OF_REQUESTS: Final = _asked(request_query)
ASKED_OF_USAGE: Final = _asked(usage_query)
ASKED_OF_LEDGER: Final = _asked(entry_query)
