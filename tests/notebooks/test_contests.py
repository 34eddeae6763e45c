"""Notebook 06, orders against each other: maps, curves, paired differences and claims, by hand; every figure."""

from __future__ import annotations

import ipywidgets
import pandas as pd
import pytest
import torch
from core_networks import two_networks
from helpers import n06
from notebook_cells import definitions
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.metrics.deletion import deletion, insertion, pixel_order
from xuqlib.study.judging.controls import other_image, random_order, sobel

TARGET = torch.tensor([0, 1, 2, 0, 1])
cells = definitions("06")


def images(num_examples=5, size=8):
    return torch.rand(num_examples, 3, size, size, generator=torch.Generator().manual_seed(0))


def by_gradient(draws, x, target):
    return xuq.explain(draws, xuq.gradient, x, target, progress=False)


def areas(*rows):
    return pd.DataFrame(rows, columns=["posterior", "ordering", "curve", "seed", "example", "auc"])


def test_maps_in_blocks_are_those_of_all_at_once():
    x, draws = images(103), xuq.Draws(two_networks())
    maps = cells.maps_of(by_gradient, draws, x, torch.zeros(103, dtype=torch.long))
    e = by_gradient(draws, x, torch.zeros(103, dtype=torch.long))
    assert_close(maps["mean"], e.values.abs().sum(2).mean(0).double())
    assert_close(maps["std"], e.values.abs().sum(2).double().std(0, correction=0))
    assert_close(maps["signed"], e.values.sum(2).mean(0), check_dtype=False)
    for example in (0, 101, 102):
        assert_close(maps["single"][example], e.values[example % 2, example].abs().sum(0).double())


@pytest.mark.filterwarnings("ignore:LIME hides nothing")  # whose superpixels are single pixels of 8 x 8
def test_every_order_of_the_notebook_ranks_each_pixel_once():
    x, draws = images(), two_networks()
    found = cells.contest(
        draws,
        x,
        TARGET,
        explainers=cells.EXPLAINERS,
        orders=cells.ORDERS,
        blind={},
        still=draws[:1],
        num_steps=4,
    )
    assert set(found) == {
        (explainer, order, curve)
        for explainer in cells.EXPLAINERS
        for order in cells.ORDERS
        for curve in ("deletion", "insertion")
    }
    for explainer in ("guided_backprop", "integrated_gradients"):
        maps = cells.maps_of(cells.EXPLAINERS[explainer], draws, x, TARGET)
        for name, each in (("other_image", other_image(maps["mean"])), ("reversed", -maps["mean"])):
            expected = deletion(draws, x, pixel_order(each), TARGET, num_steps=4)
            assert_close(found[explainer, name, "deletion"], expected)


def test_a_contest_scores_each_order_as_the_curves_do_and_shares_the_blind_ones():
    x, draws = images(), two_networks()
    blind, first = {"random": random_order(5, (8, 8))}, draws[:1]
    cells = definitions("06", num_lime=3)
    orders = {
        "mean": lambda run: run.maps["mean"],
        "first": lambda run: cells.mean_map_of(run, first),
        "mean x edges": lambda run: run.maps["mean"] * sobel(run.x),
    }
    explainers = {"gradient": by_gradient, "lime": by_gradient}
    found = cells.contest(draws, x, TARGET, explainers=explainers, orders=orders, blind=blind, num_steps=4)
    assert {name for explainer, name, _ in found if explainer == "lime"} == {*orders, "random"}
    maps = cells.maps_of(by_gradient, first, x[:3], TARGET[:3])
    expected = insertion(draws, x[:3], pixel_order(maps["mean"]), TARGET[:3], num_steps=4)
    assert_close(found["lime", "first", "insertion"], expected)
    expected = deletion(draws, x, blind["random"], TARGET, num_steps=4)
    assert_close(found["gradient", "random", "deletion"], expected)
    assert_close(found["lime", "random", "deletion"], expected[:3])


def test_a_contest_replaces_pixels_by_what_it_is_told():
    x, draws, blind = images(), two_networks(), {"random": random_order(5, (8, 8))}
    fills = {"deletion": "mean_colour", "insertion": "black"}
    found = cells.contest(
        draws, x, TARGET, explainers={"gradient": by_gradient}, orders={}, blind=blind, num_steps=4, fills=fills
    )
    expected = deletion(draws, x, blind["random"], TARGET, fill="mean_colour", num_steps=4)
    assert_close(found["gradient", "random", "deletion"], expected)
    expected = insertion(draws, x, blind["random"], TARGET, fill="black", num_steps=4)
    assert_close(found["gradient", "random", "insertion"], expected)


CURVE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.52]])
SCORES = {("ig", "mean", kind): CURVE for kind in ("deletion", "insertion")}


def test_tables_hold_every_area_and_every_mean_curve():
    table = cells.areas_of(SCORES).query("curve == 'deletion'")
    assert table["auc"].tolist() == pytest.approx([0.25, 0.505])
    assert table["range"].tolist() == pytest.approx([1.0, 0.02])
    steps = n06.mean_curves(SCORES, ["ig"], ["mean"]).query("curve == 'insertion'")
    assert steps["share"].tolist() == [0.0, 0.5, 1.0]
    assert steps["score"].tolist() == pytest.approx([0.75, 0.25, 0.26])
    assert (steps["high"] - steps["score"]).tolist() == pytest.approx([0.5, 0.5, 0.52])  # twice half the difference


def test_mean_areas_average_trainings_before_examples():
    table = areas(*(("p", "mean", "deletion", seed, example, auc) for seed, example, auc in
                    [(0, 0, 0.1), (1, 0, 0.3), (0, 1, 0.4), (1, 1, 0.4)]))  # fmt: skip
    found = n06.mean_areas(table, ["posterior", "ordering", "curve"]).iloc[0]
    assert found["n"] == 2
    assert found["fill"] == "black"
    assert found["auc"] == pytest.approx(0.3)
    assert found["high"] == pytest.approx(0.3 + 2 * 0.1)  # standard error of 0.2 and 0.4


def test_an_advantage_is_positive_where_the_ordering_is_better_and_averages_trainings_first():
    def rows(ordering, curve, *each):
        return [("p", ordering, curve, seed, 0, auc) for seed, auc in enumerate(each)]

    table = [*rows("a", "deletion", 0.1, 0.3), *rows("b", "deletion", 0.5, 0.6)]
    table = areas(*table, *rows("a", "insertion", 0.9, 0.8), *rows("b", "insertion", 0.6, 0.7))
    found = cells.advantage(table, "a", "b").set_index("curve")["advantage"]
    assert found.to_dict() == pytest.approx({"deletion": 0.35, "insertion": 0.2, "both": 0.55})
    assert len(cells.advantage(table, "a", "b", ["seed"])) == 6


def test_an_advantage_leaves_out_what_only_one_side_measured():
    one = ("p", "a", "deletion", 0, 0, 0.5)
    table = areas(one, ("p", "b", "deletion", 0, 0, 0.5), ("q", "a", "deletion", 0, 0, 0.5))
    assert set(cells.advantage(table, "a", "b", ["posterior"])["posterior"]) == {"p"}


def test_deletion_and_insertion_are_two_claims_of_each_case_and_never_added():
    study = xuq.Notebook("06", preset="quick", seed=0, dataset="toy")
    keys = {"posterior": "p", "explainer": "ig", "example": [0, 1, 2]}
    each = {"deletion": [0.010, 0.011, 0.012], "insertion": [-3.0, -2.0, -4.0], "both": [9.0, 9.0, 9.0]}
    gains = pd.concat([pd.DataFrame({**keys, "curve": kind, "advantage": gain}) for kind, gain in each.items()])
    cells.judge_gains(study, gains, by=["posterior", "explainer"], what="a is better", claim="C2")
    assert [claim["statement"] for claim in study._claims] == [
        "p, ig, deletion: a is better",
        "p, ig, insertion: a is better",
    ]
    assert [claim["claim"] for claim in study._claims] == ["C2 deletion", "C2 insertion"]
    assert [claim["value"] for claim in study._claims] == pytest.approx([0.011, -3])
    assert [claim["verdict"] for claim in study._claims] == ["holds", "fails"]


def test_figures_show_every_panel_line_and_dot():
    figure = n06.curve_lines(n06.mean_curves(SCORES, ["ig"], ["mean"]), title="curves")
    assert [axes.get_title() for axes in figure.axes] == ["ig,\ndeletion", "ig,\ninsertion"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx([0.75, 0.25, 0.26])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean"]
    table = cells.areas_of(SCORES).assign(posterior="p", dataset="d")
    frame = n06.mean_areas(table, ["dataset", "posterior", "explainer", "ordering", "curve"])
    figure = n06.area_dots(pd.concat([frame, frame.assign(ordering="random", auc=0.0, low=-0.1, high=0.1)]))
    assert figure.axes[0].lines[-1].get_xdata().tolist() == pytest.approx([(0.25 + 0.505) / 2])
    assert figure.legends[0].get_title().get_text() == f"area under the curve\nLine: {n06.OVER_EXAMPLES}."
    assert (
        figure.get_suptitle().replace("\n", " ").endswith("by deletion in 0 of 1 cases, by insertion in 1 of 1 cases")
    )


def test_gains_are_drawn_with_their_mean_and_a_line_at_zero():
    gains = pd.DataFrame({"case": "a", "curve": "deletion", "advantage": [0.1, 0.3], "example": [0, 1]})
    figure, frame = n06.gain_dots(gains, y="case", hue="curve", label="gain", title="")
    assert frame["advantage"].tolist() == pytest.approx([0.2])
    assert figure.axes[0].lines[-1].get_xdata() == [0, 0]


def steps_of_deletion():
    x, draws = images(1), two_networks()
    orders = {"first": torch.arange(64)[None], "random": random_order(1, (8, 8))}
    return x, draws, orders, n06.deletion_steps(draws, x, orders, TARGET[:1], num_steps=4)


def test_the_steps_of_deletion_are_those_of_its_curve_with_the_share_in_words():
    x, draws, orders, steps = steps_of_deletion()
    assert len(steps) == 2 * 2 * 5
    part = steps.query("fill == 'blurred' and ordering == 'random'")
    assert part["deleted"].tolist() == ["0%", "25%", "50%", "75%", "100%"]
    expected = deletion(draws, x, orders["random"], TARGET[:1], fill="blurred", num_steps=4)[0]
    assert part["score"].tolist() == pytest.approx(expected.tolist())


def test_a_look_shows_the_image_that_is_left_and_the_point_on_its_own_curve():
    x, _, orders, steps = steps_of_deletion()
    row = steps.query("fill == 'black' and ordering == 'first' and share == 0.25").iloc[0]
    figure, sentence = n06.deletion_look(steps, x, orders, row, dataset="planted")
    shown = torch.from_numpy(figure.axes[0].images[0].get_array().data).permute(2, 0, 1)
    assert shown[:, :2].abs().max() == 0  # the first quarter of the pixels in order of reading
    assert_close(shown[:, 2:], x[0, :, 2:])
    *curves_of, point = figure.axes[1].lines
    assert [line.get_color() for line in curves_of] == ["black", "0.7"]
    assert curves_of[0].get_ydata()[1] == point.get_ydata()[0] == row["score"]
    assert sentence == f"25% of the pixels deleted: probability of the class {row['score']:.2f}."


def test_people_are_not_shown_however_few_pixels_are_deleted():
    x, _, orders, steps = steps_of_deletion()
    figure, _ = n06.deletion_look(steps, x, orders, steps.iloc[0], dataset="fer_plus")
    assert figure.axes[0].images[0].get_array().shape == (1, 1)


def test_dragging_the_share_changes_image_and_sentence_for_every_fill_and_order():
    x, _, orders, steps = steps_of_deletion()
    *choosers, picture, line = n06.explore_deletion(steps, x, orders, dataset="planted").children
    fill, ordering, share = choosers
    assert isinstance(share, ipywidgets.SelectionSlider)
    seen = []
    for fill.value, ordering.value in (("black", "first"), ("black", "random"), ("blurred", "random")):
        for share.value in ("25%", "50%"):
            assert line.value.startswith(f"{share.value} of the pixels deleted")
            seen.append(bytes(picture.value))
    assert len(set(seen)) == 6
