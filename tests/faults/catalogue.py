"""The faults that are known by number, and where the proof lies of those that need no site under
load.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Entry(msgspec.Struct, frozen=True):
    what: str
    elsewhere: str = ""
    """Another test that gives this fault, where the harness adds nothing to it."""


CONTRACT: Final = "tests/integration/test_transport_contract.py, on both transports: "

PUBLISHER: Final = "tests/integration/test_publisher.py: "

CATALOGUE: Final[dict[str, Entry]] = {
    "F1": Entry("API killed before its hold commits"),
    "F2": Entry("API killed after the hold, before the provider"),
    "F3": Entry("API killed mid-stream"),
    "F4": Entry("API killed between the provider's end and the settlement"),
    "F5": Entry("projector killed between its commit and Kafka's offset"),
    "F6": Entry(
        "projector killed mid-batch",
        CONTRACT + "test_a_process_killed_around_the_commit_leaves_no_gap_and_no_second_effect",
    ),
    "F7": Entry("graceful stop under load"),
    "F8": Entry("process asleep past its leases"),
    "F9": Entry("Postgres restarts"),
    "F10": Entry("Postgres backends killed, deadlocks"),
    "F11": Entry("Postgres slow"),
    "F12": Entry("Valkey emptied, stopped, asleep"),
    "F13": Entry("Kafka killed and back"),
    "F14": Entry(
        "Kafka wiped",
        PUBLISHER + "test_a_wiped_kafka_is_filled_again_from_the_beginning",
    ),
    "F15": Entry("duplicate delivery"),
    "F16": Entry(
        "reordering between partitions", CONTRACT + "test_duplicates_and_shuffles_change_nothing"
    ),
    "F17": Entry(
        "reordering and loss within a stream",
        CONTRACT + "test_duplicates_and_shuffles_change_nothing, "
        "test_the_same_version_with_another_hash_halts_the_consumer_with_an_alarm; "
        "test_transport_contract_kafka.py: test_what_was_skipped_while_parked_comes_from_the_table",
    ),
    "F18": Entry(
        "poison event",
        CONTRACT + "test_a_poison_event_parks_its_stream_and_the_others_go_on; "
        "test_transport_contract_kafka.py: test_a_record_that_is_none_of_ours_is_left_out",
    ),
    "F19": Entry("slow provider"),
    "F20": Entry("provider cuts, breaks, lies"),
    "F21": Entry("client hangs up at token k"),
    "F22": Entry("client reads slowly"),
    "F23": Entry("disk full"),
    "F24": Entry(
        "fsync fails",
        "not given: it needs a file system that lies (LD_PRELOAD or FUSE); what Postgres does "
        "then, a panic and a replay of WAL, is F9",
    ),
    "F25": Entry("clock jumps"),
    "F26": Entry("file descriptors run out"),
    "F27": Entry("network split"),
    "F28": Entry("old and new code together"),
    "F29": Entry("projection rebuilt while live"),
    "F30": Entry("concurrent storms"),
    "F31": Entry(
        "backup restored to time T",
        PUBLISHER + "test_kafka_ahead_of_a_restored_backup_closes_the_site_until_recover",
    ),
}
