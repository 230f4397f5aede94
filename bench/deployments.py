"""Which roles serve the site in a measurement, and who is counted as what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from bench.meter import Meter
from bench.site import BenchSite, Role

ANSWERING: Final = ("serve", "api")


class Deployment(msgspec.Struct, frozen=True):
    """Role names as they are started; those that answer calls come first."""

    label: str
    roles: tuple[str, ...]

    @property
    def answering(self) -> int:
        return sum(role in ANSWERING for role in self.roles)


SERVE: Final = Deployment("serve", ("serve",))
ONE_API: Final = Deployment("1 api", ("api", "worker", "projector"))
FOUR_API: Final = Deployment("4 api", ("api",) * 4 + ("worker", "projector"))


def with_kafka(deployment: Deployment) -> Deployment:
    """The same with what carries the log to Kafka."""
    return Deployment(f"{deployment.label}, Kafka", (*deployment.roles, "publisher"))


def meter_of(site: BenchSite, roles: Sequence[Role], kafka_pid: int | None = None) -> Meter:
    """Groups: `api` answers calls; `roles` is the rest of ours."""
    return Meter(
        {
            "api": [role.pid for role in roles if role.name in ANSWERING],
            "roles": [role.pid for role in roles if role.name not in ANSWERING],
            "postgres": [site.postgres_pid],
            "upstream": [site.upstream_pid],
            "kafka": [] if kafka_pid is None else [kafka_pid],
        }
    )
