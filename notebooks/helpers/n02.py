"""The figure of notebook 02 that shows masks."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.study.figures.charts import Picture, styled
from xuqlib.study.figures.rows import ACCENT

HEADS = {
    "units": "MC-Dropout: units of the last hidden layer (dark: off)",
    "weights": "DropConnect: weights to the first class (dark: off)",
}


@styled
def mask_lines(
    masks: Mapping[str, Tensor], *, num_draws: int = 20, num_columns: int = 64
) -> Figure:
    """Draw masks, a line per draw: dark is off.

    Args:
        masks: of "units" and "weights", 1 where they are kept, (draw, unit).
        num_draws, num_columns: the first ones, which are shown.
    """
    shares = {name: float((mask == 0).double().mean()) for name, mask in masks.items()}
    figure = Picture(figsize=(10, 7.4))
    grid = figure.subplots(len(masks), 1, squeeze=False)[:, 0]
    for axes, (name, mask) in zip(grid, masks.items(), strict=True):
        shown = mask[:num_draws, :num_columns]
        colours = ListedColormap([ACCENT, "#ececec"])
        axes.pcolormesh(shown, cmap=colours, vmin=0, vmax=1, edgecolor="white")
        axes.set(ylabel="draw", yticks=[0.5, len(shown) - 0.5])
        axes.set_yticklabels(["1", f"{len(shown)}"])
        axes.set(xticks=[0.5, shown.shape[1] - 0.5])
        axes.set_xticklabels(["1", f"{shown.shape[1]}"])
        number = f"the first {shown.shape[1]} of {mask.shape[1]} {name}"
        axes.set_xlabel(number, labelpad=-14)
        axes.set_title(HEADS[name])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
    off = " and ".join(f"{share:.0%} of the {name}" for name, share in shares.items())
    figure.suptitle(f"Each draw switches off others: {off}")
    return figure
