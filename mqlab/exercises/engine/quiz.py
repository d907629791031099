"""The two questions of a page: jupyterquiz, made readable in both themes and usable by keyboard.

What jupyterquiz leaves out is added here: a look that follows JupyterLab's theme, arrow keys that
reach every option, the roles that a screen reader needs, and nothing that asks the network.
"""

from __future__ import annotations

import json
import random
from importlib import import_module
from typing import Any

from mqlab.exercises.engine.exercise import beside_notebooks

# The colours are those of JupyterLab's theme; the sign tells right from wrong without them.
_STYLE = """<style>
div.Quiz { max-width: 50em; margin: 1em 0 0; line-height: 1.4; font-size: inherit; }
.Quiz .MultipleChoiceQn { padding: 0; background: none; color: inherit; font-weight: bold; }
.Quiz .Answer { grid-template-columns: 1fr; grid-gap: 6px; margin: 0.6em 0; }
.Quiz .MCButton { justify-content: start; gap: 0.6em; padding: 0.4em 0.8em; font-size: inherit;
  background: none !important; color: inherit; animation: none; box-shadow: none;
  text-align: left; border: 1px solid var(--jp-border-color1, #888); border-radius: 4px; }
.Quiz .MCButton input { margin: 0; }
.Quiz .MCButton:focus-within { outline: 3px solid var(--jp-brand-color1, #1976d2); }
.Quiz .correctButton { border: 2px solid #009E73; }
.Quiz .incorrectButton { border: 2px solid #D55E00; }
.Quiz .Feedback { min-height: 1.4em; padding-left: 0.8em; text-align: left; font-size: inherit;
  color: inherit; border-left: 6px solid transparent; }
.Quiz .Feedback.correct { border-color: #009E73; }
.Quiz .Feedback.incorrect { border-color: #D55E00; }
.Quiz .Feedback.correct::before { content: "✓ Correct. "; font-weight: bold; }
.Quiz .Feedback.incorrect::before { content: "✗ Incorrect. "; font-weight: bold; }
</style>"""

# jupyterquiz calls a MathJax that JupyterLab does not have whole: it fetches another one from the
# network, and fails at each answer. There is no formula in these questions, so nothing is called.
_BEFORE = """{ const silence = () => {
  if (window.MathJax && !Object.hasOwn(MathJax, "typeset")) MathJax.typeset = () => {};
};
silence();
document.addEventListener("click", silence, true); }"""

# JupyterLab takes the arrow keys, so that only the first option could be reached.
_AFTER = """{ const finish = (tries) => {
  const quizzes = document.querySelectorAll(".Quiz:not([role])");
  if (!quizzes.length && tries) return setTimeout(finish, 200, tries - 1);
  for (const quiz of quizzes) {
    quiz.setAttribute("role", "group");
    quiz.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) event.stopPropagation();
    });
    const answers = quiz.querySelector(".Answer");
    answers.setAttribute("role", "radiogroup");
    answers.setAttribute("aria-labelledby", quiz.firstElementChild.id);
    quiz.querySelector(".Feedback").setAttribute("role", "status");
  }
};
finish(25); }"""


def show_quiz(page: str) -> None:
    """Show the questions of a page such as ``01``, from the file beside the notebooks.

    Raises MqlabError if the folder of the notebooks is gone.
    """
    # Imported here, since they are for notebooks only.
    shown: Any = import_module("IPython.display")
    jupyterquiz: Any = import_module("jupyterquiz")

    questions = json.loads(beside_notebooks(f"quizzes/{page}.json").read_text("utf-8"))
    shown.display(shown.HTML(_STYLE), shown.Javascript(_BEFORE))
    # The names inside are drawn by lot: the same ones each time, so that a page that is executed
    # again keeps its bytes.
    state = random.getstate()
    random.seed(f"quiz {page}")
    try:
        jupyterquiz.display_quiz(questions, shuffle_answers=False, max_width=800, border_radius=4)
    finally:
        random.setstate(state)
    shown.display(shown.Javascript(_AFTER))
