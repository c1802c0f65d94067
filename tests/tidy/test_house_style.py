"""The house's rules that a machine can hold: sizes, imports, names. The limits are ratchets."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")
UNFINISHED = ("TODO", "FIXME", "XXX", "NotImplementedError")
IMPURE_ROOMS = ("domain", "limits", "policy", "core", "wire")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_is_small_finished_and_documented(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split it by idea"
    assert path.stem not in VAGUE_NAMES, "name the file after its one idea"
    assert not [word for word in UNFINISHED if word in text], "finish it, or leave it out"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says in its first line what its one idea is"
    for function in functions(tree):
        size = (function.end_lineno or 0) - function.lineno + 1
        assert size <= MAX_FUNCTION_LINES, f"{function.name} has {size} lines"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=relative)
def test_package_init_is_one_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_environment_is_read_in_one_place(path: Path) -> None:
    """Passing the environment on to a child, or setting a variable for a library, is not reading a setting."""
    if relative(path) == "src/baseload/cli/settings.py":
        return
    reads = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if _is_os(node, "getenv")
        or (isinstance(node, ast.Attribute) and node.attr == "get" and _is_os(node.value, "environ"))
        or (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_os(node.value, "environ"))
    ]
    assert not reads, f"lines {reads}: settings are parsed once, in cli/settings.py"


def _is_os(node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    )


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.relative_to(ROOT / "src/baseload").parts[0] in IMPURE_ROOMS], ids=relative
)
def test_pure_rooms_iterate_no_set(path: Path) -> None:
    """Set order is not part of any promise; a decision that depends on it cannot be replayed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.For | ast.comprehension):
            iterated = node.iter
            literal = isinstance(iterated, ast.Set | ast.SetComp)
            call = (
                isinstance(iterated, ast.Call)
                and isinstance(iterated.func, ast.Name)
                and iterated.func.id in ("set", "frozenset")
            )
            assert not literal, f"line {iterated.lineno} iterates a set: sort it"
            assert not call, f"line {iterated.lineno} iterates a set: sort it"


def test_test_files_have_unique_names() -> None:
    names = [p.name for p in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert len(names) == len(set(names))


def test_nothing_names_a_private_place() -> None:
    """What is committed runs anywhere: no absolute path of one machine in code, tests, docs or settings."""
    own = Path(__file__)
    for folder in ("src", "tests", "bench", "docs", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".toml", ".sh") and path != own:
                text = path.read_text()
                assert not re.search(r"/(root|home/\w+|Users/\w+)/", text), relative(path)
