"""The benchmark's arithmetic: percentiles, goals, processor times, and what its table says."""

from __future__ import annotations

import os
import signal
import time
from array import array

from rich.console import Console

from bench.machine import machine
from bench.meter import Meter
from bench.processes import cpu_times, descendants, name_of, pss_kb
from bench.report import Results, line_of, met_goals, show, value_text, write_json, write_markdown
from bench.rows import Figure, Row, at_least, at_most
from bench.sampler import BEGIN, Profile, sampling
from bench.spread import Spread, spread_of


def test_percentiles_are_nearest_ranks_in_milliseconds():
    spread = spread_of(array("q", [n * 1_000_000 for n in range(100, 0, -1)]))
    assert spread == Spread(100, 50.0, 90.0, 99.0, 100.0)


def test_one_sample_is_every_percentile_and_none_is_zero():
    assert spread_of(array("q", [2_000_000])) == Spread(1, 2.0, 2.0, 2.0, 2.0)
    assert spread_of(array("q")) == Spread()


def test_goals_hold_at_their_limit_and_not_beyond_it():
    assert at_least(10).met(10)
    assert not at_least(10).met(9.9)
    assert at_most(10).met(10)
    assert not at_most(10).met(10.1)


def test_goals_are_counted_over_all_rows():
    rows = [
        Row("a", (Figure("calls", 3, "/s", at_least(2)), Figure("p50", 1, "ms"))),
        Row("b", (Figure("p50", 3, "ms", at_most(2)),)),
    ]
    assert met_goals(rows) == (1, 2)


def test_a_row_is_busy_when_others_used_the_machine():
    assert Row("a", others_share=0.5).busy
    assert not Row("a", others_share=0.05).busy


def test_the_table_shows_values_goals_errors_and_why_something_was_skipped(tmp_path):
    rows = [
        Row("calls", (Figure("calls", 1234.4, "/s", at_least(2_500)),), 7, ("status 500",), 0.5),
        Row("calls, Kafka", skipped="no Java here"),
    ]
    results = Results(machine(), quick=True, load_after=0.5, rows=rows)
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    show(console, results)
    shown = console.export_text()
    for expected in ("1,234 /s", "≥ 2,500", "missed", "status 500", "no Java here", "busy: 0.50"):
        assert expected in shown
    assert "7 ERRORS" in line_of(rows[0])
    write_markdown(tmp_path / "results.md", results)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[4] == (
        "| calls (busy) | calls 1,234 /s, **7 errors** | calls ≥ 2,500: **missed** |"
    )
    assert lines[5] == "| calls, Kafka | skipped: no Java here | |"
    write_json(tmp_path / "results.json", results)
    assert '"first_errors": [' in (tmp_path / "results.json").read_text()


def test_values_keep_what_is_worth_reading():
    assert value_text(Figure("f", 0.12345, "ms")) == "0.123 ms"
    assert value_text(Figure("f", 12.345, "ms")) == "12.3 ms"
    assert value_text(Figure("f", 123456.7, "/s")) == "123,457 /s"
    assert value_text(Figure("f", 3, "")) == "3"


def test_a_meter_sees_the_processor_time_of_its_group():
    meter = Meter({"us": [os.getpid()], "nobody": []})
    before = meter.read()
    until_s = time.process_time() + 0.05
    while time.process_time() < until_s:
        pass
    spent = meter.since(before)
    assert 0.04 < spent.groups_s["us"] < spent.seconds + 0.02
    assert spent.groups_s["nobody"] == 0


def test_a_process_has_a_name_memory_threads_and_is_among_its_own_descendants():
    own = os.getpid()
    assert descendants(own)[0] == own
    assert own in descendants(os.getppid())
    assert name_of(own)
    assert pss_kb(own) > 1_000
    assert any(pid == own for pid, _ in cpu_times([own]).threads_ns)
    assert pss_kb(2**30) == 0
    assert not cpu_times([2**30]).threads_ns


def test_the_sampler_names_the_function_that_burns_time(tmp_path):
    import msgspec

    file = tmp_path / "profile"
    with sampling(file):
        os.kill(os.getpid(), BEGIN)
        until_s = time.process_time() + 0.3
        while time.process_time() < until_s:
            pass
    profile = msgspec.json.decode(file.read_bytes(), type=Profile)
    assert profile.samples > 3
    innermost = profile.stacks[0][0][-1]
    assert innermost.endswith(":test_the_sampler_names_the_function_that_burns_time")
    assert innermost.startswith("tests/unit/")


def test_without_a_file_nothing_is_sampled():
    with sampling(None):
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
