"""MC-Dropout: dropout kept on after training, and what in a network can be dropped."""

from __future__ import annotations

import inspect

from torch import nn

from xuqlib.checks import check_choice
from xuqlib.posteriors.base import Posterior, check_draws, check_network
from xuqlib.posteriors.draws import Draws, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, seed_of
from xuqlib.posteriors.kinds import is_of_torch


class MCDropout(Posterior):
    """Dropout kept on after training: a draw is one mask per dropout call, the same for every example.

    Every dropout of the network is drawn: modules, `Dropout1d/2d/3d`, and `F.dropout` inside a forward. Dropout that
    cannot be fixed is refused by name: `AlphaDropout`, and dropout inside attention and recurrent layers.

    Raises:
        ValueError: no dropout with 0 < p < 1 in the network, or dropout that cannot be fixed.

    Source: Gal & Ghahramani 2016. arXiv 1506.02142.
    """

    name = "mc_dropout"

    def __init__(self, network: nn.Module) -> None:
        check_network(network)
        check_dropout(network)
        self.network = network

    def sample(self, num_draws: int, *, seed: int = 0, masks: str = "fixed") -> Draws:
        """Draw one set of masks per draw.

        Args:
            masks: "fixed", the definition of a draw; "resampled" gives networks whose masks change with every row and
                every call. They are not fixed functions: use them only to show what that does to an explanation.
        """
        check_draws(num_draws, seed)
        check_choice(masks, ("fixed", "resampled"), "masks")
        network = detached_copy(self.network)
        resampled = masks == "resampled"
        return self._draws(
            [FixedNetwork(network, seed_of(seed, draw), resampled=resampled) for draw in range(num_draws)]
        )


def check_dropout(network: nn.Module) -> None:
    """Refuse a network without dropout that is on, or with dropout that cannot be fixed.

    Raises:
        ValueError: names the layers.
    """
    on, refused = False, []
    for name, module in network.named_modules():
        rate = getattr(module, "dropout", 0.0)
        if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
            refused.append(f"{name} ({type(module).__name__})")
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and isinstance(rate, float) and rate > 0:
            refused.append(f"{name} (dropout inside {type(module).__name__})")
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            on = on or 0 < module.p < 1
        elif _calls_dropout(module):
            on = True
    if refused:
        raise ValueError(f"dropout that cannot be fixed: {', '.join(refused)}; use nn.Dropout there, or set it to 0")
    if not on:
        raise ValueError(
            f"{type(network).__name__} has no dropout with 0 < p < 1, so this posterior is without randomness; "
            "add nn.Dropout layers (build with dropout=0.25), or choose another posterior"
        )


def _calls_dropout(module: nn.Module) -> bool:
    # F.dropout inside a user's forward leaves its name in the compiled code; torch's own layers are known above.
    if is_of_torch(module):
        return False
    methods = [method for name, method in inspect.getmembers(type(module), inspect.isfunction) if name != "__init__"]
    names = {name for method in methods for name in method.__code__.co_names if "dropout" in name and name.islower()}
    # The same name may be a layer, counted as such, or a rate that is switched off.
    return any(not isinstance(value, nn.Module) and value != 0 for value in (getattr(module, n, None) for n in names))
