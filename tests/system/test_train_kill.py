"""`baseload train` killed with -9 and started again ends with the very bytes of a run that was left alone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
output_dir = "model"
checkpoint_dir = "checkpoints"
steps = 10
batch_rows = 2
row_tokens = 32
checkpoint_every = 3
log_every = 1
[[sources]]
kind = "text"
path = "../text.txt"
[tokenizer]
vocab_size = 270
[model]
hidden_size = 32
intermediate_size = 48
layers = 1
heads = 2
kv_heads = 1
"""

# From within, because a run of a few milliseconds a step would be over before a busy machine sent the signal.
KILLED = """
import os, signal
from baseload.cli import main
from baseload.train.progress import Reporter

def measured(self, loss, said=Reporter.measured):
    said(self, loss)
    if self._done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

Reporter.measured = measured
main.run()
"""


def _start(place: Path, *program: str) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    (place / "train.toml").write_text(CONFIG)
    program = program or ("-m", "baseload.cli.main")
    command = [sys.executable, *program, "train", "--config", str(place / "train.toml")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.system
def test_a_killed_training_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    left_alone, killed = _start(tmp_path / "a"), _start(tmp_path / "b", "-c", KILLED)
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    assert "step 5/10" in said
    assert not (tmp_path / "b/model").exists()

    again = _start(tmp_path / "b")
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "Going on from step 3." in said or "Going on from step 6." in said
    _, said = left_alone.communicate()
    assert left_alone.returncode == 0, said
    for name in ("model/model.safetensors", "model/tokenizer.json", "checkpoints/step_00000010/arrays.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
