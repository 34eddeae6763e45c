"""What a report measures: answers and their confidence, explanations that move, and sanity checks of both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import named
from xuqlib.explainers.fullgrad import fullgrad_terms
from xuqlib.inputs import Inputs
from xuqlib.outputs import Output
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import Draws, fixed_draws, inner
from xuqlib.posteriors.kinds import weighted_layers
from xuqlib.posteriors.laplace import Laplace
from xuqlib.posteriors.mc_dropout import MCDropout, can_drop
from xuqlib.posteriors.random_weights import MCDropConnect
from xuqlib.study.intervals import BOOTSTRAP, Estimate, bootstrap, mean_of_examples, wilson
from xuqlib.study.judging.controls import other_image
from xuqlib.study.judging.sanity import cascade, randomised
from xuqlib.study.judging.scores import expected_calibration_error, scores_of
from xuqlib.study.judging.similarity import spearman
from xuqlib.study.report import POSTERIORS
from xuqlib.ua_backprop import ua_backprop
from xuqlib.uncertainty import decompose, logits_of

DROP_RATES = (0.1, 0.05, 0.02, 0.01)  # that DropConnect may take, the largest first
AGREEMENT = 0.95  # share of answers that the draws may not fall below, for a rate to be taken
TRIED = 50  # examples that the rate is chosen on
TAILS = (0.05, 0.95)  # ends of the interval over draws
RESAMPLES = 199


@dataclass(frozen=True)
class Networks:
    """A network, its draws, and how to read their answers.

    Attributes:
        network: in eval mode.
        draws: of its posterior.
        read_as: what of the answer is meant; its kind is one of OUTPUTS.
        name, reason: of the posterior, and why it was chosen.
        draw: another network's draws, made in the same way; None where its draws can only be randomised.
    """

    network: nn.Module
    draws: Draws
    read_as: Output
    name: str
    reason: str
    draw: Callable[[nn.Module], Draws] | None = None

    @property
    def is_regression(self) -> bool:
        return self.read_as.kind == "regression"

    @property
    def has_targets(self) -> bool:
        """Whether there is more than one output that can be explained."""
        return self.read_as.kind in ("logits", "probabilities")

    def target(self, classes: Tensor) -> Tensor:
        """The outputs that stand for these classes; the only one, if there is one."""
        return classes if self.has_targets else torch.zeros_like(classes)

    def logits(self, draws: Draws, inputs: Inputs) -> Tensor:
        """Logits of classes, or numbers of a regression: (draw, example, class)."""
        numbers = logits_of(draws, inputs, output=self.read_as)
        if self.is_regression:
            return numbers
        return Output(self.read_as.kind).of_classes(numbers.flatten(0, 1)).unflatten(0, numbers.shape[:2])

    def explained(
        self, draws: Draws, explainer: str | Explainer, inputs: Inputs, classes: Tensor
    ) -> ExplanationDistribution:
        """Explain some classes. Maps of images and courses of signals are summed over their channels."""
        explainer, target = named(explainer), self.target(classes)
        e = explain(draws, explainer, inputs, target, output=self.read_as, progress=False)
        values = cast(Tensor, e.values)
        return ExplanationDistribution(values.sum(2) if values.ndim > 3 else values, target=target)


def choose(
    network: nn.Module,
    inputs: Inputs,
    posterior: str | Posterior | Draws | None,
    *,
    train: Sequence[tuple[Any, Tensor]] | None,
    read_as: Output,
    num_draws: int,
    seed: int,
) -> Networks:
    """Choose how draws are made, and make them.

    By default: dropout, if the network has any; else Laplace, if there are training examples to fit it on; else
    DropConnect in every layer, whose rate is a choice: the largest of DROP_RATES at which the draws still answer as the
    network does.

    Raises:
        TypeError, ValueError: an unknown posterior, or one that the network does not allow.
    """

    def made(draws: Draws, name: str, reason: str, draw: Callable[[nn.Module], Draws] | None = None) -> Networks:
        return Networks(network, draws, read_as, name, reason, draw)

    if isinstance(posterior, Draws):
        return made(posterior, posterior.posterior or "draws that were given", "they were given")
    if isinstance(posterior, Posterior):
        return made(posterior.sample(num_draws, seed=seed), posterior.name, "it was given")
    drops = any(can_drop(module) for module in network.modules())
    chosen = posterior or ("mc_dropout" if drops else "mc_dropconnect" if train is None else "laplace")
    if not isinstance(chosen, str):
        raise TypeError(
            f"posterior is a {type(chosen).__name__}; pass one of {', '.join(POSTERIORS)}, a posterior or draws"
        )
    check_choice(chosen, POSTERIORS, "posterior")
    if chosen == "mc_dropout":
        reason = "the network has dropout, which is kept on: a draw is one set of masks"
        return made(MCDropout(network).sample(num_draws, seed=seed), "MC-Dropout", reason, _dropout(num_draws, seed))
    if chosen == "laplace":
        if train is None:
            raise ValueError("posterior is 'laplace', which is fitted on training examples; pass them as train")
        reason = f"the network has {'dropout, but Laplace was asked for' if drops else 'no dropout'}, and training "
        reason += "examples were given: a Gaussian over its last layer, as wide as they leave it"
        fitted = Laplace(network).fit(train, output=read_as)
        return made(fitted.sample(num_draws, seed=seed), "last-layer Laplace", reason)
    reason = (
        f"the network has {'dropout, but DropConnect was asked for' if drops else 'no dropout'}; a draw leaves out "
    )
    step = -(-inputs.num_examples // TRIED)
    inputs = inputs.changed(lambda value: value[::step])
    for rate in DROP_RATES:
        draw = _dropconnect(rate, num_draws, seed)
        found = made(draw(network), f"MC-DropConnect, every layer, p = {rate:g}", "", draw)
        agreed = agreement(found, found.logits(Draws([network]), inputs)[0], found.logits(found.draws, inputs)).value
        if agreed >= AGREEMENT:
            break
    reason += f"{rate:.0%} of the weights of every layer. The rate is a choice and not fitted: the largest of "
    reason += f"{', '.join(f'{each:g}' for each in DROP_RATES)} at which the draws' mean answers as the network does "
    reason += f"({AGREEMENT:.0%} of the {'variance' if found.is_regression else 'answers'}, of "
    reason += f"{inputs.num_examples} examples)"
    reason += "" if agreed >= AGREEMENT else f"; none does, so it is the smallest, with {agreed:.0%}"
    return made(found.draws, found.name, reason, draw)


def _dropout(num_draws: int, seed: int) -> Callable[[nn.Module], Draws]:
    return lambda network: MCDropout(network).sample(num_draws, seed=seed)


def _dropconnect(rate: float, num_draws: int, seed: int) -> Callable[[nn.Module], Draws]:
    return lambda network: MCDropConnect(network, p=rate, placement="all").sample(num_draws, seed=seed)


# Answers.


def agreement(networks: Networks, own: Tensor, drawn: Tensor) -> Estimate:
    """How far the draws' mean answers as the network does: a share of examples, or of the variance of its numbers.

    Args:
        own: of the network, (N, C).
        drawn: of the draws, (S, N, C).
    """
    if not networks.is_regression:
        same = drawn.double().softmax(-1).mean(0).argmax(1) == own.argmax(1)
        return wilson(float(same.double().mean()), len(same))
    means = drawn.double().mean(0)[:, 0].numpy(), own.double()[:, 0].numpy()
    return _resampled(("agreement",), lambda a, b: np.array([_explained_share(a, b)]), *means)["agreement"]


def _explained_share(answer: np.ndarray, truth: np.ndarray) -> float:
    """R2; NaN where the truth does not vary."""
    variance = float(truth.var())
    return 1 - float(((answer - truth) ** 2).mean()) / variance if variance else math.nan


def _resampled(
    names: Sequence[str], statistic: Callable[..., np.ndarray], *tables: np.ndarray, seed: int = 0
) -> dict[str, Estimate]:
    """Several statistics of the same examples, each with its bootstrap interval."""
    found = bootstrap(statistic, *tables, num_resamples=RESAMPLES, seed=seed)
    ends = zip(*(each.tolist() for each in found), strict=True)
    return {
        name: Estimate(value, low, high, BOOTSTRAP, n=len(tables[0]))
        for name, (value, low, high) in zip(names, ends, strict=True)
    }


def answers(logits: Tensor, labels: Tensor | None, noise_variance: float, *, is_regression: bool) -> pd.DataFrame:
    """Answer, confidence (of classes) and uncertainty of each example, and whether it is right or by how much it errs.

    Args:
        logits: (draw, example, class), or numbers (draw, example, 1).
    """
    parts = decompose(logits, noise_variance, "regression" if is_regression else "logits")
    frame = pd.DataFrame({"example": range(logits.shape[1])})
    if is_regression:
        frame["answer"] = logits.double().mean(0)[:, 0].numpy()
        if labels is not None:
            frame["error"] = frame["answer"] - labels.numpy()
    else:
        confidence, answer = logits.double().softmax(-1).mean(0).max(1)
        frame["answer"], frame["confidence"] = answer.numpy(), confidence.numpy()
        if labels is not None:
            frame["right"] = (answer == labels).numpy()
    for name, values in vars(parts).items():
        frame[name] = values.flatten().numpy()
    return frame


def class_scores(logits: Tensor, labels: Tensor, seed: int) -> dict[str, Estimate]:
    """Accuracy, calibration and proper scores of the mean prediction, each with its interval over examples.

    "gap" is mean confidence less accuracy; "ece by chance" the calibration error that a perfectly calibrated network
    with these confidences would show on so few examples.
    """
    probs = logits.double().softmax(-1).mean(0)
    confidence, answer = probs.max(1)
    right = (answer == labels).double()
    names = ("nll", "brier", "ece")

    def scored(some: np.ndarray, truth: np.ndarray) -> np.ndarray:
        found = scores_of(torch.from_numpy(some)[None].log(), torch.from_numpy(truth))
        return np.array([found[name] for name in names])

    stream = torch.Generator().manual_seed(seed)
    chance = [
        expected_calibration_error(probs, torch.multinomial(probs, 1, generator=stream)[:, 0]) for _ in range(RESAMPLES)
    ]
    found = {
        "accuracy": wilson(float(right.mean()), len(right)),
        "confidence": mean_of_examples(confidence.numpy()),
        "gap": mean_of_examples((confidence - right).numpy()),
    }
    found |= _resampled(names, scored, probs.numpy(), labels.numpy(), seed=seed)
    low, high = np.quantile(chance, [0.025, 0.975])
    of = "95 % of calibrated networks with these confidences"
    found["ece by chance"] = Estimate(float(np.mean(chance)), float(low), float(high), of, n=len(labels))
    return found


def number_scores(frame: pd.DataFrame, labels: Tensor, seed: int) -> dict[str, Estimate]:
    """R2 and error of the mean answer, and the share of truths inside its 90 % interval."""

    def scored(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.array([_explained_share(answer, truth), ((answer - truth) ** 2).mean() ** 0.5])

    found = _resampled(("r2", "rmse"), scored, frame["answer"].to_numpy(), labels.numpy(), seed=seed)
    inside = frame["error"].abs() <= ndtri(TAILS[1]) * frame["total"] ** 0.5
    return found | {"coverage": wilson(float(inside.mean()), len(inside))}


# Explanations.


def measure_batch(networks: Networks, explainer: str | Explainer, inputs: Inputs) -> dict[str, Tensor]:
    """Answers of some examples, and how far their explanations move: logits (1, n, C), drawn (S, n, C), moves (n,)."""
    drawn = networks.logits(networks.draws, inputs)
    own = networks.logits(Draws([networks.network]), inputs)
    e = networks.explained(networks.draws, explainer, inputs, drawn.double().softmax(-1).mean(0).argmax(1))
    return {"logits": own, "drawn": drawn, "moves": e.cv("ratio")}


def measure_shown(networks: Networks, explainer: str | Explainer, inputs: Inputs, classes: Tensor) -> dict[str, Tensor]:
    """The maps of some examples, (n, ...) without channels.

    mean, spread (standard deviation), low and high (ends of the 90 % interval over draws), certainty (share of the
    draws that agree about the sign), and source: UA-Backprop's map, which sums to the total uncertainty in nats, or to
    the variance over draws of a regression.
    """
    e = networks.explained(networks.draws, explainer, inputs, classes)
    kind = "epistemic" if networks.is_regression else "total"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FullGrad's terms miss")  # which is a check of its own
        source = ua_backprop(networks.draws, inputs, kind, output=networks.read_as, setting="recommended").double()
    source = source.sum(1) if source.ndim > e.mean().ndim else source
    ends = {"low": e.quantile(TAILS[0]), "high": e.quantile(TAILS[1])}
    return {"mean": e.mean(), "spread": e.std(), **ends, "certainty": e.sign_agreement(), "source": source}


# Sanity checks: each gives numbers to be judged, or the reason why there are none.

Found = Tensor | str


def check_fullgrad(networks: Networks, inputs: Inputs, classes: Tensor) -> Found:
    """By how much FullGrad's terms miss the answer to each example, relative to the largest answer, (n,)."""
    seen, x, where = fixed_draws(Draws([networks.network]), inputs, networks.read_as)
    terms = fullgrad_terms(seen[0], x.to(where), networks.target(classes).to(where))
    if terms.remainder is None:
        return "the terms of a layer cannot be told apart by the examples"
    with torch.no_grad():
        largest = seen.read(x.to(where)).abs().max()
    return (terms.remainder.abs() / largest).double().cpu()


def check_maps(
    networks: Networks, explainer: str | Explainer, inputs: Inputs, classes: Tensor, others: Tensor
) -> dict[str, Found]:
    """How alike the mean map is to maps that it should differ from, and to one that it should equal.

    Args:
        classes, others: the explained class of each example, and the next likely one.

    Returns:
        Rank correlations, (n,), NaN where a map is constant. "class": with the map of the other class; "weights": with
        that of the same network with new weights; "image": with that of another example; "halves": of the mean maps of
        the two halves of the draws.
    """
    e = networks.explained(networks.draws, explainer, inputs, classes)
    mean, values, half = e.mean(), cast(Tensor, e.values).double(), e.num_draws // 2
    found: dict[str, Found] = {"class": "there is one output, and so no other class"}
    if networks.has_targets:
        found["class"] = alike(mean, networks.explained(networks.draws, explainer, inputs, others).mean())
    found["weights"] = "no layer of the network can be started anew (reset_parameters)"
    if any(hasattr(module, "reset_parameters") for module in networks.network.modules()):
        fresh = with_new_weights(networks)
        found["weights"] = alike(mean, networks.explained(fresh, explainer, inputs, classes).mean())
    found["image"] = alike(mean, other_image(mean))
    found["halves"] = alike(values[:half].mean(0), values[half:].mean(0))
    return found


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two maps of each example, (n,); NaN where one is constant."""
    return torch.from_numpy(spearman(a.flatten(1), b.flatten(1)).to_numpy(copy=True))


def with_new_weights(networks: Networks) -> Draws:
    """Draws of the same network with the weights of every layer started anew, made in the same way if they can be."""
    if networks.draw is None:
        return randomised(networks.draws, cascade(inner(networks.draws[0]))[-1])
    fresh = randomised(Draws([networks.network]), cascade(networks.network)[-1])
    return networks.draw(inner(fresh[0]))


def check_layers(networks: Networks, inputs: Inputs) -> Found:
    """How far what reaches the last layer differs from the first draw to each other, relative to its size, (S - 1,).

    What is 0 in one of the two is left out, so that draws which only drop these features, or have other weights behind
    them, differ by 0.
    """
    try:
        (name,) = weighted_layers(networks.network)
    except ValueError:
        return "it cannot be seen which layer gives the output"
    if any(name not in dict(inner(draw).named_modules()) for draw in networks.draws):
        return f"the draws have no layer {name!r}"
    first, *others = (_reaching(draw, name, inputs, networks.read_as) for draw in networks.draws)
    differences = []
    for other in others:
        both = (first != 0) & (other != 0)
        differences.append((other - first)[both].abs().mean() / first[both].abs().mean())
    return torch.stack(differences)


def _reaching(draw: nn.Module, name: str, inputs: Inputs, read_as: Output) -> Tensor:
    """What a layer of a draw is given."""
    given: list[Tensor] = []
    layer = inner(draw).get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, values: given.append(values[0].detach().double().cpu()))
    try:
        with torch.no_grad():
            Draws([draw])(inputs, read_as)
    finally:
        handle.remove()
    return given[-1]


def mean_of(found: Found) -> Estimate | str:
    """Mean over examples of what a check gave; constant maps are left out."""
    if isinstance(found, str):
        return found
    known = found[found.isfinite()]
    return mean_of_examples(known.numpy()) if len(known) > 1 else "the maps are constant"


def exactly(found: Found, statistic: Callable[[Tensor], Tensor], of: str) -> Estimate | str:
    """One number of what a check gave, which no interval is asked of."""
    if isinstance(found, str) or not found.isfinite().all():
        return found if isinstance(found, str) else "nothing reaches the last layer in two draws"
    value = float(statistic(found))
    return Estimate(value, value, value, of, n=len(found))
