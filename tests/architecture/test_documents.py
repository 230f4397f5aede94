"""What the documents point at exists, and both languages show the same commands."""

from __future__ import annotations

import re

from tests.architecture.sources import ROOT

LINK = re.compile(r"\[[^\]]+\]\((?!https?:|#)([^)#]+)\)")
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("backend/**/*.md")]
    found = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in LINK.findall(document.read_text("utf-8"))
        if not (document.parent / target).exists()
    ]
    assert not found, "\n".join(found)


def test_both_readmes_show_the_same_commands() -> None:
    assert commands("README.md") == commands("README.zh-CN.md")


def test_every_decision_says_context_decision_and_consequences() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    assert [record.name[:4] for record in records] == [
        f"{n:04}" for n in range(1, len(records) + 1)
    ]
    for record in records:
        headings = re.findall(r"^## (.+)$", record.read_text("utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], record.name
        assert record.name in (ROOT / "docs" / "adr" / "README.md").read_text("utf-8")


def commands(name: str) -> list[str]:
    """The shell lines of a document without comments and sample text, which are translated."""
    blocks = FENCE.findall((ROOT / name).read_text("utf-8"))
    lines = [re.sub(r"\s+#.*$", "", line) for block in blocks for line in block.splitlines()]
    return [re.sub(r'("content": |--reason )"[^"]*"', r"\1", line) for line in lines]
