"""Figures of maps: examples beside what is attributed to their pixels, with one scale for a row, and said.

Each function takes a frame or maps and returns a matplotlib Figure; `save` publishes it with its numbers and recipe.

A map of a picture is drawn without a channel axis: signed attributions are summed over channels, and standard
deviations are added in quadrature, which treats the channels as independent. To show the spread of the summed map,
sum over channels before taking the standard deviation.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.study.checked import Count, Grid, Map, Maps, Pictures, checked
from xuqlib.study.figures.charts import Picture, styled
from xuqlib.study.names import plain_lines

# Dark blue, neutral grey, bright yellow: lightness rises from end to end, so the sign survives in grey.
SIGNED = LinearSegmentedColormap.from_list("xuq_signed", ["#0b2a6f", "#5b7fb5", "#b0b0b0", "#f5c242", "#fff3a0"])
COLOURS: dict[str, str | Colormap] = {"picture": "gray", "signed": SIGNED, "spread": "magma", "ratio": "viridis"}
MAPS = ("signed", "spread", "ratio")
HIDDEN = ("fer_plus",)  # data sets whose raw pictures may not be published


@checked
def flat_map(values: Map, kind: str) -> np.ndarray:
    """One map (height, width) of one example's values, with or without a channel axis in front.

    Args:
        values: (channel, height, width) or (height, width).
        kind: "signed" sums over channels, "spread" adds in quadrature, "ratio" cannot be combined.

    Raises:
        ValueError: the shape is another, or a ratio comes with several channels.
    """
    check_choice(kind, MAPS, "kind")
    values = values.detach().cpu().double()
    if values.ndim == 2:
        return np.asarray(values)
    if values.ndim != 3:
        raise ValueError(f"a map should be (height, width) or (channel, height, width), not {tuple(values.shape)}")
    if len(values) == 1:
        return np.asarray(values[0])
    if kind == "ratio":
        raise ValueError(f"a ratio of {len(values)} channels has no sum; take it of the maps summed over channels")
    return np.asarray(values.sum(0) if kind == "signed" else values.square().sum(0).sqrt())


def _show_picture(axes: Axes, x: torch.Tensor, dataset: str) -> None:
    if dataset in HIDDEN:
        axes.imshow([[0.5]], cmap="gray", vmin=0, vmax=1, aspect="equal")
        axes.text(0, 0, "not shown", ha="center", va="center", color="white")
        return
    axes.imshow(_in_range(x).squeeze(), cmap="gray", vmin=0, vmax=1)


def _in_range(x: Tensor) -> np.ndarray:
    """A picture (C, H, W) or (H, W) as (H, W, C), in [0, 1]; standardised inputs leave it."""
    picture = np.atleast_3d(np.asarray(x.detach().cpu().float().movedim(0, -1) if x.ndim == 3 else x.cpu().float()))
    low, high = min(float(picture.min()), 0.0), max(float(picture.max()), 1.0)
    return (picture - low) / (high - low)


def _show_map(axes: Axes, values: np.ndarray, kind: str, limit: float) -> None:
    height, width = values.shape
    hatch = Rectangle((-0.5, -0.5), width, height, facecolor="#d0d0d0", edgecolor="#808080", hatch="///", linewidth=0)
    axes.add_patch(hatch).set_zorder(-1)  # seen where the map is NaN
    shown = np.ma.masked_invalid(values)
    axes.imshow(shown, cmap=COLOURS[kind], vmin=-limit if kind == "signed" else 0.0, vmax=limit)


def _limit(maps: Sequence[np.ndarray]) -> float:
    """Colour limit that all `maps` share: the 99.5th percentile of |value|, so that one pixel does not decide it."""
    values = np.abs(np.concatenate([each.ravel() for each in maps]))
    values = values[np.isfinite(values)]
    top = float(np.quantile(values, 0.995)) if values.size else 0.0
    return top or float(values.max(initial=0.0)) or 1.0


def _draw_row(line: np.ndarray, row: Sequence[torch.Tensor | None], kinds: Sequence[str], dataset: str) -> None:
    cells = list(zip(line, row, kinds, strict=True))
    flat = [(kind, flat_map(value, kind)) for _, value, kind in cells if value is not None and kind != "picture"]
    limits = {kind: _limit([values for other, values in flat if other == kind]) for kind, _ in flat}
    unsaid = set(limits)
    for axes, value, kind in cells:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if value is not None and kind == "picture":
            _show_picture(axes, value, dataset)
        elif value is not None:
            _show_map(axes, flat_map(value, kind), kind, limits[kind])
            if kind in unsaid:  # the scale of a row, below its first map
                unsaid.remove(kind)
                axes.set_xlabel(f"{'±' if kind == 'signed' else '0 to '}{limits[kind]:.2g}", fontsize=14.5, labelpad=2)


def picture_png(pixels: np.ndarray) -> bytes:
    """Colours (height, width, 3) of any size as a picture about 256 pixels wide, without smoothing."""
    picture, buffer = PIL.Image.fromarray(pixels), io.BytesIO()
    factor = max(1, 256 // max(picture.size))
    picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@checked
def map_pngs(maps: Mapping[str, Tensor], *, kind: str) -> dict[str, tuple[bytes, float]]:
    """Maps of one kind as pictures without axes, on one colour scale.

    Args:
        maps: name of each and its values, (channel, height, width) or (height, width).
        kind: "picture", "signed", "spread" or "ratio", as for `map_grid`.

    Returns:
        By the same names, a PNG and the limit of its colours, which begin at 0, or at minus the limit; 1 for pictures.
    """
    check_choice(kind, COLOURS, "kind")
    if kind == "picture":
        shown = {name: (255 * _in_range(values)).round().astype(np.uint8) for name, values in maps.items()}
        return {
            name: (picture_png(np.ascontiguousarray(np.broadcast_to(each, (*each.shape[:2], 3)))), 1.0)
            for name, each in shown.items()
        }
    flat = {name: flat_map(values, kind) for name, values in maps.items()}
    limit, found = _limit(list(flat.values())), {}
    colours = mpl.colormaps.get_cmap(COLOURS[kind]).with_extremes(bad="#d0d0d0")
    for name, values in flat.items():
        share = values / limit / 2 + 0.5 if kind == "signed" else values / limit
        found[name] = picture_png(colours(np.ma.masked_invalid(share), bytes=True)[..., :3]), limit
    return found


@styled
@checked
def map_grid(
    rows: Grid,
    *,
    kinds: Sequence[str],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    dataset: str,
    title: str = "",
) -> Figure:
    """Pictures and maps in a grid; maps of one kind share their colour scale within a row, written below the first.

    Args:
        rows: one entry per column: (channel, height, width), (height, width), or None for an empty place.
        kinds: of each column: "picture", "signed" (centred at 0), "spread" or "ratio" (NaN is hatched).
        column_titles: above each column.
        row_titles: left of each row.
        dataset: its name in `load`; pictures of people are not shown, whatever the column asks.
        title: the claim of the figure.

    Raises:
        ValueError: an unknown kind, or a row whose length is not that of `kinds`.
    """
    if unknown := sorted(set(kinds) - set(COLOURS)):
        raise ValueError(f"kind {', '.join(unknown)} is not known; choose among {', '.join(COLOURS)}")
    if not rows or any(len(row) != len(kinds) for row in rows) or len(column_titles) != len(kinds):
        lengths = sorted({len(row) for row in rows} | {len(column_titles)})
        raise ValueError(
            f"rows and column titles have {lengths} entries but there are {len(kinds)} kinds; give as many"
        )
    if row_titles and len(row_titles) != len(rows):
        raise ValueError(f"there are {len(row_titles)} row_titles for {len(rows)} rows; give as many, or none")
    figure = Picture(figsize=(2.3 * len(kinds) + 0.8, 2.55 * len(rows) + 0.9))
    grid = figure.subplots(len(rows), len(kinds), squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        _draw_row(line, row, kinds, dataset)
    for axes, name in zip(grid[0], column_titles, strict=True):
        axes.set_title(plain_lines(name))
    for axes, name in zip(grid[:, 0], row_titles or [""] * len(rows), strict=True):
        axes.set_ylabel(plain_lines(name))
    figure.suptitle(title)
    return figure


@checked
def example_maps(
    x: Pictures,
    maps: Mapping[str, torch.Tensor],
    *,
    dataset: str,
    row_titles: Sequence[str] = (),
    scaled: bool = False,
    title: str = "",
) -> tuple[Figure, pd.DataFrame]:
    """Pictures beside signed maps of them, one row per example, one column per kind of map; and the numbers shown.

    Args:
        x: pictures, (N, C, H, W); those with a map are shown.
        maps: name of each column and its attributions, (n, C, H, W).
        dataset, row_titles, title: as for `map_grid`.
        scaled: divide each map by its largest |value|, where columns have unlike units.

    Returns:
        The figure, and its frame: one row per pixel, one column per map.
    """
    flat = {name: each.detach().cpu().double().sum(1) for name, each in maps.items()}
    if scaled:
        flat = {name: each / each.abs().amax((1, 2), keepdim=True) for name, each in flat.items()}
    count = len(next(iter(flat.values())))
    if count > len(x):
        raise ValueError(f"x holds {len(x)} pictures but there are maps of {count}; pass the pictures of all")
    rows = [[x[i], *(each[i] for each in flat.values())] for i in range(count)]
    kinds, heads = ["picture", *["signed"] * len(flat)], ["picture", *(name.replace("_", "\n") for name in flat)]
    figure = map_grid(rows, kinds=kinds, column_titles=heads, row_titles=row_titles, dataset=dataset, title=title)
    columns = {f"{name}, picture {i}": np.asarray(each[i]).ravel() for name, each in flat.items() for i in range(count)}
    return figure, pd.DataFrame(columns).rename_axis("pixel").reset_index()


@checked
def maps(
    x: Pictures,
    mean: Maps,
    std: Maps,
    cv: Maps,
    *,
    dataset: str,
    row_titles: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Picture, mean, standard deviation and coefficient of variation over draws; one row per example.

    Args:
        x: pictures, (example, channel, height, width).
        mean, std: over draws, shaped like x, or (example, height, width).
        cv: (example, height, width); NaN where it is undefined, which is hatched.
        dataset: its name in `load`.
        row_titles: left of each row.
        title: the claim of the figure.

    Raises:
        ValueError: the four disagree in the number of examples.
    """
    if len({len(x), len(mean), len(std), len(cv)}) > 1:
        raise ValueError(f"x, mean, std, cv hold {len(x)}, {len(mean)}, {len(std)}, {len(cv)} examples; give as many")
    return map_grid(
        list(zip(x, mean, std, cv, strict=True)),
        kinds=("picture", "signed", "spread", "ratio"),
        column_titles=("picture", "mean", "std over draws", "CV over draws"),
        row_titles=row_titles,
        dataset=dataset,
        title=title,
    )


@checked
def draw_strip(values: Maps, *, num_draws: Count = 10, columns: Count = 10, title: str = "") -> Figure:
    """The same explanation from the first `num_draws` draws, side by side.

    Args:
        values: one example's attributions, (draw, channel, height, width) or (draw, height, width).
        num_draws: how many to show, at most.
        columns: draws in a row of the figure; each row has one colour scale.
        title: the claim of the figure.
    """
    shown: list[torch.Tensor | None] = list(values[:num_draws])
    columns = min(columns, len(shown))
    shown += [None] * (-len(shown) % columns)
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    figure = map_grid(
        rows, kinds=["signed"] * columns, column_titles=[""] * columns, dataset="", title=title or "one map per draw"
    )
    figure.set_size_inches(1.5 * columns + 0.4, 1.75 * len(rows) + 0.6)  # as wide as a notebook on a laptop, at most
    return figure


@checked
def pixel_frame(maps: Mapping[str, Tensor]) -> pd.DataFrame:
    """Maps of one size as the table of a figure: a row per pixel, line by line, and a column per map.

    Args:
        maps: name of each map and its values, (height, width), summed over channels where they were.
    """
    columns = {name: values.detach().cpu().flatten().numpy() for name, values in maps.items()}
    return pd.DataFrame(columns).rename_axis("pixel").reset_index()
