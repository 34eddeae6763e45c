"""Networks of every family, posterior and explainer: equal to the plain loop in float64, or refused in one sentence."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase

import pytest
from core_networks import assert_same, snapshot
from matrix_cells import OPTIONS, POSTERIORS, Cell, network_of
from matrix_networks import CASES, nothing_random

from xuqlib.posteriors.fixing import RandomNetworkError

# What the library says of some networks, and what is right all the same.
pytestmark = [
    pytest.mark.filterwarnings("ignore:network called no ReLU"),
    pytest.mark.filterwarnings("ignore:guided_backprop guides ReLUs alone"),
    pytest.mark.filterwarnings("ignore:FullGrad's terms miss the logit"),
    pytest.mark.filterwarnings("ignore:with GoogLeNet in training mode"),
]

WITHOUT_DROPOUT = (
    *(f"torchvision {name}" for name in ("resnet", "resnext", "lraspp", "regnet", "shufflenet")),
    *("transformers vit", "transformers resnet"),
)
CONVOLUTIONS_LAST = (
    *("own U-Net", "own U-Net, yes or no", "torchvision fcn", "torchvision deeplab", "torchvision lraspp"),
    *("torchvision squeezenet", "transformers segformer of pixels"),
)
# Every refusal: network, posterior and explainer, and words of the one sentence that says what to do.
REFUSALS: dict[tuple[str, str, str], str] = {
    **{(name, "mc_dropout", "*"): "has no dropout" for name in WITHOUT_DROPOUT},
    # A last layer that is not dense, and an answer that is no logits and no plain regression.
    **{(name, "laplace", "*"): "last-layer Laplace needs a dense one" for name in CONVOLUTIONS_LAST},
    ("own mean and variance", "laplace", "*"): "say what of it is explained",
    ("own binary", "laplace", "*"): "pass y.float() for a regression, or train it with two logits",
    ("own probabilities", "laplace", "*"): "the network answers probabilities; Laplace wants logits",
    # Weights that are computed from others cannot be drawn.
    ("own TCN", "mc_dropconnect", "*"): "computed by a parametrization",
    ("transformers wav2vec2", "mc_dropconnect", "*"): "computed by a parametrization",
    ("transformers hubert", "mc_dropconnect", "*"): "computed by a parametrization",
    # The uncertainty of several labels is no entropy of classes.
    ("own multilabel", "*", "ua_backprop*"): "pick one label",
}
CELLS = [Cell(*names) for names in itertools.product(CASES, POSTERIORS, OPTIONS)]


def refusal_of(cell: Cell) -> str | None:
    fitting = [words for names, words in REFUSALS.items() if all(map(fnmatchcase, cell, names))]
    assert len(fitting) < 2, f"{cell} is listed more than once"
    return fitting[0] if fitting else None


def assert_equal_or_refused(cell: Cell) -> None:
    words = refusal_of(cell)
    with nothing_random():
        if words is None:
            cell.check()
            return
        with pytest.raises((TypeError, ValueError, RandomNetworkError)) as refused:
            cell.check()
    message = str(refused.value)
    assert words in message and "\n" not in message, message


def covering() -> list[Cell]:
    """A cell for each pair of network and posterior, whose explainer goes round, so that all pairs of them meet."""
    explainers, sizes = list(OPTIONS), (len(CASES), len(POSTERIORS))
    turns = {(n, p): (n + 2 * p) % len(explainers) for n, p in itertools.product(*map(range, sizes))}
    names, posteriors = list(CASES), list(POSTERIORS)
    return [Cell(names[n], posteriors[p], explainers[turn]) for (n, p), turn in turns.items()]


def test_there_are_more_than_sixty_networks_and_no_refusal_is_listed_in_vain() -> None:
    assert len(CASES) > 60
    for names in REFUSALS:
        assert any(all(map(fnmatchcase, cell, names)) for cell in CELLS), names


def test_in_the_sample_every_network_posterior_and_explainer_meets_every_other() -> None:
    sample = covering()
    assert len({(c.network, c.posterior) for c in sample}) == len(CASES) * len(POSTERIORS)
    assert len({(c.posterior, c.explainer) for c in sample}) == len(POSTERIORS) * len(OPTIONS)
    assert all(len({c.explainer for c in sample if c.network == name}) == len(POSTERIORS) for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_every_family_is_explained_as_by_the_loop_or_refused(name: str) -> None:
    before = snapshot(network_of(name))
    for cell in covering():
        if cell.network == name:
            assert_equal_or_refused(cell)
    assert_same(before, snapshot(network_of(name)))


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_a_network_of_every_family_is_explained_in_every_way_or_refused(name: str) -> None:
    before = snapshot(network_of(name))
    for cell in CELLS:
        if cell.network == name:
            assert_equal_or_refused(cell)
    assert_same(before, snapshot(network_of(name)))
