"""What the documents point at is there, and a decision fits on its page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src" / "baseload"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
MAX_DECISION_LINES = 40
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+/|[\w-]+\.(?:py|md|toml|js|html|c)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
    local = [link for link in links if link and "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", DECISIONS, ids=relative)
def test_a_decision_fits_on_its_page(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert re.match(r"# \d{4}:? ", lines[0]), "the first line is its number and title"
    assert page.name[:4] in lines[0]
    assert len(lines) <= MAX_DECISION_LINES


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", [ROOT / "docs" / "ARCHITECTURE.md", *DECISIONS], ids=relative)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """`core/control` may stand for src/baseload/core/control.py, `core/control.ControlMachine` for what is in it."""
    named = [text for text in CODE.findall(page.read_text()) if FILE.fullmatch(text)]
    assert [text for text in named if not _is_there(text)] == []


def test_every_room_stands_in_the_architecture() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rooms = sorted(path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists())
    assert [room for room in rooms if f"| `{room}/` |" not in page] == []


def _is_there(text: str) -> bool:
    if text.startswith("/"):
        return True
    places = [root / text for root in (ROOT, HOUSE)]
    places += [HOUSE / f"{text}.py", HOUSE / f"{text.rpartition('.')[0]}.py"]
    return any(place.exists() for place in places)
