"""What a fault is, and how any of them is run: inject, heal, recover, again; then the checker."""

from __future__ import annotations

import asyncio
from random import Random

from tests.faults.chance import rounds_of
from tests.faults.figures import Figures, Report
from tests.faults.ground import Ground
from tests.faults.history import History, p99_ms
from tests.faults.load import Load
from tests.faults.site import LOAD_MODELS, Account
from tests.faults.verdict import Verdict, examine

WIDTH = 8
INJECT_TIMEOUT_S = 60.0


class Nemesis:
    """One kind of fault. A new one is made for every run."""

    fault: str
    """F1 … F31."""
    what: str
    rounds_short = 2
    """In the short form."""
    long_only = False
    """Too dear for the short form; the catalogue names the cheaper test that stands in for it."""
    needs_kafka = False
    weight = 1
    """How many rounds of others one of these is worth, in the long form."""
    lasts_s = (0.3, 1.0)
    models: tuple[str, ...] = LOAD_MODELS
    ages_count = True
    """Whether the clocks that wrote the events can be believed."""

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        """Before the first round; what a subclass needs later it keeps."""

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        raise NotImplementedError

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        """The fault is over; returns when what was taken away is back."""

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        """After the checker. Asserts what only this fault promises; a note for the table."""
        del ground, verdict
        return ""


async def run_fault(nemesis: Nemesis, ground: Ground, chance: Random, report: Report) -> Figures:
    """One fault with its row in the report. AssertionError where something does not hold."""
    # Until proved otherwise: whatever is thrown, the next fault must not stand on this ground.
    ground.spoiled = True
    history = History(ground.history_path(nemesis.fault))
    try:
        accounts = await ground.open_accounts()
        load = await _rounds(nemesis, ground, chance, history, accounts)
        verdict = await examine(ground, accounts, load.calls)
    finally:
        history.close()
    streams = {account.stream for account in accounts}
    figures = Figures(
        nemesis.fault,
        nemesis.what,
        len(history.windows),
        len(verdict.violations),
        history.unavailable_s(),
        history.unknown,
        verdict.books.hold_age_s(streams) if nemesis.ages_count else None,
        p99_ms(history.during()),
        history.recovery_s(),
    )
    report.rows.append(figures)
    shown = "\n".join(verdict.violations[:20])
    assert not verdict.violations, f"{shown}\nhistory: {history.path}\n{ground.logs()}"
    notes = [await nemesis.finish(ground, verdict)]
    if verdict.uncharged:
        notes.append(f"{verdict.uncharged} answers charged less than reported")
    figures.note = "; ".join(note for note in notes if note)
    ground.spoiled = False
    return figures


async def _rounds(
    nemesis: Nemesis,
    ground: Ground,
    chance: Random,
    history: History,
    accounts: tuple[Account, ...],
) -> Load:
    async with Load(ground.urls, accounts, nemesis.models, chance, WIDTH) as load:
        load.tell = history.tell
        await nemesis.prepare(ground, load, accounts)
        await load.until_answered(WIDTH)
        for _ in range(rounds_of(nemesis.rounds_short, nemesis.weight)):
            window = history.injected(nemesis.what)
            async with asyncio.timeout(INJECT_TIMEOUT_S):
                await nemesis.inject(ground, load, chance)
            await asyncio.sleep(chance.uniform(*nemesis.lasts_s))
            await nemesis.heal(ground, load, chance)
            history.healed(window)
            await load.until_served(window.healed_s)
            history.recovered(window)
            await load.until_answered(chance.randint(1, WIDTH))
    return load
