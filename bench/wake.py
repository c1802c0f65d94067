"""How fast it is there: `baseload up` to its ready line, and a sleeping `guide` to its first token.

    .venv/bin/python bench/wake.py [--rounds 5] [--json FILE]

Starts the real command on an empty data folder with warm program caches (the first round warms them and is not
counted), restarts it on the same folder, and lets the model sleep between requests. Awake, for comparison, is the
same request to the worker that has just answered. Goals: ready in 5 s, first token of a sleeping guide in 2 s.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BODY = {
    "model": "guide",
    "stream": True,
    "temperature": 0,
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "How do I scale a model to zero?"}],
}


class Running:
    """One `baseload up`."""

    def __init__(self, folder: Path) -> None:
        began_s = time.perf_counter()
        command = [str(Path(sys.executable).with_name("baseload")), "up", "--port", "0", "--data-dir", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--set", "defaults.scaling.idle_s=0.5"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.ready_s = time.perf_counter() - began_s
                self.address = line.split("//")[1].strip()
                break
        else:
            raise SystemExit("baseload up ended before it was ready")
        self.key = (folder / "first-key").read_text().strip()

    def call(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        """Send a request; its answer, of which nothing is read yet."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection.getresponse()

    def first_token_s(self) -> float:
        """From the request to its first data event; reads the rest too."""
        began_s = time.perf_counter()
        answer = self.call("POST", "/v1/chat/completions", BODY)
        assert answer.readline().startswith(b"data: {"), "no token came first"
        took_s = time.perf_counter() - began_s
        assert b"[DONE]" in answer.read()
        return took_s

    def sleep(self) -> None:
        """Return once no replica of the model exists."""
        while json.loads(self.call("GET", "/admin/v1/status").read())["replicas"]:
            _pause()

    def stop(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)
        self.process.wait()


def _pause() -> None:
    """A poll every 20 ms, outside of anything timed."""
    time.sleep(0.02)


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, one a round."""
    figures: dict[str, list[float]] = {"up, empty folder": [], "up again": [], "asleep": [], "awake": []}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            first = Running(Path(folder))
            first.first_token_s()
            first.stop()
            again = Running(Path(folder))
            again.sleep()
            asleep_s = again.first_token_s()
            awake_s = again.first_token_s()
            again.stop()
        if number:
            found = (first.ready_s, again.ready_s, asleep_s, awake_s)
            for series, value in zip(figures.values(), found, strict=True):
                series.append(value)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures = measure(options.rounds)
    print(f"{'seconds':20}{'least':>9}{'median':>9}{'most':>9}")
    for name, values in figures.items():
        print(f"{name:20}{min(values):9.3f}{statistics.median(values):9.3f}{max(values):9.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
