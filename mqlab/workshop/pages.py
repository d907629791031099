"""The learner's copies of the pages: ``notebooks/`` stays as published, ``my-pages/`` is theirs.

A copy has no outputs, is made once and never overwritten, and git ignores it. Its metadata records
which text it was made from: that tells an edited copy from one whose original is newer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mqlab.commands import command
from mqlab.errors import MqlabError

ORIGINALS, COPIES = "notebooks", "my-pages"


@dataclass(frozen=True)
class Page:
    """One copy; ``newer`` if the project's page has changed since the copy was made."""

    path: Path
    state: Literal["untouched", "edited", "unreadable"]
    newer: bool = False

    def __str__(self) -> str:
        line = f"{self.path.name:<32} {self.describe()}"
        return f"{line}; renew it: {self.renewal}" if self.is_due else line

    @property
    def is_due(self) -> bool:
        """Whether there is a reason to renew it."""
        return self.newer or self.state == "unreadable"

    @property
    def renewal(self) -> str:
        """The command that replaces it."""
        return command(f"pages renew {self.path.stem}")

    def describe(self) -> str:
        """Its state in words."""
        return f"{self.state}, and the project's page is newer" if self.newer else self.state


def find_root() -> Path:
    """Return the project's folder: the current one, else this checkout. Raises MqlabError."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / ORIGINALS).is_dir():
            return folder
    raise MqlabError(
        f"There is no folder `{ORIGINALS}` here.",
        fix="cd into the project's folder, and run the command again",
    )


def make_copies(root: Path) -> list[Page]:
    """Copy the pages that have no copy yet, and return all copies in order.

    Raises MqlabError if a page cannot be read or a copy cannot be written.
    """
    for original in _originals(root):
        if not (copy := root / COPIES / original.name).exists():
            _write_copy(_read_original(original), copy)
    return compare_copies(root)


def compare_copies(root: Path) -> list[Page]:
    """Return the copies that are there, each compared with the project's page.

    Raises MqlabError if a page cannot be read.
    """
    pairs = [(path, root / COPIES / path.name) for path in _originals(root)]
    return [_compare(original, copy) for original, copy in pairs if copy.exists()]


def renew(root: Path, name: str) -> tuple[Path, Path]:
    """Replace the copy whose name starts with ``name``; return its path and that of the old one.

    The old copy stays beside the new one, with the date in its name. Raises MqlabError if no page
    or more than one page has such a name, or a file cannot be read or written.
    """
    wanted = Path(name).name.removesuffix(".ipynb")
    originals = _originals(root)
    found = [path for path in originals if wanted and path.stem.startswith(wanted)]
    if len(found) != 1:
        raise MqlabError(
            f"{'No page' if not found else 'More than one page'} has a name like {name!r}.",
            fix="name one of " + ", ".join(path.stem for path in found or originals),
        )
    notebook, copy = _read_original(found[0]), root / COPIES / found[0].name
    kept = copy.with_stem(f"{copy.stem}-{datetime.now():%Y-%m-%d-%H%M%S}")
    while kept.exists():
        kept = kept.with_stem(f"{kept.stem}-again")
    if copy.exists():
        try:
            copy.rename(kept)
        except OSError as error:
            raise _unwritable(copy, error) from error
    _write_copy(notebook, copy)
    return copy, kept


def _originals(root: Path) -> list[Path]:
    return sorted((root / ORIGINALS).glob("*.ipynb"))


def _read_original(path: Path) -> dict[str, Any]:
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        fix = f"git restore {ORIGINALS}/{path.name}"
        raise MqlabError(f"{path} cannot be read.", why=str(error), fix=fix) from error


def _compare(original: Path, path: Path) -> Page:
    published = _digest(_read_original(original))
    try:
        copy = _read(path)
    except (OSError, ValueError):
        return Page(path, "unreadable")
    made_from = copy["metadata"].get("mqlab", {}).get("page", published)
    is_untouched = _digest(copy) == made_from
    return Page(path, "untouched" if is_untouched else "edited", newer=made_from != published)


def _write_copy(notebook: dict[str, Any], path: Path) -> None:
    digest = _digest(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"]["mqlab"] = {"page": digest}
    draft = path.with_suffix(".draft")
    try:
        path.parent.mkdir(exist_ok=True)
        draft.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        draft.replace(path)  # at once: an interrupt leaves no half of a page
    except OSError as error:
        raise _unwritable(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    """Read a notebook. Raises ValueError if it is none."""
    notebook = json.loads(path.read_text("utf-8"))
    try:
        _digest(notebook)
        notebook["metadata"].get("mqlab", {}).get("page")
    except (TypeError, KeyError, AttributeError):
        raise ValueError("it is not a notebook") from None
    return dict(notebook)


def _digest(notebook: dict[str, Any]) -> str:
    """A hash of the cells' text. Running a page leaves it as it is."""
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def _unwritable(path: Path, error: OSError) -> MqlabError:
    return MqlabError(
        f"{path} cannot be written.",
        why=str(error.strerror),
        fix="copy the project to a folder of your own, and start there",
    )
