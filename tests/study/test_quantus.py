"""Metrics of Quantus: equal to the library called by hand, and nothing global is moved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from core_networks import EXACT, PICTURES, TABLE, inplace_cnn, randn, seeded, table_mlp
from torch import tensor
from torch.testing import assert_close

from xuqlib import MCDropout, gradient, gradient_x_input
from xuqlib.study.judging.quantus import to_quantus


def global_state():
    numpy_state = np.random.get_state()  # noqa: NPY002 - that it stays is what is tested
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()


def faithfulness(*, model, x_batch, y_batch, a_batch, explain_func, device, channel_first):
    """What a metric of Quantus does with its arguments: explain, perturb, and evaluate, all in numpy."""
    assert a_batch is None and channel_first
    assert isinstance(x_batch, np.ndarray) and isinstance(y_batch, np.ndarray)
    explained = explain_func(model=model, inputs=x_batch, targets=y_batch, device=device)
    perturbed = x_batch + np.random.rand(*x_batch.shape)  # noqa: NPY002 - as Quantus does
    changed = explain_func(model=model, inputs=perturbed, targets=y_batch, device=device)
    return list(np.abs(explained - changed).reshape(len(x_batch), -1).sum(1))


def test_a_metric_over_draws_is_the_metric_of_each_draw_with_the_same_perturbation():
    draws, x, target = MCDropout(seeded(table_mlp)).sample(3, seed=0), randn(*TABLE), tensor([0, 2, 1, 1])
    before = global_state()
    scores = to_quantus(faithfulness, draws, gradient_x_input, x, target, seed=5)
    assert global_state() == before
    perturbed = x + torch.from_numpy(np.random.RandomState(5).rand(*x.shape))
    wanted = [gradient_x_input(draw, x, target) - gradient_x_input(draw, perturbed, target) for draw in draws]
    assert_close(tensor(np.array(scores)), torch.stack(wanted).abs().sum(2), **EXACT)  # (draw, example)


def test_a_metric_of_quantus_equals_quantus_called_by_hand():
    quantus = pytest.importorskip("quantus")
    draws = MCDropout(seeded(inplace_cnn, dtype=torch.float32)).sample(2)
    x, target = randn(*PICTURES, dtype=torch.float32), tensor([0, 2, 1])
    metric = quantus.Sparseness(disable_warnings=True)
    found = to_quantus(metric, draws, gradient, x, target)
    for draw, scores in zip(draws, found, strict=True):
        arrays = x.numpy(), target.numpy(), gradient(draw, x, target).numpy()
        names = ("x_batch", "y_batch", "a_batch")
        assert_close(scores, metric(model=draw, device="cpu", **dict(zip(names, arrays, strict=True))))


def test_an_explainer_that_gives_no_attribution_is_refused_in_our_words():
    with pytest.raises(ValueError, match="not an attribution shaped like x"):
        to_quantus(faithfulness, [seeded(table_mlp).eval()], lambda network, x, target: x.sum(), randn(*TABLE), 1)
