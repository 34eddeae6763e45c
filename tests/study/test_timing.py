"""Ratios and rates by hand, without a clock that can be late; memory of calls that hold a known amount."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from clocks import moving
from torch import nn

from xuqlib.study.figures.charts import dots
from xuqlib.study.judging import timing
from xuqlib.study.judging.timing import bound, by_operation, flops, interleaved, peak_memory, peak_rates, speedups, work

TIMES = pd.DataFrame(
    {
        "candidate": ["loop", "ours"] * 3,
        "round": [0, 0, 1, 1, 2, 2],
        "seconds": [4.0, 2.0, 6.0, 2.0, 20.0, 5.0],
    }
)


@pytest.fixture
def resident(monkeypatch):
    """Measure resident memory, also where there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_round_runs_each_candidate_once_and_begins_with_another():
    called = []
    frame = interleaved({name: lambda name=name: called.append(name) for name in "abc"}, num_rounds=3, warm_up=1)
    assert "".join(called) == "cab" + "abc" + "bca" + "cab"
    assert "".join(frame["candidate"]) == "abc" + "bca" + "cab"  # the first round does not count
    assert list(frame["round"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_seconds_are_those_of_the_candidate_alone(clock):
    frame = interleaved({"slow": moving(clock, 3.0), "fast": moving(clock, 0.5)}, num_rounds=2)
    assert dict(zip(frame["candidate"], frame["seconds"], strict=True)) == {"slow": 3.0, "fast": 0.5}


def test_no_result_is_kept_and_the_collector_is_as_before():
    class Result:
        pass

    made = []

    def candidate():
        assert all(result() is None for result in made)
        result = Result()
        made.append(weakref.ref(result))
        return result

    frozen = gc.get_freeze_count()
    interleaved({"a": candidate}, num_rounds=2)
    assert [result() for result in made] == [None] * 3
    assert gc.get_freeze_count() == frozen


def test_a_candidate_that_fails_leaves_the_collector_as_it_was():
    frozen = gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0})
    assert gc.get_freeze_count() == frozen


def test_ratios_are_of_medians_and_their_range_is_over_rounds():
    found = speedups(TIMES, "loop").set_index("candidate")
    assert list(found.index) == ["loop", "ours"]
    assert dict(found.loc["ours"]) == {
        **{"median": 2.0, "low": 2.0, "high": 5.0},
        **{"ratio": 3.0, "ratio_low": 2.0, "ratio_high": 4.0},
    }
    assert list(found.loc["loop", ["ratio", "ratio_low", "ratio_high"]]) == [1.0, 1.0, 1.0]


def test_a_baseline_that_was_not_timed_is_refused():
    with pytest.raises(ValueError, match="baseline 'captum' was not timed; choose one of loop, ours"):
        speedups(TIMES, "captum")


def test_a_dense_layer_multiplies_and_adds_once_per_weight_and_row():
    layer, x = nn.Linear(7, 3).requires_grad_(False), torch.ones(5, 7)
    assert flops(lambda: layer(x)) == 2 * 5 * 7 * 3

    def slope():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(layer(leaf.clone()).sum(), leaf)

    assert flops(slope) == 2 * (2 * 5 * 7 * 3)  # the same again on the way back to the input


def test_a_rate_is_work_over_the_best_time(monkeypatch):
    def in_half_a_second(calls, *, num_rounds, warm_up):
        rows = [(name, number, 0.5 + number) for name in calls for number in range(num_rounds)]
        return pd.DataFrame(rows, columns=["candidate", "round", "seconds"])

    monkeypatch.setattr(timing, "interleaved", in_half_a_second)
    rates = peak_rates("cpu", torch.float32).set_index("operation")["rate"]
    assert rates["matmul 1024"] == 2 * 1024**3 / 0.5
    assert rates["convolution 64, 32x32"] == 2 * (32 * 64 * 32 * 32) * (64 * 9) / 0.5
    assert np.isfinite(rates).all() and len(rates) >= 5


def test_a_profile_holds_what_was_called_and_its_shares_add_up():
    matrix = torch.ones(64, 64)
    found = by_operation(lambda: torch.relu(matrix @ matrix)).set_index("operation")
    assert {"aten::mm", "aten::relu"} <= set(found.index)
    assert found["share"].sum() == pytest.approx(1.0)
    assert (found["seconds"].diff().dropna() <= 0).all()


def test_a_call_that_holds_200_megabytes_peaks_200_megabytes_higher(resident):
    fill = "held = bytearray(b'x') * 200_000_000"
    high, low = peak_memory([fill, "pass"])  # the second does not see what the first held
    assert 198e6 < high - low < 225e6


def test_what_this_process_holds_does_not_count(resident):
    held = bytearray(b"x") * 300_000_000
    assert peak_memory(["pass"])[0] < 100e6 < len(held)


def test_setup_comes_before_each_call_and_its_memory_counts(resident):
    high = peak_memory(["assert len(held) == 10**8"] * 2, setup="held = bytearray(b'x') * 10**8")
    assert min(high) > 100e6


def test_a_call_that_fails_says_why(resident):
    with pytest.raises(RuntimeError, match="ValueError: no such thing"):
        peak_memory(["raise ValueError('no such thing')"])


def test_dots_show_each_row_its_range_and_its_target():
    frame = pd.DataFrame(
        {
            "pair": ["first", "second", "first"],
            "who": ["a", "a", "b"],
            "ratio": [2.0, 4.0, 8.0],
            "low": [1.5, 3.0, 8.0],
            "high": [3.0, 4.5, 8.0],
            "target": [2.5, np.nan, 9.0],
        }
    )
    options = {"low": "low", "high": "high", "interval": "range", "target": "target", "log": True}
    axes = dots(frame, x="ratio", y="pair", hue="who", label="times", **options).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is at the top
    assert axes.get_xlabel() == "times (line: range)"
    assert axes.get_xscale() == "log"
    lines = {line.get_marker(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines["o"] == [2.0, 4.0] and lines["s"] == [8.0]
    ends = [segment[:, 0].tolist() for group in axes.collections for segment in group.get_segments()]
    assert ends == [[1.5, 3.0], [3.0, 4.5], [8.0, 8.0]]
    bars = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "|"]
    np.testing.assert_equal(bars, [[2.5, np.nan], [9.0]])


def test_a_range_of_dots_needs_to_say_what_it_is_of():
    with pytest.raises(ValueError, match="an interval needs a label"):
        dots(TIMES, x="seconds", y="candidate", low="seconds", high="seconds", label="s")


def test_the_bound_is_the_best_time_of_each_product_as_often_as_it_came(monkeypatch):
    layer, convolution, x = nn.Linear(3, 7), nn.Conv2d(2, 4, 3), torch.rand(5, 3)
    image = torch.rand(1, 2, 9, 9).to(memory_format=torch.channels_last)
    replayed, ticks = [], itertools.cycle([0.0, 9.0, 0.0, 0.5, 0.0, 0.25, 0.0, 1.0])  # warm up, then three tries
    monkeypatch.setattr(timing, "perf_counter", lambda: next(ticks))
    like = timing._Like.tensor
    monkeypatch.setattr(timing._Like, "tensor", lambda self: replayed.append(like(self)) or replayed[-1])

    def work():
        with torch.no_grad():
            layer(x), layer(2 * x), convolution(image)

    assert bound(work, num_tries=3) == 2 * 0.25 + 0.25  # the linear layer came twice
    shapes = {tuple(tensor.shape): tensor for tensor in replayed}
    assert {(5, 3), (1, 2, 9, 9)} <= set(shapes)
    assert shapes[1, 2, 9, 9].is_contiguous(memory_format=torch.channels_last)


def test_a_call_without_products_has_no_bound():
    a = torch.rand(4, 4)
    assert bound(lambda: a + a) == 0.0


def test_work_counts_products_bytes_and_operations_but_not_looks():
    a, b = torch.rand(4, 6), torch.rand(6, 2, dtype=torch.float64).float()
    assert work(lambda: a.T.T @ b) == (2 * 4 * 6 * 2, 4 * (24 + 12 + 8), 1)
    assert work(lambda: a + 1) == (0, 4 * (24 + 24), 1)
    assert work(lambda: a.view(-1)) == (0, 0, 0)
