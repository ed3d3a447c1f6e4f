"""What the documents say is there: the steps of each life stand in the code as on the page; links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIVES = sorted((ROOT / "docs").glob("life-of-*.md"))
STEP = re.compile(r"^(\d+)\. (.*?)(?=^\d+\. |\n\n|\Z)", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def steps(page):
    """{file: the numbers of the steps that name it}"""
    out = {}
    for number, body in STEP.findall(page.read_text(encoding="utf-8")):
        for name in re.findall(r"`([a-z_/]+\.py)`", body):
            out.setdefault(name, []).append(int(number))
    return out


def said(file, page):
    """The numbers of that page's steps that a file says it is."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(page.name)}, steps? ([\d and]+)", text)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []


@pytest.mark.parametrize("page", LIVES, ids=lambda page: page.stem)
def test_the_files_of_a_life_say_which_step_they_are(page):
    named = steps(page)
    assert len(named) > 5
    assert {file: said(file, page) for file in named} == named


@pytest.mark.parametrize("page", LIVES, ids=lambda page: page.stem)
def test_no_other_file_claims_a_step(page):
    folders = ("schemas", "jobs", "retrieval", "ranker", "infra")
    claiming = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if f"{page.name}, step" in path.read_text(encoding="utf-8")
    }
    assert claiming == steps(page).keys()


@pytest.mark.parametrize("page", LIVES, ids=lambda page: page.stem)
def test_the_steps_are_numbered_without_gaps(page):
    numbers = [int(number) for number, _ in STEP.findall(page.read_text(encoding="utf-8"))]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_decisions_have_numbers_of_their_own():
    numbers = [path.name.split("-")[0] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
