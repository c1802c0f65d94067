"""Storage of training: how large a checkpoint is, how long it stops the job, and whether data arrives fast enough.

A checkpoint holds the weights and the optimizer's state. Written synchronously it stops the job for its size over the
slower of two rates: the nodes' links to storage and the shared store. Written asynchronously the job stops only to
copy it to host memory, and the store must merely keep up with the interval.
"""

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.training.work import Work

LEAST_STOP_S = 1.0  # that an asynchronous checkpoint stops a job: a barrier and the hand-over; assumed
STATE_BYTES = 14.0  # per trained parameter: bf16 weight, float32 master, mean, variance


class Store(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A shared store and the way to it. Rates in decimal GB per second, each way."""

    name: str = "a store of usual size"
    gb_per_s: float | None = None  # of the whole store; None: by the accelerators it serves
    gb_per_s_per_accelerator: float = 2000 / 16_384
    node_gb_per_s: float = 25.0  # a node's storage link: 200 Gb/s
    host_gb_per_s: float = 50.0  # accelerator to host memory, per accelerator: PCIe Gen5 in practice
    basis: str = (
        "assumed: 2 TB/s for 16,384 accelerators (sustained, The Llama 3 Herd of Models), 200 Gb/s a node, PCIe Gen5"
    )

    def rate(self, accelerators: int, per_node: int) -> float:
        """Bytes a second that so many accelerators read or write together."""
        nodes = -(-accelerators // per_node)
        whole = self.gb_per_s if self.gb_per_s is not None else self.gb_per_s_per_accelerator * accelerators
        return min(nodes * self.node_gb_per_s, whole) * 1e9


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What one checkpoint costs."""

    size_bytes: float
    stop_s: float  # that the job stands still
    write_s: float  # until it is safe
    load_s: float  # to read it back at a restart


def checkpoint(
    work: Work, *, accelerators: int, per_node: int = 8, store: Store, asynchronous: bool = True
) -> Checkpoint:
    """Size and times of a checkpoint written by all nodes at once."""
    if accelerators < 1 or per_node < 1:
        raise DataError("A checkpoint is written by at least one accelerator.", hint="Give accelerators.")
    size = work.trainable * STATE_BYTES
    rate = store.rate(accelerators, per_node)
    write = size / rate
    load = (size + (work.params - work.trainable) * 2.0) / rate
    copy = LEAST_STOP_S + size / (accelerators * store.host_gb_per_s * 1e9)
    return Checkpoint(size_bytes=size, stop_s=min(copy, write) if asynchronous else write, write_s=write, load_s=load)


def data_bytes_per_s(samples_per_s: float, bytes_per_sample: float) -> float:
    """Rate at which samples must be read."""
    return samples_per_s * bytes_per_sample


def token_bytes(vocabulary: int) -> int:
    """Bytes of one token of a tokenized corpus on disk."""
    return 2 if vocabulary <= 65_536 else 4


def loading_slowdown(needed_bytes_per_s: float, *, accelerators: int, per_node: int = 8, store: Store) -> float:
    """How many times longer a step takes because data arrives too slowly; 1 where it does not."""
    return max(1.0, needed_bytes_per_s / store.rate(accelerators, per_node))
