"""How fast it is there: `baseload up` to its ready line, and a sleeping model to its first byte.

    .venv/bin/python bench/wake.py [--rounds 5] [--model DIR] [--json FILE]

Starts the real command on an empty data folder with warm program caches (the first round warms them and is not
counted), restarts it on the same folder, and lets the model sleep between requests. `asleep` is woken by a spare
process (`spares = 1`, the default), `asleep, no spare` by a new one. Awake, for comparison, is the same request to
the worker that has just answered. --model serves that directory instead of `guide`. Goals: ready in 5 s, the first
byte of a sleeping model in 0.20 s with a spare and in 0.6 s by a new process.
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

    def __init__(self, folder: Path, *, spares: int, model: Path | None) -> None:
        began_s = time.perf_counter()
        command = [str(Path(sys.executable).with_name("baseload")), "up", "--port", "0", "--data-dir", str(folder)]
        settings = {"defaults.scaling.idle_s": 0.5, "spares": spares, "guide": str(model is None).lower()}
        self.process = subprocess.Popen(
            [*command, *(word for name, value in settings.items() for word in ("--set", f"{name}={value}"))],
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
        self.body = BODY if model is None else {**BODY, "model": "m"}
        self.spares = spares
        if model is not None and not json.loads(self.call("GET", "/admin/v1/models").read())["models"]:
            spec = {"name": "m", "source": str(model.absolute()), "scaling": {"idle_ns": 500_000_000}}
            made = self.call("PUT", "/admin/v1/models/m", spec)
            assert made.status < 300, made.read()

    def call(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        """Send a request; its answer, of which nothing is read yet."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection.getresponse()

    def first_token_s(self) -> float:
        """From the request to its first data event; reads the rest too."""
        began_s = time.perf_counter()
        answer = self.call("POST", "/v1/chat/completions", self.body)
        line = answer.readline()
        assert line.startswith(b"data: {"), line + answer.read()
        took_s = time.perf_counter() - began_s
        assert b"[DONE]" in answer.read()
        return took_s

    def sleep(self) -> None:
        """Return once no replica of the model exists, and the spares are ready."""
        while True:
            status = json.loads(self.call("GET", "/admin/v1/status").read())
            if not status["replicas"] and sum(spare["is_warm"] for spare in status["spares"]) == self.spares:
                return
            _pause()

    def stop(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)
        self.process.wait()


def _pause() -> None:
    """A poll every 20 ms, outside of anything timed."""
    time.sleep(0.02)


def measure(rounds: int, model: Path | None) -> dict[str, list[float]]:
    """Seconds of each kind, one a round."""
    names = ("up, empty folder", "up again", "asleep", "asleep, no spare", "awake")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            first = Running(Path(folder), spares=0, model=model)
            first.first_token_s()
            first.sleep()
            new_s = first.first_token_s()
            first.stop()
            again = Running(Path(folder), spares=1, model=model)
            again.sleep()
            asleep_s = again.first_token_s()
            awake_s = again.first_token_s()
            again.stop()
        if number:
            found = (first.ready_s, again.ready_s, asleep_s, new_s, awake_s)
            for series, value in zip(figures.values(), found, strict=True):
                series.append(value)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a directory to serve instead of guide")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures = measure(options.rounds, options.model)
    print(f"{'seconds':20}{'least':>9}{'median':>9}{'most':>9}")
    for name, values in figures.items():
        print(f"{name:20}{min(values):9.3f}{statistics.median(values):9.3f}{max(values):9.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
