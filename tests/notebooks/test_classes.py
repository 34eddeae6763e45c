"""Tables per class, what hardness leaves unexplained, and explanations asked about another class."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from xuqlib import Notebook, explain, gradient, integrated_gradients, load, train_or_load
from xuqlib.explainers.lime import lime
from xuqlib.lessons.classes import (
    Way,
    beside_entropy,
    claim_classes,
    class_gaps,
    hardness,
    least_steady,
    per_picture,
    steadiness_of_classes,
    taken_out,
)
from xuqlib.lessons.targets import ASKED, by_target, by_target_of, claim_targets, explain_own
from xuqlib.metrics.similarity import spearman, ssim
from xuqlib.posteriors.draws import Draws
from xuqlib.study.intervals import Estimate, class_correlation, class_gap, class_means, correlation

TWO = pd.DataFrame({"class": ["b", "b", "b", "a", "a"], "value": [1.0, 2.0, 6.0, 10.0, 14.0]})


class Fixed(torch.nn.Module):
    """Linear in the picture: logits w x + b, with w from a seed."""

    def __init__(self, seed, bias=(0.0, 0.0, 0.0)):
        super().__init__()
        weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
        self.layer = torch.nn.Linear(64, 3)
        self.layer.weight.data, self.layer.bias.data = weight, torch.tensor(bias)
        self.eval().requires_grad_(False)

    def forward(self, x):
        return self.layer(x.flatten(1))


def pictures(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def many(n=300, seed=0):
    """Classes a, b, c of n examples each; noise alone, but value is 2 times entropy."""
    stream = np.random.default_rng(seed)
    entropy = stream.random(3 * n)
    frame = pd.DataFrame({"class": np.repeat(["a", "b", "c"], n), "entropy": entropy, "value": 2 * entropy})
    return frame.assign(noise=stream.normal(size=3 * n))


def test_an_estimate_is_above_a_bound_only_where_its_interval_decides():
    assert Estimate(2, 1, 3).above(0.5) is True
    assert Estimate(2, 1, 3).above(3) is False
    assert Estimate(2, 1, 3).above(1.5) is None
    assert Estimate(math.nan, math.nan, math.nan).above(0) is None
    assert Estimate(0.0, -math.log(2), math.log(2)).exp() == pytest.approx((1, 0.5, 2))


def test_a_class_mean_is_that_of_its_examples_and_its_interval_that_of_their_standard_error():
    table = class_means(TWO, ["value"]).set_index("class")
    assert list(table.index) == ["b", "a"]  # in order of appearance
    assert table.loc["b", "value"] == 3
    assert table.loc["a", "value"] == 12
    assert table["n"].to_list() == [3, 2]
    assert table.loc["a", ["low", "high"]].to_list() == [10, 14]  # of two examples every mean is 10, 12 or 14
    wide = class_means(many(), ["noise"])
    error = 1.96 / math.sqrt(300)  # 1000 resamples give a quantile to about 4 %
    np.testing.assert_allclose(wide["high"] - wide["low"], 2 * error, rtol=0.15)


def test_the_bootstrap_depends_on_its_seed_alone():
    first = class_means(many(), ["noise"], seed=1)
    pd.testing.assert_frame_equal(class_means(many(), ["noise"], seed=1), first)
    assert not class_means(many(), ["noise"], seed=2)["low"].equals(first["low"])


def test_an_example_without_a_number_does_not_count_and_one_example_has_no_interval():
    frame = pd.DataFrame({"class": ["a", "a", "b"], "value": [1.0, math.nan, math.nan], "whole": [1.0, 2.0, 3.0]})
    table = class_means(frame, ["value", "whole"]).set_index(["statistic", "class"])
    assert list(table.index) == [("value", "a"), ("whole", "a"), ("whole", "b")]
    assert table["n"].to_list() == [1, 2, 1]
    assert table["low"].isna().to_list() == [True, False, True]


def test_the_gap_of_a_class_is_to_the_mean_of_the_other_classes_means():
    frame = pd.DataFrame({"class": ["a", "b", "b", "c"], "value": [5.0, 1.0, 1.0, 3.0]})
    assert class_gap(frame, "value", "a") == (3, 3, 3)  # 5 - (1 + 3) / 2, and no class varies
    gap = class_gap(TWO, "value", "a")
    assert gap.value == 9
    assert gap.low < 9 < gap.high


def test_the_gap_of_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="wanted 'z'"):
        class_gap(TWO, "value", "z")
    with pytest.raises(ValueError, match="one more"):
        class_gap(TWO[:3], "value", "b")


def test_the_correlation_over_classes_is_that_of_the_class_means():
    frame = pd.DataFrame({"class": ["a", "b", "c", "d"], "x": [1.0, 2.0, 3.0, 4.0], "y": [10.0, 30.0, 20.0, 40.0]})
    assert class_correlation(frame, "x", "y").value == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert all(math.isnan(end) for end in class_correlation(frame.assign(y=1.0), "x", "y"))


def test_the_correlation_over_examples_is_that_of_scipy_ties_included():
    stream = np.random.default_rng(3)
    frame = pd.DataFrame({"class": "a", "x": stream.integers(5, size=200), "y": stream.normal(size=200)})
    frame["y"] += frame["x"]
    found = correlation(frame, "x", "y")
    assert found.value == pytest.approx(spearmanr(frame["x"], frame["y"]).statistic, abs=1e-12)
    assert 0 < found.low < found.value < found.high < 1
    # Fisher: an interval of about 2 * 1.96 / sqrt(n - 3) in atanh.
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(3.92 / math.sqrt(197), rel=0.3)


def test_within_classes_a_difference_between_classes_makes_no_correlation():
    frame = many().assign(
        x=lambda f: f["noise"] + 10 * f["class"].eq("a"), y=lambda f: f["entropy"] + 10 * f["class"].eq("a")
    )
    assert correlation(frame, "x", "y").value > 0.6
    inside = [spearmanr(part["x"], part["y"]).statistic for _, part in frame.groupby("class")]
    assert correlation(frame, "x", "y", within=True).value == pytest.approx(np.mean(inside), abs=1e-12)
    assert abs(np.mean(inside)) < 0.1


def test_within_classes_of_two_examples_no_correlation_is_defined():
    found = correlation(TWO[3:].assign(other=[1.0, 2.0]), "value", "other", within=True)
    assert math.isnan(found.value)
    assert found.above(0) is None


def test_what_is_left_keeps_no_slope_and_no_group_mean():
    frame = many().assign(group=lambda f: np.where(f.index % 2, "odd", "even"))
    frame["value"] += frame["group"].eq("odd") * 100
    left = taken_out(frame.assign(value=frame.groupby("group")["entropy"].rank() * 3), "value", "entropy", by=["group"])
    np.testing.assert_allclose(left, 0, atol=1e-9)
    left = taken_out(frame, "noise", "entropy", by=["group"])
    for _, part in frame.assign(left=left).groupby("group"):
        rank = part["entropy"].rank()
        slope, start = np.polyfit(rank, part["noise"], 1)
        np.testing.assert_allclose(part["left"], part["noise"] - slope * rank - start, atol=1e-9)


def test_what_is_left_is_undefined_where_a_number_is_missing_and_the_deviation_where_nothing_varies():
    frame = pd.DataFrame({"group": "g", "value": [1.0, 3.0, 100.0], "given": [2.0, 2.0, math.nan]})
    np.testing.assert_array_equal(taken_out(frame, "value", "given", by=["group"]), [-1, 1, math.nan])


def test_a_frame_without_examples_is_refused():
    with pytest.raises(ValueError, match="no example has value"):
        class_means(TWO.assign(value=math.nan), ["value"])


def test_hardness_tells_each_example_of_its_class_error_and_entropies():
    examples = load("planted", num_examples=12)
    draws = train_or_load("mc_dropout", "planted", progress=False).sample(3, seed=0)
    found = hardness(draws, examples)
    probs = draws(examples.x).double().softmax(-1)
    assert found["class"].to_list() == [examples.class_names[label] for label in examples.y]
    assert found["error"].to_list() == (probs.mean(0).argmax(1) != examples.y).double().tolist()
    entropy = -(probs.mean(0) * probs.mean(0).log()).sum(1)
    within = -(probs * probs.log()).sum(-1).mean(0)
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(found["mutual_information"], entropy - within, rtol=1e-3, atol=1e-6)
    truth = [-sum(p * math.log(p) for p in row if p > 0) for row in examples.probs.double().tolist()]
    np.testing.assert_allclose(found["label_entropy"], truth, rtol=1e-6)


def test_hardness_without_soft_labels_or_without_classes():
    draws = Draws([Fixed(0)])
    digits = load("digits", num_examples=4)
    digits = digits[digits.y < 3]
    assert hardness(draws, digits)["label_entropy"].isna().all()
    with pytest.raises(ValueError, match="diabetes is a regression"):
        hardness(draws, load("diabetes", num_examples=2))


def test_each_draw_explained_at_its_own_answer_equals_the_loop():
    draws, x = [Fixed(0, (3.0, 0.0, 0.0)), Fixed(1, (0.0, 3.0, 0.0))], pictures()
    own = [draw(x).argmax(1) for draw in draws]
    assert (own[0] != own[1]).any()
    e = explain_own(draws, integrated_gradients, x, num_steps=2)
    loop = torch.stack(
        [integrated_gradients(draw, x, each, num_steps=2) for draw, each in zip(draws, own, strict=True)]
    )
    torch.testing.assert_close(e.values, loop)
    assert e.target is None
    with pytest.raises(ValueError, match="leave out keep"):
        explain_own(draws, gradient, x, keep="moments")


def test_another_question_is_compared_with_the_predicted_class():
    draws, x = [Fixed(seed, (2.0, 0.0, 0.0)) for seed in range(3)], pictures()
    probs = torch.stack([draw(x) for draw in draws]).softmax(-1)
    predicted = probs.mean(0).argmax(1)
    target = torch.where(torch.arange(6) < 3, predicted, (predicted + 1) % 3)
    table = by_target(draws, gradient, x, target)
    assert table["answer"].to_list() == (["right"] * 3 + ["wrong"] * 3) * len(ASKED)
    first = explain(draws, gradient, x, predicted)
    second = probs.mean(0).argsort(1)[:, 1]
    others = {
        "predicted class": first,
        "true label": explain(draws, gradient, x, target),
        "own answer": explain_own(draws, gradient, x),
        "runner-up": explain(draws, gradient, x, second),
    }
    for name, e in others.items():
        part = table[table["asked"] == name]
        np.testing.assert_allclose(part["spearman"], spearman(e.mean(), first.mean()), atol=1e-9)
        np.testing.assert_allclose(part["ssim"], ssim(e.mean(), first.mean()), atol=1e-9)
        np.testing.assert_allclose(part["cv_ratio"], e.cv("ratio"), rtol=1e-6)
    right = table[(table["asked"] == "true label") & (table["answer"] == "right")]
    assert right["spearman"].to_list() == pytest.approx([1, 1, 1])
    assert table.loc[(table["asked"] == "true label") & (table["answer"] == "wrong"), "spearman"].max() < 0.99


def test_the_floor_is_the_next_pictures_map():
    draws, x = [Fixed(0), Fixed(1)], pictures()
    floor = by_target(draws, gradient_times_input, x, torch.zeros(6, dtype=torch.int64)).query("asked == @ASKED[-1]")
    predicted = torch.stack([draw(x) for draw in draws]).softmax(-1).mean(0).argmax(1)
    first = explain(draws, gradient_times_input, x, predicted).mean()
    np.testing.assert_allclose(floor["spearman"], spearman(first[[1, 2, 3, 4, 5, 0]], first), atol=1e-9)
    assert floor["cv_ratio"].isna().all()


def gradient_times_input(network, x, target):
    return gradient(network, x, target) * x


def test_a_wrong_number_of_true_labels_is_refused():
    with pytest.raises(ValueError, match="6"):
        by_target([Fixed(0)], gradient, pictures(), torch.zeros(2, dtype=torch.int64))


def ways(**more):
    return {
        "gradient": Way(gradient, {}, 2, 3, 1),
        "ig": Way(integrated_gradients, {"num_steps": 2}, 1, 2, 1),
    } | more


def test_the_table_holds_the_cvs_of_the_first_pictures_of_each_class():
    examples = load("planted", num_examples=18)
    draws = train_or_load("mc_dropout", "planted", progress=False).sample(3, seed=0)
    table = steadiness_of_classes(draws, examples, ways(lime=Way(lime, {"num_samples": 40}, 1, 2)))
    assert table.groupby(["explainer", "class"])["example"].size().groupby("explainer").first().to_dict() == {
        "gradient": 2,
        "ig": 1,
        "lime": 1,
    }
    for name, used, function, options in (
        ("gradient", draws, gradient, {}),
        ("ig", draws[:2], integrated_gradients, {"num_steps": 2}),
    ):
        part = table[table["explainer"] == name]
        rows = part["example"].to_list()
        assert part["class"].to_list() == [examples.class_names[examples.y[row]] for row in rows]
        expected = explain(used, function, examples.x[rows], **options).cv("ratio")
        np.testing.assert_allclose(part["cv_ratio"], expected, rtol=1e-4)
        np.testing.assert_allclose(part["entropy"], hardness(draws, examples)["entropy"][rows], rtol=1e-9)
    fit = table[table["explainer"] == "lime"]
    np.testing.assert_allclose(fit["cv_pooled"], fit["cv_ratio"], rtol=0.5)  # LIME is pooled already, so means keep it


def run_table():
    """Two posteriors, the second with two trainings, three classes of four pictures; c is the unsteady one."""
    keys = [("p", 0, 1.0), ("q", 0, 2.0), ("q", 1, 8.0)]
    rows = [
        ("d", name, training, "e", kind, 4 * place + i, size * math.exp(place + i / 10), place + i / 10, place / 2)
        for name, training, size in keys
        for place, kind in enumerate("abc")
        for i in range(4)
    ]
    columns = ["dataset", "posterior", "training", "explainer", "class", "example", "cv_ratio", "entropy", "error"]
    return pd.DataFrame(rows, columns=columns)


def test_log_cvs_are_averaged_over_trainings_first():
    found = per_picture(run_table().assign(log_cv=lambda f: np.log(f["cv_ratio"])))
    assert list(found["example"]) == list(range(12))
    # mean of log 1 and log 4, the latter the mean of log 2 and log 8
    np.testing.assert_allclose(found["log_cv"], math.log(2) + found["entropy"])
    apart = per_picture(run_table(), posteriors=True)
    assert apart.groupby("posterior")["cv_ratio"].first().to_dict() == {"p": 1.0, "q": 5.0}
    assert "training" not in apart


def test_at_equal_entropy_nothing_is_left_of_a_cv_that_follows_the_rank_of_entropy():
    table = run_table()
    table["entropy"] = table["cv_ratio"] ** 3  # the same order
    table["cv_ratio"] = np.exp(table.groupby(["posterior", "training"])["entropy"].rank())
    np.testing.assert_allclose(beside_entropy(table)["at_equal_entropy"], 0, atol=1e-9)
    table.loc[0, "cv_ratio"] = 0.0
    assert beside_entropy(table).loc[0, ["log_cv", "at_equal_entropy"]].isna().all()


def test_gaps_of_classes_are_factors_from_the_easiest_class_on():
    gaps = class_gaps(per_picture(beside_entropy(run_table())))
    part = gaps[gaps["view"] == "log_cv"]
    assert part["class"].to_list() == ["d: a", "d: b", "d: c"]  # errors 0, 1/2, 1
    np.testing.assert_allclose(np.log(part["value"].astype(float)), [-1.5, 0, 1.5], atol=1e-12)
    assert (gaps.loc[gaps["view"] == "at_equal_entropy", "value"].sub(1).abs() < 0.5).all()


def test_the_class_is_picked_on_one_half_and_judged_on_the_other():
    frame = pd.DataFrame({"class": list("aabb"), "value": [9.0, 1.0, 2.0, 5.0]})
    name, others = least_steady(frame, "value")
    assert name == "a"  # 9 against 2
    assert others["value"].to_list() == [1.0, 5.0]


def test_claims_on_classes_name_the_class_and_follow_the_numbers():
    pictures = per_picture(beside_entropy(run_table()))
    study = Notebook("99", preset="quick", seed=0, dataset="d")
    claim_classes(study, pictures, seeds={"d": 2})
    claim_classes(study, pictures, named={"d": "a"})
    rows = pd.DataFrame(study._claims)
    picked, named = rows.iloc[:5], rows.iloc[5:]
    assert "CV of c" in picked["statement"][0]
    assert picked["note"][0].startswith("picked on the other half")
    assert picked[["verdict", "n", "seeds"]].iloc[0].to_list() == ["holds", 6, 2]
    assert picked["value"][0] == pytest.approx(math.exp(1.5))
    assert picked["verdict"].to_list()[2:] == ["holds"] * 3  # rises with error and entropy, within classes too
    assert "CV of a" in named["statement"].iloc[0]
    assert named[["verdict", "n", "seeds"]].iloc[0].to_list() == ["fails", 12, 1]


def test_claims_on_targets_ask_for_more_than_halfway_to_the_floor():
    rows = [
        ("d", "e", answer, asked, example, value + example / 100)
        for answer, start in (("right", 0), ("wrong", 3))
        for example in range(start, start + 3)
        for asked, value in zip(ASKED, (1, 0.5 if answer == "wrong" else 1, 1, 0.9, 0.2), strict=True)
    ]
    asked = pd.DataFrame(rows, columns=["dataset", "explainer", "answer", "asked", "example", "spearman"])
    study = Notebook("99", preset="quick", seed=0, dataset="d")
    claim_targets(study, asked)
    true, runner = study._claims
    assert true["value"] == pytest.approx(0.5 + 0.04 - (1 + 0.2 + 0.04) / 2)  # wrong answers alone, examples 3 to 5
    assert true["verdict"] == "fails"
    assert (true["n"], runner["n"], runner["verdict"]) == (3, 6, "holds")


def test_right_and_wrong_answers_are_asked_in_equal_number():
    examples = load("planted", num_examples=30)
    draws = train_or_load("mc_dropout", "planted", progress=False).sample(3, seed=0)
    table = by_target_of(draws, examples, ways())
    part = table[(table["explainer"] == "gradient") & (table["asked"] == "true label")].set_index("example")
    wrong = hardness(draws, examples)["error"]
    assert sorted(part.index) == sorted([wrong.eq(0).idxmax(), wrong.eq(1).idxmax()])
    assert part["answer"].to_dict() == {row: "wrong" if wrong[row] else "right" for row in part.index}
    direct = by_target(draws, gradient, examples.x[part.index.to_list()], examples.y[part.index.to_list()])
    np.testing.assert_allclose(part["spearman"], direct.query("asked == 'true label'")["spearman"], atol=1e-5)
