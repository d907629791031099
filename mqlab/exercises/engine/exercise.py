"""What a learner meets: ``check`` with its four outcomes, ``hint`` and ``solution``.

The checks themselves are in the modules of the pages, what they work with in ``bench``.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika.exceptions

from mqlab.commands import command
from mqlab.errors import MqlabError, Stopped

CORRECT, INCORRECT = "correct", "incorrect"
NOT_ATTEMPTED, NOT_CHECKED = "not attempted", "could not be checked"
# Text and sign tell the outcomes apart as well: colours alone do not reach everybody.
_LOOKS = {
    CORRECT: ("✓", "#009E73"),
    INCORRECT: ("✗", "#D55E00"),
    NOT_ATTEMPTED: ("–", "#8C8C8C"),
    NOT_CHECKED: ("?", "#0072B2"),
}


class Incorrect(Exception):
    """Raised by a check: the answer is wrong.

    ``headline`` names the misconception in a learner's words, ``message`` says what it led to here,
    ``evidence`` quotes the broker, ``look_at`` is the heading on the page that explains it.
    """

    def __init__(
        self, headline: str, message: str = "", *, evidence: Sequence[str] = (), look_at: str = ""
    ) -> None:
        super().__init__(headline)
        self.headline, self.message = headline, message
        self.evidence, self.look_at = tuple(evidence), look_at


class Findings(list[Incorrect]):
    """Faults that wait until it is clear that there is no graver one."""

    def note(self, check: Callable[..., object], *args: Any) -> None:
        """Keep what ``check`` raises, if it raises Incorrect and is the first."""
        if self:
            return
        try:
            check(*args)
        except Incorrect as wrong:
            self.append(wrong)

    def raise_first(self) -> None:
        """Raise the first that was kept."""
        if self:
            raise self[0]


class NotAttempted(Exception):
    """Raised by a check: the starter cell is as it was."""


class NotChecked(Exception):
    """Raised by a check that cannot judge: it says why, and what to do next."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass(frozen=True, repr=False)
class Result:
    """What a check has found. Shown as HTML in JupyterLab, as text elsewhere."""

    exercise: str
    outcome: str
    headline: str = ""
    message: str = ""
    evidence: tuple[str, ...] = ()
    look_at: str = ""

    def __repr__(self) -> str:
        lines = [f"{self.exercise}: {self.outcome}. {self.headline}".rstrip()]
        lines += [f"  {line}" for line in self.message.splitlines()]
        lines += [f"  - {line}" for line in self.evidence]
        if self.look_at:
            lines.append(f'  Look again at "{self.look_at}" on this page.')
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        sign, colour = _LOOKS[self.outcome]
        parts = [f"<strong>{sign} {self.exercise}: {self.outcome}.</strong> {_text(self.headline)}"]
        if self.message:
            parts.append(f'<p style="margin:0.4em 0">{_text(self.message)}</p>')
        if self.evidence:
            items = "".join(f"<li>{_text(line)}</li>" for line in self.evidence)
            parts.append(f'<ul style="margin:0.4em 0">{items}</ul>')
        if self.look_at:
            anchor = html.escape(self.look_at.replace(" ", "-"))
            parts.append(f'Look again at <a href="#{anchor}">{_text(self.look_at)}</a>.')
        # No colour of text or background: the theme's own are readable, dark ones too.
        return (
            f'<div role="status" class="mqlab-result" style="border-left:6px solid {colour};'
            f'padding:0.4em 0.8em;max-width:50em">{"".join(parts)}</div>'
        )


class Note:
    """A hint or a solution: Markdown in JupyterLab, text elsewhere."""

    def __init__(self, text: str, markdown: str = "") -> None:
        self._text, self._markdown = text, markdown or text

    def __repr__(self) -> str:
        return self._text

    def _repr_markdown_(self) -> str:
        return self._markdown


class Exercise:
    """One exercise of a page.

    ``judge(answer)`` returns a sentence or two of evidence if the answer is right, and raises
    Incorrect, NotAttempted or NotChecked otherwise.
    """

    def __init__(
        self,
        page: str,
        number: int,
        judge: Callable[[Any], Sequence[str]],
        *,
        hints: Sequence[str],
    ) -> None:
        self.page, self.number, self.hints = page, number, tuple(hints)
        self._judge = judge
        self._hints_given = 0

    @property
    def name(self) -> str:
        """``Exercise 1``, as the page calls it."""
        return f"Exercise {self.number}"

    def check(self, answer: Any) -> Result:
        """Run ``answer``, the learner's function, against the broker, and tell what came of it.

        What goes wrong in the answer is its result, and what goes wrong around it is told as
        *could not be checked*. It ends by itself, within about half a minute. Raises
        KeyboardInterrupt, when it has cleaned up, if it is interrupted before.
        """
        try:
            evidence = tuple(self._judge(answer))
        except NotAttempted:
            return Result(
                self.name,
                NOT_ATTEMPTED,
                message="Write your code into the cell above, run that cell, and then this one.",
            )
        except Incorrect as wrong:
            return Result(
                self.name, INCORRECT, wrong.headline, wrong.message, wrong.evidence, wrong.look_at
            )
        except NotChecked as problem:
            return self._not_checked(problem.why, problem.fix)
        except MqlabError as error:
            why = f"{error.what} Likely: {error.why}." if error.why else error.what
            return self._not_checked(why, error.fix)
        except (pika.exceptions.AMQPError, OSError) as error:
            return self._not_checked(
                f"the broker went away in the middle ({type(error).__name__})",
                command("broker status"),
            )
        except KeyboardInterrupt:
            raise Stopped("You stopped the check. Run the cell again.") from None
        except Exception as error:  # a fault of ours: told in words, as all else
            return self._not_checked(
                f"the check itself has a fault: {type(error).__name__}: {error}",
                "restart the kernel and try again; if it comes back, report it",
            )
        return Result(self.name, CORRECT, evidence=evidence)

    def hint(self) -> Note:
        """Give a hint; the next call gives the next one, which says more."""
        place = min(self._hints_given, len(self.hints) - 1)
        self._hints_given += 1
        more = (
            "Run the cell again for more." if place + 1 < len(self.hints) else "That was the last."
        )
        number = f"Hint {place + 1} of {len(self.hints)}"
        hint = self.hints[place]
        return Note(f"{number}: {hint}\n{more}", f"**{number}.** {hint}\n\n*{more}*")

    def solution(self) -> Note:
        """Show one way to solve it, from the file beside the notebooks."""
        path = self.solution_file()
        code = path.read_text("utf-8").rstrip()
        return Note(code, f"From `notebooks/solutions/{path.name}`:\n\n```python\n{code}\n```")

    def solution_file(self) -> Path:
        """Where the solution stands. Raises MqlabError if the folder of the notebooks is gone."""
        return beside_notebooks(f"solutions/{self.page}_ex{self.number}.py")

    def _not_checked(self, why: str, fix: str) -> Result:
        next_step = f"\nNext: {fix}" if fix else ""
        return Result(self.name, NOT_CHECKED, message=f"{why[:1].upper()}{why[1:]}{next_step}")


def beside_notebooks(name: str) -> Path:
    """Find a file that belongs to the pages. Raises MqlabError if the folder of them is gone."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[3] / "notebooks"):
        if (folder / name).exists():
            return folder / name
    raise MqlabError(
        f"There is no {name} here.",
        why="the notebook runs outside the project's folder",
        fix="open it with `make lab`",
    )


def _text(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
