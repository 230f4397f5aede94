"""The site's secret, sealing, passwords, API keys."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from backend.kit.clock import SystemRandomness
from backend.kit.secrets import (
    DataKey,
    SealBroken,
    SiteSecret,
    aad_of,
    check_secret,
    hash_api_key,
    hash_password,
    load_or_make_secret,
    make_api_key,
    verify_password,
)
from backend.kit.settings import load_settings
from schemas.errors import BadRequest, SiteProblem, Unavailable

_TEXT = "pW3kq9ZtR7vXs2LmN8bYc4HdJ6fGaE1u"
_OTHER = "Qm8Zx2Vb6Nc4Kd9Lf1Gh7Js3Aw5Pe0Rt"
_NONCE = bytes(range(12))
_RANDOM = SystemRandomness()


@pytest.mark.parametrize(
    "weak",
    [
        "secret", "changeme", "x" * 40, "ab" * 20, "0123456789" * 4, "correcthorse" * 3,
        "abcdefghijklmnopqrstuvwxyz0123456789", "please-Change_Me-before-going-live-1",
        "my-super-secret-key-for-production-7", _TEXT[:31],
    ],
)  # fmt: skip
def test_a_short_or_guessable_secret_is_refused_and_not_repeated(weak: str) -> None:
    with pytest.raises(SiteProblem) as caught:
        SiteSecret(weak)
    assert weak not in caught.value.sentence or weak == "secret"


def test_generated_secrets_always_pass_the_check() -> None:
    for _ in range(200):
        check_secret(_RANDOM.bytes(32).hex())


def test_the_first_start_makes_a_private_secret_and_the_next_finds_it(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=tmp_path / "site")
    first = load_or_make_secret(settings, _RANDOM)
    again = load_or_make_secret(settings, _RANDOM)
    file = tmp_path / "site" / "secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == ["secret"]
    assert first.hmac("test", b"data") == again.hmac("test", b"data")


def test_secret_from_the_environment_wins_and_makes_no_file(tmp_path: Path) -> None:
    settings = load_settings({"SECRET": _TEXT}, data_dir=tmp_path)
    secret = load_or_make_secret(settings, _RANDOM)
    assert secret.hmac("test", b"data") == SiteSecret(_TEXT).hmac("test", b"data")
    assert not (tmp_path / "secret").exists()


def test_an_emptied_secret_file_is_refused_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    with pytest.raises(SiteProblem):
        load_or_make_secret(load_settings({}, data_dir=tmp_path), _RANDOM)


def test_what_is_sealed_opens_with_the_same_secret_and_place() -> None:
    sealed = SiteSecret(_TEXT).seal(b"hello", aad_of("key:1", 2), _NONCE)
    assert b"hello" not in sealed
    assert SiteSecret(_TEXT).open(sealed, aad_of("key:1", 2)) == b"hello"


def test_a_seal_does_not_open_elsewhere_or_with_another_secret() -> None:
    sealed = SiteSecret(_TEXT).seal(b"hello", aad_of("key:1", 2), _NONCE)
    for secret, aad in [(_TEXT, aad_of("key:1", 3)), (_OTHER, aad_of("key:1", 2))]:
        with pytest.raises(SealBroken):
            SiteSecret(secret).open(sealed, aad)


def test_no_changed_byte_of_a_seal_goes_unnoticed() -> None:
    secret = SiteSecret(_TEXT)
    sealed = secret.seal(b"hello", b"", _NONCE)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(SealBroken):
            secret.open(bytes(changed), b"")
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            secret.open(sealed[:length], b"")


def test_places_never_share_their_aad() -> None:
    places = [("a", 1), ("a", 256), ("a1", 1), ("", 1), ("a\n1", 1)]
    assert len({aad_of(*place) for place in places}) == len(places)


def test_hmac_keys_differ_by_purpose_and_secret() -> None:
    a, b = SiteSecret(_TEXT), SiteSecret(_OTHER)
    values = {a.hmac("x", b"d"), a.hmac("y", b"d"), b.hmac("x", b"d"), a.derive("x")}
    assert len(values) == 4


def test_a_wrapped_data_key_opens_what_the_key_sealed() -> None:
    secret, key = SiteSecret(_TEXT), DataKey.generate(_RANDOM)
    wrapped = secret.wrap_data_key(key, b"account:7", _NONCE)
    sealed = key.seal(b"text", b"a", _RANDOM.bytes(12))
    assert secret.unwrap_data_key(wrapped, b"account:7").open(sealed, b"a") == b"text"
    with pytest.raises(SealBroken):
        secret.unwrap_data_key(wrapped, b"account:8")


def test_keys_never_print_themselves() -> None:
    assert _TEXT not in repr(SiteSecret(_TEXT))
    assert repr(DataKey(bytes(32))) == "DataKey([hidden])"


async def test_a_password_verifies_against_its_own_hash_only() -> None:
    hashed = await hash_password("correct horse")
    assert hashed.startswith("$argon2id$")
    assert await verify_password(hashed, "correct horse")
    assert not await verify_password(hashed, "wrong horse")
    assert not await verify_password("not a hash", "correct horse")
    assert not await verify_password(hashed, "x" * 5000)


async def test_a_password_typed_with_composed_or_plain_letters_is_the_same() -> None:
    assert await verify_password(await hash_password("café"), "cafe\u0301")


@pytest.mark.parametrize("bad", ["", "x" * 1025, "a\ud800"])
async def test_a_password_that_cannot_be_hashed_is_a_bad_request(bad: str) -> None:
    with pytest.raises(BadRequest):
        await hash_password(bad)


async def test_a_flood_of_sign_ins_is_refused_not_queued() -> None:
    results = await asyncio.gather(
        *(verify_password("not a hash", f"password {i}") for i in range(400)),
        return_exceptions=True,
    )
    refused = [r for r in results if isinstance(r, Unavailable)]
    assert refused
    assert all(r.retry_after_s for r in refused)
    assert False in results


def test_api_keys_are_long_distinct_and_hinted_by_their_end() -> None:
    keys = [make_api_key(_RANDOM) for _ in range(50)]
    assert len({text for text, _ in keys}) == 50
    for text, hint in keys:
        assert text.startswith("sk-")
        assert text[3:].isalnum()
        assert len(text) == 46
        assert hint == f"sk-…{text[-4:]}"
    assert len(hash_api_key(keys[0][0])) == 32
    assert hash_api_key("sk-a\udc80") != hash_api_key("sk-a")
