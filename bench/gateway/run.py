"""The gateway against a mock worker, beside its peers, in one command:

    .venv/bin/python bench/gateway/run.py [--seconds 5] [--peer nginx] [--peer litellm] [--json FILE]

One core for the system under test, one for the mock worker and the load. Needs a C compiler and `wrk` (Debian:
apt-get install gcc libc6-dev wrk). nginx is measured where it is installed; LiteLLM is installed into its own
environment when asked for. Ours has everything on: authentication, rate limits, choice of four replicas, ledger,
journal on disk (bench/gateway/serve.py).

Prints, for each system: requests/s with 64 in flight; added p50 and p99 at 200 requests/s over calling the mock
directly (both in the same seconds, in turn); stream chunks/s with 64 streams in flight; memory after all that; and
each system's figures as a ratio to ours.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from probe import Target, probe, quantile

HERE = Path(__file__).parent
IN_FLIGHT = 64
PER_SECOND = 200
CHUNKS = 257  # content events of one stream of the mock, and its last
MESSAGES = [
    {"role": "system", "content": "You are the guide to Baseload. Answer briefly, and only what you know. " * 4},
    {"role": "user", "content": "How do I scale a model to zero?"},
]
LUA = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
"""


@dataclass
class System:
    """A running system under test."""

    name: str
    port: int
    secret: str
    pids: list[int]
    process: subprocess.Popen[str]


@dataclass
class Figures:
    """What was measured of one system."""

    name: str
    requests_per_s: float
    cpu_us_per_request: float  # processor time, which hardly depends on what else the machine does
    added_p50_ms: float
    added_p99_ms: float
    probed_per_s: float  # below PER_SECOND: the system was too slow for the rate, and its latencies flatter it
    direct_p50_ms: float
    direct_p99_ms: float
    stream_chunks_per_s: float
    memory_mb: float
    failures: int


def body(stream: bool) -> str:
    """The request's JSON, compact as clients send it."""
    asked = {"model": "mock", "messages": MESSAGES, "temperature": 0.7, "max_tokens": 64, "stream": stream}
    return json.dumps(asked, separators=(",", ":"))


def request(secret: str, stream: bool = False) -> bytes:
    """The request's bytes."""
    data = body(stream).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def pin(core: int) -> list[str]:
    """The start of a command that runs on one core only."""
    return ["taskset", "-c", str(core)]


def wrk(system: System, *, core: int, seconds: float, stream: bool, folder: Path) -> tuple[float, int]:
    """Answers per second with all in flight, and how many were no 200."""
    script = folder / "load.lua"
    script.write_text(LUA % (body(stream), system.secret))
    url = f"http://127.0.0.1:{system.port}/v1/chat/completions"
    command = [
        *pin(core),
        "wrk",
        "-t1",
        f"-c{IN_FLIGHT}",
        f"-d{seconds:g}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        url,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    assert rate is not None, said
    return float(rate[1]), int(bad[1]) if bad else 0


def memory_mb(pids: list[int]) -> float:
    """Resident memory of these processes."""
    total = 0
    for pid in pids:
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(match[1]) if match else 0
    return total / 1024


def cpu_seconds(pids: list[int]) -> float:
    """Processor time these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(system: System, mock_port: int, options: argparse.Namespace, folder: Path) -> Figures:
    """All figures of one system."""
    core, seconds = options.load_core, options.seconds
    wrk(system, core=core, seconds=min(1.0, seconds), stream=False, folder=folder)
    cpu_s = cpu_seconds(system.pids)
    rate, bad = wrk(system, core=core, seconds=seconds, stream=False, folder=folder)
    cpu_s = cpu_seconds(system.pids) - cpu_s
    streams, bad_streams = wrk(system, core=core, seconds=seconds, stream=True, folder=folder)
    direct = Target("mock", mock_port, request("none"))
    through = Target(system.name, system.port, request(system.secret))
    probed = probe([direct, through], per_second=PER_SECOND, seconds=seconds)
    p50, p99 = [(quantile(through.latencies, q) - quantile(direct.latencies, q)) * 1e3 for q in (0.5, 0.99)]
    return Figures(
        name=system.name,
        requests_per_s=rate,
        cpu_us_per_request=cpu_s / (rate * seconds) * 1e6,
        added_p50_ms=p50,
        added_p99_ms=p99,
        probed_per_s=probed,
        direct_p50_ms=quantile(direct.latencies, 0.5) * 1e3,
        direct_p99_ms=quantile(direct.latencies, 0.99) * 1e3,
        stream_chunks_per_s=streams * CHUNKS,
        memory_mb=memory_mb(system.pids),
        failures=bad + bad_streams + through.failures,
    )


def start_mock(options: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Compile the mock worker and run it on the load's core."""
    binary = folder / "mock"
    subprocess.run(["cc", "-O2", "-o", str(binary), str(HERE / "mock.c")], check=True)
    process = subprocess.Popen([*pin(options.load_core), str(binary), "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def start_baseload(mock_port: int, options: argparse.Namespace, folder: Path) -> System:
    """Our gateway, on its core."""
    command = [
        *pin(options.core),
        sys.executable,
        str(HERE / "serve.py"),
        "--workers",
        f"http://127.0.0.1:{mock_port}",
    ]
    command += ["--data-dir", str(folder / "data")]
    if options.profile:
        command += ["--profile", options.profile]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    return System("baseload", ready["port"], ready["secret"], [ready["pid"]], process)


def start_nginx(mock_port: int, options: argparse.Namespace, folder: Path) -> System:
    """nginx as the floor: it only forwards, on one worker process."""
    port = free_port()
    root = folder / "nginx"
    root.mkdir()
    config = root / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
        events {{ worker_connections 4096; }}
        http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
          uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; client_body_buffer_size 1m; keepalive_requests 100000000;
          upstream mock {{ server 127.0.0.1:{mock_port}; keepalive 256; keepalive_requests 100000000; }}
          server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://mock; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_buffering off; }} }} }}"""
    )
    binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    assert binary is not None
    process = subprocess.Popen([*pin(options.core), binary, "-p", str(root), "-c", str(config)], text=True)
    wait_for(port, "/v1/models", "none")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return System("nginx", port, "none", [process.pid, *map(int, children)], process)


def start_litellm(mock_port: int, options: argparse.Namespace, folder: Path) -> System:
    """LiteLLM's proxy in an environment of its own, kept between runs under `--peers-dir`."""
    home = Path(options.peers_dir) / "litellm"
    if not (home / "bin" / "litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "-q", "litellm[proxy]"], check=True)
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"""model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{mock_port}/v1", api_key: none}}
general_settings: {{master_key: sk-bench}}
litellm_settings: {{telemetry: false}}
"""
    )
    command = [*pin(options.core), str(home / "bin" / "litellm"), "--config", str(config), "--port", str(port)]
    quiet = (folder / "litellm.log").open("w")
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=quiet, stderr=quiet, text=True)
    wait_for(port, "/v1/models", "sk-bench", seconds=120)
    return System("litellm", port, "sk-bench", [process.pid], process)


PEERS = {"nginx": start_nginx, "litellm": start_litellm}


def free_port() -> int:
    """A port that nobody listens on now."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, path: str, secret: str, seconds: float = 20) -> None:
    """Until a server answers."""
    until = time.monotonic() + seconds
    target = Target(
        "peer", port, f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
    )
    while True:
        try:
            target.open()
            target.ask()
            target.sock.close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that we started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def show(all_figures: list[Figures]) -> None:
    """A table, and the ratios to ours."""
    ours = all_figures[0]
    heads = ("requests/s", "CPU each", "added p50", "added p99", "probed at", "chunks/s", "memory", "failed")
    print(" " * 10 + "".join([f"{head:>13}" for head in heads]))
    for one in all_figures:
        cells = (
            f"{one.requests_per_s:,.0f}",
            f"{one.cpu_us_per_request:.1f} µs",
            f"{one.added_p50_ms:.2f} ms",
            f"{one.added_p99_ms:.2f} ms",
            f"{one.probed_per_s:.0f}/s",
            f"{one.stream_chunks_per_s:,.0f}",
            f"{one.memory_mb:.0f} MB",
            f"{one.failures}",
        )
        print(f"{one.name:10}" + "".join([f"{cell:>13}" for cell in cells]))
    for one in all_figures[1:]:
        pairs = (
            ("requests/s", one.requests_per_s / ours.requests_per_s),
            ("CPU per request", one.cpu_us_per_request / ours.cpu_us_per_request),
            ("added p50", one.added_p50_ms / ours.added_p50_ms),
            ("added p99", one.added_p99_ms / ours.added_p99_ms),
            ("chunks/s", one.stream_chunks_per_s / ours.stream_chunks_per_s),
        )
        print(f"{one.name} / baseload: " + ", ".join([f"{what} {ratio:.2f}" for what, ratio in pairs]))
    print(f"The mock called directly: p50 {ours.direct_p50_ms:.2f} ms, p99 {ours.direct_p99_ms:.2f} ms.")


def main() -> None:
    """Measure each system in turn."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), default=[])
    parser.add_argument("--peers-dir", default=str(Path(tempfile.gettempdir()) / "baseload-peers"))
    parser.add_argument("--core", type=int, default=cores[0])
    parser.add_argument("--load-core", type=int, default=cores[-1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", help="write our gateway's profile here; its figures are then worth nothing")
    options = parser.parse_args()
    for tool in ("cc", "wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is needed and not installed.")
    if options.core == options.load_core:
        print("Only one core: the load takes time from the gateway, and the figures are too low.", file=sys.stderr)
    peers = list(options.peer)
    if "nginx" not in peers and shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        peers.insert(0, "nginx")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"The machine is busy (load {load:.1f}): only the ratios mean something.", file=sys.stderr)
    all_figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mock, mock_port = start_mock(options, folder)
        try:
            for start in (start_baseload, *[PEERS[peer] for peer in peers]):
                system = start(mock_port, options, folder)
                try:
                    all_figures.append(measure(system, mock_port, options, folder))
                finally:
                    stop(system.process)
        finally:
            stop(mock)
    show(all_figures)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in all_figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
