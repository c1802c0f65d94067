"""Replicas: the running copies of a model."""

from enum import StrEnum

from msgspec import Struct


class ReplicaState(StrEnum):
    """A replica's life: starting → ready → draining → stopping → gone. Any state may end in gone (a crash)."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # takes nothing new; running requests finish
    STOPPING = "stopping"  # told to end
    GONE = "gone"


class ReplicaView(Struct, frozen=True):
    """What a routing policy may look at."""

    replica_id: str
    in_flight: int
    capacity: int
    kv_usage: float
    prefix_hits: int  # how many of the request's prefix hashes this replica has seen lately
    held_tokens: int = 0  # prompt tokens of what it runs
    waiting_tokens: int = 0  # of those, of requests without a first token yet: still to be computed


class WorkerSample(Struct, frozen=True, array_like=True):
    """A worker's own figures, polled."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prompt_tokens: int = 0  # since its start
    completion_tokens: int = 0
