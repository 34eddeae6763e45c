"""Maps of uncertainty in their tests: scores by slow loops, tables by hand, verdicts that can go either way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn, seeded
from torch import tensor
from torch.testing import assert_close

from xuqlib import Draws, Examples, Notebook, ua_backprop, ua_replacement, uncertainties
from xuqlib.lessons import duels, pointing, rivalry
from xuqlib.lessons.pointing import GREEDY, OURS, SETTINGS_OF
from xuqlib.metrics.deletion import filled, pixel_order
from xuqlib.study.judging.anomaly import iou, paste
from xuqlib.study.judging.blurring import greedy_order
from xuqlib.study.judging.clue import Counterfactuals, path_integral
from xuqlib.study.judging.rivals import CONTROLS, RIVALS
from xuqlib.study.training.networks import mini_vgg
from xuqlib.study.training.vae import PictureVAE

SHARES = [0, 0.02, 0.05, 0.2, 1.0]
TINY = {"num_steps": 2, "num_samples": 20, "clue_steps": 2, "candidates": 2}
X = randn(3, 3, 8, 8).sigmoid()
Y = tensor([0, 1, 2])


def member(seed):
    return seeded(
        lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3), seed=seed, dtype=torch.float64
    ).eval()


DRAWS = Draws([member(seed) for seed in (1, 2)])
VAE = seeded(lambda: PictureVAE((3, 8, 8), latent=2, widths=(4, 4), narrow=2), dtype=torch.float64).eval()
MEAN = torch.full((3, 8, 8), 0.4, dtype=torch.float64)
CASE = pointing.Case("toy", "uncertain", 0, DRAWS, X, Y, MEAN, pointing.makers(MEAN, VAE, **TINY))


def test_every_rival_and_control_has_one_name_and_makes_one_number_per_pixel():
    made = CASE.makers
    assert len(made) == 2 + 1 + 1 + len(RIVALS) + 3 + (len(CONTROLS) - 1) + 1  # signed gradient x input is in both
    assert set(pointing.SHORT) < set(made) and set(rivalry.DRAWN) < set(made) and set(duels.HEADLINE) < set(made)
    assert {name for names in rivalry.FAMILIES.values() for name in names} == set(made) - {GREEDY}
    for name, make in made.items():
        if name in rivalry.FAMILIES["generative"]:  # the next test; torch takes seconds to import their optimiser
            continue
        values = make(DRAWS, X[:2], "epistemic")
        assert values.shape == (2, 8, 8) and values.dtype == X.dtype and values.isfinite().all(), name


def test_generative_maps_search_with_the_autoencoder_that_they_are_given(monkeypatch):
    for name in ("CLUE", "delta-CLUE"):
        assert CASE.makers[name].keywords["vae"] is VAE and CASE.makers[name].keywords["num_steps"] == 2
    latents = VAE.encode(X)[0].detach() + 0.5
    start = Counterfactuals(VAE.decode(latents).detach(), latents, X, *[torch.zeros(3)] * 3)
    asked = []

    def search(*args, **options):
        asked.append(options)
        return start

    monkeypatch.setattr(pointing, "clue_counterfactuals", search)
    found = CASE.makers["path integral"](DRAWS, X, "total")
    wanted = path_integral(DRAWS, X, "total", vae=VAE, num_steps=2, counterfactuals=start)
    assert_close(found, wanted, **EXACT)
    assert asked == [{"vae": VAE, "num_steps": 2}]


def test_the_maps_are_those_of_the_library():
    for setting, name in SETTINGS_OF.items():
        assert_close(CASE.makers[name](DRAWS, X, "total"), ua_backprop(DRAWS, X, "total", setting=setting), **EXACT)
    assert_close(CASE.makers[OURS](DRAWS, X), ua_replacement(DRAWS, X, reference=MEAN), **EXACT)
    greedy = greedy_order(DRAWS, X, budget=0.05, candidates=2)
    assert torch.equal(pixel_order(CASE.makers[GREEDY](DRAWS, X)), greedy)


@pytest.mark.parametrize("fill", ["blurred", "data mean"])
def test_blurring_is_a_loop_over_pictures_and_shares(fill):
    frame = pointing.blur_scores(CASE, "intensity", "total", fill=fill, shares=SHARES)
    replacement = MEAN.expand_as(X) if fill == "data mean" else filled(X, fill)
    rows = iter(frame.itertuples())
    for i in range(3):
        order, left = X[i].sum(0).flatten().argsort(descending=True), []
        for share in SHARES:
            picture = X[i].clone().flatten(1)
            gone = order[: int(share * 64 + 1e-9)]
            picture[:, gone] = replacement[i].flatten(1)[:, gone]
            picture = picture.view(1, 3, 8, 8)
            left.append(float(uncertainties(DRAWS, picture).total))
            answers = [int(DRAWS(each).softmax(-1).mean(0).argmax()) for each in (X[i : i + 1], picture)]
            fall = (left[0] - np.array(left)) / left[0]
            best, row = np.maximum.accumulate(fall), next(rows)
            assert (row.example, row.share, row.map, row.fill) == (i, share, "intensity", fill)
            assert (row.uncertainty, row.urr, row.murr) == pytest.approx((left[0], fall[-1], best[-1]), abs=1e-10)
            if share:
                assert row.auc_urr == pytest.approx(np.trapezoid(best, SHARES[: len(best)]) / share, abs=1e-10)
            assert row.kept == (answers[0] == answers[1])
            assert row.right == (answers[1] == i) or (share == 0.2 and np.isnan(row.right))
    assert frame["auc_urr"].isna().sum() == 3 and (frame["seconds"] > 0).all()


def test_several_cases_and_names_are_measured_one_after_the_other():
    both, names = [CASE, CASE._replace(training=1, y=None)], ["random", "intensity"]
    frame = pointing.gather(pointing.blur_scores, both, names, shares=SHARES)
    seen = frame[["training", "map"]].drop_duplicates().to_numpy().tolist()
    assert seen == [[0, "random"], [0, "intensity"], [1, "random"], [1, "intensity"]]
    assert frame.loc[frame["training"] == 1, "right"].isna().all()


def test_an_unknown_map_is_one_clear_error():
    with pytest.raises(ValueError, match="unknown map 'best'"):
        pointing.blur_scores(CASE, "best", shares=SHARES)


@pytest.fixture
def data(monkeypatch):
    x = randn(20, 3, 8, 8, seed=5).sigmoid().float()
    examples = Examples("toy", "test", x, torch.arange(20) % 3, torch.arange(20), class_names=("a", "b", "c"))
    monkeypatch.setattr(pointing, "load", lambda name, num_examples=20, **_: examples[:num_examples])
    monkeypatch.setattr(pointing, "train_or_load_vae", lambda *_, **__: VAE)
    networks = {0: DRAWS, 7: Draws([member(seed) for seed in (3, 4)])}
    monkeypatch.setattr(pointing, "ensemble", lambda *_, training_seed, **__: networks[training_seed])
    return examples


def test_all_trainings_get_the_same_uncertain_pictures(data):
    look = {"num_examples": 6, "num_scanned": 18, "dtype": torch.float64, "preset": "quick"}
    found = pointing.cases("toy", training_seeds=[0, 7], **look, **TINY)
    assert {name: [case.training for case in each] for name, each in found.items()} == {
        "uncertain": [0, 7],
        "random": [0, 7],
    }
    one, other = found["uncertain"]
    assert torch.equal(one.x, other.x) and len(one.x) == 6
    every = Draws([*found["uncertain"][0].draws, *found["uncertain"][1].draws])
    x = data.x[:18].double()
    bound = uncertainties(every, x).epistemic.median()
    assert (uncertainties(every, one.x).epistemic > bound).all()
    rows = (one.x[:, None] == x).flatten(2).all(2).long().argmax(1)
    assert torch.equal(one.y, data.y[rows])
    assert_close(one.mean, data.x.double().mean(0), **EXACT)


def test_pictures_are_attacked_or_novel(data):
    moved = pointing.attacked(CASE, 0.1)
    assert float((moved.x - X).abs().max()) == pytest.approx(0.1)
    assert moved.pictures == "attacked"
    loss = [DRAWS(x).softmax(-1).mean(0).gather(1, Y[:, None]).log().sum() for x in (X, moved.x)]
    assert loss[1] < loss[0]
    new = pointing.novel(CASE, "others")
    assert torch.equal(new.x, data.x[:3].double()) and new.y is None
    with pytest.raises(ValueError, match="have no true class"):
        pointing.attacked(new, 0.1)


def test_changes_take_the_first_training_and_few_pictures(data):
    second = CASE._replace(training=1)
    each = [{"uncertain": [CASE, second], "random": [CASE._replace(pictures="random"), second]}]
    found = rivalry.changes(each, num_examples=2, novel_of={"toy": "others"}, epsilon_of={})
    assert {name: option for name, (_, option) in found.items() if option} == {
        "total uncertainty": {"kind": "total"},
        "mean colour": {"fill": "mean_colour"},
        "data mean": {"fill": "data mean"},
    }
    assert {name: cases[0].pictures for name, (cases, _) in found.items() if name.endswith("pictures")} == {
        "random pictures": "random",
        "novel pictures": "novel",
    }
    assert all(len(cases) == 1 and cases[0].training == 0 and len(cases[0].x) == 2 for cases, _ in found.values())
    hit = rivalry.changes(each, num_examples=2, novel_of={}, epsilon_of={"toy": 0.1})
    assert "novel pictures" not in hit
    assert_close(hit["attacked"][0][0].x, pointing.attacked(CASE, 0.1).x[:2])


def test_a_map_of_what_was_pasted_finds_the_patch_and_a_flat_one_does_not():
    knows = CASE._replace(makers={"knows": lambda draws, x, kind: (x - X).abs().sum(1)})
    frame = pointing.anomaly_scores(knows, "knows", size=2)
    assert frame["iou"].tolist() == [1, 1, 1]
    boxes = paste(X, None, 2, seed=0, matched=True, min_change=pointing.MIN_CHANGE).boxes
    clean = iou(torch.zeros_like(boxes), boxes, 2)  # of a flat map: the first window
    assert frame["iou_clean"].tolist() == clean.tolist()
    table = rivalry.anomaly_table(pd.concat([frame, frame.assign(map="flat", iou=0.2)]))
    assert table[["map", "iou", "ada"]].to_numpy().tolist() == [["knows", 1, 1], ["flat", pytest.approx(0.2), 0]]
    assert table["iou_random"].iloc[0] == pytest.approx(frame["iou_random"].mean())


def test_covariances_are_asked_for_disagreement_only():
    kinds = ["epistemic", "aleatoric"]
    found = pointing.kind_maps(CASE, ["CovGI, diag", SETTINGS_OF["paper"]], kinds)
    assert list(found) == [("CovGI, diag", "epistemic"), *((SETTINGS_OF["paper"], kind) for kind in kinds)]
    assert_close(found[SETTINGS_OF["paper"], "aleatoric"], ua_backprop(DRAWS, X, "aleatoric"), **EXACT)


def test_truth_is_a_mean_over_trainings_without_the_evidence():
    masks = {name: torch.zeros(2, 4, 4, dtype=torch.bool) for name in ("evidence", "ambiguous", "novel")}
    masks["evidence"][:, :2, :2] = masks["novel"][:, 2:, 2:] = True
    on, off = masks["novel"].double(), masks["evidence"].double()
    kind = np.array(["unseen", "unseen"])
    table = rivalry.truth_table({0: {("m", "epistemic"): on}, 1: {("m", "epistemic"): off}}, masks, kind)
    assert table["patch"].tolist() == ["unseen", "unseen"]
    assert table["rank"].tolist() == [0.5, 0.5]
    assert table[["kind", "chance"]].to_numpy().tolist() == [["epistemic", 0.25]] * 2


NAMES = list(CASE.makers)
OWN = list(SETTINGS_OF.values())


def blurred(own, replacement, *, seconds=1.0, datasets=("toy", "other")):
    """Scores of two data sets: every map 0.3, the ceiling 0.8, UA-Backprop `own` and a little more on every second."""
    frames = []
    for dataset in datasets:
        for name in NAMES:
            score = own if name in OWN else {OURS: replacement, GREEDY: 0.8}.get(name, 0.3)
            example = np.repeat(np.arange(4), 2)
            columns = {"dataset": dataset, "pictures": "uncertain", "kind": "epistemic", "fill": "blurred"}
            columns |= {"training": 0, "map": name, "example": example, "share": np.tile([0, 0.05], 4), "urr": score}
            columns |= {"murr": score, "auc_urr": score + 0.01 * (example % 2 if name in OWN else 0), "right": 1.0}
            columns |= {"kept": 0.0 if name == OURS and replacement < 0.3 else 1.0}
            frames.append(pd.DataFrame(columns | {"seconds": 1.0 if name in OWN else seconds}))
    return pd.concat(frames, ignore_index=True)


def test_scores_at_a_budget_are_means_over_trainings():
    frame = blurred(0.5, 0.6)
    both = pd.concat([frame, frame.assign(training=1, auc_urr=frame["auc_urr"] + 0.2)])
    found = rivalry.at_budget(both)
    assert len(found) == 2 * len(NAMES) * 4
    row = found[(found["map"] == OURS) & (found["dataset"] == "toy")].iloc[0]
    assert row["auc_urr"] == pytest.approx(0.7)
    points = rivalry.mean_scores(found, ["map"], {"auc_urr": "score", "kept": "kept"})
    assert points["panel"].unique().tolist() == ["score", "kept"]
    assert points.set_index(["panel", "map"])["value"]["score", GREEDY] == pytest.approx(0.9)
    assert rivalry.summary(both, [0.05]).loc[OURS, ("auc_urr", "5%")] == pytest.approx(0.7)


def notebook():
    return Notebook("10", preset="quick", seed=0, dataset="toy")


@pytest.mark.parametrize(("own", "verdict"), [(0.6, "holds"), (0.1, "fails")])
def test_both_settings_are_judged_against_every_rival(own, verdict):
    study = notebook()
    duels.claim_blurring(study, rivalry.at_budget(blurred(own, 0.3)), {"toy": 3, "other": 1})
    few = len(NAMES) - 3 - len(duels.HEADLINE)  # rivals with one row for all data sets, without the settings
    assert len(study._claims) == 2 * (2 * len(duels.HEADLINE) + few)
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    value = {(claim["statement"], claim["dataset"]): claim["value"] for claim in study._claims}
    text = f"blurring, AUC-URR at 5 %: {OWN[0]} is above random"
    assert value[text, "toy"] == pytest.approx(own + 0.005 - 0.3)
    seeds = {claim["seeds"] for claim in study._claims if claim["dataset"] == "toy"}
    assert seeds == {3}
    sources = {claim["source"] for claim in study._claims if "random" in claim["statement"]}
    assert sources == {"this study"}


@pytest.mark.parametrize(("score", "verdict"), [(0.7, "holds"), (0.2, "fails")])
def test_the_replacement_is_judged_by_score_by_answer_and_by_the_ceiling(score, verdict):
    study = notebook()
    duels.claim_replacement(study, rivalry.at_budget(blurred(0.4, score)), {"toy": 1, "other": 1})
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 10
    values = [claim["value"] for claim in study._claims[:5]]
    kept = 0.0 if verdict == "holds" else -1.0
    assert values == pytest.approx([score - 0.3, score - 0.405, score - 0.405, kept, score / 0.8])


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_the_window_is_judged_against_random_ones_the_clean_picture_and_rivals(own, verdict):
    rows = [
        {"dataset": "toy", "map": name, "training": t, "example": i, "iou_clean": 0.2, "iou_random": 0.2}
        | {"iou": own + 0.01 * i if name in OWN else 0.3}
        for name in (*OWN, OURS, "random")
        for t in (0, 1)
        for i in range(3)
    ]
    study = notebook()
    duels.claim_anomalies(study, pd.DataFrame(rows), {"toy": 2})
    assert len(study._claims) == 2 * (2 + 2)
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    assert study._claims[0]["value"] == pytest.approx(own + 0.01 - 0.2)
    assert study._claims[0]["n"] == 3


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_each_kind_of_map_is_judged_on_the_patch_of_its_kind(own, verdict):
    rows = []
    for name in (*OWN, OURS, rivalry.SIGNED):
        for patch in ("ambiguous", "rare", "unseen"):
            for kind in ("epistemic", "aleatoric"):
                mine = (kind == "aleatoric") == (patch == "ambiguous")
                about = {"map": name, "patch": patch, "kind": kind}
                rows += [about | {"example": i, "rank": own + 0.01 * i if mine else 0.3} for i in range(3)]
    study = notebook()
    duels.claim_kinds(study, pd.DataFrame(rows), seeds=3)
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 12


@pytest.mark.parametrize(("seconds", "verdict"), [(3.0, "holds"), (1.0, "undecided"), (0.3, "fails")])
def test_speed_is_the_ratio_to_the_fastest_rival(seconds, verdict):
    frame = rivalry.at_budget(blurred(0.5, 0.6, seconds=seconds, datasets=("toy",)))
    frame.loc[frame["map"].isin(["random", GREEDY, rivalry.PLAIN]), "seconds"] = 1e-6  # these do not count
    study = notebook()
    duels.claim_speed(study, frame)
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 2
    assert study._claims[0]["value"] == pytest.approx(seconds)


def test_figures_show_every_map_once():
    frame = blurred(0.5, 0.6)
    figure, points = rivalry.curve_panels(frame, title="?")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == rivalry.DRAWN and set(points["map"]) == set(rivalry.DRAWN)
    table = rivalry.at_budget(frame)
    points = rivalry.mean_scores(table, ["dataset", "map"], {"auc_urr": "score", "kept": "kept"})
    figure = rivalry.rival_dots(points.rename(columns={"dataset": "hue"}), title="?", line="value")
    assert [axes.get_title() for axes in figure.axes] == ["score", "kept"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == NAMES
    figure, points = rivalry.cost_panels(table, title="?")
    assert set(points["map"]) == set(NAMES) - {GREEDY}
    assert len(figure.axes) == 2


def test_a_picture_is_shown_beside_its_map_by_every_rival():
    maps = {f"map {i}": torch.full((8, 8), -2.0) for i in range(7)}
    figure, shown = rivalry.rival_maps(X[0], torch.ones(8, 8), maps, dataset="planted", title="?")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["picture", *list(maps)[:6], "to be found", "map 6", "", "", "", "", ""]
    assert {float(values.min()) for values in shown.values()} == {-1.0}
