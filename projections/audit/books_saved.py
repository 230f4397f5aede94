"""The second set of books as bytes, and back: an audit goes on where an earlier one ended.

Must not check anything: `books.py` does.
"""
# It is the other half of `Books`, in a file of its own.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from uuid import UUID

import msgspec

from projections.audit.books import Book, Books, Open, _Charge, _Swept
from projections.audit.code_books import CodesSaved
from projections.audit.group_books import GroupsSaved
from projections.audit.plan_books import Line as PlanLine
from projections.audit.plan_books import PlansSaved
from schemas.prices import Price


class _SavedBook(msgspec.Struct, frozen=True, array_like=True):
    stream: str
    version: int
    issued_upt: int
    charged_upt: int
    held_upt: int
    holds: dict[str, Open]
    charge: _Charge | None
    gifts: list[str]
    plan: PlanLine | None


class _SavedBooks(msgspec.Struct, frozen=True, array_like=True):
    issuer_upt: int
    revenue_upt: int
    books: list[_SavedBook]
    swept: list[tuple[UUID, _Swept]]
    prices: list[tuple[str, int, Price]]
    unpriced: list[_Charge]
    codes: CodesSaved
    plans: PlansSaved
    groups: GroupsSaved


class ResumableBooks(Books):
    """Books that can be closed at any event and opened again there."""

    def saved(self) -> bytes:
        """All of it as it stands now."""
        return msgspec.msgpack.encode(
            _SavedBooks(
                self._issuer_upt,
                self._revenue_upt,
                [
                    _SavedBook(
                        stream,
                        book.version,
                        book.issued_upt,
                        book.charged_upt,
                        book.held_upt,
                        book.holds,
                        book.charge,
                        sorted(book.gifts),
                        book.plan,
                    )
                    for stream, book in self.accounts.items()
                ],
                list(self._swept.items()),
                [(*name, price) for name, price in self._prices.items()],
                self._unpriced,
                self._codes.saved(),
                self._plans.saved(),
                self._groups.saved(),
            )
        )

    def resume(self, data: bytes) -> None:
        """Into empty books. Raises msgspec.DecodeError."""
        saved = msgspec.msgpack.decode(data, type=_SavedBooks)
        self._issuer_upt, self._revenue_upt = saved.issuer_upt, saved.revenue_upt
        self._swept.update(saved.swept)
        self._prices.update({(model, version): price for model, version, price in saved.prices})
        self._unpriced.extend(saved.unpriced)
        self._codes.resume(saved.codes)
        self._plans.resume(saved.plans)
        self._groups.resume(saved.groups)
        by_request = {swept.request_id: swept for swept in self._swept.values()}
        for one in saved.books:
            book = self.accounts[one.stream] = Book()
            book.version, book.charge = one.version, one.charge
            book.issued_upt, book.charged_upt = one.issued_upt, one.charged_upt
            book.held_upt = one.held_upt
            book.holds.update(one.holds)
            book.gifts.update(one.gifts)
            book.plan = one.plan
            if book.charge is not None and book.charge.swept is not None:
                # A shortfall that follows is noted in both: it is one object again.
                book.charge.swept = by_request[book.charge.swept.request_id]
