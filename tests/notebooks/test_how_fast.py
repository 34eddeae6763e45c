"""The races of notebook 13, without a clock that can be late, and its loop over draws and classes."""

from __future__ import annotations

import pytest
import torch
from clocks import moving
from notebook_cells import definitions
from torch import nn

from xuqlib import DeepEnsemble, gradient, integrated_gradients, ua_backprop

CELLS = definitions("13", num_rounds=2, vae=None)
race = CELLS.race


def test_a_race_compares_with_its_first_candidate_and_with_the_plain_loop(clock):
    layer, x = nn.Linear(3, 2), torch.ones(5, 3)
    plain = torch.tensor([3.0, 4.0])

    def loop():
        layer(x)
        return moving(clock, 2.0, (plain, plain))()

    ways = {
        "rival": moving(clock, 4.0),
        "plain loop": loop,
        "float32": moving(clock, 1.0, (plain, plain + torch.tensor([0.0, 0.5]))),
        "bfloat16": moving(clock, 0.5, (plain * 1.5, plain)),
    }
    found = race("a pair", ways, {"float32": 3.0, "bfloat16": None}, examples=2, draws=7).set_index("candidate")
    assert set(found["pair"]) == {"a pair"} and set(found["baseline"]) == {"rival"} and set(found["draws"]) == {7}
    assert list(found["ratio"]) == [1.0, 2.0, 4.0, 8.0]
    assert found.loc["float32", "target"] == 3.0 and found["target"].isna().sum() == 3
    assert set(found["flops"]) == {2.0 * 5 * 3 * 2}
    assert list(found.loc["float32", ["mean_off", "std_off"]]) == pytest.approx([0.0, 0.5 / 5])
    assert found.loc["bfloat16", "mean_off"] == pytest.approx(0.5)
    assert found.loc[["rival", "plain loop"], ["mean_off", "std_off"]].isna().all(axis=None)


def test_a_candidate_that_does_a_share_of_the_work_is_charged_for_all_of_it(clock):
    ways = {"rival": moving(clock, 2.0), "float32": moving(clock, 4.0)}
    found = race("few", ways, {}, examples=1, draws=1, share=0.1).set_index("candidate")
    assert found.loc["rival", "median"] == pytest.approx(20.0)
    assert found.loc["float32", "ratio"] == pytest.approx(5.0)
    assert "flops" not in found


def test_a_competition_races_the_loop_and_the_runners_that_have_a_target(clock):
    stack = DeepEnsemble([nn.Linear(3, 2).eval() for _ in range(2)]).sample
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    rival = {"rival": moving(clock, 4.0)}
    shown = CELLS.compete("a pair", {"float32": 2}, rival, stack, integrated_gradients, x, y, num_steps=3)
    assert list(shown["candidate"]) == ["rival", "plain loop", "float32"]
    found = CELLS.races["a pair"]
    assert found[["examples", "draws", "steps"]].drop_duplicates().to_numpy().tolist() == [[4, 2, 3]]
    assert found["mean_off"].max() < 1e-6 and list(CELLS.entries["a pair"]) == list(shown["candidate"])


def test_our_mean_alone_is_that_of_all_maps():
    sample = DeepEnsemble([nn.Linear(3, 2).eval() for _ in range(2)]).sample
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    loop = CELLS.MEAN_RUNNERS["plain loop"](sample, gradient, x, y)
    (mean,) = CELLS.MEAN_RUNNERS["float32"](sample, gradient, x, y)
    assert torch.allclose(mean.to(loop[0]), loop[0])


def test_the_loop_over_draws_and_classes_gives_the_same_map():
    build = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double()  # noqa: E731
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws, x = DeepEnsemble([build().eval() for _ in range(2)]).sample(), torch.rand(4, 1, 5, 5).double()
    assert torch.allclose(CELLS.one_by_one(draws, x)[0], ua_backprop(draws, x), rtol=1e-10, atol=1e-14)
