"""A cell of the matrix: one network, posterior and explainer, against the plain loop over draws, row by row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matrix_networks import CASES, Case, made
from torch import Tensor, nn

from xuqlib import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, ua_backprop, uncertainties
from xuqlib.explain import explain
from xuqlib.explainers import EXPLAINERS
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.inputs import as_inputs
from xuqlib.outputs import Output, as_output
from xuqlib.posteriors.base import Posterior

NUM_DRAWS = 2
EXACT, ROUNDING = 1e-10, 1e-12  # of the largest number; and of answers of about 1, whose slope may be 0 but for it


def dropout(case: Case, network: nn.Module) -> Posterior:
    return MCDropout(network)


def ensemble(case: Case, network: nn.Module) -> Posterior:
    return DeepEnsemble([network, made(case, seed=1)])


def dropconnect(case: Case, network: nn.Module) -> Posterior:
    return MCDropConnect(network, p=0.2, placement="all")


def flipout(case: Case, network: nn.Module) -> Posterior:
    return Flipout(network, placement="last" if case.layer is None else [case.layer])


def laplace(case: Case, network: nn.Module) -> Posterior:
    inputs = as_inputs(case.given)
    x = inputs.values[inputs.explained] if len(inputs.values) == 1 else case.given
    y = torch.arange(inputs.num_examples) % case.targets if isinstance(case.targets, int) else case.targets
    known = as_output(case.output).kind in (None, "logits", "regression")
    return Laplace(network, layer=case.layer).fit([(x, y)], output=case.output if known else None)


POSTERIORS: dict[str, Callable[[Case, nn.Module], Posterior]] = {
    "mc_dropout": dropout,
    "deep_ensemble": ensemble,
    "mc_dropconnect": dropconnect,
    "flipout": flipout,
    "laplace": laplace,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "gradient_x_input": {},
    "guided_backprop": {},
    "integrated_gradients": {"num_steps": 2},
    "smoothgrad": {"num_samples": 2},
    "lime": {"num_samples": 6},
    "fullgrad": {},
    "ua_backprop": {},
    "ua_backprop of gradients": {"explainer": "gradient"},
}


@functools.lru_cache(maxsize=1)
def network_of(name: str) -> nn.Module:
    return made(CASES[name])


@functools.lru_cache(maxsize=1)
def draws_of(name: str, posterior: str) -> Draws:
    """Draws that answer for a row alone as in its batch, and differ."""
    case = CASES[name]
    draws = POSTERIORS[posterior](case, network_of(name)).sample(NUM_DRAWS, seed=3)
    seen, x = draws.seen(case.given, case.output)
    with torch.no_grad():
        answers = torch.stack([network(x) for network in seen])
        alone = [torch.cat([seen.at(one)[s](x[one]) for one in rows(len(x))]) for s in range(NUM_DRAWS)]
    assert_equal(torch.stack(alone), answers)
    assert (answers[0] - answers[1]).abs().max() > 1e-6 * answers.abs().max(), "the draws do not differ"
    return draws


def slopes_by_hand(case: Case, draws: Draws, target: Tensor) -> Tensor:
    """The gradient of each target of each row, (draw, example, ...), of the draws themselves, without a view."""
    given = as_inputs(case.given)

    def answer(draw: nn.Module, x: Tensor, row: slice) -> Tensor:
        values = {key: value[row] for key, value in given.values.items()} | {given.explained: x}
        by_place, by_name = (
            [values[k] for k in values if isinstance(k, int)],
            {k: v for k, v in values.items() if isinstance(k, str)},
        )
        said = draw(*by_place, **by_name)
        key = case.output[0] if isinstance(case.output, tuple) else case.output
        if not isinstance(said, Tensor | tuple) and key is not None:
            said = said[key]
        said = torch.cat(said, 1) if isinstance(said, tuple) else said
        return said[:, None] if said.dim() == 1 else said

    slopes = torch.zeros(len(draws), *given.x.shape, dtype=torch.float64)
    for n, row in enumerate(rows(len(given.x))):
        with torch.no_grad():
            said = torch.stack([answer(draw, given.x[row], row) for draw in draws])
        weights = torch.ones_like(said[0, 0])  # of a segmentation: the places where the class is the most probable
        if said.dim() > 3:
            best = said.softmax(2).mean(0)[0].argmax(0)
            kinds = torch.arange(said.shape[2])[:, None, None]
            weights = (best == kinds).double() if len(kinds) > 1 else (said.sigmoid().mean(0)[0] > 0.5).double()
        for s, draw in enumerate(draws):
            x = given.x[row].clone().requires_grad_()
            chosen = (answer(draw, x.clone(), row)[0] * weights)[target[n]].sum()
            slopes[s, row] = torch.autograd.grad(chosen, x)[0]
    return slopes


class Cell(NamedTuple):
    network: str
    posterior: str
    explainer: str

    def check(self) -> None:
        """Assert that the library's answer is the plain loop's.

        Raises:
            TypeError, ValueError: the library refuses this cell.
        """
        case, draws = CASES[self.network], draws_of(self.network, self.posterior)
        if self.explainer.startswith("ua_backprop"):
            self._check_uncertainty(case, draws)
            return
        options = dict(OPTIONS[self.explainer])
        if self.explainer == "lime":
            options |= case.lime or {"num_segments": 4} if as_inputs(case.given).x.dim() == 4 else case.lime
        function = {**EXPLAINERS, "fullgrad": fullgrad}[self.explainer]
        seen, x = draws.seen(case.given, case.output)
        with torch.no_grad():
            target = torch.arange(len(x)) % seen[0](x).reshape(len(x), -1).shape[1]
        e = explain(draws, function, case.given, target, output=case.output, **options)
        loop = [
            torch.cat([function(seen.at(one)[s], x[one], target[one], **options) for one in rows(len(x))])
            for s in range(len(draws))
        ]
        assert_equal(e.values, torch.stack(loop))
        assert e.values.abs().max() > 0
        if self.explainer == "gradient" and not as_inputs(case.given).are_tokens:
            assert_equal(e.values, slopes_by_hand(case, draws, target))

    def _check_uncertainty(self, case: Case, draws: Draws) -> None:
        output, options = as_output(case.output), OPTIONS[self.explainer]
        if output.kind == "segmentation":  # of one place, as an entropy is
            output = Output("segmentation", output.key, where=(3, 4))
        kinds = {}
        for kind in ("total", "epistemic"):
            kinds[kind] = ua_backprop(draws, case.given, kind, output=output, **options)
        inputs = as_inputs(case.given)
        alone = [ua_backprop(draws, inputs.at(one), output=output, **options) for one in rows(inputs.num_examples)]
        assert_equal(kinds["epistemic"], torch.cat(alone))
        split = vars(uncertainties(draws, case.given, output=output))
        for kind, attribution in kinds.items():
            wanted = split[kind][:, 3, 4] if output.kind == "segmentation" else split[kind]
            wanted = wanted.sum(1) if wanted.dim() == 2 else wanted  # of a regression of several numbers
            assert_equal(attribution.flatten(1).sum(1), wanted)


def rows(count: int) -> list[slice]:
    return [slice(row, row + 1) for row in range(count)]


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert one.dtype == torch.float64 and other.isfinite().all()
    error, size = float((one - other).abs().max()), float(other.abs().max())
    assert error <= EXACT * size + ROUNDING, f"off by {error:.2g}, of {size:.2g}"
