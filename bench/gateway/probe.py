"""Latency at a steady rate: blocking sockets, one thread, requests in turn to every target on a fixed schedule.

Targets are interleaved, so that what the machine does meanwhile hits all of them alike. One request is out at a time,
so a target that needs longer than a slot is asked less often than it should be; `probe` returns the rate reached.
"""

import socket
import time
from dataclasses import dataclass, field


@dataclass
class Target:
    """A server, the request to send to it, and the latencies seen, in seconds."""

    name: str
    port: int
    request: bytes
    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    def open(self) -> None:
        """Connect."""
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """One request and its whole answer."""
        self.sock.sendall(self.request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        lower = head.lower()
        if b"content-length:" in lower:
            length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += self._receive()
        else:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._receive()
        if not head.startswith(b"HTTP/1.1 200"):
            self.failures += 1

    def _receive(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"{self.name} closed the connection")
        return data


def probe(targets: list[Target], *, per_second: float, seconds: float) -> float:
    """Ask every target `per_second` times a second; latencies go to the targets, the rate reached is returned."""
    for target in targets:
        target.open()
        for _ in range(50):
            target.ask()
    step = 1.0 / per_second / len(targets)
    start = time.perf_counter() + 0.05
    for turn in range(int(seconds * per_second)):
        for place, target in enumerate(targets):
            due = start + (turn * len(targets) + place) * step
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            sent = time.perf_counter()
            target.ask()
            target.latencies.append(time.perf_counter() - sent)
    reached = int(seconds * per_second) / (time.perf_counter() - start)
    for target in targets:
        target.sock.close()
    return reached


def quantile(values: list[float], q: float) -> float:
    """The q-quantile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
