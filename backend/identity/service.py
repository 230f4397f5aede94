"""Identity's door: people, their names and passwords, and API keys. Decisions are in `decide`.

Clear names, passwords and keys come in and go out here; only sealed forms go further down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import msgspec

from backend.identity.data_keys import DataKeys
from backend.identity.decide import (
    AlreadyRevoked,
    NameIsTaken,
    NoAdministrator,
    NoSuchKey,
    NoSuchPerson,
    SealAt,
    UnknownInvitation,
    decide_accept_invitation,
    decide_add_key,
    decide_create_key,
    decide_issue_invitation,
    decide_reason,
    decide_register,
    decide_revoke_key,
    decide_set_password,
    is_invitation,
)
from backend.identity.invitations import (
    Invitation,
    invitation_hmac,
    inviter_named_in,
    make_invitation,
)
from backend.identity.key import KEY, Key
from backend.identity.key_asked import KeyAsked, checked
from backend.identity.names import (
    check_name,
    check_new_password,
    name_hmac,
    name_stream,
)
from backend.identity.person import NAME, PERSON, Name, Person
from backend.journal.commands import Command, Landed, Outcome, Refuse, Refused
from backend.journal.entity_ids import next_entity_id
from backend.journal.fold import Folds
from backend.journal.units import Part
from backend.journal.view import load_states, states_of_kind
from backend.journal.writer import Writer
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Pool
from backend.kit.secrets import (
    NONCE_BYTES,
    Sealer,
    SiteSecret,
    aad_of,
    hash_api_key,
    hash_password,
    make_api_key,
    verify_password,
)
from schemas.errors import BadRequest, Conflict, NotFound, SuanpanError
from schemas.identity import KeyCreated, PasswordSet, PersonRegistered
from schemas.ids import KeyId, PersonId, StreamName, id_of, key_stream, person_stream

IDENTITY_FOLDS: Final = Folds([PERSON, NAME, KEY])
REASON_CHARS_MAX: Final = 500


class Registration(msgspec.Struct, frozen=True):
    """A person about to be registered: part of a unit that also opens the account."""

    person: PersonId
    part: Part


class NewKey(msgspec.Struct, frozen=True):
    """A key about to be created, or just created. `text` is shown once and kept nowhere."""

    key: KeyId
    text: str
    hint: str
    part: Part
    created: KeyCreated
    """What it may do, in the form it is kept in."""

    def __repr__(self) -> str:
        return f"NewKey(key={self.key}, hint={self.hint!r})"


class Identity:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(
        self,
        writer: Writer,
        pool: Pool,
        secret: SiteSecret,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._secret: Final = secret
        self._clock: Final = clock
        self._randomness: Final = randomness
        self.data_keys: Final = DataKeys(pool, secret, randomness)

    async def prepare_registration(
        self,
        name: str,
        password: str | None,
        *,
        administrator: bool = False,
        trial: bool = False,
    ) -> Registration:
        """Checks and seals all of a new person; nothing is recorded yet. Raises BadRequest."""
        name = check_name(name)
        hashed = None if password is None else await hash_password(check_new_password(password))
        async with self._pool.connection() as connection:
            person = PersonId(await next_entity_id(connection))
        stream = person_stream(person)
        digest = name_hmac(self._secret, name)
        data_key = await self.data_keys.make(person)
        registered = PersonRegistered(
            name_sealed=self._sealed(data_key, name, stream, 1),
            name_hmac=digest,
            administrator=administrator,
            trial=trial,
        )
        set_password = (
            None if hashed is None else PasswordSet(self._sealed(self._secret, hashed, stream, 2))
        )
        return Registration(
            person,
            Part(
                (stream, name_stream(digest)),
                lambda standings, at_us: decide_register(
                    standings[0], standings[1], person, registered, set_password
                ),
            ),
        )

    async def find(self, name: str) -> PersonId | None:
        """Whose name this is, written in any case."""
        stream = name_stream(name_hmac(self._secret, name))
        async with self._pool.connection() as connection:
            found = await load_states(connection, IDENTITY_FOLDS, (stream,))
        state: Name = found[stream][1] if stream in found else Name()
        return PersonId(state.person) if state.person else None

    async def require(self, name: str) -> PersonId:
        """As `find`. Raises NotFound."""
        person = await self.find(name)
        if person is None:
            raise NotFound(f"There is no user {name!r}.")
        return person

    async def state_of(self, person: PersonId) -> Person:
        """Raises NotFound."""
        stream = person_stream(person)
        async with self._pool.connection() as connection:
            found = await load_states(connection, IDENTITY_FOLDS, (stream,))
        if stream not in found:
            raise NotFound("There is no such user.")
        state: Person = found[stream][1]
        return state

    async def is_trial(self, name: str) -> bool:
        """Whether this name is the trial account's."""
        person = await self.find(name)
        return person is not None and (await self.state_of(person)).trial

    async def name_of(self, person: PersonId) -> str | None:
        """The clear name; None for a person who was forgotten. Raises NotFound, SealBroken."""
        state = await self.state_of(person)
        data_key = None if state.forgotten else await self.data_keys.find(person)
        if data_key is None:
            return None
        return data_key.open(state.name_sealed, aad_of(person_stream(person), 1)).decode()

    async def check_password(self, name: str, password: str) -> PersonId | None:
        """Who this is, or None; as slow for a name nobody has as for a wrong password."""
        person = await self.find(name)
        state = Person() if person is None else await self.state_of(person)
        if person is None or not state.password_sealed:
            await hash_password(password or "-")
            return None
        aad = aad_of(person_stream(person), state.password_version)
        hashed = self._secret.open(state.password_sealed, aad).decode()
        return person if await verify_password(hashed, password) else None

    async def set_password(self, person: PersonId, password: str) -> None:
        """Raises BadRequest, NotFound."""
        hashed = await hash_password(check_new_password(password))
        stream = person_stream(person)
        seal_at = self._seal_at(self._secret, hashed, stream)
        await self._record(
            Part((stream,), lambda standings, at_us: decide_set_password(standings[0], seal_at))
        )

    async def reason_part(self, person: PersonId, about: UUID, reason: str) -> Part:
        """A free-text reason, sealed with the account's data key: part of the unit it explains."""
        if not reason.strip() or len(reason) > REASON_CHARS_MAX:
            raise BadRequest(f"A reason has 1 to {REASON_CHARS_MAX} characters.")
        stream = person_stream(person)
        owner = await self._state_at(stream)
        if owner.forgotten or not owner.name_hmac:
            # Not raised: a command that was recorded before answers as it did. No key is made.
            return Part((stream,), lambda standings, at_us: Refuse(NoSuchPerson()))
        seal_at = self._seal_at(await self.data_keys.make(person), reason, stream)
        return Part(
            (stream,),
            lambda standings, at_us: decide_reason(standings[0], str(about), seal_at),
        )

    async def issue_invitation(self, person: PersonId) -> str:
        """The person's new invitation, shown once; the one before ends with it. Raises NotFound."""
        code = make_invitation(person, self._randomness)
        digest = invitation_hmac(self._secret, code)
        await self._record(
            Part(
                (person_stream(person),),
                lambda standings, at_us: decide_issue_invitation(standings[0], digest),
            )
        )
        return code

    async def find_inviter(self, code: str) -> PersonId | None:
        """Whose valid invitation this is."""
        person = inviter_named_in(code)
        if person is None:
            return None
        stream = person_stream(person)
        state = await self._state_at(stream)
        return person if is_invitation(state, invitation_hmac(self._secret, code)) else None

    async def prepare_invitation(self, code: str) -> Invitation:
        """For the unit that registers whom it invites. Raises BadRequest for an unknown one."""
        inviter = await self.find_inviter(code)
        if inviter is None:
            raise unknown_invitation()
        digest = invitation_hmac(self._secret, code)
        part = Part(
            (person_stream(inviter),),
            lambda standings, at_us: decide_accept_invitation(standings[0], digest),
        )
        return Invitation(inviter, part)

    async def prepare_key(
        self, asked: KeyAsked, person: PersonId, *, text: str | None = None
    ) -> NewKey:
        """A key of a person who is registered in the same unit. Raises BadRequest."""
        made, created = await self._make_key(asked, person, text)
        return self._new_key(made, created, joins_registration=True)

    async def create_key(self, person: PersonId, asked: KeyAsked) -> NewKey:
        """Records a new key of an existing person. Raises BadRequest, NotFound."""
        made, created = await self._make_key(asked, person, None)
        new = self._new_key(made, created, joins_registration=False)
        await self._record(new.part)
        return new

    async def revoke_key(self, key: KeyId, actor: str) -> bool:
        """Ends a key; False if it was revoked before. Raises NotFound."""
        outcome = await self._submit(revocation(key, actor))
        if isinstance(outcome, Refused) and isinstance(outcome.reason, AlreadyRevoked):
            return False
        _raise_refusal(outcome)
        return True

    async def find_key(self, text: str) -> KeyId | None:
        """Which key this is, by its whole text; reads all keys, so not for requests."""
        digest = hash_api_key(text)
        async for key, state in self.list_keys():
            if not state.hint.endswith(text[-4:]):
                continue
            if self._secret.open(state.hash_sealed, aad_of(key_stream(key), 1)) == digest:
                return key
        return None

    async def list_keys(self, person: PersonId | None = None) -> AsyncIterator[tuple[KeyId, Key]]:
        """Every key, or one person's, revoked ones too. Reads all keys, so not for requests."""
        async with self._pool.connection() as connection:
            async for stream, _, state in states_of_kind(connection, IDENTITY_FOLDS, KEY.kind):
                if person is None or state.person == person:
                    yield KeyId(int(id_of(stream))), state

    async def _state_at(self, stream: StreamName) -> Person:
        """The person's state; that of nobody where there is none."""
        async with self._pool.connection() as connection:
            found = await load_states(connection, IDENTITY_FOLDS, (stream,))
        state: Person = found[stream][1] if stream in found else Person()
        return state

    async def _make_key(
        self, asked: KeyAsked, person: PersonId, text: str | None
    ) -> tuple[tuple[KeyId, str], KeyCreated]:
        asked = checked(asked, self._clock.now_us())
        async with self._pool.connection() as connection:
            key = KeyId(await next_entity_id(connection))
        fresh, hint = make_api_key(self._randomness)
        if text is not None:
            fresh, hint = text, f"sk-…{text[-4:]}"
        aad = aad_of(key_stream(key), 1)
        nonce = self._randomness.bytes(NONCE_BYTES)
        created = KeyCreated(
            person=person,
            hash_sealed=self._secret.seal(hash_api_key(fresh), aad, nonce),
            name=asked.name,
            hint=hint,
            models=asked.models,
            expires_us=asked.expires_us,
            scopes=asked.scopes,
            quota_upt=asked.quota_upt,
            reset=asked.reset,
            addresses=asked.addresses,
            concurrency=asked.concurrency,
            group=asked.group,
        )
        return (key, fresh), created

    def _new_key(
        self, made: tuple[KeyId, str], created: KeyCreated, *, joins_registration: bool
    ) -> NewKey:
        key, text = made
        if joins_registration:
            part = Part(
                (key_stream(key),),
                lambda standings, at_us: decide_add_key(standings[0], created),
            )
        else:
            part = Part(
                (key_stream(key), person_stream(created.person)),
                lambda standings, at_us: decide_create_key(standings[0], standings[1], created),
            )
        return NewKey(key, text, created.hint, part, created)

    def _sealed(self, sealer: Sealer, text: str, stream: str, version: int) -> bytes:
        nonce = self._randomness.bytes(NONCE_BYTES)
        return sealer.seal(text.encode(), aad_of(stream, version), nonce)

    def _seal_at(self, sealer: Sealer, text: str, stream: str) -> SealAt:
        """A decision is taken again when it loses: each time with a nonce of its own."""
        return lambda version: self._sealed(sealer, text, stream, version)

    async def _submit(self, part: Part) -> Outcome:
        return await self._writer.submit(Command(self._writer.new_id(), part.streams, part.decide))

    async def _record(self, part: Part) -> None:
        _raise_refusal(await self._submit(part))


def revocation(key: KeyId, actor: str) -> Part:
    """The end of a key, as part of a unit."""
    return Part((key_stream(key),), lambda standings, at_us: decide_revoke_key(standings[0], actor))


def unknown_invitation() -> BadRequest:
    """One wording for what never was, what was replaced and whose person is gone."""
    return BadRequest("This invitation is not valid; ask for a new one.")


def identity_refusal(reason: object) -> SuanpanError | None:
    """What a person is told when identity refused; None for other domains' refusals."""
    match reason:
        case NameIsTaken():
            return Conflict("This name is taken.")
        case NoSuchPerson():
            return NotFound("There is no such user.")
        case NoSuchKey():
            return NotFound("There is no such key.")
        case NoAdministrator():
            return BadRequest("Only an administrator's key may have the scope `admin`.")
        case UnknownInvitation():
            return unknown_invitation()
        case _:
            return None


def _raise_refusal(outcome: Outcome) -> None:
    if isinstance(outcome, Landed):
        return
    reason = outcome.reason if isinstance(outcome, Refused) else None
    raise identity_refusal(reason) or Conflict("This was changed by someone else; try again.")
