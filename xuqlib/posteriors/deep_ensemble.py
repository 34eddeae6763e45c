"""Deep ensembles: networks trained independently."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from xuqlib.device import Where
from xuqlib.posteriors.base import Posterior, check_draws, check_network
from xuqlib.posteriors.draws import Draws, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork


class DeepEnsemble(Posterior):
    """Networks trained independently; each is a draw. Source: Lakshminarayanan et al. 2017, arXiv 1612.01474."""

    name = "deep_ensemble"

    def __init__(self, members: Sequence[nn.Module]) -> None:
        if isinstance(members, nn.Module) or not isinstance(members, Sequence) or not members:
            given = "an empty list" if members == [] else f"a {type(members).__name__}"
            raise TypeError(f"DeepEnsemble got {given}; pass a list of networks, one per member")
        self.members = [check_network(member) for member in members]
        self.network = self.members[0]

    def sample(self, num_draws: int | None = None, *, seed: int = 0, device: Where = None) -> Draws:
        """Return the first `num_draws` members, all by default. There is nothing to draw, so `seed` changes nothing."""
        num_draws = len(self.members) if num_draws is None else num_draws
        check_draws(num_draws, seed)
        if num_draws > len(self.members):
            raise ValueError(f"asked for {num_draws} draws but the ensemble has {len(self.members)} members")
        return self._draws((FixedNetwork(detached_copy(member)) for member in self.members[:num_draws]), device)
