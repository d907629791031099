"""The generated tables are up to date, and would show it if they were not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tables


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.stem)
def test_the_tables_are_up_to_date(path: Path) -> None:
    assert tables.rewritten(path) == path.read_text("utf-8"), "run `make tables`, and commit"


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.stem)
def test_every_file_has_a_table_and_one_that_was_changed_is_noticed(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "<!-- /" in text
    name = text.split("<!-- /")[1].split(" -->")[0]
    before, table = text.split(f"<!-- {name} -->")
    changed = table.replace("e", "o", 1)
    assert tables.rewrite(f"{before}<!-- {name} -->\n{changed}", path) != changed


def test_each_headline_of_the_guide_has_its_question() -> None:
    rows = [row for row in tables.wrong_answer_tables().splitlines() if row.startswith("| ")]
    asked = [row for row in rows if not row.startswith("| the check says |")]
    assert len(asked) > 50
    assert [row for row in asked if not row.endswith("? |")] == []
