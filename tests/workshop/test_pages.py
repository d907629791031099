"""The learner's copies of the pages: made once, never overwritten, compared with the originals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mqlab.cli import main
from mqlab.errors import MqlabError
from mqlab.workshop.pages import COPIES, ORIGINALS, compare_copies, make_copies, renew

ROOT = Path(__file__).parents[2]
NAME = "03_async_publishing.ipynb"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with two pages, the second of them executed."""
    (tmp_path / ORIGINALS).mkdir()
    for name, source in (("00_start_here.ipynb", "print(0)"), (NAME, "print(3)")):
        write(tmp_path / ORIGINALS / name, source)
    return tmp_path


def write(path: Path, source: str, **metadata: Any) -> None:
    output = {"output_type": "stream", "name": "stdout", "text": "measured: 4.2 ms\n"}
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "source": [source]}
    text = {"cell_type": "markdown", "id": "two", "metadata": {}, "source": ["Prose.\n", "More."]}
    notebook = {
        "cells": [{**cell, "outputs": [output], "execution_count": 7}, text],
        "metadata": {"kernelspec": {"name": "python3"}} | metadata,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook), "utf-8")


def edit(path: Path, source: str) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    notebook["cells"][0]["source"] = source
    path.write_text(json.dumps(notebook), "utf-8")


def states(project: Path) -> list[tuple[str, str, bool]]:
    return [(page.path.stem[:2], page.state, page.newer) for page in compare_copies(project)]


def test_a_copy_has_the_text_of_the_page_and_no_outputs(project: Path) -> None:
    assert [page.path for page in make_copies(project)] == [
        project / COPIES / "00_start_here.ipynb",
        project / COPIES / NAME,
    ]
    copy = json.loads((project / COPIES / NAME).read_text("utf-8"))
    original = json.loads((project / ORIGINALS / NAME).read_text("utf-8"))
    assert [cell["source"] for cell in copy["cells"]] == [
        cell["source"] for cell in original["cells"]
    ]
    assert copy["metadata"]["kernelspec"] == original["metadata"]["kernelspec"]
    assert copy["cells"][0]["outputs"] == []
    assert copy["cells"][0]["execution_count"] is None
    assert states(project) == [("00", "untouched", False), ("03", "untouched", False)]


def test_a_copy_is_never_overwritten_and_a_newer_page_is_pointed_out(project: Path) -> None:
    make_copies(project)
    edit(project / COPIES / NAME, "print('my answer')")
    write(project / ORIGINALS / NAME, "print(3, 'improved')")
    write(project / ORIGINALS / "00_start_here.ipynb", "print(0, 'improved')")
    write(project / ORIGINALS / "04_new.ipynb", "print(4)")
    pages = make_copies(project)
    assert "my answer" in (project / COPIES / NAME).read_text("utf-8")
    assert states(project) == [
        ("00", "untouched", True),
        ("03", "edited", True),
        ("04", "untouched", False),
    ]
    assert "pages renew 03_async_publishing" in str(pages[1])
    assert "renew" not in str(pages[2])


def test_running_a_page_does_not_edit_it_and_executing_the_projects_makes_none_newer(
    project: Path,
) -> None:
    make_copies(project)
    copy = project / COPIES / NAME
    metadata = json.loads(copy.read_text("utf-8"))["metadata"]
    write(copy, "print(3)", **metadata)  # with outputs, as JupyterLab saves it
    write(project / ORIGINALS / NAME, "print(3)", language_info={"name": "python"})
    assert states(project)[1] == ("03", "untouched", False)


@pytest.mark.parametrize("name", ["03", "03_async", NAME, f"{COPIES}/{NAME}"])
def test_renewing_keeps_the_old_copy_beside_the_new_one(project: Path, name: str) -> None:
    make_copies(project)
    edit(project / COPIES / NAME, "print('my answer')")
    write(project / ORIGINALS / NAME, "print(3, 'improved')")
    first, second = renew(project, name), renew(project, name)
    assert first[0] == second[0] == project / COPIES / NAME
    assert first[1] != second[1], "the second must not replace the first"
    assert "my answer" in first[1].read_text("utf-8")
    assert "improved" in (project / COPIES / NAME).read_text("utf-8")
    assert first[1].parent == project / COPIES
    assert first[1].name.startswith("03_async_publishing-20")
    assert states(project)[1] == ("03", "untouched", False)


@pytest.mark.parametrize("name", ["", "0", "7", "..", "03_async_publishing_of_mine"])
def test_a_name_of_no_page_or_of_several_is_refused(project: Path, name: str) -> None:
    make_copies(project)
    with pytest.raises(MqlabError, match=r"page has a name like .*\n  next: name one of 00_start"):
        renew(project, name)
    assert states(project) == [("00", "untouched", False), ("03", "untouched", False)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}', '{"cells": [{}]}', "\ufffe"])
def test_a_copy_that_is_no_notebook_can_be_renewed(project: Path, content: str) -> None:
    make_copies(project)
    (project / COPIES / NAME).write_text(content, "utf-8")
    assert states(project)[1] == ("03", "unreadable", False)
    assert "pages renew 03_async_publishing" in str(compare_copies(project)[1])
    _, kept = renew(project, "03")
    assert kept.read_text("utf-8") == content
    assert states(project)[1] == ("03", "untouched", False)


def test_a_page_of_the_project_that_cannot_be_read_is_an_error_in_words(project: Path) -> None:
    (project / ORIGINALS / NAME).write_text("<<<<<<< HEAD", "utf-8")
    with pytest.raises(MqlabError, match=f"git restore {ORIGINALS}/{NAME}"):
        make_copies(project)


def test_a_folder_that_cannot_be_written_is_an_error_in_words(project: Path) -> None:
    (project / COPIES).write_text("a file in the way")
    with pytest.raises(MqlabError, match="cannot be written"):
        make_copies(project)


def test_the_command_makes_lists_and_renews_copies(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["pages"]) == 0
    listed = capsys.readouterr().out
    assert [line.split() for line in listed.splitlines()[:2]] == [
        ["00_start_here.ipynb", "untouched"],
        [NAME, "untouched"],
    ]
    assert str(project / COPIES) in listed
    assert main(["pages", "renew", "00"]) == 0
    assert "yours is kept as 00_start_here-20" in capsys.readouterr().out
    assert main(["pages", "list"]) == 0
    assert capsys.readouterr().out == listed
    assert main(["pages", "renew", "9"]) == 1
    assert "No page has a name like '9'" in capsys.readouterr().err


def test_git_ignores_the_copies() -> None:
    name = f"{COPIES}/00_start_here.ipynb"
    ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_links_of_the_pages_lead_somewhere_from_the_copies_too() -> None:
    for page in (ROOT / ORIGINALS).glob("*.ipynb"):
        for cell in json.loads(page.read_text("utf-8"))["cells"]:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            for link in text.split("](")[1:]:
                target = link.split(")")[0].split("#")[0]
                if target and "://" not in target and not target.startswith("attachment:"):
                    found = (ROOT / ORIGINALS / target).resolve()
                    assert found.exists(), target
                    # the same place from the copies: another page, or outside both folders
                    copied = found.parent == ROOT / ORIGINALS and found.suffix == ".ipynb"
                    assert copied or ROOT / ORIGINALS not in found.parents, target
