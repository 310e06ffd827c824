"""The tables of docs/results/ are those of docs/results/numbers.json, which a script reads from the folders of runs."""

import json
import re
from pathlib import Path

import pytest
import results

PAGES = sorted(results.PAGES.glob("*.md"))
MARKED = re.compile(r"^<!-- (\w+) -->$", flags=re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_numbers_that_were_read_from_the_runs(page: Path) -> None:
    text = page.read_text()
    assert results.filled(text, json.loads(results.NUMBERS.read_text())) == text, "run `python scripts/results.py`"


def test_every_finding_stands_on_one_page_and_every_table_is_full() -> None:
    marks = [mark for page in PAGES for mark in MARKED.findall(page.read_text()) if mark != "end"]
    numbers = json.loads(results.NUMBERS.read_text())
    assert sorted(marks) == sorted(numbers) == sorted(results.FINDINGS)
    for finding in numbers.values():
        assert finding["rows"] and {len(row) for row in finding["rows"]} == {len(finding["head"])}


def test_a_number_that_was_changed_by_hand_is_noticed() -> None:
    page = "<!-- edge -->\n\n| a |\n| --- |\n| 2 |\n\nmade\n\n<!-- end -->\n"
    numbers = {"edge": {"head": ["a"], "rows": [["2"]], "made": "made"}}
    assert results.filled(page, numbers) == page
    assert results.filled(page.replace("| 2 |", "| 3 |"), numbers) == page


def test_a_level_is_crossed_between_two_measurements() -> None:
    assert results.crossing({0: 1.0, 10: 2.0, 20: 4.0}, 3.0) == 15.0
    assert results.crossing({0: 1.0, 10: 2.0}, 3.0) != results.crossing({0: 1.0, 10: 2.0}, 3.0)  # NaN: never


def test_means_have_standard_errors_and_say_what_diverged() -> None:
    assert results.mean_and_error([1.0, 3.0]) == "2 ± 1"
    assert results.mean_and_error([1.0]) == "1"
    assert results.mean_and_error([1.0, 3.0, float("nan")]) == "2 ± 1, 1 diverged"
    assert results.mean_and_error([float("nan")]) == "diverged"
