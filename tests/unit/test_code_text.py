"""The text of a code: written for reading, read as people type it, kept as a keyed hash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.kit.secrets import SiteSecret
from backend.ledger.code_text import CODE_BITS, code_text, hint_of, stream_of_code
from schemas.ledger import CodeKind

SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
OTHER = SiteSecret("w3Hn8Zq5Kd1Vx6Rb9Tm2Lf7Pc4Js0Gy+")


@given(st.integers(0, 2**CODE_BITS - 1), st.sampled_from(CodeKind))
def test_every_code_is_read_again_however_it_is_typed(number: int, kind: CodeKind) -> None:
    text = code_text(kind, number)
    stream = stream_of_code(SECRET, text)
    assert stream is not None
    typed = text.lower().replace("-", " \u2013\t").replace("0", "o").replace("1", "L")
    full_width = "".join(chr(ord(char) + 0xFEE0) for char in text)
    assert stream_of_code(SECRET, f" {typed}\n") == stream
    assert stream_of_code(SECRET, full_width) == stream
    assert stream_of_code(SECRET, text.replace("1", "i")) == stream
    assert stream_of_code(OTHER, text) != stream


@given(st.integers(0, 2**CODE_BITS - 1), st.integers(0, 2**CODE_BITS - 1))
def test_two_numbers_are_two_codes(one: int, two: int) -> None:
    same = code_text(CodeKind.GIFT, one) == code_text(CodeKind.GIFT, two)
    assert same is (one == two)


def test_the_form_of_a_code_is_what_people_see() -> None:
    assert code_text(CodeKind.REDEEM, 0) == "SP-00000-00000-00000-00000-000000"
    last = code_text(CodeKind.GIFT, 2**CODE_BITS - 1)
    assert last == "SG-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZZ"
    assert hint_of(last) == "ZZZZ"
    with pytest.raises(ValueError, match="130 bits"):
        code_text(CodeKind.GIFT, 2**CODE_BITS)


def test_the_kind_is_part_of_what_is_hashed() -> None:
    streams = {stream_of_code(SECRET, code_text(kind, 5)) for kind in CodeKind}
    assert len(streams) == 2


@pytest.mark.parametrize(
    "text",
    ["", "SP", "SP-" + "0" * 25, "SP-" + "0" * 27, "SX-" + "0" * 26, "SP-" + "U" * 26,
     "0" * 500, "SP-" + "\ud800" * 26, "SP-" + "é" * 26],
)  # fmt: skip
def test_what_can_be_no_code_is_none(text: str) -> None:
    assert stream_of_code(SECRET, text) is None
