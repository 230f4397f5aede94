"""Secrets are used in every way that there is, and then searched for wherever anything is kept."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from backend.identity.key_asked import KeyAsked
from tests.conftest import Database, Server
from tests.integration.identity_site import SECRET_TEXT
from tests.integration.log_writing import until
from tests.security.api_ground import Ground, ground_on
from tests.security.forgetting_ground import forms_of
from tests.site import UPSTREAM_SECRET, Reply, bearer, chat
from tests.upstream import Script
from tests.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "a password with a canary 7b1f"
CHANNEL_SECRET = "sk-canary-of-a-channel-0123456789"
CLEAR = "a label in clear 31c7"
TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'read')"
END_CONNECTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(
    server: Server, shared_valkey: ValkeyServer, folder: Path
) -> AsyncIterator[Ground]:
    async with ground_on(server, shared_valkey, folder, relay_first_byte_timeout_s=1) as ground:
        yield ground


class Story:
    """What happened: the secrets, by what they are, and all answers but those that show one."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.secrets: dict[str, str] = {}
        self.said: list[Reply] = []

    async def post(self, path: str, key: str, body: object) -> Reply:
        data = json.dumps(body).encode()
        reply = await self.ground.site.send("POST", path, bearer(key), data)
        self.said.append(reply)
        return reply

    async def shown(self, path: str, key: str, body: object) -> list[str]:
        """The codes of an answer that shows them, once."""
        reply = await self.post(path, key, body)
        assert reply.status == 200, reply.body
        self.said.remove(reply)
        return reply.json["codes"]

    async def people_and_keys(self) -> None:
        base = self.ground.site.base
        made = await base.opening.open_person("anna", PASSWORD)
        assert await base.identity.check_password("anna", PASSWORD) == made.person
        assert await base.identity.check_password("anna", f"{PASSWORD}?") is None
        new = await base.identity.create_key(made.person, KeyAsked(CLEAR))
        await self.ground.known(new.text)
        invitation = await base.identity.issue_invitation(made.person)
        assert await base.identity.find_inviter(invitation) == made.person
        self.secrets |= {"password": PASSWORD, "key": new.text, "invitation": invitation}
        self.secrets |= {"admin's key": self.ground.admin.key, "Bert's key": self.ground.bert.key}
        for path in ("/api/key", "/api/wallet", "/api/ledger", "/v1/models", "/api/none"):
            self.said.append(await self.ground.site.get(path, new.text))
            self.said.append(await self.ground.site.get(f"{path}?key={new.text}"))
            self.said.append(await self.ground.site.get(path, f"{new.text}x"))

    async def codes(self) -> None:
        admin, bert = self.ground.admin.key, self.ground.bert.key
        asked = {"points": "1", "count": 2}
        redeem = await self.shown("/api/admin/codes", admin, {"kind": "redeem", **asked})
        gift = await self.shown("/api/admin/codes", admin, {"kind": "gift", "type": "t", **asked})
        assert (await self.post("/api/wallet/redeem", bert, {"code": redeem[0]})).status == 200
        assert (await self.post("/api/wallet/redeem", bert, {"code": redeem[0]})).status == 404
        assert (await self.post("/api/wallet/gift", bert, {"code": gift[0]})).status == 200
        await self.post("/api/wallet/gift", bert, {"code": gift[1]})
        await self.post("/api/wallet/redeem", bert, {"code": gift[1]})
        await self.post("/api/admin/codes/void", admin, {"code": redeem[1]})
        await self.post("/api/wallet/redeem", bert, {"code": redeem[1], "more": redeem[1]})
        await self.post("/api/wallet/redeem", bert, {"code": [redeem[1]]})
        await self.post(f"/api/{redeem[1]}", bert, {})
        for path in ("/api/statement", "/api/ledger", "/api/plans"):
            self.said.append(await self.ground.site.get(path, bert))
        for path in ("/api/admin/codes", "/api/admin/ledger", "/api/admin/health"):
            self.said.append(await self.ground.site.get(path, admin))
        for name, texts in (("redeem", redeem), ("gift", gift)):
            self.secrets |= {f"{name} {at}": text for at, text in enumerate(texts)}

    async def calls(self) -> None:
        site, upstream = self.ground.site, self.ground.upstream
        error = {"message": f"wrong key {CHANNEL_SECRET} for {UPSTREAM_SECRET}"}
        for status in (401, 429, 500):
            upstream.by_model[f"failing-{status}"] = Script(status=status, error=error)
            await site.serves(upstream.url, f"failing-{status}", secret=CHANNEL_SECRET)
            self.said.append(await site.ask(self.ground.bert.key, chat(f"failing-{status}")))
        self.said.append(await site.ask(self.ground.bert.key, chat()))
        self.secrets |= {"channel": CHANNEL_SECRET, "other channel": UPSTREAM_SECRET}

    async def trouble(self) -> None:
        """The database goes away under requests that carry secrets."""
        database = self.ground.site.database
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            connection.execute(END_CONNECTIONS)

        async def answers_again() -> bool:
            reply = await self.post(
                "/api/wallet/redeem", self.ground.bert.key, {"code": self.secrets["gift 1"]}
            )
            return reply.status != 503

        await until(answers_again, what="the database is back")

    async def pages(self) -> None:
        for path in ("/", "/health", "/metrics", "/api/openapi.json"):
            self.said.append(await self.ground.site.get(path))

    def places(self, database: Database, valkey: ValkeyServer) -> None:
        """Secrets of the site itself."""
        self.secrets["SECRET"] = SECRET_TEXT
        for name, url in (
            ("app's database password", database.app_url),
            ("owner's database password", database.owner_url),
            ("Valkey's password", valkey.url),
        ):
            self.secrets[name] = urlsplit(url).password or ""


def tables(database: Database) -> bytes:
    """Every row of every table, binary columns as they are."""
    parts: list[bytes] = []
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        for schema, table in connection.execute(TABLES).fetchall():
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
            for row in connection.execute(query):
                parts += [one if isinstance(one, bytes) else str(one).encode() for one in row]
    return b"\n".join(parts)


def files(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def forms(name: str, secret: str) -> list[bytes]:
    """As it is written and, of codes, as it is folded and typed."""
    texts = [secret]
    if name.startswith(("redeem", "gift")):
        plain = secret.replace("-", "")
        texts += [plain, plain.lower(), secret.lower(), plain[2:]]
    return [form for text in texts for form in forms_of(text)]


async def test_no_secret_is_kept_or_said_where_it_could_be_read(
    ground: Ground, folder: Path, shared_valkey: ValkeyServer, logged: io.StringIO
) -> None:
    story = Story(ground)
    await story.people_and_keys()
    await story.codes()
    await story.calls()
    await story.trouble()
    await story.pages()
    story.places(ground.site.database, shared_valkey)
    said = [f"{reply.headers}".encode() + reply.body for reply in story.said]
    places = {
        "tables": tables(ground.site.database),
        "files": files(folder),
        "answers": b"\n".join(said),
        "logs": logged.getvalue().encode(),
    }
    assert CLEAR.encode() in places["tables"], "the search does not find what is there"
    assert b"code_not_good" in places["answers"]
    assert b"attempt failed" in places["logs"]
    assert len(story.secrets) > 12
    assert all(len(secret) >= 8 for secret in story.secrets.values())
    found = [
        f"{name} in {place}"
        for name, secret in story.secrets.items()
        for place, content in places.items()
        if any(form in content for form in forms(name, secret))
    ]
    assert found == []
