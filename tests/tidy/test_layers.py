"""Imports point down only, and the pure rooms do no IO. The contracts stand in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_layering_contracts_are_kept() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([str(tool), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_room_is_in_the_layer_contract() -> None:
    rooms = sorted(p.name for p in (ROOT / "src/baseload").iterdir() if (p / "__init__.py").exists())
    contract = (ROOT / "pyproject.toml").read_text().split("layers = [", 1)[1].split("]", 1)[0]
    assert [room for room in rooms if room not in contract] == []
