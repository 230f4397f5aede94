"""Options that commands about records share: what to look for, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from backend.cli.site import Site
from backend.ledger.record_filters import BASES, DIRECTIONS, KINDS, LIMIT_MAX, OUTCOMES, RecordQuery
from schemas.ids import StreamName, account_stream

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: Final[dict[str, Any]] = {
    "since": click.option("--since", metavar="TIME", help="From 2027-01-31 or an ISO 8601 time."),
    "until": click.option("--until", metavar="TIME", help="Up to, not including."),
    "kind": click.option("--kind", metavar="KINDS", help=f"Of {', '.join(KINDS)}."),
    "outcome": click.option("--outcome", metavar="OUTCOMES", help=f"Of {', '.join(OUTCOMES)}."),
    "type": click.option("--type", metavar="TYPES", help="Of events, such as HoldSettled."),
    "key": click.option("--key", type=int, metavar="ID", help="The key's number."),
    "model": click.option("--model", help="As it was asked for."),
    "channel": click.option("--channel", type=int, metavar="ID", help="The channel's number."),
    "request_id": click.option("--request", "request_id", metavar="ID", help="One request's."),
    "basis": click.option("--basis", type=click.Choice(BASES), help="Of a charge."),
    "at_least": click.option("--at-least", metavar="POINTS", help="Without a sign."),
    "at_most": click.option("--at-most", metavar="POINTS", help="Without a sign."),
    "direction": click.option(
        "--direction", type=click.Choice(list(DIRECTIONS)), help="Points that came or went."
    ),
}
OF_STATEMENT: Final = (
    "since", "until", "kind", "key", "model", "channel", "request_id", "basis", "at_least",
    "at_most", "direction",
)  # fmt: skip
OF_REQUESTS: Final = (
    "since", "until", "outcome", "key", "model", "channel", "request_id", "basis", "at_least",
    "at_most",
)  # fmt: skip
OF_LEDGER: Final = ("since", "until", "type")
OF_ANY: Final = tuple(_OPTIONS)

limit_option: Final = click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=50, show_default=True, help="How many."
)
before_option: Final = click.option(
    "--before", metavar="CURSOR", help="Only older ones: `next` of a page."
)


def looked_for(*names: str) -> Callable[[_Command], _Command]:
    """Options of these names; they reach the command as keyword arguments for `query_of`."""

    def decorate(command: _Command) -> _Command:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


def query_of(given: dict[str, Any]) -> RecordQuery:
    """What the options of `looked_for` say."""
    return RecordQuery(**given)


async def account_named(site: Site, name: str | None) -> StreamName | None:
    """The account of a user; None for everybody's. Raises NotFound."""
    return None if name is None else account_stream(await site.identity.require(name))
