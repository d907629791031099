"""The proof of the exercises: each untouched, solved, and answered wrongly, on a real broker.

``python -m tests.exercise_table`` prints the table (of page 03: ``... 03``), and ends with status 1
if something in it is not as it should be; ``make proof`` starts a broker for it.
test_exercises.py has the same rows as tests.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from mqlab import broker
from mqlab.exercises.engine.exercise import CORRECT, INCORRECT, NOT_ATTEMPTED, Exercise
from tests import wrong_answers

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted(path.stem[5:] for path in (ROOT / "mqlab/exercises").glob("page_*.py"))


@dataclass(frozen=True)
class Row:
    """One answer to one exercise: what the check should say in its first line, and what it says."""

    exercise: Exercise
    answer: str
    expected: str
    found: str
    seconds: float

    @property
    def as_meant(self) -> bool:
        """Whether the check says what it should."""
        return self.found == self.expected


def exercises(page: str) -> list[Exercise]:
    """The exercises of one page, in their order."""
    module = importlib.import_module(f"mqlab.exercises.page_{page}")
    found = [each for each in vars(module).values() if isinstance(each, Exercise)]
    return sorted(found, key=lambda exercise: exercise.number)


@cache
def notebook_path(page: str) -> Path:
    """Where the notebook of a page is."""
    [path] = NOTEBOOKS.glob(f"{page}_*.ipynb")
    return path


def find_cells(notebook: dict[str, Any], exercise: Exercise) -> tuple[int, int]:
    """The places of an exercise's starter cell and of its check cell, which follows it."""
    call = f"ex{exercise.number}.check("
    code = [n for n, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
    found = [n for n in code if source_of(notebook["cells"][n]).startswith(call)]
    assert len(found) == 1, f"page {exercise.page} has {len(found)} cells that begin with {call!r}"
    return code[code.index(found[0]) - 1], found[0]


def source_of(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def read_notebook(page: str) -> dict[str, Any]:
    """The notebook of a page, as it is committed."""
    notebook: dict[str, Any] = json.loads(notebook_path(page).read_text("utf-8"))
    return notebook


def starter(exercise: Exercise) -> Any:
    """What the untouched starter cell defines, and the check cell hands over."""
    notebook = read_notebook(exercise.page)
    cell, check = (source_of(notebook["cells"][n]) for n in find_cells(notebook, exercise))
    names: dict[str, Any] = {}
    exec(cell, names)
    return names[argument_of(check)]


def argument_of(check: str) -> str:
    """The name in ``ex1.check(name)``."""
    [call] = ast.parse(check).body
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    [argument] = call.value.args
    return ast.unparse(argument)


def solve_in_a_kernel(page: str) -> dict[int, str]:
    """Put every solution of a page in the place of its starter cell, and run it in a fresh kernel.

    Of the other cells those are run that define what the exercises use: a page's measurements need
    their time, and are run by the tests of the notebooks. Gives what each check says, by the number
    of the exercise.
    """
    notebook = nbformat.read(notebook_path(page), as_version=4)
    cells = notebook.cells
    chosen, checks = [], {}
    for exercise in exercises(page):
        place, check = find_cells(notebook, exercise)
        cells[place].source = exercise.solution_file().read_text("utf-8")
        checks[exercise.number] = cells[check]
        chosen += [place, check]
    notebook.cells = [cells[n] for n in with_what_they_use(cells, chosen)]
    client = NotebookClient(
        notebook,
        timeout=120,
        resources={"metadata": {"path": NOTEBOOKS}},
        config=Config(KernelManager={"transport_encryption": "auto"}),
    )
    client.execute()
    return {number: text_of(cell) for number, cell in checks.items()}


def with_what_they_use(cells: list[Any], chosen: list[int]) -> list[int]:
    """Add the cells that define the names which the chosen ones use, and which those use."""
    wanted: set[str] = set()
    found = []
    for place in range(max(chosen), -1, -1):
        if cells[place].cell_type != "code":
            continue
        bound, used = names_in(cells[place].source)
        if place in chosen or bound & wanted:
            found.append(place)
            wanted = wanted - bound | (used - bound)
    return found[::-1]


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The names that a piece of code binds, and those that it uses."""
    bound, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return bound, used


def text_of(cell: Any) -> str:
    """What a cell has shown, as text."""
    return "\n".join(output.data["text/plain"] for output in cell.outputs if "data" in output)


def first_line(text: str) -> str:
    """The outcome, and the headline if there is one."""
    return text.partition("\n")[0]


def rows(page: str) -> Iterator[Row]:
    """Check each answer of a page, one after the other."""
    started = time.perf_counter()
    try:
        solved = solve_in_a_kernel(page)
    except CellExecutionError as error:
        solved = {ex.number: f"{error.ename}: {error.evalue}" for ex in exercises(page)}
    kernel_s = (time.perf_counter() - started) / len(solved)
    for exercise in exercises(page):
        yield row(exercise, "untouched", f"{NOT_ATTEMPTED}.", starter(exercise))
        said = first_line(solved[exercise.number])
        solution = f"solved, in a fresh kernel: {exercise.solution_file().name}"
        yield Row(exercise, solution, f"{exercise.name}: {CORRECT}.", said, kernel_s)
        for wrong in wrong_answers.of(exercise):
            yield row(exercise, wrong.name, f"{INCORRECT}. {wrong.headline}", wrong.answer)
        for right in wrong_answers.right_to(exercise):
            yield row(exercise, f"right: {right.name}", f"{CORRECT}.", right.answer)


def row(exercise: Exercise, name: str, expected: str, answer: Any) -> Row:
    """Check one answer."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # an answer may print
        result = exercise.check(answer)
    seconds = time.perf_counter() - started
    return Row(exercise, name, f"{exercise.name}: {expected}", first_line(repr(result)), seconds)


def main(pages: list[str]) -> int:
    """Print the table of pages, as Markdown; give the number of rows that are not as meant."""
    started, number, strange = time.perf_counter(), 0, 0
    for page in pages:
        shown = None
        for each in rows(page):
            if each.exercise is not shown:
                shown = each.exercise
                print(f"\n## Page {page}, {shown.name}\n")
                print(
                    "| answer | what the check says | as meant | s |\n|---|---|---|---|", flush=True
                )
            said = each.found.removeprefix(f"{shown.name}: ")
            meant = "yes" if each.as_meant else f"**NO**, {each.expected!r}"
            print(f"| {each.answer} | {said} | {meant} | {each.seconds:.1f} |", flush=True)
            number += 1
            strange += not each.as_meant
    print(f"\n{number} answers checked in {time.perf_counter() - started:.0f} s, ", end="")
    print("all as meant." if not strange else f"{strange} not as meant.")
    return strange


if __name__ == "__main__":
    print(broker.require())
    sys.exit(min(main(sys.argv[1:] or PAGES), 1))
