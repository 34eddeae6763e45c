"""Notebook 11: arms of equal length, controls made of the map that they control for, gains paired by seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT
from helpers.n11 import MARKS, accuracy_dots, likelihood_dots
from notebook_cells import definitions
from scipy import stats
from torch import nn
from torch.testing import assert_close

from xuqlib import Draws, Notebook, uncertainties
from xuqlib.posteriors.fixing import generator_of, seed_of
from xuqlib.study.intervals import OVER_SEEDS, mean_of_trainings, over_seeds
from xuqlib.study.judging.mitigation import attended, unit_maps

N = definitions(
    "11",
    num_members=2,
    num_folds=2,
    num_test=20,
    epochs=2,
    batch_size=8,
    map_every=1,
    corruptions=["gaussian_noise", "contrast"],
    added=[4, 12],
    num_pool=12,
)
OURS = N.OURS


@pytest.fixture(scope="module")
def found():
    return N.one_seed("digits", True, 20, 0, list(N.ARMS))


@pytest.fixture(scope="module")
def stage():
    train, _, images, patches = N.load_images("digits", True, 10, 0)
    return train, N.first_stage(train, images, patches, 0)


def test_no_image_is_explained_by_networks_that_were_trained_on_it(stage):
    train, first = stage
    maps = first.ours["train"]
    for fold in (0, 1):
        away = first.folds["train"] == fold
        assert away.sum() == 5  # equal folds
        draws, _ = N.train_ensemble(train[~away], first.images["train"][~away], seed_of(0, fold), stage=1)
        assert torch.equal(draws(first.images["clean"]), first.ensembles[fold](first.images["clean"]))
        for row in away.nonzero().flatten():  # one image at a time
            own = N.recommended(draws, first.images["train"][row : row + 1])
            assert_close(maps[row : row + 1], own, rtol=0, atol=1e-9)


def test_test_images_are_shared_out_among_the_same_ensembles_alike_in_every_test(stage):
    _, first = stage
    folds = first.folds["clean"]
    assert folds.bincount().tolist() == [10, 10]
    assert all(torch.equal(folds, first.folds[part]) for part in ("gaussian_noise", "contrast"))
    second = folds == 1
    own = N.recommended(first.ensembles[1], first.images["clean"][second])
    assert_close(first.ours["clean"][second], own, rtol=0, atol=1e-9)


def test_the_networks_of_all_arms_take_equally_many_steps(found):
    assert set(found["steps"]) == {6}
    assert list(dict.fromkeys(found["arm"])) == list(N.ARMS)
    assert list(dict.fromkeys(found["test"])) == ["clean", "gaussian_noise", "contrast", "corrupted"]


def test_the_arm_none_is_a_training_on_plain_images(found):
    train, test, images, _ = N.load_images("digits", True, 20, 0)
    draws, _ = N.train_ensemble(train, images["train"], 0, stage=2)
    wanted = N.scores(draws, images["contrast"], test.y)
    row = found[(found["arm"] == "none") & (found["test"] == "contrast")].iloc[0]
    assert {name: row[name] for name in wanted} == wanted
    assert row["kept"] == 1


def test_corrupted_is_the_mean_over_the_other_tests(found):
    part = found[found["arm"] == OURS].set_index("test")["nll"]
    assert part["corrupted"] == pytest.approx((part["gaussian_noise"] + part["contrast"]) / 2, abs=1e-12)


def test_kept_is_the_mean_attention_of_every_form(found):
    # attention is 1 - m, exp(-m / 2), 1 - m towards another colour, or m: the same maps give four kinds of it
    *_, patches = N.load_images("digits", True, 20, 0)
    kept = found[found["test"] == "clean"].set_index("arm")["kept"]
    assert kept["inverted"] == pytest.approx(1 - kept[OURS], abs=1e-12)
    assert kept["towards the mean"] == kept[OURS] == pytest.approx(kept["shuffled pixels"], abs=1e-12)
    assert kept[OURS] < kept["milder"] < 1
    assert kept["true mask"] == pytest.approx(1 - float(patches["clean"].mean()), abs=1e-12)


def test_marked_is_how_many_times_its_mean_a_map_is_inside_the_square(found):
    # the square is 2 x 2 of 8 x 8 pixels; a map that is 1 there and 0 elsewhere is 16 times its mean
    marked = found[found["test"] == "clean"].set_index("arm")["marked"]
    assert marked["true mask"] == 16
    assert np.isnan(marked["none"])
    assert 0.8 < marked["random map"] < 1.2


def test_clutter_comes_with_its_place_and_plain_images_have_none():
    (_, test, plain, nowhere), (_, _, images, patches) = (
        N.load_images("digits", each, 10, 0) for each in (False, True)
    )
    assert torch.equal(plain["clean"], test.x.double())
    assert all(mask.abs().max() == 0 for mask in nowhere.values())
    outside = 1 - patches["clean"][:, None]
    assert torch.equal(outside * images["clean"], outside * plain["clean"])
    assert torch.equal(patches["clean"], patches["contrast"])
    assert (images["clean"][patches["clean"][:, None] == 1] == 1).all()


def test_the_place_of_the_square_tells_the_label_in_training_alone():
    train, test, _, patches = N.load_images("digits", True, 30, 0)
    train_places, test_places = (patches[part].flatten(1).argmax(1) for part in ("train", "clean"))
    assert all(len(set(train_places[train.y == kind].tolist())) == 1 for kind in range(10))
    assert len(set(train_places.tolist())) == 10
    assert max(len(set(test_places[test.y == kind].tolist())) for kind in range(10)) > 1


def test_an_arm_more_is_one_entry_and_changes_no_other(found, monkeypatch):
    monkeypatch.setitem(N.ARMS, "half", (lambda first, part: first.ours[part] / 2, N.fade))
    more = N.one_seed("digits", True, 20, 0, ["half", OURS])
    pd.testing.assert_frame_equal(
        more[more["arm"] == OURS].reset_index(drop=True), found[found["arm"] == OURS].reset_index(drop=True)
    )
    kept = more[more["test"] == "clean"].set_index("arm")["kept"]
    assert 1 - kept["half"] == pytest.approx((1 - kept[OURS]) / 2, abs=1e-12)


def test_controls_are_made_of_the_map_that_they_control_for(stage):
    _, first = stage
    ours, clean = first.ours["clean"], first.images["clean"]
    maps = {arm: make(first, "clean") for arm, (make, _) in N.ARMS.items() if make}
    shuffled, mean = maps["shuffled pixels"], maps["dataset-mean map"]
    assert torch.equal(shuffled.flatten(1).sort(1).values, ours.flatten(1).sort(1).values)
    assert not torch.equal(shuffled, ours)
    assert_close(mean, unit_maps(first.ours["train"].mean(0, keepdim=True)).expand_as(mean), **EXACT)
    assert maps["none"].abs().max() == 0
    assert maps["random map"].std() > 0.25
    assert torch.equal(maps["true mask"], first.patches["clean"])
    assert_close(N.keep_the_uncertain(clean, ours, None), ours[:, None] * clean, **EXACT)
    assert all(each.min() >= 0 and each.max() <= 1 for each in maps.values())


def test_end_to_end_fades_by_the_maps_of_its_own_networks(stage):
    train, first = stage
    draws, _, maps, shown = N.second_stage("end-to-end", first, train)
    assert_close(maps["clean"], N.recommended(draws, first.images["clean"]), **EXACT)
    assert_close(shown["clean"], attended(first.images["clean"], maps["clean"]), **EXACT)
    plain, _ = N.train_ensemble(train, first.images["train"], 0, stage=2)
    assert not torch.equal(draws(first.images["clean"]), plain(first.images["clean"]))


def scores_of_two():
    about = {"dataset": "toy", "num_train": 4, "test": "clean"}
    numbers = [("none", 0.5, 1.0), (OURS, 0.75, 1.5), ("none", 0.25, 2.0), (OURS, 0.375, 1.0)]
    rows = [{**about, "seed": i // 2, "arm": a, "accuracy": b, "nll": c} for i, (a, b, c) in enumerate(numbers)]
    return pd.DataFrame(rows)[::-1]  # order must not matter


def test_a_gain_is_paired_by_seed_and_above_0_where_it_is_better():
    found = N.gains(scores_of_two(), by=["test"], side="arm", against="none", scores=["accuracy", "nll"])
    pairs = {(seed, score): gain for seed, score, gain in found[["seed", "score", "gain"]].to_numpy()}
    assert pairs == {(0, "accuracy"): 0.25, (0, "nll"): -0.5, (1, "accuracy"): 0.125, (1, "nll"): 1.0}
    table = over_seeds(found, ["arm", "score"]).set_index("score")
    assert table.loc["nll", "gain"] == 0.25


def test_the_interval_is_that_of_a_t_test():
    values = pd.Series([0.1, 0.4, 0.2, 0.6, 0.3])
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert tuple(mean_of_trainings(values)) == pytest.approx((0.32, *wanted), abs=1e-12)
    assert np.isnan([*mean_of_trainings(values[:1])][1:]).all()


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        ([1.1, 0.9, 1.2], "holds"),
        ([-1.1, -0.9, -1.2], "fails"),
        ([0.1, -0.1, 0.2], "undecided"),
        ([1.0, 1.0, 1.0], "undecided"),  # alike in every seed
    ],
)
def test_verdicts_follow_the_interval_over_seeds(gain, verdict, figures):
    study = Notebook("11", preset="quick", seed=0)
    rows = [("none", seed, 2.0) for seed in range(3)] + [(OURS, seed, 2.0 - each) for seed, each in enumerate(gain)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "nll"])
    frame = frame.assign(accuracy=0.5, dataset="toy", num_train=4, test="clean")
    definitions("11", study=study).judge_pair(frame, "clean", OURS, "none", "counts")
    claims = study.claims()
    assert claims["verdict"].tolist() == ["undecided", verdict]
    assert claims["value"].tolist() == pytest.approx([0, sum(gain) / 3])
    assert claims["statement"][1] == f"4 pictures, clean test: {OURS} has a better nll than none"
    assert (claims["claim"] == "U6").all() and (claims["note"] == OVER_SEEDS).all()
    assert claims["unit"].tolist() == ["", "nats"]


def cluttered(gain):
    """Four seeds in which the true mask gains so much, give or take 0.01, and our map loses 0.1."""
    shift = {"none": 0.0, "true mask": gain, "UA-Backprop (paper)": -0.1, OURS: -0.1, "shuffled pixels": 0.0}
    rows = [
        (arm, seed, test, 0.5 + each + 0.01 * (seed % 2) * (each != 0), 1.0)
        for arm, each in shift.items()
        for seed in range(4)
        for test in ("clean", "corrupted")
    ]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "test", "accuracy", "nll"])
    return frame.assign(dataset="toy, cluttered", num_train=4)


@pytest.mark.parametrize(("gain", "counts"), [(0.2, True), (0.03, False), (0.01, False), (-0.2, False)])
def test_only_a_setting_in_which_the_true_mask_gains_3_points_counts(gain, counts, figures):
    # gains are g, g + 0.01, g, g + 0.01: a t-interval of 3.18 x 0.00577 / 2 = 0.0092 about g + 0.005
    study = Notebook("11", preset="quick", seed=0)
    space = definitions("11", study=study)
    space.judge_setting(cluttered(gain), "clean")
    claims = pd.DataFrame(study._claims)
    assert claims["test"].tolist() == ["above 0.03", *["above 0"] * 6]
    assert (claims["verdict"][0] == "holds") == counts
    assert claims["claim"].iloc[1:].eq("U6").all() == counts
    nothing = claims["statement"].str.endswith("(says nothing: even the true mask gains less than 3 points)")
    assert nothing.iloc[1:].all() != counts and not nothing[0]
    primary = "4 pictures, clean test: UA-Backprop (paper) has a better accuracy than none"
    assert (primary in set(claims["statement"])) == counts


def test_plain_images_have_no_positive_control_and_say_nothing(figures):
    study = Notebook("11", preset="quick", seed=0)
    space, part = definitions("11", study=study), cluttered(0.2)
    gain, says = space.control(part[part["arm"] != "true mask"], "clean")
    assert gain is None and says == "says nothing: no true mask"


def test_the_dots_are_the_means_of_the_gains_and_the_titles_say_what_they_say():
    values = {("a", "true mask"): (0.5, 0.6), ("a", OURS): (-0.2, 0.0), ("b", OURS): (0.1, 0.1), ("a", "x"): (1, 1)}
    frame = pd.DataFrame(
        [(setting, arm, seed, gain) for (setting, arm), pair in values.items() for seed, gain in enumerate(pair)],
        columns=["setting", "arm", "seed", "gain"],
    )
    figure, points = accuracy_dots(frame, ours=[OURS], counting=["a"])
    assert points.set_index(["setting", "arm"])["gain"].to_dict() == pytest.approx(
        {("a", "true mask"): 0.55, ("a", OURS): -0.1, ("b", OURS): 0.1, ("a", "x"): 1}
    )
    told = " ".join(figure.get_suptitle().split())
    assert told == "Where the true mask gains +55 points of accuracy, UA-Backprop's map gains -10"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MARKS)
    assert accuracy_dots(frame, ours=[OURS], counting=[])[0].get_suptitle().startswith("No setting counts")
    told = " ".join(likelihood_dots(frame, ours=OURS)[0].get_suptitle().split())
    assert told.endswith("in 1 of 2 settings, and loses to them in 0")


def test_a_whole_pool_leaves_nothing_to_choose():
    found = N.buy_labels("digits", 10, 0).set_index(["choice", "added"])["nll"].unstack()
    assert list(found.index) == sorted(N.CHOICES)
    assert found[0].nunique() == found[12].nunique() == 1
    assert found[4].nunique() > 1


def linear(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 2).double().eval()


def test_the_most_uncertain_images_come_first():
    draws = Draws([linear(1), linear(2)])
    x = torch.randn(9, 4, generator=generator_of(0), dtype=torch.float64)
    u = uncertainties(draws, x)
    assert N.largest_epistemic(draws, x, 5, 0).tolist() == sorted(range(9), key=lambda i: -u.epistemic[i])[:5]
    assert N.largest_total(draws, x, 5, 0).tolist() == sorted(range(9), key=lambda i: -u.total[i])[:5]
    order = N.at_random(draws, x, 9, 0).tolist()
    assert sorted(order) == list(range(9)) and order != list(range(9))
    assert N.at_random(draws, x, 3, 0).tolist() == order[:3]  # a smaller purchase is part of a larger one


def test_the_concentrated_ones_are_among_twice_as_many_of_the_most_uncertain():
    draws = Draws([linear(1), linear(2)])
    x = torch.randn(9, 4, generator=generator_of(0), dtype=torch.float64)
    rows = N.most_concentrated(draws, x, 3, 0).tolist()
    candidates = N.largest_epistemic(draws, x, 6, 0).tolist()
    assert len(set(rows)) == 3 and set(rows) <= set(candidates)
    sparse = {row: float(N.sparseness(N.recommended(draws, x[row : row + 1])).nan_to_num(-1)) for row in candidates}
    assert min(sparse[row] for row in rows) >= max(sparse[row] for row in set(candidates) - set(rows)) - 1e-12
