"""Posteriors over networks, one method one file; each gives draws, fixed networks, through `sample`."""

from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.laplace import Laplace
from xuqlib.posteriors.mc_dropout import MCDropout
from xuqlib.posteriors.random_weights import Flipout, MCDropConnect

__all__ = ["DeepEnsemble", "Draws", "Flipout", "Laplace", "MCDropConnect", "MCDropout", "Posterior"]
