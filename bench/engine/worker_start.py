"""From the start of our worker's process to the first byte of an answer, with tokenizer and HTTP."""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path

BODY = {"model": "m", "prompt": "abcdefgh", "max_tokens": 4, "temperature": 0, "stream": True, "ignore_eos": True}


def first_byte_s(model: Path, *, cache: Path, options: dict[str, object]) -> float | None:
    """Seconds; None where the worker did not answer."""
    spec = json.dumps({"max_seqs": 32, "max_context": 2304, **options})
    command = [sys.executable, "-m", "baseload.worker", "--model", str(model), "--name", "m", "--spec-json", spec]
    began = time.perf_counter()
    worker = subprocess.Popen(
        [*command, "--cache-dir", str(cache)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = worker.stdout.readline()
        if not line:
            return None
        connection = http.client.HTTPConnection(json.loads(line)["ready"].removeprefix("http://"), timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(BODY), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if not answer.readline().startswith(b"data: {"):
            return None
        return time.perf_counter() - began
    finally:
        worker.kill()
        worker.communicate()
