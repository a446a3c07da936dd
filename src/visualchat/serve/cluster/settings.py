"""What is said of a cluster when a server starts; imports nothing heavy, so that a mistake is known at once."""

from __future__ import annotations

import re
import secrets
import socket
from dataclasses import dataclass, fields

LEAST_OBJECT_STORE = 80_000_000
"""Bytes; Ray starts with no less."""


@dataclass(frozen=True)
class ClusterSettings:
    """Where replicas run, how many, and how requests find them.

    Attributes:
        address: Of a Ray cluster that runs, `auto` for this machine's; None to start one that ends with the server.
        replicas: How many there are at the start, and at least.
        most_replicas: How many there may be; None for as many as at the start, always.
        target_requests: With so many requests in hand at each replica, one more is started.
        grow_seconds: How long that lasts before it is.
        shrink_seconds: How long less lasts before one ends.
        cpus: Processor cores of each replica.
        gpus: Of each replica; None for 1 where the cluster has any.
        by_content: Whether a conversation goes where its first image was shown; else where there is least to do.
        object_store_bytes: Of requests on their way between processes, where Ray starts with the server.

    Raises:
        ValueError: One is out of range.
    """

    address: str | None = None
    replicas: int = 2
    most_replicas: int | None = None
    target_requests: float = 8
    grow_seconds: float = 10
    shrink_seconds: float = 300
    cpus: float = 1
    gpus: float | None = None
    by_content: bool = True
    object_store_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for setting in fields(self):
            found, least = getattr(self, setting.name), 0 if setting.name == "gpus" else None
            if isinstance(found, int | float) and not isinstance(found, bool) and not (found > 0 or found == least):
                raise ValueError(f"cluster.{setting.name}={found}: expected more than 0")
        if self.address not in (None, "auto") and not re.fullmatch(r"[^/\s]+:\d{1,5}", self.address):
            raise ValueError(f"cluster.address={self.address}: expected auto, or HOST:PORT of a Ray cluster")
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError(
                f"cluster.most_replicas={self.most_replicas}: expected at least cluster.replicas, "
                f"which is {self.replicas}"
            )
        if self.object_store_bytes < LEAST_OBJECT_STORE:
            raise ValueError(
                f"cluster.object_store_bytes={self.object_store_bytes}: expected {LEAST_OBJECT_STORE} or more"
            )

    @property
    def most(self) -> int:
        """How many replicas there may be."""
        return self.replicas if self.most_replicas is None else self.most_replicas

    def environment(self, seconds: float) -> dict[str, str]:
        """Variables that Ray reads when it is imported.

        Args:
            seconds: The longest that a request takes: so long its router trusts what it counted itself.
        """
        found = {"RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": f"{seconds:g}"}
        if self.address is None:  # this machine's user alone reaches what it starts
            found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # whose other meaning is: listen on the loopback alone
        return found

    def check_answers(self) -> None:
        """Refuse an address at which nothing listens; Ray itself would try for minutes.

        Raises:
            ValueError: It is one.
        """
        if self.address in (None, "auto"):
            return
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            raise self.no_cluster() from None

    def no_cluster(self) -> ValueError:
        """What to say where there is none at the address."""
        return ValueError(
            f"cluster.address={self.address}: no Ray cluster answers there\n"
            "start one with: ray start --head (docs/serving.md: More machines than one)"
        )

    def check_fits(self, cores: float, gpus: float) -> None:
        """Refuse replicas that do not fit into a machine.

        Raises:
            ValueError: They need more than it has.
        """
        for name, each, has in (("cpus", self.cpus, cores), ("gpus", self.gpus or 0, gpus)):
            if self.most * each > has:
                raise ValueError(
                    f"{self.most} replicas of cluster.{name}={each:g} need {self.most * each:g}: this machine has "
                    f"{has:g}\nset cluster.replicas or cluster.{name} lower, or cluster.address to a Ray cluster of "
                    "more machines"
                )
