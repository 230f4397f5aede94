"""Asks a channel's provider for its models, or one word of an answer, and names what is wrong.

Not for traffic: one call at a time, with short deadlines. The secret is shown nowhere.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from typing import Any, Final

import httpx
import msgspec

from backend.catalog.checks import DEMO
from schemas.catalog import ChannelSettings
from schemas.chat import ProblemClass, parse_chat_request
from schemas.errors import BadRequest
from workers.providers.openai import ChannelTarget, build_chat
from workers.providers.problems import classify_error, redacted

TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
_NO_LISTING: Final = frozenset({404, 405, 501})
_CAUSES: Final = {
    ProblemClass.AUTH: "the provider refuses the secret",
    ProblemClass.PERMISSION: "the provider does not let this secret do that",
    ProblemClass.NOT_FOUND: "there is nothing at this address; is the path (/v1) right?",
    ProblemClass.RATE_LIMIT: "the provider is at its rate limit",
    ProblemClass.QUOTA_EXHAUSTED: "the account at the provider has no credit left",
    ProblemClass.OVERLOADED: "the provider is overloaded",
    ProblemClass.TIMEOUT: "the provider did not answer in time",
}


class ChannelTest(msgspec.Struct, frozen=True):
    """What a test found. `cause` is a stable word, `sentence` is for people."""

    ok: bool
    cause: str | None
    sentence: str
    duration_ms: int = 0
    models: tuple[str, ...] = ()
    """What the provider lists; empty where it lists nothing."""
    missing: tuple[str, ...] = ()
    """Models of the channel that the provider does not list."""

    def as_data(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


class _Broken(Exception):
    """The provider cannot be used as it is set up."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence


def probe_channel(settings: ChannelSettings, secret: str, model: str | None) -> ChannelTest:
    """Lists the models; with `model` also has it answer one word. Raises BadRequest."""
    if model is not None and model not in settings.models:
        raise BadRequest(f"The channel does not serve {model!r}.")
    if settings.type == DEMO:
        return ChannelTest(True, None, "the built-in model answers without a provider.")
    began_s = time.monotonic()
    listed: tuple[str, ...] | None = None
    try:
        with httpx.Client(timeout=TIMEOUT, headers={"user-agent": "suanpan"}) as client:
            listed = _list_models(client, settings, secret)
            if model is not None:
                _ask(client, settings, secret, model)
            elif listed is None:
                raise _Broken(
                    "no_list", "the provider lists no models; test one with --model instead"
                )
    except _Broken as broken:
        return ChannelTest(False, broken.cause, f"{broken.sentence}.", _elapsed_ms(began_s))
    return _verdict(settings, listed, model, _elapsed_ms(began_s))


def _verdict(
    settings: ChannelSettings, listed: tuple[str, ...] | None, model: str | None, duration_ms: int
) -> ChannelTest:
    names = listed or ()
    mapping = dict(settings.mapping)
    missing = tuple(m for m in settings.models if listed and mapping.get(m, m) not in names)
    said = [f"{model} answered"] if model is not None else []
    if listed is not None:
        said.append(f"the provider lists {len(names)} models")
    if missing:
        said.append(f"among them not {', '.join(missing[:10])}")
    sentence = f"{', '.join(said)} ({duration_ms} ms)."
    # What is not listed may still answer: providers hide aliases and fine-tuned models.
    ok = model is not None or not missing
    return ChannelTest(
        ok, None if ok else "model_not_listed", sentence, duration_ms, names, missing
    )


def _list_models(
    client: httpx.Client, settings: ChannelSettings, secret: str
) -> tuple[str, ...] | None:
    """The provider's model ids; None where it has no such list."""
    if settings.api_version is not None:
        return None
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    answer = _call(client, httpx.Request("GET", f"{settings.base_url}/models", headers=headers))
    if answer.status_code in _NO_LISTING:
        return None
    body = _checked(answer, secret)
    try:
        listing = msgspec.json.decode(body, type=_Listing)
    except msgspec.DecodeError as error:
        raise _Broken(
            "not_an_api",
            "the address answers, but not as a model provider does; is the path (/v1) right?",
        ) from error
    return tuple(entry.id for entry in listing.data)


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Listing(msgspec.Struct, frozen=True):
    data: list[_Model]


class _Answer(msgspec.Struct, frozen=True):
    choices: list[dict[str, Any]]


def _ask(client: httpx.Client, settings: ChannelSettings, secret: str, model: str) -> None:
    upstream = dict(settings.mapping).get(model, model)
    target = ChannelTarget(settings.base_url, secret, upstream, settings.api_version)
    question = {"model": model, "messages": [{"role": "user", "content": "Say: ok"}]}
    request = build_chat(
        target,
        parse_chat_request(msgspec.json.encode(question)),
        request_id="channel-test",
        output_limit=16,
    )
    answer = _call(
        client,
        httpx.Request(
            request.method, request.url, headers=list(request.headers), content=request.body
        ),
    )
    body = _checked(answer, secret)
    try:
        msgspec.json.decode(body, type=_Answer)
    except msgspec.DecodeError as error:
        raise _Broken("not_an_api", "the answer is no chat completion") from error


def _call(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    try:
        with closing(client.send(request, stream=True)) as answer:
            received = b""
            for chunk in answer.iter_bytes():
                received += chunk
                if len(received) > BODY_BYTES_MAX:
                    raise _Broken("too_large", "the answer is too large for a model provider's")
    except httpx.TimeoutException as error:
        raise _Broken("timeout", _CAUSES[ProblemClass.TIMEOUT]) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(error) from error
    return httpx.Response(answer.status_code, headers=answer.headers, content=received)


def _unreachable(error: Exception) -> _Broken:
    """The cause behind httpx's wrapping: a name, a refusal, a certificate."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case socket.gaierror():
                return _Broken("unknown_host", "the host's name is not known")
            case ssl.SSLCertVerificationError():
                return _Broken("bad_certificate", "the host's certificate is not valid")
            case ssl.SSLError():
                return _Broken("tls_failed", "no TLS connection can be made; is it https?")
            case ConnectionRefusedError():
                return _Broken("refused", "nothing listens at this address")
            case _:
                cause = cause.__cause__ or cause.__context__
    return _Broken("unreachable", "the address cannot be reached, or the connection was cut")


def _checked(answer: httpx.Response, secret: str) -> bytes:
    """The body of a good answer; whatever it holds is shown without secrets."""
    status = answer.status_code
    if status < 300:
        return answer.content
    if status < 400:
        raise _Broken("redirected", f"the address sends callers elsewhere (HTTP {status})")
    problem = classify_error(status, answer.headers, answer.content, secrets=(secret,))
    cause = _CAUSES.get(problem.problem)
    sentence = cause or f"the provider answers {redacted(problem.sentence, (secret,))}"
    raise _Broken(str(problem.problem), f"{sentence.rstrip('.')} (HTTP {status})")


def _elapsed_ms(began_s: float) -> int:
    return round((time.monotonic() - began_s) * 1_000)
