"""A log held against its seals: where a seal ends, what it bears out, and what is named if not."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backend.journal.seal import HeadTree, Place, Seal, make_seal
from projections.sealed_log import ALL, Reach, SealedLog
from schemas.event import Position, Recorded

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SITE = UUID(int=7)
Head = tuple[str, int, bytes]


def row(stream: str, version: int, *, shard: int = 0, digest: bytes = b"") -> Recorded:
    made = digest or f"{stream}{version}".encode().ljust(32, b"-")
    return Recorded(
        1, 5, version, SITE, SITE, "topic", shard, stream, version, "Type", 1, 0, b"{}", b"", made
    )


ROWS = [row("a", 1), row("b", 1), row("a", 2), row("a", 3), row("b", 2), row("c", 1)]
OTHER = [row("a", 2, digest=b"x" * 32), row("a", 3, digest=b"y" * 32)]


def tree_of(rows: Sequence[Recorded]) -> HeadTree:
    tree = HeadTree()
    for one in rows:
        tree.put(one.stream, one.version, one.hash)
    return tree


def sealed(rows: Sequence[Recorded], previous: Seal | None, *places: Place) -> Seal:
    return make_seal(
        KEY, previous, site_id=SITE, position=Position(1, 5, 1), events=len(rows),
        tree=tree_of(rows), made_at_us=1, places=places,
    )  # fmt: skip


FIRST = sealed(ROWS[:2], None)
SECOND = sealed(ROWS[:5], FIRST)
KNOWN = {2: tree_of(ROWS[:5]).heads()}


class Told:
    def __init__(self) -> None:
        self.notes: list[tuple[str, int]] = []

    def __call__(self, stream: str, version: int, what: str) -> None:
        self.notes.append((stream, version))


def held(rows: Sequence[Recorded], *, known: bool = True) -> list[tuple[str, int]]:
    told = Told()
    log = SealedLog(iter([FIRST, SECOND]), SITE, told, known_heads=KNOWN if known else None)
    log.feed(rows)
    log.finish()
    return told.notes


def test_a_log_that_its_seals_bear_out_is_silent() -> None:
    assert held(ROWS) == []


def test_a_rewritten_stream_is_named_from_the_last_sound_seal_on() -> None:
    assert held([*ROWS[:2], *OTHER, *ROWS[4:]]) == [("a", 2)]


def test_without_known_heads_the_seal_is_named() -> None:
    assert held([*ROWS[:2], *OTHER, *ROWS[4:]], known=False) == [("seals", 2)]


def test_what_an_older_seal_shows_is_named_by_the_newest_heads() -> None:
    rewritten = [row("a", 1, digest=b"z" * 32), ROWS[1], *OTHER, *ROWS[4:]]
    assert held(rewritten) == [("a", 1), ("seals", 2)]


def test_a_cut_end_is_named_at_the_first_row_that_is_gone() -> None:
    assert held(ROWS[:3]) == [("a", 3)]
    assert held([ROWS[0], ROWS[2], ROWS[3]]) == [("b", 1), ("seals", 2)]


def test_a_log_goes_on_from_heads_that_are_further_back_than_a_seal() -> None:
    told = Told()
    log = SealedLog(
        iter([SECOND]), SITE, told, last=FIRST, tree=tree_of(ROWS[:3]), counted={ALL: 3}
    )
    assert log.waits
    log.feed(ROWS[3:])
    assert not log.waits
    log.finish()
    assert (told.notes, log.events) == ([], 6)


def test_heads_that_are_all_a_seal_covers_are_held_against_it_at_once() -> None:
    for heads, notes in (
        (ROWS[:5], []),
        ([*ROWS[:4], row("b", 2, digest=b"q" * 32)], [("seals", 2)]),
    ):
        told = Told()
        log = SealedLog(
            iter([SECOND]), SITE, told, last=FIRST, tree=tree_of(heads), counted={ALL: 5}
        )
        assert not log.waits
        assert told.notes == notes


def test_a_seal_ends_where_its_count_does() -> None:
    reach = Reach(SECOND, {})
    assert reach.first_beyond(ROWS[:3]) is None
    assert reach.first_beyond(ROWS[3:]) == 2
    assert reach.counted == {ALL: 5}
    assert Reach(SECOND, {ALL: 5}).first_beyond(ROWS[5:]) == 0


def test_a_seal_of_partitions_ends_at_the_first_row_that_one_of_them_lacks() -> None:
    at = Position(1, 5, 1)
    rows = [row("a", 1), row("d", 1, shard=1), row("a", 2), row("d", 2, shard=1), row("a", 3)]
    covered = [rows[0], rows[2], rows[4], rows[1]]
    places = (Place("topic", 0, 3, at), Place("topic", 1, 1, at))
    seal = sealed(covered, None, *places)
    reach = Reach(seal, {})
    assert reach.first_beyond(rows) == 3
    assert reach.counted == {("topic", 0): 2, ("topic", 1): 1}
    # And from there on the rest of the seal is still found true.
    told = Told()
    log = SealedLog(
        iter([seal]), SITE, told, by_partition=True, tree=tree_of(rows[:3]), counted=reach.counted
    )
    log.feed(rows[3:])
    log.finish()
    assert told.notes == []
