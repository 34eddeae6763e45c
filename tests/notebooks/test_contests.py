"""Orders against each other: maps, tables, paired differences and claims, by hand; figures for every option."""

from __future__ import annotations

import ipywidgets
import pandas as pd
import pytest
import torch
from core_networks import two_networks
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.lessons import contests
from xuqlib.metrics.deletion import deletion, insertion, pixel_order, random_order

TARGET = torch.tensor([0, 1, 2, 0, 1])


def pictures(num_examples=5, size=8):
    return torch.rand(num_examples, 3, size, size, generator=torch.Generator().manual_seed(0))


def areas(*rows):
    return pd.DataFrame(rows, columns=["posterior", "ordering", "curve", "seed", "example", "auc"])


def test_maps_in_blocks_are_those_of_all_at_once():
    x, draws = pictures(), xuq.Draws(two_networks())
    whole, blocks = (contests.maps_of(draws, xuq.gradient, x, TARGET, block=block) for block in (5, 3))
    for name, each in whole.items():
        assert_close(blocks[name], each)
    e = xuq.explain(draws, xuq.gradient, x, TARGET)
    assert_close(whole["single"][3], e.values[1, 3].abs().sum(0).double())
    assert_close(whole["mean"], e.values.abs().sum(2).mean(0).double())
    assert_close(whole["other_image"][4], whole["mean"][0])
    assert torch.equal(whole["reversed"], -whole["mean"])


def test_a_contest_scores_each_order_as_curves_does_and_shares_the_blind_ones():
    x, draws, options = pictures(), two_networks(), {"num_steps": 4}
    blind = {"random": random_order(5, (8, 8))}
    explainers = {"gradient": (xuq.gradient, {}, 5), "ig": (xuq.integrated_gradients, {"num_steps": 2}, 3)}
    controls = {"first": draws[:1]}
    found = contests.contest(
        draws, explainers, x, TARGET, orderings=["mean"], controls=controls, blind=blind, **options
    )
    assert {name for name, _ in found["ig"]} == {"mean", "first", "random"}
    maps = contests.maps_of(draws[:1], xuq.integrated_gradients, x[:3], TARGET[:3], num_steps=2)
    expected = insertion(draws, x[:3], pixel_order(maps["mean"]), TARGET[:3], **options)
    assert_close(found["ig"]["first", "insertion"], expected)
    expected = deletion(draws, x, blind["random"], TARGET, **options)
    assert_close(found["gradient"]["random", "deletion"], expected)
    assert_close(found["ig"]["random", "deletion"], expected[:3])


SCORES = {
    "ig": {("mean", kind): torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.52]]) for kind in ("deletion", "insertion")}
}


def test_tables_hold_every_area_and_every_mean_curve():
    table = contests.auc_table(SCORES).query("curve == 'deletion'")
    assert table["auc"].tolist() == pytest.approx([0.25, 0.505])
    assert (table["range"] < contests.UNMOVED).tolist() == [False, True]
    steps = contests.mean_curves(SCORES, ["mean"]).query("curve == 'insertion'")
    assert steps["share"].tolist() == [0.0, 0.5, 1.0]
    assert steps["score"].tolist() == pytest.approx([0.75, 0.25, 0.26])
    assert (steps["high"] - steps["score"]).tolist() == pytest.approx([0.5, 0.5, 0.52])  # twice half the difference


def test_mean_areas_average_trainings_before_examples():
    table = areas(*(("p", "mean", "deletion", seed, example, auc) for seed, example, auc in
                    [(0, 0, 0.1), (1, 0, 0.3), (0, 1, 0.4), (1, 1, 0.4)]))  # fmt: skip
    found = contests.mean_areas(table, ["posterior", "ordering", "curve"]).iloc[0]
    assert found["n"] == 2
    assert found["fill"] == "black"
    assert found["auc"] == pytest.approx(0.3)
    assert found["high"] == pytest.approx(0.3 + 2 * 0.1)  # standard error of 0.2 and 0.4


def test_an_advantage_is_positive_where_the_ordering_is_better_and_averages_trainings_first():
    def rows(ordering, curve, *each):
        return [("p", ordering, curve, seed, 0, auc) for seed, auc in enumerate(each)]

    table = [*rows("a", "deletion", 0.1, 0.3), *rows("b", "deletion", 0.5, 0.6)]
    table = areas(*table, *rows("a", "insertion", 0.9, 0.8), *rows("b", "insertion", 0.6, 0.7))
    found = contests.advantage(table, "a", "b").set_index("curve")["advantage"]
    assert found.to_dict() == pytest.approx({"deletion": 0.35, "insertion": 0.2, "both": 0.55})
    assert len(contests.advantage(table, "a", "b", ["seed"])) == 6


def test_an_advantage_leaves_out_what_only_one_side_measured():
    one = ("p", "a", "deletion", 0, 0, 0.5)
    table = areas(one, ("p", "b", "deletion", 0, 0, 0.5), ("q", "a", "deletion", 0, 0, 0.5))
    assert set(contests.advantage(table, "a", "b", ["posterior"])["posterior"]) == {"p"}
    with pytest.raises(ValueError, match="no ordering c"):
        contests.advantage(table, "a", "c")


def test_the_weakest_case_is_that_nearest_to_failing_in_its_own_standard_errors(figures):
    study = xuq.Notebook("06", preset="quick", seed=0)
    cases = {"small but sure": [0.010, 0.011, 0.012], "large but unsure": [-1.0, 1.0, 3.0]}
    gains = pd.concat([pd.DataFrame({"posterior": name, "advantage": values}) for name, values in cases.items()])
    contests.judge_weakest(study, "a beats b", gains)
    row = study.claims().iloc[0]
    assert row["verdict"] == "undecided"
    assert row["value"] == pytest.approx(1)
    assert row["note"].endswith("weakest: large but unsure")


def test_the_name_of_a_posterior_says_what_is_random(monkeypatch):
    asked = []
    monkeypatch.setattr(contests, "train_or_load", lambda *names, **options: asked.append((names, options)))
    contests.trained("mc_dropout_all", "digits", preset="quick", seed=2)
    contests.trained("deep_ensemble", "digits", preset="quick")
    assert [(names[0], options["placement"], options["seed"]) for names, options in asked] == [
        ("mc_dropout", "all", 2),
        ("deep_ensemble", "last", 0),
    ]


def test_figures_show_every_panel_line_and_dot():
    figure = contests.curve_lines(contests.mean_curves(SCORES, ["mean"]), title="curves")
    assert [axes.get_title() for axes in figure.axes] == ["ig,\ndeletion", "ig,\ninsertion"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx([0.75, 0.25, 0.26])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean"]
    table = contests.auc_table(SCORES).assign(posterior="p")
    frame = contests.mean_areas(table, ["posterior", "explainer", "ordering", "curve"])
    figure = contests.area_dots(frame, title="areas")
    assert figure.axes[0].lines[0].get_xdata().tolist() == pytest.approx([(0.25 + 0.505) / 2])
    assert figure.axes[1].get_xlabel() == "area under the curve"
    assert "standard errors" in figure.get_suptitle()


def test_gains_are_drawn_with_their_mean_and_a_line_at_zero():
    gains = pd.DataFrame({"case": "a", "curve": "deletion", "advantage": [0.1, 0.3], "example": [0, 1]})
    figure, frame = contests.gain_dots(gains, y="case", hue="curve", label="gain", title="")
    assert frame["advantage"].tolist() == pytest.approx([0.2])
    assert figure.axes[0].lines[-1].get_xdata() == [0, 0]


def steps_of_deletion():
    x, draws = pictures(1), two_networks()
    orders = {"first": torch.arange(64)[None], "random": random_order(1, (8, 8))}
    return x, draws, orders, contests.deletion_steps(draws, x, orders, TARGET[:1], num_steps=4)


def test_the_steps_of_deletion_are_those_of_curves_with_the_share_in_words():
    x, draws, orders, steps = steps_of_deletion()
    assert len(steps) == 2 * 2 * 5
    part = steps.query("fill == 'blurred' and ordering == 'random'")
    assert part["deleted"].tolist() == ["0%", "25%", "50%", "75%", "100%"]
    expected = deletion(draws, x, orders["random"], TARGET[:1], fill="blurred", num_steps=4)[0]
    assert part["score"].tolist() == pytest.approx(expected.tolist())


def test_a_look_shows_the_picture_that_is_left_and_the_point_on_its_own_curve():
    x, _, orders, steps = steps_of_deletion()
    row = steps.query("fill == 'black' and ordering == 'first' and share == 0.25").iloc[0]
    figure, sentence = contests.deletion_look(steps, x, orders, row, dataset="planted")
    shown = torch.from_numpy(figure.axes[0].images[0].get_array().data).permute(2, 0, 1)
    assert shown[:, :2].abs().max() == 0  # the first quarter of the pixels in order of reading
    assert_close(shown[:, 2:], x[0, :, 2:])
    *curves_of, point = figure.axes[1].lines
    assert [line.get_color() for line in curves_of] == ["black", "0.7"]
    assert curves_of[0].get_ydata()[1] == point.get_ydata()[0] == row["score"]
    assert sentence == f"25% of the pixels deleted: probability of the class {row['score']:.2f}."


def test_people_are_not_shown_however_few_pixels_are_deleted():
    x, _, orders, steps = steps_of_deletion()
    figure, _ = contests.deletion_look(steps, x, orders, steps.iloc[0], dataset="fer_plus")
    assert figure.axes[0].images[0].get_array().shape == (1, 1)


def test_dragging_the_share_changes_picture_and_sentence_for_every_fill_and_order():
    x, _, orders, steps = steps_of_deletion()
    *choosers, picture, line = contests.explore_deletion(steps, x, orders, dataset="planted").children
    fill, ordering, share = choosers
    assert isinstance(share, ipywidgets.SelectionSlider)
    seen = []
    for fill.value, ordering.value in (("black", "first"), ("black", "random"), ("blurred", "random")):
        for share.value in ("25%", "50%"):
            assert line.value.startswith(f"{share.value} of the pixels deleted")
            seen.append(bytes(picture.value))
    assert len(set(seen)) == 6
