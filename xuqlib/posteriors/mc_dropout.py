"""MC-Dropout: dropout kept on after training, and what in a network can be dropped."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from xuqlib.checks import check_choice
from xuqlib.device import Where
from xuqlib.posteriors.base import Posterior, check_draws, check_network, seed_on
from xuqlib.posteriors.draws import Draws, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, Plans, seed_of
from xuqlib.posteriors.kinds import drops, drops_by_itself, names_in


class MCDropout(Posterior):
    """Dropout kept on after training: a draw is one mask per dropout call, the same for every example.

    Every dropout of the network is drawn, whether or not eval mode would switch it off: modules of any kind, functions
    inside a forward, attention, recurrent layers, and the paths that `StochasticDepth` and its like drop. Which axis
    is the examples in what is dropped from, as in (time, example, feature), is found by trying (`Plans`). A module of
    the user's that drops by itself while it trains does so in draws, too; one whose answer then changes its form stays
    off, and a warning names it. What cannot be fixed is refused when a draw is evaluated: dropout inside a
    `PackedSequence` or `torch.utils.checkpoint`.

    Raises:
        ValueError: no dropout with 0 < p < 1 in the network.

    Source: Gal & Ghahramani 2016. arXiv 1506.02142.
    """

    name = "mc_dropout"

    def __init__(self, network: nn.Module) -> None:
        check_network(network)
        if not any(can_drop(module) for module in network.modules()):
            raise ValueError(
                f"{type(network).__name__} has no dropout with 0 < p < 1, so this posterior is without randomness; "
                "add nn.Dropout layers (build with dropout=0.25), or choose another posterior"
            )
        off = [f"{name} ({type(module).__name__})" for name, module in network.named_modules() if _stays_off(module)]
        if off:
            warnings.warn(
                f"random while training, but no dropout, so off in every draw: {', '.join(off)}", stacklevel=2
            )
        self.network = network

    def sample(self, num_draws: int, *, seed: int = 0, device: Where = None, masks: str = "fixed") -> Draws:
        """Draw one set of masks per draw.

        Args:
            device: as for any posterior; masks are drawn when they are first needed.
            masks: "fixed", the definition of a draw; "resampled" gives networks whose masks change with every row and
                every call. They are not fixed functions: use them only to show what that does to an explanation.
        """
        check_draws(num_draws, seed)
        check_choice(masks, ("fixed", "resampled"), "masks")
        network, plans, resampled = detached_copy(self.network), Plans(), masks == "resampled"
        seeds = [seed_on(seed_of(seed, draw), None if resampled else device) for draw in range(num_draws)]
        return self._draws((FixedNetwork(network, own, resampled=resampled, plans=plans) for own in seeds), device)


_RANDOM = {"rand", "rand_like", "randn", "randn_like", "bernoulli", "bernoulli_", "normal", "normal_", "uniform_"}


def can_drop(module: nn.Module) -> bool:
    """Whether a module drops something by chance while it trains, at a rate between 0 and 1."""
    if drops(module):
        is_one = isinstance(module, nn.RNNBase) and module.num_layers == 1  # and drops between layers
        return 0 < getattr(module, "p", getattr(module, "dropout", 0)) < 1 and not is_one
    # F.dropout inside a user's forward leaves its name in the code, which may also be that of a layer, counted as such,
    # of a rate that is switched off, or an attribute of something else.
    names = {name for name in names_in(module) if "dropout" in name and name.islower()}
    own = [getattr(module, name) for name in names if hasattr(module, name)]
    around = [F, torch, *(sys.modules.get(kind.__module__) for kind in type(module).__mro__)]
    functions = [name for name in names if not hasattr(module, name) and any(hasattr(each, name) for each in around)]
    is_on = any(not isinstance(value, nn.Module) and value not in (0, None) for value in own)
    return drops_by_itself(module) or bool(functions) or is_on


def _stays_off(module: nn.Module) -> bool:
    names = names_in(module)
    is_noisy = "training" in names and not names.isdisjoint(_RANDOM) and not drops_by_itself(module)
    return is_noisy or isinstance(module, nn.RReLU)
