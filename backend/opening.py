"""Units that tie identity, catalogue and ledger together: a person with an account, the empty site.

What it puts into one unit lands whole or not at all; it decides nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from backend.catalog.channel import Channel
from backend.catalog.checks import DEMO
from backend.catalog.decide import decide_disable_channel
from backend.catalog.service import Catalog, catalog_refusal
from backend.identity.decide import NameIsTaken, decide_revoke_key
from backend.identity.invitations import Invitation
from backend.identity.key import Key
from backend.identity.key_asked import KeyAsked
from backend.identity.service import Identity, Registration, identity_refusal
from backend.journal.commands import (
    Accept,
    AlreadyDone,
    Command,
    Decision,
    Landed,
    Outcome,
    Refuse,
    Refused,
    Standing,
)
from backend.journal.idempotency import command_id_of
from backend.journal.units import Part, joined
from backend.journal.writer import Writer
from backend.kit.clock import Randomness
from backend.kit.private_files import make_data_dir, write_private
from backend.kit.secrets import make_api_key
from backend.kit.settings import Settings
from backend.ledger.account import ACCOUNT
from backend.ledger.decide import decide_grant, decide_open
from backend.ledger.decide_invitation import decide_invitation_reward
from backend.ledger.refusals import TooMuch
from schemas.catalog import ChannelSettings
from schemas.errors import Conflict, SiteProblem
from schemas.ids import ChannelId, KeyId, PersonId, account_stream, channel_stream, key_stream
from schemas.ledger import GrantKind
from schemas.money import UPT_PER_POINT, MicroPoints, parse_points
from schemas.prices import PerToken

WELCOME_UPT: Final = MicroPoints(10 * UPT_PER_POINT)
"""What the first administrator and the trial account are granted."""
FIRST_ADMINISTRATOR: Final = command_id_of("site", "register", "first administrator")
"""A command id lands once, ever: that is what makes an administrator the first."""
TRIAL: Final = command_id_of("site", "register", "trial")
TRIAL_NAME: Final = "trial"
TRIAL_FILE: Final = "trial.key"
DEMO_MODEL: Final = "demo"
DEMO_CHANNEL: Final = ChannelSettings("Built-in demo", DEMO, "", (DEMO_MODEL,))
DEMO_PRICE: Final = PerToken(input_npt=100_000, output_npt=200_000)
"""0.1 and 0.2 points per 1,000 tokens: a charge that can be seen, and ten points that last."""
_TRIAL_ENDED: Final = "a real channel was added"
_SITE: Final = "site"

_log = structlog.get_logger("opening")


class FirstPoints(msgspec.Struct, frozen=True):
    """What the site gives for a registration; zero: nothing."""

    initial_upt: MicroPoints = MicroPoints(0)
    """Every new account, but the first administrator's and the trial's: they have WELCOME_UPT."""
    invited_upt: MicroPoints = MicroPoints(0)
    """Who came on an invitation, beside the initial points."""
    inviter_upt: MicroPoints = MicroPoints(0)


def first_points(settings: Settings) -> FirstPoints:
    return FirstPoints(
        parse_points(settings.accounts.initial_points),
        parse_points(settings.invitations.invited_points),
        parse_points(settings.invitations.inviter_points),
    )


class Opened(msgspec.Struct, frozen=True):
    """A person who has just been registered with an account."""

    person: PersonId
    granted_upt: MicroPoints


class FirstGrant(msgspec.Struct, frozen=True):
    kind: GrantKind
    amount_upt: MicroPoints


class AddedChannel(msgspec.Struct, frozen=True):
    channel: ChannelId
    ended_trial: bool
    """It was the first real channel: the demo model and the trial key ended with it."""


class Opening:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(
        self,
        writer: Writer,
        identity: Identity,
        catalog: Catalog,
        randomness: Randomness,
        points: FirstPoints,
    ) -> None:
        self._writer: Final = writer
        self._identity: Final = identity
        self._catalog: Final = catalog
        self._randomness: Final = randomness
        self._points: Final = points

    async def open_person(
        self,
        name: str,
        password: str | None,
        *,
        administrator: bool = False,
        invitation: str | None = None,
    ) -> Opened:
        """A person, their name, their account with its first points and the reward of who invited
        them, as one unit; the first administrator is granted 10 points. Raises BadRequest,
        Conflict.
        """
        invited = (
            None if invitation is None else await self._identity.prepare_invitation(invitation)
        )
        new = await self._identity.prepare_registration(name, password, administrator=administrator)
        rewards = () if invited is None else self._rewards(new.person, invited)
        if administrator:
            grants = self._grants(GrantKind.FIRST_ADMINISTRATOR, WELCOME_UPT, invited)
            parts = (new.part, _account(new.person, grants), *rewards)
            outcome = await self._submit(FIRST_ADMINISTRATOR, parts)
            if not isinstance(outcome, AlreadyDone):
                _raise_refusal(outcome)
                return Opened(new.person, _sum_of(grants))
        grants = self._grants(GrantKind.INITIAL, self._points.initial_upt, invited)
        parts = (new.part, _account(new.person, grants), *rewards)
        _raise_refusal(await self._submit(self._writer.new_id(), parts))
        return Opened(new.person, _sum_of(grants))

    async def open_empty_site(self, data_dir: Path) -> bool:
        """Gives a site without any channel the demo model, its price and the trial account.

        The trial's key is written to `<data>/trial.key` before it is recorded. False where the
        site is not empty. Raises SiteProblem where the file cannot be written.
        """
        if await self._catalog.list_channels():
            return False
        demo = (
            (await self._catalog.prepare_channel(DEMO_CHANNEL, "")).part,
            self._catalog.price_part(DEMO_MODEL, DEMO_PRICE),
        )
        if await self._catalog.newest_price(DEMO_MODEL) is not None:
            demo = demo[:1]
        new = await self._identity.prepare_registration(TRIAL_NAME, None, trial=True)
        outcome = await self._submit(TRIAL, (*await self._trial(new, data_dir), *demo))
        match outcome:
            case Landed():
                _log.info("empty site opened", person=new.person)
                return True
            case Refused(NameIsTaken()) if not await self._identity.is_trial(TRIAL_NAME):
                # Somebody real is called `trial`: the demo model comes without the account.
                (data_dir / TRIAL_FILE).unlink(missing_ok=True)
                return isinstance(await self._submit(TRIAL, demo), Landed)
            case _:
                return False

    async def add_channel(self, settings: ChannelSettings, secret: str) -> AddedChannel:
        """A new channel; if it is the first real one, demo and trial end in the same unit.

        Raises BadRequest; Conflict where a channel has this name.
        """
        new = await self._catalog.prepare_channel(settings, secret)
        existing = await self._catalog.list_channels()
        if any(entry.state.settings.name == settings.name for entry in existing):
            raise Conflict(f"There is a channel {settings.name!r} already.")
        demos = [
            entry.channel
            for entry in existing
            if entry.state.enabled and entry.state.settings.type == DEMO
        ]
        endings: list[Part] = []
        if demos and settings.type != DEMO:
            endings = [_end_demo(demo) for demo in demos]
            endings += [_end_key(key) for key in await self._trial_keys()]
        outcome = await self._submit(self._writer.new_id(), (new.part, *endings))
        _raise_refusal(outcome)
        return AddedChannel(new.channel, bool(endings))

    def _grants(
        self, kind: GrantKind, amount_upt: MicroPoints, invited: Invitation | None
    ) -> tuple[FirstGrant, ...]:
        invited_upt = MicroPoints(0) if invited is None else self._points.invited_upt
        both = (FirstGrant(kind, amount_upt), FirstGrant(GrantKind.INVITED, invited_upt))
        return tuple(grant for grant in both if grant.amount_upt > 0)

    def _rewards(self, person: PersonId, invited: Invitation) -> tuple[Part, ...]:
        """The invitation is still valid, and who issued it is rewarded."""
        if self._points.inviter_upt == 0:
            return (invited.part,)
        return invited.part, _reward(invited.inviter, self._points.inviter_upt, person)

    async def _trial(self, new: Registration, data_dir: Path) -> tuple[Part, ...]:
        text = _kept_trial_key(data_dir) or make_api_key(self._randomness)[0]
        make_data_dir(data_dir)
        write_private(data_dir / TRIAL_FILE, f"{text}\n".encode())
        key = await self._identity.prepare_key(
            KeyAsked(name=TRIAL_NAME, models=(DEMO_MODEL,)), new.person, text=text
        )
        account = _account(new.person, (FirstGrant(GrantKind.TRIAL, WELCOME_UPT),))
        return new.part, account, key.part

    async def _trial_keys(self) -> list[KeyId]:
        """Keys of trial accounts that still work."""
        keys = [(key, state) async for key, state in self._identity.list_keys()]
        owners = {PersonId(state.person) for _, state in keys if not state.revoked}
        trials = {p for p in owners if (await self._identity.state_of(p)).trial}
        return [key for key, state in keys if not state.revoked and state.person in trials]

    async def _submit(self, command_id: UUID, parts: Sequence[Part]) -> Outcome:
        unit = joined(parts)
        return await self._writer.submit(Command(command_id, unit.streams, unit.decide))


def _sum_of(grants: Sequence[FirstGrant]) -> MicroPoints:
    return MicroPoints(sum(grant.amount_upt for grant in grants))


def remove_trial_file(data_dir: Path) -> None:
    """Takes away the file of a trial key that has ended. Raises SiteProblem."""
    try:
        (data_dir / TRIAL_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise SiteProblem(
            f"{data_dir / TRIAL_FILE} cannot be removed: {error.strerror}."
        ) from error


def _account(person: PersonId, grants: Sequence[FirstGrant]) -> Part:
    """Opens an account with its first grants."""

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        state, version = standings[0].state, standings[0].version
        decision = decide_open(state, version, person)
        events: tuple[tuple[int, Any], ...] = ()
        for grant in grants:
            if isinstance(decision, Refuse):
                return decision
            events += decision.events
            for _, event in decision.events:
                version += 1
                state = ACCOUNT.apply(state, event, version, at_us)
            decision = decide_grant(state, version, grant.amount_upt, grant.kind, _SITE)
        return decision if isinstance(decision, Refuse) else Accept(events + decision.events)

    return Part((account_stream(person),), decide)


def _reward(inviter: PersonId, amount_upt: MicroPoints, invited: PersonId) -> Part:
    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        standing = standings[0]
        decision = decide_invitation_reward(standing.state, standing.version, amount_upt, invited)
        if isinstance(decision, Refuse) and isinstance(decision.reason, TooMuch):
            # An account that is full takes no more; whom it invited is let in all the same.
            return Accept(())
        return decision

    return Part((account_stream(inviter),), decide)


def _end_demo(channel: ChannelId) -> Part:
    """Disables a demo channel unless somebody has just done so."""

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        state: Channel = standings[0].state
        if not state.enabled:
            return Accept(())
        return decide_disable_channel(standings[0], _TRIAL_ENDED)

    return Part((channel_stream(channel),), decide)


def _end_key(key: KeyId) -> Part:
    """Revokes a key unless somebody has just done so."""

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        state: Key = standings[0].state
        if state.revoked:
            return Accept(())
        return decide_revoke_key(standings[0], _SITE)

    return Part((key_stream(key),), decide)


def _kept_trial_key(data_dir: Path) -> str | None:
    """A key written by a start that ended before it was recorded."""
    try:
        text = (data_dir / TRIAL_FILE).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.startswith("sk-") and len(text) > 40 else None


def _raise_refusal(outcome: Outcome) -> None:
    match outcome:
        case Landed():
            return
        case Refused(reason):
            known = identity_refusal(reason) or catalog_refusal(reason)
            raise known or Conflict("This was changed by someone else; try again.")
        case AlreadyDone():
            raise Conflict("This was recorded before.")
