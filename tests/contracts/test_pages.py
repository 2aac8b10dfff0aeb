"""The pages themselves: numbered without a gap, listed, and no sentence without a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "contracts"
NAMES = sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "README")


def sentences(page: str) -> list[int]:
    """The numbers that begin a line."""
    return [int(n) for n in re.findall(r"^(\d+)\. ", (PAGES / f"{page}.md").read_text("utf-8"), re.MULTILINE)]


def numbers_tested(page: str) -> set[int]:
    """The numbers in the names of the page's tests: `test_3_...`, or `test_1_to_5_...`."""
    source = (Path(__file__).parent / f"test_{page}.py").read_text("utf-8")
    spans = re.findall(r"^def test_(\d+)(?:_to_(\d+))?_", source, re.MULTILINE)
    return {n for first, last in spans for n in range(int(first), int(last or first) + 1)}


@pytest.mark.parametrize("page", NAMES)
def test_a_pages_sentences_are_numbered_from_one(page: str) -> None:
    numbers = sentences(page)
    assert numbers == list(range(1, len(numbers) + 1)) != []


@pytest.mark.parametrize("page", NAMES)
def test_every_sentence_has_a_test_and_no_test_a_sentence_that_is_gone(page: str) -> None:
    assert numbers_tested(page) - {0} == set(sentences(page))  # 0: what stands above the first number


def test_the_overview_lists_every_page() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\)", (PAGES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == [(name, name) for name in NAMES]
