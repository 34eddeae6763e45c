"""Boxes for predictions and folded solutions, in the student's edition of a notebook; see `xuqlib.study.editions`."""

from __future__ import annotations

import html
import sys

import ipywidgets
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML
from IPython.utils.capture import capture_output

from xuqlib.study.checked import Count, checked

WRITTEN: dict[int, str] = {}  # by the question's number in its notebook: a kernel runs one notebook


@checked
def prediction(number: Count, question: str) -> ipywidgets.Textarea:
    """A box to write a prediction in, reached by a click or by Tab.

    It keeps what was written: the same number brings it back, as long as the kernel lives.

    Args:
        number: of the question in its notebook, from 1.
        question: what is asked; shown until something is written.
    """
    box = ipywidgets.Textarea(
        value=WRITTEN.get(number, ""),
        description="I predict:",
        placeholder=question,
        tooltip=question,
        rows=2 + len(question) // 50,
        layout={"width": "100%", "max_width": "42em"},
    )
    box.observe(lambda change: WRITTEN.update({number: change["new"]}), names="value")
    return box


@checked
def predicted(number: Count) -> str:
    """What was written in the box of this number, as one line to print below what came out."""
    words = " ".join(WRITTEN.get(number, "").split())
    return f"You predicted: {words}   (above: what came out)" if words else "nothing was predicted"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add `%%solution`: run a cell, and fold what it prints until the reader opens it, by a click or by Tab and Space.

    Figures are shown above the fold.
    """

    def solution(_: str, source: str) -> HTML:
        with capture_output() as shown:
            ran = shell.run_cell(source)
        sys.stderr.write(shown.stderr)
        ran.raise_error()
        for each in shown.outputs:
            if "text/html" not in each.data:
                each.display()
        tables = [each.data["text/html"] for each in shown.outputs if "text/html" in each.data]
        told = "".join([f"<pre>{html.escape(shown.stdout)}</pre>", *tables])
        return HTML(f"<details><summary>What the solution shows</summary>{told}</details>")

    shell.magics_manager.register_function(solution, "cell")
