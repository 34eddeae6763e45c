"""The checks of a report: what each asks, when it is passed, what its outcome means, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from xuqlib.study.intervals import Estimate

LIGHTS = {True: "passed", False: "failed", None: "unclear"}
UNCLEAR = "The interval reaches both sides of the bound: "
OF_ALL = ("chance", "r2", "gap", "coverage", "agree")  # others are measured on a few examples, however many there are


class Check(NamedTuple):
    """A question with bounds; the bounds are choices. It is passed, or failed, where the whole interval says so."""

    question: str
    measured: str
    rule: str  # "above" or "below" the first bound, or "between" both
    bounds: tuple[float, ...]
    passed: str
    failed: str
    advice: str


CHECKS = {
    "chance": Check(
        "Is it better than always giving the most frequent answer?",
        "accuracy, against the share of the most frequent class",
        "above",
        (math.nan,),  # that share
        "It has learned something about these examples.",
        "The examples may not reach the network as in its training.",
        "Compare normalisation (mean, std), image size, channels and the order of the classes with the training.",
    ),
    "r2": Check(
        "Is it better than always giving the mean?",
        "R2, the share of the variance that it explains",
        "above",
        (0.0,),
        "It has learned something about these examples.",
        "The examples may not reach the network as in its training.",
        "Compare the scales of the columns and of the target with those of the training.",
    ),
    "gap": Check(
        "Is its confidence as large as its accuracy?",
        "mean confidence less accuracy, of the network as it is",
        "between",
        (-0.05, 0.05),
        "On the whole, its confidence can be read as a probability of being right.",
        "Its confidence is no probability of being right: above 0 it is too sure, below 0 not sure enough.",
        "Fit a temperature on examples that were held out, and make this report again.",
    ),
    "coverage": Check(
        "Do its 90 % intervals hold the truth nine times out of ten?",
        "share of the truths inside the draws' 90 % interval",
        "between",
        (0.85, 0.95),
        "The spread of the answers is about as wide as the errors are.",
        "The spread of the answers is not as wide as the errors: below 0.9 too narrow. A posterior without a measured "
        "noise of the target (all but Laplace) leaves that noise out.",
        "Pass training examples, so that Laplace measures the noise, or set the posterior's noise_variance.",
    ),
    "agree": Check(
        "Do the draws answer as the network does?",
        "share of the answers that their mean shares with the network (of numbers: of their variance)",
        "above",
        (0.9,),
        "What is said of the draws is said of networks like yours.",
        "The draws are other networks: what is said of them is not about yours.",
        "Choose another posterior, or DropConnect at a smaller rate: pass MCDropConnect(network, p=...).",
    ),
    "layers": Check(
        "Are the draws more than dropout on the last layer?",
        "how far the features that reach the last layer differ between draws, relative to their size",
        "above",
        (0.01,),
        "The features differ, too, so the draws can doubt them.",
        "All draws read the same features: what these are blind to, no draw can doubt. The spread is that of the last "
        "layer alone.",
        "Choose posterior 'mc_dropconnect', or train a few networks and pass DeepEnsemble([...]).",
    ),
    "halves": Check(
        "Do the two halves of the draws give the same mean map?",
        "rank correlation of the halves' mean maps: the noise ceiling of everything below",
        "above",
        (0.7,),
        "The draws are enough for the mean maps.",
        "The mean maps are mostly noise of the draws.",
        "Take more draws (num_draws), or a steadier explainer such as 'integrated_gradients'.",
    ),
    "weights": Check(
        "Does the map change when the weights are random?",
        "rank correlation with the map of the same network with new weights",
        "below",
        (0.5,),
        "The map depends on what the network has learned.",
        "The map shows the examples and the architecture, not what the network has learned.",
        "Do not use this explainer on this network; 'integrated_gradients' and 'gradient_x_input' are others.",
    ),
    "class": Check(
        "Does another class have another map?",
        "rank correlation with the map of the next likely class",
        "below",
        (0.5,),
        "The map is about the answer.",
        "The map is blind to the class: it shows what is there, not why this answer was given.",
        "Do not read the map as a reason for this answer; choose another explainer.",
    ),
    "image": Check(
        "Does each example have a map of its own?",
        "rank correlation with the map of another example",
        "below",
        (0.5,),
        "The map is about the example.",
        "The maps are much alike, whatever the example: a linear network, or one that looks at places.",
        "Compare maps of several examples before a single one is believed.",
    ),
    "source": Check(
        "Does the uncertainty of each example come from a place of its own?",
        "rank correlation of the maps of where the uncertainty comes from with that of another example, of those shown",
        "below",
        (0.5,),
        "The maps of where the uncertainty comes from are about the example.",
        "The maps of where the uncertainty comes from are much alike, whatever the example.",
        "Do not read a place into the maps of where the uncertainty comes from; ua_replacement gives others.",
    ),
    "fullgrad": Check(
        "Does FullGrad add up?",
        "largest miss of its terms, relative to the largest answer",
        "below",
        (1e-3,),
        "The maps of where the uncertainty comes from rest on terms that add up to the answer.",
        "The network is not piecewise linear (a smooth activation, attention, LayerNorm, a softmax). The maps of where "
        "the uncertainty comes from still add up to it, but rest on terms that miss a part of the answer.",
        "Read those maps with care; ua_backprop(..., explainer='integrated_gradients') is another.",
    ),
}
NOT_TESTED = (
    "Whether another training of the same network would answer and explain alike: one training was looked at, and no "
    "interval here speaks of another. Draws of one training tend to understate it.",
    "Other data: corrupted, of another source, of kinds that the network has never seen, or made to deceive it.",
    "Whether a map is right. Nobody said where the evidence lies; the checks find maps that cannot be right.",
    "Other explainers, other posteriors and other baselines than those named above.",
    "Whether people understand these maps, or decide better with them.",
    "Groups within the data: a number for all examples can hide a group on which the network fails.",
)


class Outcome(NamedTuple):
    """How a check ended: passed, failed, unclear or not asked; the estimate, if any; what that means; what to do."""

    name: str
    light: str
    estimate: Estimate | None
    bound: str
    meaning: str
    advice: str


def judge(
    measured: Mapping[str, Estimate | str], bounds: Mapping[str, tuple[float, ...]] | None = None
) -> list[Outcome]:
    """Judge every check that was measured, in the order of CHECKS.

    Args:
        measured: by name, an estimate, or the reason why there is none.
        bounds: that replace those of CHECKS.
    """
    outcomes = []
    for name, check in CHECKS.items():
        found = measured.get(name)
        if isinstance(found, str):
            outcomes.append(Outcome(name, "not asked", None, "", f"It cannot be asked: {found}.", ""))
        elif found is not None:
            ends = (bounds or {}).get(name, check.bounds)
            if check.rule == "between":
                holds = found.between(*ends)
            else:
                above = found.above(ends[0])
                holds = above if check.rule == "above" or above is None else not above
            unclear = UNCLEAR + ("take more examples." if name in OF_ALL else "these few examples do not decide it.")
            meaning = {True: check.passed, False: check.failed, None: unclear}[holds]
            bound = f"{check.rule} {' and '.join(f'{end:.3g}' for end in ends)}"
            outcomes.append(Outcome(name, LIGHTS[holds], found, bound, meaning, "" if holds else check.advice))
    return outcomes
