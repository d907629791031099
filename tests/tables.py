"""The tables that more than one file shows, generated from what they describe.

``python -m tests.tables`` (``make tables``) rewrites them between their markers:

- ``pages`` in README and on the start page: from the first cell of each notebook;
- ``next`` at the end of each page: a link to the page that follows it;
- ``wrong answers`` in the instructor's guide: from ``tests/wrong_answers``.

test_tables.py fails if one of them is out of date.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from tests import wrong_answers
from tests.exercise_table import PAGES, ROOT, exercises

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
DASHBOARD = ROOT / "notebooks/dashboard.ipynb"
FILES = [ROOT / "README.md", ROOT / "docs/instructor-guide.md", *NOTEBOOKS]


@cache
def first_cell(path: Path) -> str:
    """The text in which a page introduces itself: its question, minutes and aims."""
    return "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])


def link(path: Path, folder: str = "") -> str:
    """A link to a page, in the words of its title."""
    return f"[{first_cell(path).splitlines()[0].removeprefix('# ')}]({folder}{path.name})"


def page_row(path: Path, folder: str) -> str:
    """The row of one page."""
    text = first_cell(path)
    minutes = re.search(r"About (\d+) minutes", text)
    aims = re.search(r"\*\*You will be able to\*\*\s*(.*?)(?:\n\n\*\*|\Z)", text, re.DOTALL)
    assert minutes, f"{path.name} does not say how many minutes it takes"
    assert aims, f"{path.name} does not say what you will be able to do"
    able = re.sub(r"^- |\.$", "", aims[1].strip(), flags=re.MULTILINE).replace("\n", " ")
    return f"| {link(path, folder)} | {minutes[1]} | {able} |"


def pages(folder: str) -> str:
    """The map: a row for each page, in order, and the dashboard last."""
    head = "| page | minutes | you will be able to |\n|---|---:|---|"
    return "\n".join([head, *(page_row(path, folder) for path in [*NOTEBOOKS, DASHBOARD])])


def next_page(path: Path) -> str:
    """Where a page leads: to the next one, and from the last one back to the start."""
    after = NOTEBOOKS[NOTEBOOKS.index(path) + 1 :]
    return link(after[0]) if after else f"Back to the [start page]({NOTEBOOKS[0].name})."


def wrong_answer_tables() -> str:
    """For each exercise: every headline, the wrong answers that get it, and what to ask."""
    parts = []
    for page in PAGES:
        for exercise in exercises(page):
            rows: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # without duplicates
            for wrong in wrong_answers.of(exercise):
                names, asks = rows.setdefault(wrong.headline, ({}, {}))
                names[wrong.name] = asks[wrong.ask] = None
            parts.append(f"### Page {page}, exercise {exercise.number}\n")
            parts.append("| the check says | the answer | ask |\n|---|---|---|")
            parts += [
                f"| {headline} | {'; '.join(names)} | {' '.join(filter(None, asks))} |"
                for headline, (names, asks) in rows.items()
            ]
            parts[-1] += "\n"
    return "\n".join(parts).strip()


def rewrite(text: str, path: Path) -> str:
    """The text of a file, or of a notebook's cell, with its tables as they should be."""
    folder = "" if path in NOTEBOOKS else "notebooks/"
    for name, table in {
        "pages": lambda: pages(folder),
        "next": lambda: next_page(path),
        "wrong answers": wrong_answer_tables,
    }.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start)
            text = f"{before}{start}\n{table()}\n\n{end}{rest.split(end)[1]}"
    return text


def rewritten(path: Path) -> str:
    """The whole text of one of FILES with its tables as they should be."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return rewrite(text, path)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = rewrite("".join(cell["source"]), path).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in FILES:
        if (new := rewritten(each)) != each.read_text("utf-8"):
            each.write_text(new, "utf-8")
            print("rewritten:", each.relative_to(ROOT))
