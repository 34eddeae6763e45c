"""Mitigation: dim what makes networks unsure, and train networks that never see the rest but dimly.

A map of the uncertainty becomes attention, the attention multiplies the picture, and new networks learn from the
result. A map needs no label, so test pictures are dimmed by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_number, check_target
from xuqlib.explainers.baselines import make_baseline
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Batch, Count, Maps, Networks, Pictures, Positive, Seed, Target, checked
from xuqlib.study.checked import shown as said
from xuqlib.study.training.fitting import one_cycle
from xuqlib.study.training.recipes import Recipe

Attend = Callable[[Draws, Tensor], Tensor]  # networks and plain examples to attended examples


@checked
def unit_maps(maps: Maps) -> Tensor:
    """Rescale each map to [0, 1]: its negative parts become 0 first, then its least value 0 and its largest 1.

    Args:
        maps: attributions, (N, H, W) or (N, F), in any unit.

    Returns:
        Maps without a unit, shaped alike; 0 everywhere where a map is flat, or nowhere positive.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    if not maps.isfinite().all():
        raise ValueError(f"maps hold {int((~maps.isfinite()).sum())} NaN or infinite pixels; rescale finite maps")
    flat = maps.clamp(min=0).flatten(1)
    flat = flat - flat.amin(1, keepdim=True)
    top = flat.amax(1, keepdim=True)
    return torch.where(top > 0, flat / top, 0.0).view_as(maps)


@checked
def attended(x: Batch, maps: Maps, *, tau: Positive | None = None, fill: str | Tensor = "black") -> Tensor:
    """Fade each example where its map is large: fill + a (x - fill), with the attention a = 1 - map.

    Args:
        x: pictures (N, C, H, W) or a table (N, F).
        maps: how much to take away, in [0, 1], (N, H, W) or (N, F), as `unit_maps` gives them; 0 keeps x.
        tau: attention exp(-map / tau) instead, which never takes all away.
        fill: what x fades to, as for `make_baseline`: "black", or the mean training example as a tensor.

    Returns:
        Attended examples, shaped like x, of its dtype.

    Raises:
        ValueError: maps do not fit x or leave [0, 1], tau is not above 0, or fill does not fit.

    Source: mitigation as in Wang, Joshi, Wang & Ji 2023, section 4, arXiv 2304.04824, whose form of the attention is
    not known to us: a choice.
    """
    wanted = x.shape[:1] + x.shape[2:] if x.dim() == 4 else x.shape
    if maps.shape != wanted or not ((maps >= 0) & (maps <= 1)).all():
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}; wanted {tuple(wanted)}, all in [0, 1]: rescale them with unit_maps"
        )
    attention = 1 - maps if tau is None else (-maps / check_number(tau, 0, "tau", above=True)).exp()
    attention = (attention[:, None] if x.dim() == 4 else attention).to(x)
    start = make_baseline(fill, x)
    return start + attention * (x - start)


@checked
def paste_square(x: Pictures, place: Target, num_places: Count) -> tuple[Tensor, Tensor]:
    """Paste a white square, a quarter as wide as the image, at one of several places along its border.

    Args:
        x: images (N, C, H, W) in [0, 1].
        place: where the square of each image goes, (N,), clockwise from 0, the top left corner.
        num_places: how many places there are, equally far apart along the border.

    Returns:
        Images shaped like x, and the squares, (N, H, W), of x's dtype: 1 inside, 0 outside.

    Raises:
        ValueError: place does not fit, or the border is too short for so many places.
    """
    height, width = x.shape[-2:]
    side = max(1, round(min(height, width) / 4))
    down, across = height - side, width - side
    if num_places > 2 * (down + across):
        raise ValueError(f"num_places is {num_places}, but the border of {height} x {width} has {2 * (down + across)}")
    way = (check_target(place, len(x), num_places) * 2 * (down + across) / num_places).round()  # from the first corner
    left = torch.minimum(way, 2 * across + down - way).clamp(0, across)
    top = torch.minimum(way - across, 2 * (across + down) - way).clamp(0, down)
    rows, columns = (
        torch.arange(n, device=x.device) - at[:, None].to(x.device) for n, at in ((height, top), (width, left))
    )
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    return torch.where(inside[:, None], 1.0, x), inside.to(x)


@checked
def fit_attended(
    networks: Networks,
    x: Batch,
    y: Target,
    recipe: Recipe | None = None,
    *,
    attend: Attend | None = None,
    every: Count = 1,
    seed: Seed = 0,
) -> int:
    """Train classifiers apart but side by side, in place, without a validation part: the last epoch is kept.

    The number of steps depends on the recipe and the number of examples alone, and the order of the examples on the
    seed alone, so trainings on differently attended inputs are alike in all else. With `attend` the inputs are attended
    anew inside the loop, by the networks as they are then; before that, for the first epochs, they are plain.

    Args:
        networks: an ensemble, in the dtype of x.
        x: examples: attended beforehand, or plain if `attend` is given.
        y: class index of each, (N,).
        recipe: its epochs, batch_size, learning_rate and weight_decay are used; the defaults of `Recipe` if None.
        attend: (draws, x) to attended examples.
        every: epochs between two calls of `attend`.
        seed: of the order of the examples, another for each network.

    Returns:
        Steps taken by each network.

    Raises:
        ValueError: no network, a count below 1, or y does not fit x.
        FloatingPointError: a loss became infinite or NaN.
    """
    recipe, shown = recipe or Recipe(), x
    target = check_target(y, len(x), DeepEnsemble(networks).sample()(x[:1]).shape[-1])
    trained = [one_cycle(network.parameters(), recipe, len(x)) for network in networks]
    orders = [generator_of(seed, 1, member) for member in range(len(networks))]
    for epoch in range(recipe.epochs):
        if attend is not None and epoch and epoch % every == 0:
            shown = attend(DeepEnsemble([network.eval() for network in networks]).sample(), x)
            if not isinstance(shown, Tensor) or shown.shape != x.shape:
                raise TypeError(f"attend gave {said(shown)}; let it return examples shaped like x {tuple(x.shape)}")
        for network, (optimiser, schedule), order in zip(networks, trained, orders, strict=True):
            network.train()
            for batch in torch.randperm(len(x), generator=order).split(recipe.batch_size):
                loss = F.cross_entropy(network(shown[batch]), target[batch])
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(f"training diverged in epoch {epoch + 1}; lower learning_rate")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
    for network in networks:
        network.eval()
    return recipe.epochs * -(-len(x) // recipe.batch_size)
