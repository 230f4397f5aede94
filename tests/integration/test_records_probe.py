from tests.site import running_site, chat
from tests.upstream import FakeUpstream

async def test_probe(database, tmp_path):
    async with FakeUpstream() as upstream, running_site(database, tmp_path, projecting=True) as site:
        await site.serves(upstream.url)
        anna = await site.customer("10")
        r = await site.ask(anna.key, chat())
        print(r.status, r.body)
        await site.ended(anna)
        for path in ("statement", "statement/totals", "statement/balance", "statement/balance?exact=true", "requests", "requests/totals", "usage", "usage?step=hour", "ledger?type=HoldSettled", "exports", "statement?kind=foo", "statement?limit=0", "statement?since=bla", "statement?key=99999999999999999999999999", "statement?after=4"):
            r = await site.get(f"/api/{path}", anna.key)
            print(path, r.status, r.body.decode()[:1500])
        r = await site.get("/api/openapi.json")
        print(r.status, len(r.body))
        doc = r.json
        for p, v in doc["paths"].items():
            print(p, list(v), [x["name"] for x in next(iter(v.values())).get("parameters", [])])
