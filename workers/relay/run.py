"""One relay call on its way: what was held, what has come, and what it would cost to end it now."""

from __future__ import annotations

from typing import Final

import msgspec

from backend.kit.tokenizer import Tokenizer
from backend.ledger.leases import Progress
from backend.ledger.points import Held
from schemas.chat import Delta, text_of_input
from schemas.ids import ChannelId
from schemas.ledger import Served
from schemas.plans import PlanUse, Quota
from schemas.prices import PLAIN_TERMS, affordable_output, bound_upt
from schemas.relay import RelayCall
from schemas.usage import Usage
from workers.relay.ports import Offer, OfferedChannel

BYTES_PER_TOKEN: Final = 3
"""Progress of an answer until usage arrives: bytes ÷ 3, more tokens than almost any text has."""


class Run:
    """Mutable state of one call. Times are monotonic seconds."""

    def __init__(
        self, call: RelayCall, offer: Offer, order: tuple[ChannelId, ...], started_s: float
    ) -> None:
        self.call: Final = call
        self.offer: Final = offer
        self.order: Final = order
        self.started_s: Final = started_s
        self.held_upt = 0
        self.terms = PLAIN_TERMS
        self.plan: PlanUse | None = None
        self.quota: Quota | None = None
        self.output_limit: int | None = None
        """What the provider is told where the client's own limit cannot be paid for."""
        self.attempts = 0
        self.channel: OfferedChannel | None = None
        self.first_token_s: float | None = None
        self.usage: Usage | None = None
        self.left_before_token = False
        self.passed_on = False
        """Something of an answer went to the client: no other channel may be tried."""
        self._texts: list[str] = []
        self._output_bytes = 0
        self._counted_output = 0
        self._counted_bytes = 0
        self._counted_input: int | None = None

    def admitted(self, held: Held) -> None:
        self.held_upt = held.amount_upt
        self.terms = held.terms
        self.plan = held.plan
        self.quota = held.quota
        if self.call.meter is not None:
            self.call.meter.held(held.group)

    def affordable_output(self, available_upt: int, input_tokens: int) -> int | None:
        """Output tokens that so much pays for after the input; None: any number."""
        if self.plan is not None:
            return None
        return affordable_output(self.offer.price, available_upt, input_tokens, self.terms)

    def bound_upt(self, input_tokens: int, output_tokens: int) -> int:
        """What so many tokens can cost at most."""
        if self.plan is not None:
            return 0
        return bound_upt(self.offer.price, input_tokens, output_tokens, self.terms)

    @property
    def begun(self) -> bool:
        """A first token has come: content, reasoning or a tool call."""
        return self.first_token_s is not None

    @property
    def text(self) -> str:
        """Everything the model wrote so far."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    def take(self, delta: Delta, now_s: float) -> None:
        """Notes what one frame says. The last usage counts; they are never added."""
        if delta.usage is not None:
            self.usage = delta.usage
        text = delta.text
        if text:
            if self.first_token_s is None:
                self.first_token_s = now_s
            self._texts.append(text)
            self._output_bytes += len(text) if text.isascii() else len(text.encode())

    @property
    def output_estimate(self) -> int:
        """Output tokens so far: the last exact count, and bytes ÷ 3 since."""
        since = self._output_bytes - self._counted_bytes
        return self._counted_output + since // BYTES_PER_TOKEN

    def output_paid(self) -> int | None:
        """Output tokens that the hold pays for; None: the price does not depend on them."""
        bound = self.call.request.input_bound
        known = bound if self._counted_input is None else self._counted_input
        return self.affordable_output(self.held_upt, known)

    async def count(self, tokenizer: Tokenizer) -> Usage:
        """Exact counts of input and received output by our tokenizer, off the event loop."""
        model = self.upstream_model or self.call.request.model
        if self._counted_input is None:
            self._counted_input = await self._count_input(tokenizer, model)
        counted_bytes, text = self._output_bytes, self.text
        if text:
            self._counted_output = await tokenizer.count_off_loop(model, text)
            self._counted_bytes = counted_bytes
        return Usage(input=self._counted_input, output=self._counted_output)

    async def _count_input(self, tokenizer: Tokenizer, model: str) -> int:
        try:
            text = text_of_input(self.call.request)
        except (msgspec.DecodeError, RecursionError):
            # JSON that passes on but cannot be read here (a lone surrogate): not free for that.
            return self._input_estimate
        return await tokenizer.count_input_off_loop(model, text)

    @property
    def limit_is_ours(self) -> bool:
        """The client named no output limit: the one we send is our own."""
        return self.call.request.output_limit is None

    @property
    def input_tokens(self) -> int:
        """Input as counted, or a guess where it was not."""
        return self._input_estimate if self._counted_input is None else self._counted_input

    @property
    def _input_estimate(self) -> int:
        return self.call.request.input_bound // BYTES_PER_TOKEN

    @property
    def upstream_model(self) -> str | None:
        return None if self.channel is None else self.channel.target.upstream_model

    def progress(self) -> Progress:
        """For the lease: what a sweep needs should this process die."""
        usage = self.usage or Usage(input=self.input_tokens, output=self.output_estimate)
        return Progress(
            input=usage.input,
            output=usage.output,
            begun=self.begun,
            channel=None if self.channel is None else self.channel.channel,
            upstream_model=self.upstream_model,
            cached_input=usage.cached_input,
            cache_write=usage.cache_write,
            cache_write_1h=usage.cache_write_1h,
        )

    def served(self, status: int, now_s: float, error: str | None = None) -> Served:
        """The usage log's columns at the end."""
        first_s = self.first_token_s
        return Served(
            channel=None if self.channel is None else self.channel.channel,
            upstream_model=self.upstream_model,
            status=status,
            duration_ms=int((now_s - self.started_s) * 1000),
            first_token_ms=None if first_s is None else int((first_s - self.started_s) * 1000),
            attempts=self.attempts,
            error=error,
        )
