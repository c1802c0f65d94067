"""Imports point down only, and the pure rooms do no IO. The contracts stand in pyproject.toml."""

import ast
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


def test_no_module_needs_itself() -> None:
    """Imports go round in no circle, those within functions and for types alone among them."""
    modules = {_module(path): path for path in (ROOT / "src").rglob("*.py")}
    left = {name: _needed(path, modules) - {name} for name, path in modules.items()}
    assert sum(map(len, left.values())) > len(left), "nothing was read"
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def _needed(path: Path, modules: dict[str, Path]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return names & modules.keys()
