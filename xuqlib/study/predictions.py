"""Boxes to write a prediction in, for the student's edition of a notebook; see `xuqlib.study.editions`."""

from __future__ import annotations

import ipywidgets

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
        layout={"width": "100%", "max_width": "42em"},
    )
    box.observe(lambda change: WRITTEN.update({number: change["new"]}), names="value")
    return box


@checked
def predicted(number: Count) -> str:
    """What was written in the box of this number, as one line to print below what came out."""
    words = " ".join(WRITTEN.get(number, "").split())
    return f"You predicted: {words}   (above: what came out)" if words else "nothing was predicted"
