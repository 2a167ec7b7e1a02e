"""The texts of the READMEs: width of lines, links, and figures that stand in two of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Without code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)


def anchors(page: Path) -> set[str]:
    """What its headings are linked by: small letters, without punctuation, `-` for blanks."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_and_links(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
    for link in LINK.findall(prose(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_results_stand_where_they_link_to() -> None:
    """The figures of the root README are those of a method's README, which says how they were obtained."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "](" in line]
    assert len(rows) >= 9
    for what, paper, ours in rows:
        (link,) = LINK.findall(what)
        source = (ROOT / link.partition("#")[0]).read_text(encoding="utf-8")
        figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", f"{paper} {ours}")
        assert figures and [figure for figure in figures if figure not in source] == [], what
