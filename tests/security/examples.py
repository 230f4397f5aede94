"""Arguments under which each route of the API answers whoever may call it.

A route that reads a body or needs a query stands here, or the tests that go over all routes fail.
"""

from __future__ import annotations

from typing import Any

from tests.security.api_ground import MODEL, PLANS, Example, Ground, Route

SUBSCRIBE = {"level": 1, "months": 1}
UNKNOWN_CODE = {"code": "SP-00000-00000-00000-00000-000000"}
EXAMPLES: dict[str, Example] = {
    "POST /v1/chat/completions": Example(
        body={"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    ),
    "POST /api/wallet/redeem": Example(body=UNKNOWN_CODE),
    "POST /api/wallet/gift": Example(body=UNKNOWN_CODE),
    "POST /api/wallet/subscribe": Example(body=SUBSCRIBE),
    "GET /api/wallet/quote": Example(query=SUBSCRIBE),
    "POST /api/admin/grants": Example(body={"person": 1, "points": "1", "reason": "because"}),
    "POST /api/admin/codes": Example(
        body={"kind": "gift", "points": "1", "count": 1, "type": "t", "expires_us": 4 * 10**15}
    ),
    "POST /api/admin/codes/void": Example(body={"batch": "b-unknown"}),
    "PUT /api/admin/plans": Example(body=PLANS),
    "POST /api/admin/accounts/{person}/subscribe": Example(body=SUBSCRIBE),
    "GET /api/admin/statement/balance": Example(query={"person": 1}),
    "POST /api/exports": Example(
        body={"kind": "statement", "format": "csv", "filters": {"kind": "grant"}}
    ),
    "POST /api/admin/exports": Example(
        body={"kind": "ledger", "format": "jsonl", "filters": {}, "person": 1}
    ),
    "POST /api/admin/audits": Example(body={}),
}
BODY_METHODS = ("POST", "PUT", "PATCH")


def example_of(ground: Ground, route: Route) -> Example:
    """The example with ids in its path: Bert's, or the administrator's where only those open."""
    example = EXAMPLES.get(route.name, Example())
    assert example.body is not None or route.method not in BODY_METHODS, (
        f"{route.name} has no example: write one in {__name__}"
    )
    ids = ground.ids_for(route)
    unknown = [name for name in route.parameters if name not in ids]
    assert not unknown, f"{route.name}: whose {unknown} that is, is said in Ground.ids_for"
    path = {name: ids[name] for name in route.parameters}
    return Example(path, _about(ground, example.query), _about(ground, example.body))


def _about(ground: Ground, arguments: Any) -> Any:
    """With Bert's number where a person is asked for."""
    if arguments is None or "person" not in arguments:
        return arguments
    return {**arguments, "person": ground.bert.person}
