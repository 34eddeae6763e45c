"""Notebook 05: what hardness leaves unexplained, and explanations asked about another class."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_cells import definitions

from xuqlib import explain, gradient, integrated_gradients, lime, load, train_or_load
from xuqlib.posteriors.draws import Draws
from xuqlib.study.judging.similarity import spearman, ssim

notebook = definitions("05")
QUESTIONS = notebook.QUESTIONS


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


def test_what_is_left_keeps_no_slope_and_no_group_mean():
    frame = many().assign(group=lambda f: np.where(f.index % 2, "odd", "even"))
    frame["value"] += frame["group"].eq("odd") * 100
    left = notebook.taken_out(
        frame.assign(value=frame.groupby("group")["entropy"].rank() * 3), "value", "entropy", by=["group"]
    )
    np.testing.assert_allclose(left, 0, atol=1e-9)
    left = notebook.taken_out(frame, "noise", "entropy", by=["group"])
    for _, part in frame.assign(left=left).groupby("group"):
        rank = part["entropy"].rank()
        slope, start = np.polyfit(rank, part["noise"], 1)
        np.testing.assert_allclose(part["left"], part["noise"] - slope * rank - start, atol=1e-9)


def test_what_is_left_is_undefined_where_a_number_is_missing_and_the_deviation_where_nothing_varies():
    frame = pd.DataFrame({"group": "g", "value": [1.0, 3.0, 100.0], "given": [2.0, 2.0, math.nan]})
    np.testing.assert_array_equal(notebook.taken_out(frame, "value", "given", by=["group"]), [-1, 1, math.nan])


def test_hardness_tells_each_example_of_its_class_error_and_entropies():
    examples = load("planted", num_examples=12)
    draws = train_or_load("mc_dropout", "planted", progress=False).sample(3, seed=0)
    found = notebook.hardness(draws, examples, notebook.MEASURES)
    probs = draws(examples.x).double().softmax(-1)
    assert found["class"].to_list() == [examples.class_names[label] for label in examples.y]
    assert found["error"].to_list() == (probs.mean(0).argmax(1) != examples.y).double().tolist()
    entropy = -(probs.mean(0) * probs.mean(0).log()).sum(1)
    within = -(probs * probs.log()).sum(-1).mean(0)
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(found["mutual_information"], entropy - within, rtol=1e-3, atol=1e-6)
    truth = [-sum(p * math.log(p) for p in row if p > 0) for row in examples.probs.double().tolist()]
    np.testing.assert_allclose(found["label_entropy"], truth, rtol=1e-6)


def test_hardness_without_soft_labels():
    digits = load("digits", num_examples=4)
    digits = digits[digits.y < 3]
    assert notebook.hardness(Draws([Fixed(0)]), digits, notebook.MEASURES)["label_entropy"].isna().all()


def test_a_measure_of_hardness_is_one_function():
    digits = load("digits", num_examples=4)
    measures = notebook.MEASURES | {"largest": lambda logits, examples: logits.amax((0, 2))}
    draws = Draws([Fixed(0), Fixed(1)])
    found = notebook.hardness(draws, digits[digits.y < 3], measures)
    np.testing.assert_allclose(found["largest"], draws(digits[digits.y < 3].x).amax((0, 2)), rtol=1e-5)


def way(explainer, *, per_class=2, num_draws=3, pooling="sum", **options):
    return notebook.Way(explainer, options, pooling, per_class, num_draws, num_answers=1)


def test_each_draw_explained_at_its_own_answer_equals_the_loop():
    draws, x = Draws([Fixed(0, (3.0, 0.0, 0.0)), Fixed(1, (0.0, 3.0, 0.0))]), pictures()
    probs = draws(x).softmax(-1)
    own = notebook.own_answer(probs, None)  # (S, N)
    assert (own[0] != own[1]).any()
    mean, cv = notebook.mean_map(draws, way(integrated_gradients, num_steps=2), x, own)
    loop = torch.stack(
        [integrated_gradients(draw, x, each, num_steps=2) for draw, each in zip(draws, own, strict=True)]
    )
    torch.testing.assert_close(mean, loop.double().mean(0))
    spread = loop.double().std(0, correction=0).flatten(1).sum(1)
    torch.testing.assert_close(cv, spread / loop.double().mean(0).abs().flatten(1).sum(1))


def test_the_runner_up_is_the_second_largest():
    probs = torch.tensor([[[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]])
    assert notebook.runner_up(probs, None).tolist() == [2, 2]
    assert notebook.predicted_class(probs, None).tolist() == [1, 0]


def test_another_question_is_compared_with_the_predicted_class():
    draws, x = Draws([Fixed(seed, (2.0, 0.0, 0.0)) for seed in range(3)]), pictures()
    probs = draws(x).softmax(-1)
    predicted = probs.mean(0).argmax(1)
    label = torch.where(torch.arange(6) < 3, predicted, (predicted + 1) % 3)
    table = notebook.compare_questions(draws, way(gradient), x, label, QUESTIONS)
    assert list(table["asked"].unique()) == [*QUESTIONS, "another picture"]
    assert table["answer"].to_list() == (["right"] * 3 + ["wrong"] * 3) * 5
    first = explain(draws, gradient, x, predicted)
    second = probs.mean(0).argsort(1)[:, 1]
    others = {
        "predicted class": (first.mean(), first.cv("ratio")),
        "true label": ((e := explain(draws, gradient, x, label)).mean(), e.cv("ratio")),
        "own answer": notebook.mean_map(draws, way(gradient), x, probs.argmax(-1)),
        "runner-up": ((e := explain(draws, gradient, x, second)).mean(), e.cv("ratio")),
    }
    for name, (mean, cv) in others.items():
        part = table[table["asked"] == name]
        np.testing.assert_allclose(part["spearman"], spearman(mean, first.mean()), atol=1e-9)
        np.testing.assert_allclose(part["ssim"], ssim(mean, first.mean()), atol=1e-9)
        np.testing.assert_allclose(part["cv_ratio"], cv, rtol=1e-6)
    right = table[(table["asked"] == "true label") & (table["answer"] == "right")]
    assert right["spearman"].to_list() == pytest.approx([1, 1, 1])
    assert table.loc[(table["asked"] == "true label") & (table["answer"] == "wrong"), "spearman"].max() < 0.99


def test_the_floor_is_the_next_pictures_map():
    draws, x = Draws([Fixed(0), Fixed(1)]), pictures()
    label = torch.zeros(6, dtype=torch.int64)
    floor = notebook.compare_questions(draws, way(gradient_times_input), x, label, QUESTIONS)
    floor = floor[floor["asked"] == "another picture"]
    predicted = draws(x).softmax(-1).mean(0).argmax(1)
    first = explain(draws, gradient_times_input, x, predicted).mean()
    np.testing.assert_allclose(floor["spearman"], spearman(first[[1, 2, 3, 4, 5, 0]], first), atol=1e-9)
    assert floor["cv_ratio"].isna().all()


def gradient_times_input(network, x, target):
    return gradient(network, x, target) * x


def test_the_table_holds_the_cvs_of_the_first_pictures_of_each_class():
    examples = load("planted", num_examples=18)
    draws = train_or_load("mc_dropout", "planted", progress=False).sample(3, seed=0)
    hard = notebook.hardness(draws, examples, notebook.MEASURES)
    for used, explainer, per_class, options in (
        (draws, gradient, 2, {}),
        (draws[:2], integrated_gradients, 1, {"num_steps": 2}),
    ):
        how = way(explainer, per_class=per_class, num_draws=len(used), **options)
        table = notebook.steadiness_by_class(draws, how, examples, hard)
        rows = table["example"].to_list()
        assert table["class"].to_list() == [examples.class_names[examples.y[row]] for row in rows]
        assert table.groupby("class").size().unique().tolist() == [per_class]
        assert rows == sorted(min(hard.index[hard["class"] == kind]) for kind in set(hard["class"])) or per_class > 1
        expected = explain(used, explainer, examples.x[rows], **options).cv("ratio")
        np.testing.assert_allclose(table["cv_ratio"], expected, rtol=1e-4)
        np.testing.assert_allclose(table["entropy"], hard["entropy"][rows], rtol=1e-9)
    fit = way(lime, per_class=1, num_draws=2, pooling="mean", num_samples=40)
    table = notebook.steadiness_by_class(draws, fit, examples, hard)
    np.testing.assert_allclose(table["cv_pooled"], table["cv_ratio"], rtol=0.5)  # LIME is pooled already: means keep it


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


def beside_entropy(table):
    for view, (_, compute) in notebook.VIEWS.items():
        table = table.assign(**{view: compute(table)})
    return table


def test_log_cvs_are_averaged_over_trainings_first():
    table = run_table().assign(log_cv=lambda f: np.log(f["cv_ratio"]))
    each = notebook.averaged(table, over="training")
    found = notebook.averaged(each, over="posterior")
    assert list(found["example"]) == list(range(12))
    # mean of log 1 and log 4, the latter the mean of log 2 and log 8
    np.testing.assert_allclose(found["log_cv"], math.log(2) + found["entropy"])
    assert each.groupby("posterior")["cv_ratio"].first().to_dict() == {"p": 1.0, "q": 5.0}
    assert "training" not in each and "posterior" not in found


def test_at_equal_entropy_nothing_is_left_of_a_cv_that_follows_the_rank_of_entropy():
    table = run_table()
    table["entropy"] = table["cv_ratio"] ** 3  # the same order
    table["cv_ratio"] = np.exp(table.groupby(["posterior", "training"])["entropy"].rank())
    np.testing.assert_allclose(beside_entropy(table)["at_equal_entropy"], 0, atol=1e-9)
    table.loc[0, "cv_ratio"] = 0.0
    assert beside_entropy(table).loc[0, ["log_cv", "at_equal_entropy"]].isna().all()


def test_gaps_of_classes_are_factors_from_the_easiest_class_on():
    images = notebook.averaged(notebook.averaged(beside_entropy(run_table()), over="training"), over="posterior")
    gaps = notebook.class_gaps(images, "log_cv")
    assert list(gaps) == ["a", "b", "c"]  # errors 0, 1/2, 1
    np.testing.assert_allclose([math.log(gap.value) for gap in gaps.values()], [-1.5, 0, 1.5], atol=1e-12)
    gaps = notebook.class_gaps(images, "at_equal_entropy")
    assert all(abs(gap.value - 1) < 0.5 for gap in gaps.values())


def test_the_class_is_picked_on_one_half_and_judged_on_the_other():
    frame = pd.DataFrame({"class": list("aabb"), "log_cv": [9.0, 1.0, 2.0, 5.0]})
    name, others = notebook.least_steady(frame)
    assert name == "a"  # 9 against 2
    assert others["log_cv"].to_list() == [1.0, 5.0]


def test_a_map_is_judged_by_how_far_it_lies_above_halfway_to_the_floor():
    rows = [
        (answer, asked, example, value + example / 100)
        for answer, start in (("right", 0), ("wrong", 3))
        for example in range(start, start + 3)
        for asked, value in {
            "predicted class": 1,
            "true label": 0.5 if answer == "wrong" else 1,
            "runner-up": 0.9,
            "another picture": 0.2,
        }.items()
    ]
    above = notebook.above_halfway(pd.DataFrame(rows, columns=["answer", "asked", "example", "spearman"]))
    true = above.loc["wrong", "true label"]
    assert list(true.index) == [3, 4, 5]
    assert true.mean() == pytest.approx(0.5 + 0.04 - (1 + 0.2 + 0.04) / 2)
    assert len(above["runner-up"]) == 6 and (above["runner-up"] > 0).all()
