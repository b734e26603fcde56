"""What the pages point at is there."""

import re

import pytest

from tests.conftest import REPO

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path else page
            assert goal.exists(), target
            assert not anchor or anchor in anchors(goal), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page):
    tests = {name for path in (REPO / "tests").glob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    files = {path.stem for path in (REPO / "tests").glob("*.py")}
    assert set(re.findall(r"\btest_\w+", page.read_text())) <= tests | files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_scripts_exist(page):
    for name in re.findall(r"python ((?:\w+/)*\w+\.py)", page.read_text()):
        assert (REPO / name).is_file(), name
