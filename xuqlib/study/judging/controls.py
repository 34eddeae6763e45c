"""Controls: maps that know less than an explanation should, to stand beside every score of one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xuqlib.checks import check_count
from xuqlib.distribution import ExplanationDistribution
from xuqlib.posteriors.draws import copy_with, inner
from xuqlib.posteriors.fixing import generator_of
from xuqlib.posteriors.kinds import weighted_layers
from xuqlib.study.checked import Count, Maps, Pictures, Place, Seed, Shape, checked
from xuqlib.study.judging.orderings import importance


@checked
def sobel(x: Pictures) -> Tensor:
    """Strength of edges of each picture, summed over channels; it knows the picture and no network.

    Args:
        x: pictures, (N, C, H, W).

    Returns:
        (N, H, W), not negative.
    """
    from skimage.filters import sobel as edges

    planes = np.asarray(x.detach().cpu().double())
    return torch.from_numpy(np.stack([sum(edges(plane) for plane in picture) for picture in planes]))


@checked
def other_image(maps: Maps) -> Tensor:
    """Give each example the map of the next one, the last one the first's: right in kind, wrong in picture.

    Args:
        maps: (N, ...), at least two.
    """
    if len(maps) < 2:
        raise ValueError(f"there are {len(maps)} maps; another example's map needs two or more")
    return maps.roll(-1, 0)


@checked
def permuted_last_layer(network: nn.Module, *, seed: Seed = 0) -> nn.Module:
    """Copy a network and deal the outputs of its last dense layer to other classes, so that no class keeps its own.

    An explainer that does not notice explains no class.

    Args:
        network: any module whose last layer, in order of registration, gives the logits.
        seed: of the permutation.

    Raises:
        ValueError: fewer than two outputs, or a network without such a layer.
    """
    name = weighted_layers(inner(network))[0]
    name = name if inner(network) is network else f"network.{name}".rstrip(".")
    layer = network.get_submodule(name)
    weights = {f"{name}.{key}" if name else key: value.detach() for key, value in layer.named_parameters()}
    num_classes = len(next(iter(weights.values())))
    check_count(num_classes, 2, "the number of outputs")
    order = torch.randperm(num_classes, generator=generator_of(seed))
    dealt = torch.empty_like(order)
    dealt[order] = order.roll(1)  # one cycle through all classes: none stays
    frozen = copy_with(network, {key: value[dealt.to(value.device)] for key, value in weights.items()})
    return frozen.eval()


@checked
def one_draw(e: ExplanationDistribution, *, first: Place = 0) -> Tensor:
    """Map of a single draw, another one for each example in turn, so that a mean over examples is one over draws, too.

    Args:
        e: attributions of images, every draw kept.
        first: number of the first example, where e holds a block of more.

    Returns:
        |attribution| summed over channels, (N, H, W); example i gets draw (first + i) modulo the number of draws.
    """
    if e.values is None:
        raise ValueError('a single draw\'s map needs every draw; explain with keep="all"')
    example = torch.arange(e.values.shape[1])
    return importance(ExplanationDistribution(e.values[(first + example) % e.num_draws, example][None]), "mean")


@checked
def random_order(num_examples: Count, shape: Shape, *, seed: Seed = 0) -> Tensor:
    """Put the pixels of each image, `shape` = (height, width), in a random order of its own; (N, H * W)."""
    check_count(num_examples, 1, "num_examples")
    return torch.rand(num_examples, *shape, generator=generator_of(seed)).flatten(1).argsort(1)
