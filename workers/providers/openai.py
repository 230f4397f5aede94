"""The OpenAI-shaped adapter: builds the request, reads the answer. Pure: bytes in, bytes out.

Serves OpenAI, Azure and everybody who speaks `POST …/chat/completions`. What the client sent goes
on as the bytes it was, what the provider sent goes back as the bytes it was.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import msgspec

from backend.kit.outbound import UpstreamRequest
from schemas.chat import MAX_COMPLETION_TOKENS, MAX_TOKENS, ChatRequest
from workers.providers.model_rules import output_limit_name

_ENCODER: Final = msgspec.json.Encoder()
_OPTIONS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_COUNT: Final = msgspec.json.Decoder(int | None)
_TRUE: Final = msgspec.Raw(b"true")
_ASK_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')


class ChannelTarget(msgspec.Struct, frozen=True):
    """Where a call goes: one channel, seen for one model."""

    base_url: str
    """With `/v1` or whatever the provider has instead."""
    secret: str
    """Empty: no authentication header (a model server of one's own)."""
    upstream_model: str
    api_version: str | None = None
    """Set for Azure: `api-key` header and `?api-version=`."""


def build_chat(
    target: ChannelTarget, request: ChatRequest, *, request_id: str, output_limit: int | None
) -> UpstreamRequest:
    """The provider's request for a client's.

    `output_limit` (tokens per choice) lowers what the client allowed, or sets what it left open;
    None leaves it alone. All other parameters, known or not, go on unchanged.
    """
    fields = dict(request.fields)
    fields["model"] = msgspec.Raw(_ENCODER.encode(target.upstream_model))
    if request.streamed:
        fields["stream_options"] = _asking_usage(fields.get("stream_options"))
    if output_limit is not None:
        _limit_output(fields, target.upstream_model, output_limit)
    return UpstreamRequest(
        method="POST",
        url=chat_url(target.base_url, target.upstream_model, target.api_version),
        headers=(
            *_auth_headers(target),
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if request.streamed else "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "suanpan"),
            ("x-request-id", request_id),
        ),
        body=_ENCODER.encode(fields),
    )


@lru_cache(maxsize=4_096)
def chat_url(base_url: str, upstream_model: str, api_version: str | None) -> str:
    """`…/chat/completions`; for Azure's classic API the deployment's own path and version."""
    root = base_url.rstrip("/")
    if api_version is None:
        return f"{root}/chat/completions"
    if not root.endswith("/openai/v1") and "/deployments/" not in root:
        root = root.removesuffix("/v1").removesuffix("/openai")
        root = f"{root}/openai/deployments/{quote(upstream_model, safe='')}"
    return f"{root}/chat/completions?api-version={quote(api_version, safe='')}"


def _auth_headers(target: ChannelTarget) -> tuple[tuple[str, str], ...]:
    if not target.secret:
        return ()
    if target.api_version is not None:
        return (("api-key", target.secret),)
    return (("authorization", f"Bearer {target.secret}"),)


def _asking_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """`stream_options` with usage asked for: bills rest on it, whatever the client wanted."""
    if options is None:
        return _ASK_USAGE
    asked: dict[str, Any] = dict(_OPTIONS.decode(options) or {})
    asked["include_usage"] = _TRUE
    return msgspec.Raw(_ENCODER.encode(asked))


def _limit_output(fields: dict[str, msgspec.Raw], model: str, limit: int) -> None:
    given = False
    for name in (MAX_COMPLETION_TOKENS, MAX_TOKENS):
        raw = fields.get(name)
        value = None if raw is None else _COUNT.decode(raw)
        if value is None:
            continue
        given = True
        if value > limit:
            fields[name] = msgspec.Raw(b"%d" % limit)
    if not given:
        fields[output_limit_name(model)] = msgspec.Raw(b"%d" % limit)
