"""The order of channels and their cooldowns; chance and the clock are given."""

from __future__ import annotations

import random
from collections import Counter

from schemas.ids import ChannelId
from workers.routing import COOLDOWN_MAX_S, RETRY_AFTER_MAX_S, Candidate, Cooldowns, plan_channels

A, B, C = ChannelId(1), ChannelId(2), ChannelId(3)


def test_higher_priority_goes_first_whatever_the_draw() -> None:
    candidates = [Candidate(A, priority=0, weight=1_000), Candidate(B, priority=5)]
    for draw in (0.0, 0.5, 0.999999):
        assert plan_channels(candidates, draw=lambda draw=draw: draw) == (B, A)


def test_weights_share_the_first_place_in_proportion() -> None:
    chance = random.Random(7)
    candidates = [Candidate(A, weight=1), Candidate(B, weight=3), Candidate(C, weight=6)]
    firsts = Counter(plan_channels(candidates, draw=chance.random)[0] for _ in range(20_000))
    for channel, share in ((A, 0.1), (B, 0.3), (C, 0.6)):
        assert abs(firsts[channel] / 20_000 - share) < 0.02


def test_every_channel_is_planned_exactly_once() -> None:
    chance = random.Random(1)
    candidates = [Candidate(ChannelId(i), priority=i % 3, weight=i % 4) for i in range(30)]
    plan = plan_channels(candidates, draw=chance.random, cooling_until_s={ChannelId(4): 9.0})
    assert sorted(plan) == sorted(candidate.channel for candidate in candidates)
    assert plan[-1] == ChannelId(4)


def test_cooling_channels_come_last_and_the_first_to_recover_leads_them() -> None:
    candidates = [Candidate(A, priority=9), Candidate(B, priority=5), Candidate(C)]
    plan = plan_channels(candidates, draw=lambda: 0.5, cooling_until_s={A: 30.0, B: 20.0})
    assert plan == (C, B, A)
    everyone = plan_channels(candidates, draw=lambda: 0.5, cooling_until_s={A: 3.0, B: 2.0, C: 1.0})
    assert everyone == (C, B, A)


def test_no_candidates_is_an_empty_plan_and_one_needs_no_draw() -> None:
    def no_draw() -> float:
        raise AssertionError

    assert plan_channels([], draw=no_draw) == ()
    assert plan_channels([Candidate(A)], draw=no_draw, cooling_until_s={A: 5.0}) == (A,)


def test_failures_in_a_row_double_the_rest_up_to_a_cap() -> None:
    cooldowns = Cooldowns(first_s=2.0, longest_s=60.0)
    now_s, pauses = 100.0, []
    for _ in range(8):
        until_s = cooldowns.failed(A, now_s=now_s, started_s=now_s)
        pauses.append(until_s - now_s)
        now_s = until_s
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_hundred_calls_that_fail_together_are_one_incident() -> None:
    cooldowns = Cooldowns(first_s=2.0)
    ends = [cooldowns.failed(A, now_s=10.0, started_s=9.0) for _ in range(100)]
    assert ends[-1] == 12.0


def test_a_success_makes_the_channel_as_good_as_new() -> None:
    cooldowns = Cooldowns(first_s=2.0)
    for at_s in (0.0, 10.0, 20.0):
        cooldowns.failed(A, now_s=at_s, started_s=at_s)
    cooldowns.succeeded(A)
    assert cooldowns.cooling(20.0) == {}
    assert cooldowns.failed(A, now_s=30.0, started_s=30.0) == 32.0


def test_retry_after_is_honoured_within_reason() -> None:
    cooldowns = Cooldowns(first_s=2.0)
    assert cooldowns.failed(A, now_s=0.0, started_s=0.0, retry_after_s=40) == 40.0
    assert cooldowns.failed(B, now_s=0.0, started_s=0.0, retry_after_s=10**9) == RETRY_AFTER_MAX_S
    assert cooldowns.failed(C, now_s=0.0, started_s=0.0, retry_after_s=1) == 2.0


def test_a_cooldown_ends_by_itself_and_gone_channels_are_forgotten() -> None:
    cooldowns = Cooldowns(first_s=2.0)
    cooldowns.failed(A, now_s=0.0, started_s=0.0)
    cooldowns.failed(B, now_s=1.0, started_s=1.0)
    assert cooldowns.cooling(1.5) == {A: 2.0, B: 3.0}
    assert cooldowns.cooling(2.0) == {B: 3.0}
    cooldowns.keep_only(frozenset({A}))
    assert cooldowns.cooling(2.0) == {}


def test_the_longest_rest_holds_after_very_many_failures() -> None:
    cooldowns = Cooldowns()
    ends = [cooldowns.failed(A, now_s=float(at), started_s=float(at)) for at in range(5_000)]
    assert ends[-1] == 4_999 + COOLDOWN_MAX_S
