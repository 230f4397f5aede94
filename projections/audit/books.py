"""A second set of books, kept from the events alone: it does not trust the ledger's own fold.

Pure. Checks I1–I5 and I13 while events pass in the log's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.ledger.account import Account
from projections.audit.code_books import CodeBooks
from projections.audit.group_books import GroupBooks
from projections.audit.plan_books import Line as PlanLine
from projections.audit.plan_books import PlanBooks
from projections.audit.report import (
    CONSERVATION,
    NO_OVERDRAFT,
    ONE_OUTCOME,
    PROVENANCE,
    SETTLE_BOUNDS,
    SINGLE_USE,
    Findings,
)
from projections.verifying import Line
from schemas.catalog import GroupDefined, PlanDefined, PriceSet
from schemas.event import Recorded
from schemas.ids import RequestId, id_of, late_command_id, outcome_command_id
from schemas.ledger import (
    CodeIssued,
    CodeRedeemed,
    CodeVoided,
    GiftTaken,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    ReleaseReason,
    ShortfallRecorded,
    UsageLate,
)
from schemas.plans import PlanUse
from schemas.prices import PLAIN_TERMS, Price, PriceRef, Terms, cost_of
from schemas.registry import Event
from schemas.usage import Usage


class Open(msgspec.Struct, array_like=True, gc=False):
    """A hold: how much, and on what terms it must end."""

    amount_upt: int
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None
    price: PriceRef | None = None


class _Swept(msgspec.Struct):
    """A request that a sweep ended, and what of its cost the sweep accounted for."""

    request_id: str
    accounted_upt: int
    """Charged and fallen short."""
    held: Open


class _Charge(msgspec.Struct):
    """What was charged for a usage at a price; a shortfall may follow and adds to it."""

    stream: str
    version: int
    request_id: str
    price: PriceRef
    usage: Usage
    due_upt: int
    """Charged and fallen short."""
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None
    """A plan pays, so nothing is due."""
    before_upt: int = 0
    """What the sweep accounted for, where this is late usage."""
    swept: _Swept | None = None
    """Where this is a sweep's settle."""


class Book:
    """One account: the issuer's, the revenue's and the held leg, in micro-points."""

    __slots__ = (
        "charge",
        "charged_upt",
        "gifts",
        "held_upt",
        "holds",
        "issued_upt",
        "plan",
        "version",
    )

    def __init__(self) -> None:
        self.issued_upt = 0
        self.charged_upt = 0
        self.held_upt = 0
        self.holds: Final[dict[str, Open]] = {}
        self.gifts: Final[set[str]] = set()
        self.plan: PlanLine | None = None
        self.charge: _Charge | None = None
        """The last event, where it was a settle."""
        self.version = 0


class Books:
    """`observe` takes each event in order, before the fold does; `finish` when all have passed."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self._prices: Final[dict[tuple[str, int], Price]] = {}
        self._swept: Final[dict[UUID, _Swept]] = {}
        self._unpriced: Final[list[_Charge]] = []
        self._revenue_upt = 0
        self._issuer_upt = 0
        self._codes: Final = CodeBooks(findings)
        self._plans: Final = PlanBooks(findings)
        self._groups: Final = GroupBooks(findings)
        self.accounts: Final[dict[str, Book]] = {}
        self._entries: Final[dict[type[Any], Callable[[Book, Recorded, Any], None]]] = {
            PointsGranted: self._issued,
            PointsCorrected: self._issued,
            InvitationRewarded: self._issued,
            GiftTaken: self._gift,
            PlanBought: self._bought,
            PlanRenewed: self._renewed,
            PlanChanged: self._changed,
            PlanExpired: self._expired,
            PointsHeld: self._held,
            HoldExtended: self._extended,
            HoldSettled: self._settled,
            HoldReleased: self._released,
            ShortfallRecorded: self._fell_short,
            UsageLate: self._late,
        }

    def observe(self, row: Recorded, event: Event, line: Line) -> None:
        """`line` is the stream as it stands before the event."""
        enter = self._entries.get(type(event))
        if enter is None:
            self._observe_beside(row, event)
            return
        book = self.accounts.get(row.stream)
        if book is None:
            book = self.accounts[row.stream] = Book()
        if book.charge is not None and not isinstance(event, ShortfallRecorded):
            self._reprice(book)
        enter(book, row, event)
        book.version = row.version
        if book.issued_upt - book.charged_upt - book.held_upt < 0 or book.held_upt < 0:
            self._note(NO_OVERDRAFT, row, "what is available falls below zero")

    def _observe_beside(self, row: Recorded, event: Event) -> None:
        """What is no account's: the catalogue's versions that accounts name, and codes."""
        match event:
            case PriceSet():
                self._prices[(id_of(row.stream), row.version)] = event.price
            case CodeIssued():
                self._codes.issued(row, event)
            case CodeRedeemed():
                self._codes.redeemed(row, event)
            case CodeVoided():
                self._codes.voided(row, event)
            case PlanDefined():
                self._plans.defined(int(id_of(row.stream)), row.version, event.plan)
            case GroupDefined():
                self._groups.defined(id_of(row.stream), row.version, event.group)
            case _:
                return

    def finish(self) -> None:
        """I1 over all accounts, and what was still owed an answer."""
        for stream in sorted(self.accounts):
            book = self.accounts[stream]
            self._reprice(book)
            if book.held_upt != sum(hold.amount_upt for hold in book.holds.values()):
                what = "what is held is not the sum of the open holds"
                self._findings.add(CONSERVATION, stream, book.version, what)
        books = self.accounts.values()
        issued_upt = sum(book.issued_upt for book in books)
        charged_upt = sum(book.charged_upt for book in books)
        if (issued_upt, charged_upt) != (self._issuer_upt, self._revenue_upt):
            self._findings.add(CONSERVATION, "account:", 0, "the legs do not add up to zero")
        for charge in self._unpriced:
            self._check_price(charge)
        for books_beside in (self._codes, self._plans, self._groups):
            books_beside.finish()

    def compare(self, stream: str, account: Account, version: int) -> None:
        """I1: a stored state says of the account what its events add up to."""
        book = self.accounts.get(stream) or Book()
        held_upt = sum(hold.amount_upt for hold in account.holds.values())
        stored = (account.issued_upt, account.charged_upt, account.held_upt, held_upt)
        if stored != (book.issued_upt, book.charged_upt, book.held_upt, book.held_upt):
            what = "the state's totals are not the sums of the account's events"
            self._findings.add(CONSERVATION, stream, version, what)

    def _issued(
        self,
        book: Book,
        row: Recorded,
        event: PointsGranted | PointsCorrected | InvitationRewarded | GiftTaken,
    ) -> None:
        book.issued_upt += event.amount_upt
        self._issuer_upt += event.amount_upt
        if not isinstance(event, PointsGranted | GiftTaken):
            return
        if event.source:
            self._codes.credited(row, event)
        elif isinstance(event, GiftTaken) or event.kind is GrantKind.REDEMPTION:
            self._note(SINGLE_USE, row, "a code's points, and no code is named")

    def _gift(self, book: Book, row: Recorded, event: GiftTaken) -> None:
        if event.type in book.gifts:
            self._note(SINGLE_USE, row, f"a second gift of type {event.type!r}")
        book.gifts.add(event.type)
        self._issued(book, row, event)

    def _bought(self, book: Book, row: Recorded, event: PlanBought) -> None:
        book.plan, charged_upt = self._plans.bought(row, book.plan, event)
        self._earn(book, charged_upt)

    def _renewed(self, book: Book, row: Recorded, event: PlanRenewed) -> None:
        book.plan, charged_upt = self._plans.renewed(row, book.plan, event)
        self._earn(book, charged_upt)

    def _changed(self, book: Book, row: Recorded, event: PlanChanged) -> None:
        book.plan, charged_upt = self._plans.changed(row, book.plan, event)
        self._earn(book, charged_upt)

    def _expired(self, book: Book, row: Recorded, event: PlanExpired) -> None:
        self._plans.expired(row, book.plan, event)
        book.plan = None

    def _earn(self, book: Book, amount_upt: int) -> None:
        book.charged_upt += amount_upt
        self._revenue_upt += amount_upt

    def _held(self, book: Book, row: Recorded, event: PointsHeld) -> None:
        if event.request_id in book.holds:
            self._note(ONE_OUTCOME, row, f"request {event.request_id} is held twice")
            return
        if event.amount_upt < 0:
            self._note(SETTLE_BOUNDS, row, "a hold is negative")
        # Schema 1 knew no terms.
        if event.terms.at_us != row.at_us and not (row.schema == 1 and event.terms.at_us == 0):
            self._note(PROVENANCE, row, "the terms are those of another time")
        self._groups.applied(row, event.terms)
        if event.plan is not None:
            self._plans.used(row, book.plan, event, event.plan)
        book.holds[event.request_id] = Open(event.amount_upt, event.terms, event.plan, event.price)
        book.held_upt += event.amount_upt

    def _extended(self, book: Book, row: Recorded, event: HoldExtended) -> None:
        hold = book.holds.get(event.request_id)
        if hold is None:
            self._note(ONE_OUTCOME, row, f"request {event.request_id} has no open hold")
            return
        hold.amount_upt += event.amount_upt
        book.held_upt += event.amount_upt

    def _settled(self, book: Book, row: Recorded, event: HoldSettled) -> None:
        hold = self._ended(book, row, event.request_id)
        if not 0 <= event.amount_upt <= hold.amount_upt:
            self._note(SETTLE_BOUNDS, row, f"charged {event.amount_upt} of {hold.amount_upt} held")
        self._check_terms(row, event, hold)
        self._earn(book, event.amount_upt)
        book.charge = _Charge(
            row.stream,
            row.version,
            event.request_id,
            event.price,
            event.usage,
            event.amount_upt,
            event.terms,
            event.plan,
        )
        if event.swept:
            book.charge.swept = _Swept(event.request_id, event.amount_upt, hold)
            self._swept[row.event_id] = book.charge.swept

    def _released(self, book: Book, row: Recorded, event: HoldReleased) -> None:
        hold = self._ended(book, row, event.request_id)
        if hold.plan is not None:
            self._plans.given_back(book.plan, hold.plan)
        if event.reason is ReleaseReason.SWEPT:
            self._swept[row.event_id] = _Swept(event.request_id, 0, hold)

    def _fell_short(self, book: Book, row: Recorded, event: ShortfallRecorded) -> None:
        if book.charge is None or book.charge.request_id != event.request_id:
            self._note(PROVENANCE, row, "a shortfall that follows no settle of its request")
        else:
            book.charge.due_upt += event.amount_upt
            if book.charge.swept is not None:
                book.charge.swept.accounted_upt += event.amount_upt

    def _late(self, book: Book, row: Recorded, event: UsageLate) -> None:
        swept = self._swept.pop(event.sweep_event_id, None)
        if swept is None or swept.request_id != event.request_id:
            self._note(ONE_OUTCOME, row, f"no sweep ended request {event.request_id}")
            swept = _Swept(event.request_id, 0, Open(0))
        if row.command_id != _named_by(late_command_id, event.request_id):
            self._note(ONE_OUTCOME, row, "late usage under a command that is not its request's")
        self._check_terms(row, event, swept.held)
        if event.amount_upt < 0:
            self._note(SETTLE_BOUNDS, row, "a late charge is negative")
        self._earn(book, event.amount_upt)
        book.charge = _Charge(
            row.stream,
            row.version,
            event.request_id,
            event.price,
            event.usage,
            event.amount_upt + event.shortfall_upt,
            event.terms,
            event.plan,
            swept.accounted_upt,
        )
        self._reprice(book)

    def _check_terms(self, row: Recorded, event: HoldSettled | UsageLate, held: Open) -> None:
        if held.price is None:
            return  # There was no hold, and that is noted.
        if (event.terms, event.plan, event.price) != (held.terms, held.plan, held.price):
            self._note(PROVENANCE, row, "charged on other terms than it was held on")

    def _ended(self, book: Book, row: Recorded, request_id: RequestId) -> Open:
        """Takes out the hold; one of nothing if there was none."""
        hold = book.holds.pop(request_id, None)
        if hold is None:
            self._note(ONE_OUTCOME, row, f"request {request_id} has no open hold")
            return Open(0)
        # All outcomes of a request share one command id, and a command id lands once (I6).
        if row.command_id != _named_by(outcome_command_id, request_id):
            self._note(ONE_OUTCOME, row, "an outcome under a command that is not its request's")
        book.held_upt -= hold.amount_upt
        return hold

    def _reprice(self, book: Book) -> None:
        """The last settle is complete: its price is looked up, now or when all has been read."""
        charge, book.charge = book.charge, None
        if charge is None:
            return
        if charge.plan is not None:
            if charge.due_upt != 0:
                what = f"a plan pays, and {charge.due_upt} micro-points are charged"
                self._findings.add(PROVENANCE, charge.stream, charge.version, what)
            return
        if (charge.price.model, charge.price.version) in self._prices:
            self._check_price(charge)
        else:
            # After a recovery the topics lie one behind the other, so a price may come later.
            self._unpriced.append(charge)

    def _check_price(self, charge: _Charge) -> None:
        ref = charge.price
        price = self._prices.get((ref.model, ref.version))
        if price is None:
            what = f"there is no price version {ref.version} of {ref.model}"
            self._findings.add(PROVENANCE, charge.stream, charge.version, what)
            return
        due_upt = max(0, cost_of(price, charge.usage, charge.terms) - charge.before_upt)
        if due_upt != charge.due_upt:
            what = f"accounts for {charge.due_upt} micro-points, its usage costs {due_upt}"
            self._findings.add(PROVENANCE, charge.stream, charge.version, what)

    def _note(self, check: str, row: Recorded, what: str) -> None:
        self._findings.add(check, row.stream, row.version, what)


def _named_by(name: Callable[[RequestId], UUID], request_id: RequestId) -> UUID | None:
    try:
        return name(request_id)
    except ValueError:
        return None
