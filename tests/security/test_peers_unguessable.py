"""Codes, keys and invitations cannot be told from the time they were made (docs/peers.md)."""

from __future__ import annotations

import re

from backend.kit.clock import SystemRandomness
from backend.kit.secrets import make_api_key
from backend.ledger.code_text import CODE_BITS, code_text
from schemas.ledger import CodeKind
from tests.architecture.sources import PRODUCT, ROOT

NO_SECRETS = {
    "backend/app/relay.py": {"SystemRandom"},
    "backend/kit/embedded/state.py": {"randint"},
    "backend/kit/embedded/supervisor.py": {"uniform"},
}
"""What uses the module `random`, and how: the kernel's generator, a free port, a pause."""
IMPORTED = re.compile(r"^\s*(?:import|from)\s+random\b", re.MULTILINE)
USED = re.compile(r"\brandom\.(\w+)")
MANY = 2_000


def test_no_secret_is_drawn_from_a_generator_that_has_a_seed() -> None:
    found: dict[str, set[str]] = {}
    for path in (path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        if IMPORTED.search(text):
            found[path.relative_to(ROOT).as_posix()] = set(USED.findall(text))
    assert found == NO_SECRETS


def test_codes_and_keys_that_are_made_at_once_have_nothing_in_common() -> None:
    """Of 130 bits: the first forty alone tell two thousand codes apart, and so do the last."""
    randomness = SystemRandomness()
    codes = [code_text(CodeKind.REDEEM, randomness.bits(CODE_BITS)) for _ in range(MANY)]
    plain = [code.replace("-", "").removeprefix("SP") for code in codes]
    keys = [make_api_key(randomness)[0].removeprefix("sk-") for _ in range(MANY)]
    for texts in (plain, keys):
        assert len({text[:8] for text in texts}) == MANY
        assert len({text[-8:] for text in texts}) == MANY
        for place in range(len(texts[0])):
            assert len({text[place] for text in texts}) > 8, f"character {place} hardly changes"
