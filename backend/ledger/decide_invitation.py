"""The decision about an invitation's reward. Pure."""

from __future__ import annotations

from backend.journal.commands import Accept, Decision, Refuse
from backend.ledger.account import Account
from backend.ledger.refusals import NoSuchAccount, TooMuch
from schemas.ids import PersonId
from schemas.ledger import InvitationRewarded
from schemas.money import AMOUNT_UPT_MAX, MicroPoints


def decide_invitation_reward(
    state: Account, version: int, amount_upt: MicroPoints, invited: PersonId
) -> Decision:
    """Rewards an account for whom its person invited; once, for it lands with the registration."""
    if version == 0:
        return Refuse(NoSuchAccount())
    if not 0 < amount_upt <= AMOUNT_UPT_MAX or state.issued_upt + amount_upt > AMOUNT_UPT_MAX:
        return Refuse(TooMuch())
    return Accept(((0, InvitationRewarded(amount_upt, invited)),))
