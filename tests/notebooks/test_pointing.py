"""Maps of uncertainty in their tests: scores by slow loops, tables by hand, verdicts that can go either way."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn, seeded
from helpers import n10
from notebook_cells import definitions
from torch import tensor
from torch.testing import assert_close

from xuqlib import Draws, Examples, Notebook, ua_backprop, ua_replacement, uncertainties
from xuqlib.explainers.baselines import make_baseline
from xuqlib.metrics.deletion import pixel_order
from xuqlib.study.judging import clue
from xuqlib.study.judging.anomaly import iou, paste
from xuqlib.study.judging.blurring import greedy_order
from xuqlib.study.judging.rivals import CONTROLS, RIVALS
from xuqlib.study.training.networks import mini_vgg
from xuqlib.study.training.vae import PictureVAE

SHARES = [0, 0.02, 0.05, 0.2, 1.0]
lesson = definitions(
    "10",
    shares=SHARES,
    num_steps=2,
    num_samples=20,
    clue_steps=2,
    candidates=2,
    group=1,
    num_changed=2,
    novel_of={"toy": "others"},
    epsilon_of={"toy": 0.1},
    training_seeds_of={"toy": [0, 7]},
    num_examples={"toy": 6},
    num_scanned=18,
    number=torch.float64,
)
CELLS = lesson.blur_scores.__globals__  # what the functions of the cells look their names up in
OURS, GREEDY, SIGNED = "UA-Replacement", "greedy ceiling", lesson.SIGNED
OWN = {"paper": "UA-Backprop (paper)", "recommended": "UA-Backprop (recommended)"}
X = randn(3, 3, 8, 8).sigmoid()
Y = tensor([0, 1, 2])


def member(seed):
    return seeded(
        lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3), seed=seed, dtype=torch.float64
    ).eval()


DRAWS = Draws([member(seed) for seed in (1, 2)])
VAE = seeded(lambda: PictureVAE((3, 8, 8), latent=2, widths=(4, 4), narrow=2), dtype=torch.float64).eval()
MEAN = torch.full((3, 8, 8), 0.4, dtype=torch.float64)
TABLE = lesson.maps_of_uncertainty(MEAN, VAE)
FAMILIES = {family: list(rows) for family, rows in TABLE.items()}
MAKERS = {name: make for rows in TABLE.values() for name, make in rows.items()}
CASE = lesson.Case("toy", 0, DRAWS, X, Y, MEAN, MAKERS)
NAMES = list(MAKERS)


@pytest.mark.filterwarnings("ignore:LIME hides nothing")  # whose superpixels are single pixels of 8 x 8
def test_every_map_makes_one_number_per_pixel():
    for name, make in MAKERS.items():
        if name in FAMILIES["generative"]:  # torch takes seconds to import their optimiser; see below
            continue
        values = make(DRAWS, X[:2], "epistemic")
        assert values.shape == (2, 8, 8) and values.dtype == X.dtype and values.isfinite().all(), name


def test_the_explainers_and_controls_are_all_that_the_library_knows_of():
    rows = [*TABLE["explainers of U"].values(), *TABLE["covariances"].values()]
    for make, wanted in zip(rows, RIVALS.values(), strict=True):
        assert make.func is wanted.func
        sizes = {"num_steps", "num_samples"}
        kept = [{key: each for key, each in one.keywords.items() if key not in sizes} for one in (make, wanted)]
        assert kept[0] == kept[1]
    controls = [make for make in CONTROLS.values() if not isinstance(make, partial)]  # the partial one is a rival, too
    assert list(TABLE["controls"].values()) == controls
    judged = {*lesson.OWN, *(name for names in lesson.CLASSES.values() for name in names), SIGNED}
    assert judged < set(NAMES) and set(lesson.IN_PAPER) < set(FAMILIES)


def test_generative_maps_search_with_the_autoencoder_that_they_are_given(monkeypatch):
    for name in ("CLUE", "delta-CLUE"):
        assert MAKERS[name].keywords["vae"] is VAE and MAKERS[name].keywords["num_steps"] == 2
    latents = VAE.encode(X)[0].detach() + 0.5
    start = clue.Counterfactuals(VAE.decode(latents).detach(), latents, X, *[torch.zeros(3)] * 3)
    asked = []

    def search(*args, **options):
        asked.append(options)
        return start

    monkeypatch.setattr(clue, "clue_counterfactuals", search)
    found = MAKERS["path integral"](DRAWS, X, "total")
    wanted = clue.path_integral(DRAWS, X, "total", vae=VAE, num_steps=2, counterfactuals=start)
    assert_close(found, wanted, **EXACT)
    assert asked == [{"vae": VAE, "num_steps": 2}]


def test_the_maps_are_those_of_the_library():
    for setting, name in OWN.items():
        assert_close(MAKERS[name](DRAWS, X, "total"), ua_backprop(DRAWS, X, "total", setting=setting), **EXACT)
    assert_close(MAKERS[OURS](DRAWS, X), ua_replacement(DRAWS, X, reference=MEAN), **EXACT)
    greedy = greedy_order(DRAWS, X, budget=0.05, candidates=2)
    assert torch.equal(pixel_order(MAKERS[GREEDY](DRAWS, X, "epistemic")), greedy)


@pytest.mark.parametrize("fill", ["blurred", "data mean"])
def test_blurring_is_a_loop_over_pictures_and_shares(fill):
    frame = lesson.blur_scores(CASE, "intensity", kind="total", fill=fill)
    replacement = MEAN.expand_as(X) if fill == "data mean" else make_baseline(fill, X)
    rows = iter(frame.sort_values(["example", "share"]).itertuples())
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
            assert (row.example, row.share, row.map) == (i, share, "intensity")
            assert (row.uncertainty, row.urr, row.murr) == pytest.approx((left[0], fall[-1], best[-1]), abs=1e-10)
            if share:
                assert row.auc_urr == pytest.approx(np.trapezoid(best, SHARES[: len(best)]) / share, abs=1e-10)
            assert row.kept == (answers[0] == answers[1])
            assert row.right == (answers[1] == i) or (share == 0.2 and np.isnan(row.right))
    assert frame["auc_urr"].isna().sum() == 3 and (frame["seconds"] > 0).all()


def test_pictures_without_a_true_class_have_no_right_answers():
    frame = lesson.blur_scores(CASE._replace(y=None), "random", kind="epistemic", fill="blurred")
    assert frame["right"].isna().all() and frame["kept"].notna().all()


@pytest.fixture
def data(monkeypatch):
    x = randn(20, 3, 8, 8, seed=5).sigmoid().float()
    examples = Examples("toy", "test", x, torch.arange(20) % 3, torch.arange(20), class_names=("a", "b", "c"))
    networks = {0: DRAWS, 7: Draws([member(seed) for seed in (3, 4)])}
    fake = SimpleNamespace(
        **{name: getattr(CELLS["xuq"], name) for name in CELLS["xuq"].__all__}
        | {
            "load": lambda name, num_examples=20, **_: examples[:num_examples],
            "train_or_load": lambda *_, seed, **__: SimpleNamespace(sample=lambda *_, **__: networks[seed]),
        }
    )
    monkeypatch.setitem(CELLS, "xuq", fake)
    monkeypatch.setitem(CELLS, "train_or_load_vae", lambda *_, **__: VAE)
    return examples


def test_all_trainings_get_the_same_uncertain_pictures(data):
    found = lesson.cases_of("toy")
    assert {name: [case.training for case in each] for name, each in found.items()} == {
        "uncertain": [0, 7],
        "random": [0, 7],
    }
    one, other = found["uncertain"]
    assert torch.equal(one.x, other.x) and len(one.x) == 6
    every = Draws([*one.draws, *other.draws])
    x = data.x[:18].double()
    bound = uncertainties(every, x).epistemic.median()
    assert (uncertainties(every, one.x).epistemic > bound).all()
    rows = (one.x[:, None] == x).flatten(2).all(2).long().argmax(1)
    assert torch.equal(one.y, data.y[rows])
    assert_close(one.mean, data.x.double().mean(0), **EXACT)
    assert list(one.makers) == NAMES


def test_pictures_are_attacked_or_novel_and_few(data):
    moved = lesson.attacked(CASE)
    assert float((moved.x - X[:2]).abs().max()) == pytest.approx(0.1)
    assert moved.y is None
    loss = [DRAWS(x).softmax(-1).mean(0).gather(1, Y[:2, None]).log().sum() for x in (X[:2], moved.x)]
    assert loss[1] < loss[0]
    new = lesson.novel(CASE)
    assert torch.equal(new.x, data.x[:2].double()) and new.y is None
    few = lesson.few_of(CASE)
    assert torch.equal(few.x, X[:2]) and few.y is None


def test_a_map_of_what_was_pasted_finds_the_patch():
    knows = CASE._replace(makers={"knows": lambda draws, x, kind: (x - X).abs().sum(1)})
    frame = lesson.window_scores(knows, "knows", size=2)
    assert frame["iou"].tolist() == [1, 1, 1]
    boxes = paste(X, None, 2, seed=0, matched=True, min_change=0.03).boxes
    clean = iou(torch.zeros_like(boxes), boxes, 2)  # of a flat map: the first window
    assert frame["iou_clean"].tolist() == clean.tolist()


def test_a_square_is_found_by_the_map_that_lies_on_it():
    masks = {name: torch.zeros(3, 4, 4, dtype=torch.bool) for name in ("evidence", "ambiguous", "novel")}
    masks["evidence"][:, :2, :2] = masks["novel"][:, 2:, 2:] = masks["ambiguous"][:, :2, 2:] = True
    maps = {("m", "epistemic"): masks["novel"].double(), ("m", "aleatoric"): masks["ambiguous"].double()}
    table = lesson.square_scores(maps, masks, np.array(["unseen", "ambiguous", "rare"]))
    found = table.set_index(["patch", "kind"])[["example", "rank", "chance"]]
    assert found.loc[("unseen", "epistemic")].tolist() == [0, 1, 0.25]
    assert found.loc[("unseen", "aleatoric")].tolist() == [0, 0, 0.25]
    assert found.loc[("ambiguous", "epistemic")].tolist() == [1, 0, 0.25]
    assert found.loc[("ambiguous", "aleatoric")].tolist() == [1, 1, 0.25]
    assert found.loc[("rare", "epistemic")].tolist() == [2, 1, 0.25]


def blurred(own, replacement, *, seconds=1.0, datasets=("toy", "other")):
    """Scores of two data sets: every map 0.3, the ceiling 0.8, UA-Backprop `own` and a little more on every second."""
    frames = []
    for dataset in datasets:
        for name in NAMES:
            mine = name in OWN.values()
            score = own if mine else {OURS: replacement, GREEDY: 0.8}.get(name, 0.3)
            example = np.repeat(np.arange(4), 2)
            columns = {"dataset": dataset, "training": 0, "map": name, "example": example, "urr": score}
            columns |= {"share": np.tile([0, 0.05], 4), "murr": score, "right": 1.0}
            columns |= {"auc_urr": score + 0.01 * (example % 2 if mine else 0)}
            columns |= {"kept": 0.0 if name == OURS and replacement < 0.3 else 1.0}
            frames.append(pd.DataFrame(columns | {"seconds": 1.0 if mine else seconds}))
    return pd.concat(frames, ignore_index=True)


def test_scores_at_a_budget_are_means_over_trainings():
    frame = blurred(0.5, 0.6)
    both = pd.concat([frame, frame.assign(training=1, auc_urr=frame["auc_urr"] + 0.2)])
    found = lesson.at_budget(both, 0.05)
    assert len(found) == 2 * len(NAMES) * 4
    row = found[(found["map"] == OURS) & (found["dataset"] == "toy")].iloc[0]
    assert row["auc_urr"] == pytest.approx(0.7)
    points = n10.mean_scores(found, ["map"], {"auc_urr": "score", "kept": "kept"})
    assert points["panel"].unique().tolist() == ["score", "kept"]
    assert points.set_index(["panel", "map"])["value"]["score", GREEDY] == pytest.approx(0.9)


def notebook():
    return Notebook("10", preset="quick", seed=0, dataset="toy")


@pytest.mark.parametrize(("own", "verdict"), [(0.6, "holds"), (0.1, "fails")])
def test_both_settings_are_judged_against_every_rival(own, verdict):
    study = notebook()
    lesson.judge_blurring(study, lesson.at_budget(blurred(own, 0.3), 0.05), FAMILIES, {"toy": 3, "other": 1})
    rivals = len(NAMES) - 3  # without the settings and the ceiling
    assert len(study._claims) == 2 * 2 * rivals
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    value = {(claim["statement"], claim["dataset"]): claim["value"] for claim in study._claims}
    text = f"blurring, AUC-URR at 5 %: {OWN['paper']} is above random"
    assert value[text, "toy"] == pytest.approx(own + 0.005 - 0.3)
    seeds = {claim["seeds"] for claim in study._claims if claim["dataset"] == "toy"}
    assert seeds == {3}
    sources = {claim["source"] for claim in study._claims if "random" in claim["statement"]}
    assert sources == {"this study"}


def test_a_data_set_that_decides_nothing_does_not_hide_another_that_does():
    frame = blurred(0.5, 0.3)
    weak = (frame["dataset"] == "other") & (frame["map"] == "LIME of U") & (frame["example"] == 3)
    frame.loc[weak, "auc_urr"] += 1.0  # a spread that decides nothing, on one of the two
    study = notebook()
    lesson.judge_blurring(study, lesson.at_budget(frame, 0.05), FAMILIES, {"toy": 3, "other": 1})
    rows = [claim for claim in study._claims if claim["statement"].endswith("above LIME of U")]
    assert {(row["verdict"], row["dataset"], row["seeds"]) for row in rows} == {
        ("holds", "toy", 3),
        ("undecided", "other", 1),
    }


@pytest.mark.parametrize(("score", "verdict"), [(0.7, "holds"), (0.2, "fails")])
def test_the_replacement_is_judged_by_score_by_answer_and_by_the_ceiling(score, verdict):
    study = notebook()
    lesson.judge_replacement(study, lesson.at_budget(blurred(0.4, score), 0.05), {"toy": 1, "other": 1})
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 10
    values = [claim["value"] for claim in study._claims[:5]]
    kept = 0.0 if verdict == "holds" else -1.0
    assert values == pytest.approx([score - 0.3, score - 0.405, score - 0.405, kept, score / 0.8])


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_the_window_is_judged_against_random_ones_the_clean_picture_and_rivals(own, verdict):
    rows = [
        {"dataset": "toy", "map": name, "training": t, "example": i, "iou_clean": 0.2, "iou_random": 0.2}
        | {"iou": own + 0.01 * i if name in OWN.values() else 0.3}
        for name in (*OWN.values(), OURS, "random")
        for t in (0, 1)
        for i in range(3)
    ]
    study = notebook()
    lesson.judge_anomalies(study, pd.DataFrame(rows), FAMILIES, {"toy": 2})
    assert len(study._claims) == 2 * (2 + 2)
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    assert study._claims[0]["value"] == pytest.approx(own + 0.01 - 0.2)
    assert study._claims[0]["n"] == 3


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_each_kind_of_map_is_judged_on_the_patch_of_its_kind(own, verdict):
    rows = []
    for name in (*OWN.values(), OURS, SIGNED):
        for patch in ("ambiguous", "rare", "unseen"):
            for kind in ("epistemic", "aleatoric"):
                mine = (kind == "aleatoric") == (patch == "ambiguous")
                about = {"map": name, "patch": patch, "kind": kind}
                rows += [about | {"example": i, "rank": own + 0.01 * i if mine else 0.3} for i in range(3)]
    study = notebook()
    lesson.judge_kinds(study, pd.DataFrame(rows), seeds=3)
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 12


@pytest.mark.parametrize(
    ("seconds", "verdict"), [((3.0, 2.0), "holds"), ((3.0, 0.9), "undecided"), ((0.3, 0.9), "fails")]
)
def test_speed_is_judged_by_class_of_method_over_rounds(seconds, verdict):
    timed = [*OWN.values(), *(name for names in lesson.CLASSES.values() for name in names)]
    rounds = pd.DataFrame({name: [1.0, 1.0] if name in lesson.OWN else list(seconds) for name in timed})
    study = notebook()
    lesson.judge_speed(study, rounds, "toy")
    assert len(study._claims) == 2 * (len(timed) - 2)
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    assert study._claims[0]["value"] == pytest.approx(sum(seconds) / 2)
    named = {claim["claim"] for claim in study._claims if claim["claim"].startswith("U5")}
    assert named == {"U5, path", "U5, perturbation", "U5, generative"}


def test_a_round_times_every_map_of_every_class(monkeypatch):
    quick = {name: lambda draws, x, kind: x for name in NAMES}
    case = CASE._replace(makers=quick)
    monkeypatch.setitem(CELLS, "num_timed", 1)
    monkeypatch.setitem(CELLS, "num_rounds", 2)
    rounds = lesson.timed_rounds(case)
    assert set(rounds) == {*lesson.OWN, *(name for names in lesson.CLASSES.values() for name in names)}
    assert len(rounds) == 2 and rounds.gt(0).all().all()


def test_figures_show_every_map_once():
    frame = blurred(0.5, 0.6)
    figure, points = n10.curve_panels(frame, lesson.drawn, title="?")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == lesson.drawn and set(points["map"]) == set(lesson.drawn)
    table = lesson.at_budget(frame, 0.05)
    points = n10.mean_scores(table, ["dataset", "map"], {"auc_urr": "score", "kept": "kept"})
    figure = n10.rival_dots(points.rename(columns={"dataset": "hue"}), title="?", line="value")
    assert [axes.get_title() for axes in figure.axes] == ["score", "kept"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == NAMES
    families = {name: names for name, names in FAMILIES.items() if name != "ceiling"}
    figure, points = n10.cost_panels(table, families, [*lesson.drawn, "CLUE"], title="?")
    assert set(points["map"]) == set(NAMES) - {GREEDY}
    assert len(figure.axes) == 2


def test_a_picture_is_shown_beside_its_map_by_every_rival():
    maps = {f"map {i}": torch.full((8, 8), -2.0) for i in range(7)}
    figure, frame = n10.rival_maps(X[0], torch.ones(8, 8), maps, dataset="planted", title="?")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["picture", *list(maps)[:6], "to be found", "map 6", "", "", "", "", ""]
    assert list(frame) == list(maps) and (frame == -1.0).all(axis=None)
