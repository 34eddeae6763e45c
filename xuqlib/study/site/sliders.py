"""Three figures that a reader steps through by a slider, without a kernel: drawn once, of embedded data."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from torch import Tensor

from xuqlib.explain import explain
from xuqlib.explainers.gradients import integrated_gradients
from xuqlib.metrics.deletion import deletion, perturbed, pixel_order
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.data.loading import load
from xuqlib.study.figures.choosers import draw_distances
from xuqlib.study.figures.maps import map_pngs
from xuqlib.study.names import in_script
from xuqlib.study.training.loading import train_or_load
from xuqlib.ua_backprop import ua_backprop
from xuqlib.uncertainty import uncertainties

NUM_IMAGES, NUM_DRAWS, NUM_FEW, NUM_DELETIONS = 24, 50, 20, 16  # few draws where a mean of maps is not what is shown
DRAWS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
TEMPERATURES = (10.0, 3.0, 1.0, 0.5, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Stop:
    """A place of a slider: what it is called, the pictures side by side (PNG), and a sentence about them."""

    name: str
    pictures: Sequence[bytes]
    sentence: str


def sliders(dataset: str = "digits", seed: int = 0) -> str:
    """The three figures as HTML: draws and their mean, deletion, and the temperature of UA-Backprop.

    The first two are of the image that the draws are surest of, and right about; the third of the least sure one.
    """
    posterior = train_or_load("mc_dropout_all", dataset, seed=seed, progress=False)
    examples = load(dataset, split="test", num_examples=NUM_IMAGES, seed=seed)
    draws = posterior.sample(NUM_DRAWS, seed=seed)
    few = posterior.sample(NUM_FEW, seed=seed)
    probs = few(examples.x).softmax(-1).mean(0)  # (N, C)
    right = torch.where(probs.argmax(1) == examples.y, probs.amax(1), torch.zeros(()))
    sure, unsure = int(right.argmax()), int(uncertainties(few, examples.x).total.argmax())
    x, answer = examples.x[sure : sure + 1], probs[sure].argmax()[None]
    values = explain(draws, integrated_gradients, x, answer, num_steps=8, progress=False).values
    assert values is not None  # nothing was asked to keep less than all
    maps = values[:, 0]  # (S, C, H, W)
    parts = [
        slider(
            "draws",
            of_draws(maps.sum(1)),
            "How many networks does a steady map need?",
            "Left the map of one draw, right the mean of all draws up to it. Yellow speaks for the answer, blue "
            "against it.",
        ),
        slider(
            "pixels deleted",
            of_deletion(few, x, answer, maps.mean(0).sum(0), seed),
            "Do the marked pixels matter?",
            "Left the image, whose pixels turn black in the order of the map on the right.",
        ),
        slider(
            "temperature",
            of_temperature(few, examples.x[unsure : unsure + 1]),
            "How sharp is a map of the uncertainty?",
            "Left the image that the networks are least sure of, right UA-Backprop's map of where that comes from.",
        ),
    ]
    return f'<div class="sliders">{"".join(parts)}</div>'


def of_draws(maps: Tensor) -> list[Stop]:
    """Maps of single draws beside the mean up to them.

    Args:
        maps: one example's, (draw, height, width).
    """
    away = draw_distances(maps)["distance"]
    shown = {f"draw {k}": maps[k - 1] for k in DRAWS} | {f"mean {k}": maps[:k].mean(0) for k in DRAWS}
    drawn = {name: png for name, (png, _) in map_pngs(shown, kind="signed").items()}
    return [
        Stop(
            str(k),
            [drawn[f"draw {k}"], drawn[f"mean {k}"]],
            f"The mean of {k} draw{'s' * (k > 1)} is {away[k - 1]:.0%} away from that of all {len(maps)}.",
        )
        for k in DRAWS
    ]


def of_deletion(draws: Draws, x: Tensor, target: Tensor, mean: Tensor, seed: int) -> list[Stop]:
    """An image that loses its pixels in the order of a map, and the probability of its class.

    Args:
        draws: fixed networks.
        x: one image, (1, C, H, W).
        target: its class, (1,).
        mean: the map, (H, W).
        seed: of the other order, which is left to chance.
    """
    order = pixel_order(mean[None])
    chance = torch.randperm(order.shape[1], generator=generator_of(seed))[None]
    by_map, by_chance = (deletion(draws, x, each, target, num_steps=NUM_DELETIONS)[0] for each in (order, chance))
    png = map_pngs({"": mean}, kind="signed")[""][0]
    stops = []
    for k, (marked, other) in enumerate(zip(by_map.tolist(), by_chance.tolist(), strict=True)):
        share = k / NUM_DELETIONS
        image = map_pngs({"": perturbed(x, order, share)[0]}, kind="picture")[""][0]
        sentence = f"The networks give their answer {marked:.0%}; with as many pixels deleted at random, {other:.0%}."
        stops.append(Stop(f"{share:.0%}", [image, png], sentence))
    return stops


def of_temperature(draws: Draws, x: Tensor) -> list[Stop]:
    """Maps of the total uncertainty at several temperatures of the softmax over pixels; all have the same sum.

    Args:
        draws: fixed networks.
        x: one image, (1, C, H, W).
    """
    maps = {
        f"{tau2:g}": ua_backprop(draws, x, kind="total", normalise="relative", tau2=tau2)[0] for tau2 in TEMPERATURES
    }
    image, stops = map_pngs({"": x[0]}, kind="picture")[""][0], []
    for name, values in maps.items():
        shares = values.flatten().sort(descending=True).values.cumsum(0) / values.sum()
        half = float((shares < 0.5).sum() + 1) / values.numel()
        sentence = f"Half of the uncertainty lies on {half:.0%} of the pixels; all of it is {values.sum():.2f} nats."
        stops.append(Stop(name, [image, map_pngs({"": values}, kind="spread")[""][0]], sentence))
    return stops


def slider(name: str, stops: Sequence[Stop], question: str, words: str) -> str:
    """A slider over pictures that are all in the page; the site's script switches between them.

    Args:
        name: what is changed.
        stops: its places; without the script the first is shown.
        question: the heading.
        words: what the pictures are.
    """
    shown = {str(place): [_beside(stop.pictures), stop.sentence] for place, stop in enumerate(stops)}
    names, label = html.escape(json.dumps([stop.name for stop in stops])), html.escape(name)
    control = f'<input type="range" min="0" max="{len(stops) - 1}" value="0" aria-label="{label}" '
    control += f'aria-valuetext="{html.escape(stops[0].name)}" data-stops="{names}">'
    return (
        f'<div class="chooser"><h3>{html.escape(question)}</h3><p>{html.escape(words)}</p>'
        f"<fieldset><legend>{label}</legend>{control}<output>{html.escape(stops[0].name)}</output></fieldset>"
        f'<img alt="{html.escape(words)}" src="{shown["0"][0]}">'
        f'<p aria-live="polite">{html.escape(stops[0].sentence)}</p>'
        f'<script type="application/json">{in_script(shown)}</script></div>'
    )


def _beside(pictures: Sequence[bytes]) -> str:
    """Pictures of one size side by side, as a data address with a palette."""
    images = [PIL.Image.open(io.BytesIO(png)).convert("RGB") for png in pictures]
    width, height = images[0].size
    sheet, buffer = PIL.Image.new("RGB", ((width + 16) * len(images) - 16, height), "white"), io.BytesIO()
    for place, image in enumerate(images):
        sheet.paste(image, (place * (width + 16), 0))
    sheet.quantize(64).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
