"""Codes' door: issued in batches, used once each, voided. Decisions are in `decide_codes`.

The text of a code comes in and goes out here; what is kept is its keyed hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

import msgspec

from backend.journal.commands import Accept, Command, Decision, Landed, Refuse, Refused, Standing
from backend.journal.fold import Folds
from backend.journal.idempotency import length_prefixed
from backend.journal.repeatable import once, repeatable_id
from backend.journal.view import load_states
from backend.journal.writer import Writer
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Connection, Pool, fetch_all
from backend.kit.secrets import SiteSecret
from backend.ledger.account import ACCOUNT
from backend.ledger.code import CODE, Code
from backend.ledger.code_text import CODE_BITS, code_text, hint_of, stream_of_code
from backend.ledger.decide_codes import decide_issue_code, decide_redeem, decide_void_code
from backend.ledger.points import account_state
from backend.ledger.refusals import (
    GiftTakenBefore,
    OtherKindOfCode,
    SpentCode,
    TooMuch,
    UnknownCode,
)
from schemas import errors
from schemas.errors import BadRequest, CodeNotGood, Conflict, NotFound, SuanpanError
from schemas.event import Recorded
from schemas.ids import PersonId, StreamName, account_stream
from schemas.ledger import CodeIssued, CodeKind, CodeVoided, GiftTaken, PointsGranted
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.registry import decode

CODES_MAX: Final = 100_000
"""Of one batch."""
CODES_IN_COMMAND: Final = 200
TYPE_CHARS_MAX: Final = 64
BATCH_CHARS: Final = 10
_BATCH_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_HMAC_BITS: Final = 256
_FOLDS: Final = Folds([ACCOUNT, CODE])

OF_BATCH: Final = """
SELECT stream, state FROM streams
WHERE stream > %(after)s AND stream < 'code;' AND position(%(mark)s::bytea IN state) > 0
ORDER BY stream LIMIT %(count_max)s
"""


class IssueAsked(msgspec.Struct, frozen=True):
    """So many codes of one kind, each worth the same."""

    kind: CodeKind
    amount_upt: MicroPoints
    count: int
    type: str = ""
    """Of gifts: a person takes one of each."""
    expires_us: int | None = None


class Issued(msgspec.Struct, frozen=True):
    """Codes that were made together, in clear for the only time."""

    batch: str
    codes: tuple[str, ...]
    repeated: bool = False

    def __repr__(self) -> str:
        return f"Issued(batch={self.batch!r}, codes={len(self.codes)})"


class Credited(msgspec.Struct, frozen=True):
    """A code that was used up; `available_upt` is what the account has now."""

    amount_upt: MicroPoints
    available_upt: int
    stream: StreamName
    version: int
    repeated: bool


class Codes:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(
        self,
        writer: Writer,
        pool: Pool,
        secret: SiteSecret,
        randomness: Randomness,
        clock: Clock,
    ) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._secret: Final = secret
        self._randomness: Final = randomness
        self._clock: Final = clock

    def new_batch(self) -> str:
        """A name for codes that are about to be made: known before the first of them is."""
        return _batch_name(self._randomness.bits(5 * BATCH_CHARS))

    async def issue(
        self, asked: IssueAsked, *, actor: str, batch: str, idempotency_key: str | None = None
    ) -> Issued:
        """Makes codes, in several commands: those of an issue that was cut off have its batch.

        Under a key of the caller's the codes are derived from it and the site's secret: asked
        again, the same ones are made and shown, and `batch` is not used. Raises BadRequest,
        IdempotencyConflict.
        """
        self._check(asked)
        seed = None
        if idempotency_key is not None:
            seed = repeatable_id(self._writer, actor, "codes", idempotency_key)
            batch = _batch_name(self._derived(seed, "batch") >> (_HMAC_BITS - 5 * BATCH_CHARS))
        body_hash = self._secret.hmac("codes body", msgspec.json.encode(asked))
        texts = [code_text(asked.kind, self._number(seed, index)) for index in range(asked.count)]
        repeated = True
        for chunk, own in enumerate(_chunks(texts)):
            key = None if idempotency_key is None else idempotency_key
            command_id = repeatable_id(self._writer, actor, f"codes {chunk}", key)
            command = self._issuing(asked, batch, own, actor, command_id, body_hash)
            done = await once(self._writer, self._pool, command, "batch", lambda rows: False)
            if isinstance(done, Refused):
                raise Conflict("These codes were issued before.")
            repeated = repeated and done.repeated
        return Issued(batch, tuple(texts), repeated)

    async def redeem(
        self, person: PersonId, kind: CodeKind, text: str, idempotency_key: str | None = None
    ) -> Credited:
        """Uses a code up and credits the account, both or neither (I5).

        Raises CodeNotGood, OtherKindOfCode, GiftTaken, BadRequest; IdempotencyConflict.
        """
        command_id = repeatable_id(self._writer, f"person:{person}", kind.value, idempotency_key)
        code = stream_of_code(self._secret, text)
        if code is None:
            raise CodeNotGood(guessed=True)
        account = account_stream(person)

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            decision = decide_redeem(standings[1], standings[0], kind, person, at_us)
            if isinstance(decision, Refuse):
                return decision
            # The account is the command's home: its events are what a repetition is answered by.
            # First, because a restored log takes the stream of the first event for the home.
            mine = [(1 - index, event) for index, event in decision.events]
            return Accept(tuple(sorted(mine, key=lambda one: one[0])))

        body_hash = self._secret.hmac("code body", code.encode())
        command = Command(command_id, (account, code), decide, body_hash)
        done = await once(
            self._writer, self._pool, command, "code", lambda rows: _source(rows) == code
        )
        if isinstance(done, Refused):
            raise _refusal(done.reason)
        async with self._pool.connection() as connection:
            states = await load_states(connection, _FOLDS, (account,))
        row, credit = _credit(done.rows)
        available_upt = account_state(states[account][1]).available_upt
        return Credited(credit.amount_upt, available_upt, account, row.version, done.repeated)

    async def void(self, text: str, actor: str) -> None:
        """Ends a code nobody has used; one that is void stays so. Raises NotFound, Conflict."""
        stream = stream_of_code(self._secret, text)
        if stream is None:
            raise NotFound("There is no such code.")
        if await self._void_all((stream,), actor):
            return
        async with self._pool.connection() as connection:
            states = await load_states(connection, _FOLDS, (stream,))
        if stream not in states:
            raise NotFound("There is no such code.")
        if states[stream][1].person:
            raise Conflict("This code was used before.")

    async def void_batch(self, batch: str, actor: str) -> int:
        """Ends all codes of a batch that nobody has used; how many. Raises NotFound."""
        known, voided, after = 0, 0, "code:"
        while True:
            async with self._pool.connection() as connection:
                page = await _of_batch(connection, batch, after)
            left = [stream for stream, code in page if not code.person and not code.voided]
            if left:
                voided += await self._void_all(tuple(left), actor)
            known += len(page)
            if len(page) < CODES_IN_COMMAND:
                break
            after = page[-1][0]
        if known == 0:
            raise NotFound(f"There is no batch {batch[:40]!r}.")
        return voided

    async def _void_all(self, streams: tuple[str, ...], actor: str) -> int:
        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            events: list[tuple[int, object]] = []
            for index, standing in enumerate(standings):
                decision = decide_void_code(standing, actor)
                if isinstance(decision, Accept):
                    events += [(index, event) for _, event in decision.events]
            return Accept(tuple(events)) if events else Refuse(SpentCode())

        outcome = await self._writer.submit(Command(self._writer.new_id(), streams, decide))
        if not isinstance(outcome, Landed):
            return 0
        return sum(isinstance(event, CodeVoided) for event in outcome.events)

    def _issuing(
        self,
        asked: IssueAsked,
        batch: str,
        texts: Sequence[str],
        actor: str,
        command_id: UUID,
        body_hash: bytes,
    ) -> Command:
        streams: list[str] = []
        events: list[CodeIssued] = []
        for text in texts:
            stream = stream_of_code(self._secret, text)
            assert stream is not None, "a code that was just made can be read"
            streams.append(stream)
            events.append(
                CodeIssued(
                    asked.kind,
                    asked.amount_upt,
                    batch,
                    hint_of(text),
                    actor,
                    asked.type,
                    asked.expires_us,
                )
            )

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            for standing, event in zip(standings, events, strict=True):
                decision = decide_issue_code(standing, event)
                if isinstance(decision, Refuse):
                    return decision
            return Accept(tuple(enumerate(events)))

        return Command(command_id, tuple(streams), decide, body_hash)

    def _check(self, asked: IssueAsked) -> None:
        if not 0 < asked.amount_upt <= AMOUNT_UPT_MAX:
            raise BadRequest("A code is worth more than zero points, and no sum that none holds.")
        if not 1 <= asked.count <= CODES_MAX:
            raise BadRequest(f"A batch has 1 to {CODES_MAX} codes.")
        if asked.expires_us is not None and asked.expires_us <= self._clock.now_us():
            raise BadRequest("Codes cannot expire in the past.")
        if asked.kind is CodeKind.REDEEM and asked.type:
            raise BadRequest("Redemption codes have no type; gift codes do.")
        if asked.kind is CodeKind.GIFT and not _is_type(asked.type):
            raise BadRequest(
                f"Gift codes need a type of 1 to {TYPE_CHARS_MAX} printable characters, with no "
                "blank at its ends."
            )

    def _number(self, seed: UUID | None, index: int) -> int:
        if seed is None:
            return self._randomness.bits(CODE_BITS)
        return self._derived(seed, str(index)) >> (_HMAC_BITS - CODE_BITS)

    def _derived(self, seed: UUID, what: str) -> int:
        digest = self._secret.hmac("derived codes", length_prefixed(str(seed), what))
        return int.from_bytes(digest, "big")


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(texts), CODES_IN_COMMAND):
        yield texts[first : first + CODES_IN_COMMAND]


def _batch_name(number: int) -> str:
    return "".join(_BATCH_ALPHABET[number >> 5 * place & 31] for place in range(BATCH_CHARS))


def _is_type(text: str) -> bool:
    return 1 <= len(text) <= TYPE_CHARS_MAX and text.isprintable() and text == text.strip()


async def _of_batch(connection: Connection, batch: str, after: str) -> list[tuple[str, Code]]:
    """Codes of a batch, as decisions see them. The whole kind is looked through."""
    # As it stands in the stored state; a quote inside of a text is never bare there.
    mark = b'"batch":' + msgspec.json.encode(batch)
    given = {"after": after, "mark": mark, "count_max": CODES_IN_COMMAND}
    rows = await fetch_all(connection, OF_BATCH, given)
    return [(stream, CODE.decode(bytes(state))) for stream, state in rows]


def _credit(rows: Sequence[Recorded]) -> tuple[Recorded, PointsGranted | GiftTaken]:
    for row in rows:
        event = decode(row)
        if isinstance(event, PointsGranted | GiftTaken):
            return row, event
    raise AssertionError("a code that is used up credits its account")


def _source(rows: Sequence[Recorded]) -> str:
    return _credit(rows)[1].source


def _refusal(reason: object) -> SuanpanError:
    match reason:
        case UnknownCode():
            return CodeNotGood(guessed=True)
        case SpentCode():
            return CodeNotGood(guessed=False)
        case OtherKindOfCode():
            return errors.OtherKindOfCode(
                "This is a code of the other kind: redemption codes begin with SP, gift codes "
                "with SG."
            )
        case GiftTakenBefore(kind):
            return errors.GiftTaken(f"You have had a gift of the type {kind!r} before.")
        case TooMuch():
            return BadRequest("The account would hold too many points; the code is still good.")
        case _:
            return NotFound("This account does not exist.")
