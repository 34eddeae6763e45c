"""Maps of uncertainty in their tests: scores by slow loops, tables by hand, verdicts that can go either way."""

from __future__ import annotations

import itertools
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
from xuqlib.study.judging.blurring import BlurringCurves, greedy_order
from xuqlib.study.judging.rivals import CONTROLS, RIVALS
from xuqlib.study.training.networks import mini_vgg
from xuqlib.study.training.vae import PictureVAE
from xuqlib.study.verdicts import read_chosen

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
    num_random=5,
    changed=["UA-Backprop (paper)", "UA-Backprop (recommended)", "FullGrad of prediction", "random"],
    novel_of={"toy": "others"},
    epsilon_of={"toy": 0.1},
    training_seeds_of={"toy": [0, 7]},
    num_examples={"toy": 6},
    number=torch.float64,
)
CELLS = lesson.blur_scores.__globals__  # what the functions of the cells look their names up in
OURS, GREEDY, PLAIN = "UA-Replacement", "greedy ceiling", "gradient x input, signed"
OWN = {"paper": "UA-Backprop (paper)", "recommended": "UA-Backprop (recommended)"}
X = randn(3, 3, 8, 8).sigmoid()
Y = tensor([0, 1, 2])
OTHERS = randn(3, 3, 8, 8, seed=9).sigmoid()  # a training image for each


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
CASE = lesson.Case("toy", "uncertain", 0, DRAWS, X, Y, tensor([4, 0, 7]), OTHERS, MEAN, MAKERS)
NAMES = list(MAKERS)


@pytest.mark.filterwarnings("ignore:LIME hides nothing")  # whose superpixels are single pixels of 8 x 8
def test_every_map_makes_one_number_per_pixel():
    for name, make in MAKERS.items():
        if name in FAMILIES["generative"]:  # torch takes seconds to import their optimiser; see below
            continue
        values = make(DRAWS, X[:2], "epistemic")
        assert values.shape == (2, 8, 8) and values.dtype == X.dtype and values.isfinite().all(), name


def test_the_explainers_and_controls_are_all_that_the_library_knows_of():
    table = TABLE["explainers of U"] | TABLE["covariances"]
    twins = {name: table.pop(name) for name in ("IG from blurred, abs", "FullGrad of U, abs")}
    for make, wanted in zip(table.values(), RIVALS.values(), strict=True):
        assert make.func is wanted.func
        sizes = {"num_steps", "num_samples"}
        kept = [{key: each for key, each in one.keywords.items() if key not in sizes} for one in (make, wanted)]
        assert kept[0] == kept[1]
    for name, twin in zip(("IG from blurred", "FullGrad of U, signed"), twins.values(), strict=True):
        assert twin.func is table[name].func and twin.keywords == table[name].keywords | {"absolute": True}
    controls = [make for make in CONTROLS.values() if not isinstance(make, partial)]  # the partial one is a rival, too
    assert list(TABLE["controls"].values()) == controls
    judged = {*lesson.OWN, *(name for names in lesson.CLASSES.values() for name in names)}
    assert judged | {*lesson.SIGNED, *lesson.BLIND, *lesson.SLOW} < set(NAMES) and set(lesson.IN_PAPER) < set(FAMILIES)


@pytest.mark.filterwarnings("ignore:LIME hides nothing")
def test_maps_of_the_unsigned_league_have_no_sign_and_those_of_the_other_have():
    # Nearly unsigned; lifted above 0 by its even part; and LIME hides nothing of so small an image.
    apart = {*FAMILIES["generative"], *FAMILIES["ceiling"], *lesson.OWN, "shuffled shares", OURS, "LIME of U"}
    for name in set(NAMES) - apart:
        values = MAKERS[name](DRAWS, X, "epistemic")
        assert bool((values < 0).any()) == (name in lesson.SIGNED), name


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


@pytest.mark.parametrize("fill", lesson.FILLS)
def test_blurring_is_a_loop_over_pictures_and_shares(fill):
    frame = lesson.blur_scores(CASE, "intensity", kind="total", fills=[fill])
    flat = X.mean((2, 3), keepdim=True).expand_as(X)
    fills = [make_baseline("blurred", X), flat, MEAN.expand_as(X), OTHERS]
    replacement = dict(zip(lesson.FILLS, fills, strict=True))[fill]
    shares = SHARES if fill == "blurred" else SHARES[:3]  # up to the budget
    rows = {(row.example, row.share): row for row in frame.itertuples()}
    assert len(rows) == len(frame) == 3 * len(shares)
    for i in range(3):
        order, left, kept = X[i].sum(0).flatten().argsort(descending=True), [], True
        for share in shares:
            picture = X[i].clone().flatten(1)
            gone = order[: int(share * 64 + 1e-9)]
            picture[:, gone] = replacement[i].flatten(1)[:, gone]
            picture = picture.view(1, 3, 8, 8)
            left.append(float(uncertainties(DRAWS, picture).total))
            answers = [int(DRAWS(each).softmax(-1).mean(0).argmax()) for each in (X[i : i + 1], picture)]
            kept = kept and answers[0] == answers[1]
            fall = (left[0] - np.array(left)) / left[0]
            best, row = np.maximum.accumulate(fall), rows[int(CASE.numbers[i]), share]
            assert (row.dataset, row.images, row.fill, row.map) == ("toy", "uncertain", fill, "intensity")
            assert (row.uncertainty, row.urr, row.murr) == pytest.approx((left[0], fall[-1], best[-1]), abs=1e-10)
            if share:
                assert row.auc_urr == pytest.approx(np.trapezoid(best, SHARES[: len(best)]) / share, abs=1e-10)
            assert row.kept == kept
    assert frame["auc_urr"].isna().sum() == 3 and (frame["seconds"] > 0).all()


def test_an_answer_that_comes_back_was_not_kept(monkeypatch):
    ways = tensor([[True, False, True, True, True], [True] * 5])
    numbers = torch.zeros(2, 5, dtype=torch.float64)
    curves = BlurringCurves(tensor(SHARES, dtype=torch.float64), numbers + 1, numbers, ways)
    monkeypatch.setattr(CELLS["blurring"], "uncertainty_curves", lambda *_, **__: curves)
    frame = lesson.blur_scores(lesson.first_of(CASE, 2), "random", kind="epistemic", fills=["blurred"])
    assert frame.groupby("example")["kept"].apply(list).to_dict() == {4: [1, 0, 0, 0, 0], 0: [1] * 5}


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


def test_each_training_gets_the_images_that_its_own_networks_are_unsure_of(data, monkeypatch):
    x = data.x.double()
    u = {seed: uncertainties(Draws([member(seed + 1), member(seed + 2)]), x).epistemic for seed in (0, 2)}
    low, high = u[0].sort().values[[4, 10]].tolist()
    monkeypatch.setitem(CELLS, "STRATA", {"sure": (0, low), "in between": (low, high), "uncertain": (high, np.inf)})
    found = lesson.cases_of("toy")
    assert [len(each) for each in found.values()] == [2] * 4
    assert [len(found[name][0].x) for name in found] == [4, 6, 6, 5]  # of ten uncertain ones six are wanted
    partner = {}
    for images, each in found.items():
        for case, seed in zip(each, (0, 2), strict=True):
            assert (case.images, case.training) == (images, 7 if seed else 0)
            for i, n in enumerate(case.numbers.tolist()):
                assert torch.equal(case.x[i], x[n]) and case.y[i] == data.y[n]
                bounds = CELLS["STRATA"].get(images, (-np.inf, np.inf))
                assert bounds[0] <= u[seed][n] < bounds[1]
                (other,) = (x == case.others[i]).flatten(1).all(1).nonzero().flatten().tolist()  # here test is training
                assert partner.setdefault(n, other) == other  # the same image in every case has the same fill
            assert_close(case.mean, x.mean(0), **EXACT)
            assert list(case.makers) == NAMES
    assert len(set(partner.values())) > 5
    assert torch.equal(found["random"][0].numbers, found["random"][1].numbers)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    wanted = [n for n in order if u[0][n] >= high][:6]
    assert found["uncertain"][0].numbers.tolist() == wanted


def test_pictures_are_attacked_or_novel_and_few(data):
    moved = lesson.attacked(CASE)
    assert float((moved.x - X[:2]).abs().max()) == pytest.approx(0.1)
    assert moved.y is None
    loss = [DRAWS(x).softmax(-1).mean(0).gather(1, Y[:2, None]).log().sum() for x in (X[:2], moved.x)]
    assert loss[1] < loss[0]
    new = lesson.novel(CASE)
    assert torch.equal(new.x, data.x[:2].double()) and new.y is None
    few = lesson.first_of(CASE, 2)
    assert torch.equal(few.x, X[:2]) and few.y.tolist() == [0, 1]
    assert few.numbers.tolist() == [4, 0] and torch.equal(few.others, OTHERS[:2])


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
    right = table.set_index(["patch", "kind"])["right"]
    assert right.loc[[("ambiguous", "aleatoric"), ("rare", "epistemic"), ("unseen", "epistemic")]].all()
    assert right.sum() == 3


def blurred(own, replacement, *, seconds=1.0, datasets=("toy", "other"), images="uncertain", fills=("blurred",)):
    """Scores of two data sets: every map 0.3, the ceiling 0.8, UA-Backprop `own` and a little more on every second."""
    frames = []
    for dataset, name, fill in itertools.product(datasets, NAMES, fills):
        mine = name in OWN.values()
        score = own if mine else {OURS: replacement, GREEDY: 0.8}.get(name, 0.3)
        example = np.repeat(np.arange(6), 2)
        columns = {"dataset": dataset, "images": images, "training": 0, "map": name, "fill": fill, "example": example}
        columns |= {"share": np.tile([0, 0.05], 6), "urr": score, "murr": score}
        columns |= {"auc_urr": score + 0.01 * (example % 2 if mine else 0)}
        columns |= {"kept": 0.0 if name == OURS and replacement < 0.3 else 1.0}
        frames.append(pd.DataFrame(columns | {"seconds": 1.0 if mine else seconds}))
    return pd.concat(frames, ignore_index=True)


def test_scores_at_a_budget_and_their_means_over_trainings():
    frame = blurred(0.5, 0.6)
    both = pd.concat([frame, frame.assign(training=1, auc_urr=frame["auc_urr"] + 0.2)])
    found = lesson.over_trainings(lesson.at_budget(both, 0.05))
    assert len(found) == 2 * len(NAMES) * 6
    row = found[(found["map"] == OURS) & (found["dataset"] == "toy")].iloc[0]
    assert row["auc_urr"] == pytest.approx(0.7)
    points = n10.mean_scores(found, ["map"], {"auc_urr": "score", "kept": "kept"})
    assert points["panel"].unique().tolist() == ["score", "kept"]
    assert points.set_index(["panel", "map"])["value"]["score", GREEDY] == pytest.approx(0.9)


def rows_of(*rows):
    columns = ["map", "training", "fill", "example", "auc_urr", "kept"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="toy", images="uncertain")


def test_gains_by_hand():
    scores = rows_of(
        ("a", 0, "blurred", 3, 0.9, 1.0),
        ("a", 1, "blurred", 3, 0.5, 1.0),
        ("a", 0, "blurred", 4, 0.6, 0.0),
        ("a", 0, "blurred", 5, 0.7, 1.0),
        ("a", 0, "mean colour", 3, 0.2, 1.0),
        ("b", 0, "blurred", 3, 0.4, 1.0),
        ("b", 1, "blurred", 3, 0.4, 0.0),
        ("b", 0, "blurred", 4, 0.5, 1.0),
        ("b", 0, "blurred", 6, 0.5, 1.0),
    )
    every = lesson.gains(scores, "a", "b", False)
    assert every.index.tolist() == [("toy", 3), ("toy", 4)]  # images and fills that both maps have
    assert every.tolist() == pytest.approx([(0.5 + 0.1) / 2, 0.1])
    same = lesson.gains(scores, "a", "b", True)  # of image 3 only training 0, where b keeps the answer, too
    assert same.index.tolist() == [("toy", 3)] and same.tolist() == pytest.approx([0.5])
    assert len(lesson.gains(scores, "a", "c", False)) == 0
    assert lesson.by_dataset(every) == {}  # two images are too few


def test_the_mean_over_fills_is_of_maps_that_took_all_of_them():
    rows = [("a", 0, fill, 0, i / 10, 1.0) for i, fill in enumerate(lesson.FILLS)]
    scores = rows_of(*rows, *(("b", *row[1:4], 0.0, 1.0) for row in rows), ("c", 0, "blurred", 0, 0.0, 1.0))
    found = lesson.conditions(pd.concat([scores, scores.assign(images="sure", auc_urr=0.0)]))
    (text,) = [text for text in found if "mean of the fills" in text]
    part, matched = found[text]
    assert text.startswith("exploratory") and not matched
    assert lesson.gains(part, "a", "b", matched).tolist() == pytest.approx([0.15])
    assert len(lesson.gains(part, "a", "c", matched)) == 0
    decides = [text for text in found if not text.startswith("exploratory")]
    assert len(decides) == 5 and all(text.startswith("uncertain images") for text in decides)
    for text in decides:
        part, matched = found[text]
        assert set(part["images"]) == {"uncertain"} and part["fill"].nunique() == 1
        assert matched == ("both keep" in text)
    assert [found[text][0]["images"].unique().tolist() for text in found if text.startswith("exploratory: sure")] == [
        ["sure"]
    ]


def notebook():
    return Notebook("10", preset="quick", seed=0, dataset="toy")


UNSIGNED = [name for name in NAMES if name not in (*lesson.SIGNED, *OWN.values(), GREEDY)]


@pytest.mark.parametrize(("own", "verdict"), [(0.6, "holds"), (0.1, "fails")])
def test_both_settings_are_judged_against_every_unsigned_rival_and_the_blind_ones_first(own, verdict):
    scores = pd.concat([blurred(own, 0.3, fills=lesson.FILLS), blurred(own, 0.3, images="sure")])
    study = notebook()
    lesson.judge_blurring(study, lesson.at_budget(scores, 0.05), FAMILIES, {"toy": 3, "other": 1})
    claims = pd.DataFrame(study._claims)
    ties = claims["statement"].str.contains("is within 0.02 of")
    assert ties.sum() == 2 * 2 * 2 and set(claims.loc[ties, "verdict"]) == {"fails"}
    claims = claims[~ties]
    assert len(claims) == 2 * len(UNSIGNED) * (4 + 1 + 1 + 1) * 2  # fills, matched, their mean, another stratum
    assert set(claims["verdict"]) == {verdict}
    rivals = claims["statement"].str.extract("is above (.+)$")[0]
    assert list(dict.fromkeys(rivals)) == [*lesson.BLIND, *(name for name in UNSIGNED if name not in lesson.BLIND)]
    explored = claims["statement"].str.startswith("exploratory")
    assert set(claims.loc[~explored, "claim"]) == {"U2"} and "U2" not in set(claims.loc[explored, "claim"])
    value = claims.set_index(["statement", "dataset"])["value"]
    text = f"uncertain images, blurred, AUC-URR at 5 %: {OWN['paper']} is above random"
    assert value[text, "toy"] == pytest.approx(own + 0.005 - 0.3)
    assert set(claims.loc[claims["dataset"] == "toy", "seeds"]) == {3}
    assert set(claims.loc[rivals == "random", "source"]) == {"this study"}
    assert set(claims.loc[rivals == "CLUE", "source"]) == {lesson.PAPER}


def test_the_numbers_chosen_beforehand_are_rows_of_these_verdicts():
    study, scores = notebook(), lesson.at_budget(blurred(0.5, 0.6), 0.05)
    lesson.judge_blurring(study, scores, FAMILIES, {"toy": 1, "other": 1})
    lesson.judge_replacement(study, scores, FAMILIES, {"toy": 1, "other": 1})
    rows = {claim["statement"]: claim["claim"] for claim in study._claims}
    chosen = {name: entry for name, entry in read_chosen().items() if entry.notebook == "10"}
    assert set(chosen) == {"U2 rival", "U2 control", "U3", "U4", "U5", "signed"}
    for name in ("U2 rival", "U2 control", "signed"):
        assert rows[chosen[name].row] == name.split()[0]


def test_a_data_set_that_decides_nothing_does_not_hide_another_that_does():
    frame = blurred(0.5, 0.3)
    weak = (frame["dataset"] == "other") & (frame["map"] == "CLUE") & (frame["example"] == 3)
    frame.loc[weak, "auc_urr"] += 1.2  # a spread that decides nothing, on one of the two
    study = notebook()
    lesson.judge_blurring(study, lesson.at_budget(frame, 0.05), FAMILIES, {"toy": 3, "other": 1})
    text = f"uncertain images, blurred, AUC-URR at 5 %: {OWN['paper']} is above CLUE"
    rows = [claim for claim in study._claims if claim["statement"] == text]
    assert {(row["verdict"], row["dataset"], row["seeds"]) for row in rows} == {
        ("holds", "toy", 3),
        ("undecided", "other", 1),
    }


@pytest.mark.parametrize(("score", "verdict"), [(0.7, "holds"), (0.2, "fails")])
def test_the_replacement_is_judged_by_score_by_answer_and_by_the_ceiling(score, verdict):
    study = notebook()
    lesson.judge_replacement(study, lesson.at_budget(blurred(0.4, score), 0.05), FAMILIES, {"toy": 1, "other": 1})
    claims = pd.DataFrame(study._claims)
    assert set(claims["verdict"]) == {verdict}
    rivals = claims["statement"].str.extract("is above (.+)$")[0].dropna()
    assert rivals.iloc[0] == PLAIN and set(rivals) == set(lesson.SIGNED) - {OURS}
    lettered = claims[claims["claim"] == "signed"]
    # Blurred, where both keep the answer (nowhere, if ours loses it), and the answers themselves.
    assert len(lettered) == 2 * (3 if verdict == "holds" else 2)
    kept = claims[claims["statement"].str.contains("keep the answer as often")]["value"]
    assert kept.tolist() == pytest.approx([0.0 if verdict == "holds" else -1.0] * 2)
    ceiling = claims[claims["statement"].str.contains("half of the greedy ceiling")]["value"]
    assert ceiling.tolist() == pytest.approx([score / 0.8] * 2)


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_the_window_is_judged_against_random_ones_the_clean_picture_and_rivals(own, verdict):
    rows = [
        {"dataset": "toy", "map": name, "training": t, "example": i, "iou_clean": 0.2, "iou_random": 0.2}
        | {"iou": own + 0.01 * i if name in OWN.values() else 0.3}
        for name in (*OWN.values(), OURS, PLAIN, "gradient, abs", "random")
        for t in (0, 1)
        for i in range(3)
    ]
    study = notebook()
    lesson.judge_anomalies(study, pd.DataFrame(rows), FAMILIES, {"toy": 2})
    assert len(study._claims) == 2 * (2 + 2)  # no signed rival
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    assert study._claims[0]["value"] == pytest.approx(own + 0.01 - 0.2)
    assert study._claims[0]["n"] == 3


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "holds"), (0.1, "fails")])
def test_each_kind_of_map_is_judged_on_the_patch_of_its_kind(own, verdict):
    rows = []
    for name in (*OWN.values(), OURS, PLAIN):
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


def titled(figure):
    return " ".join(figure.get_suptitle().split())


def test_curves_are_of_images_that_the_ceiling_has_and_the_title_compares_with_it():
    frame = blurred(0.4, 0.6)
    wrong = frame[frame["map"] == OWN["paper"]].assign(example=99, murr=0.0)  # an image that others do not have
    figure, points = n10.curve_panels(pd.concat([frame, wrong]), lesson.drawn, own=OWN["paper"])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == lesson.drawn and set(points["map"]) == set(lesson.drawn)
    assert titled(figure).startswith(f"With 5 % of the pixels {OWN['paper']} takes away 0.50 of what the ceiling does")


def points_of(**columns):
    frame = pd.DataFrame(columns)
    return frame.assign(low=frame["value"] - 0.05, high=frame["value"] + 0.05)


def test_titles_count_what_the_marks_say():
    gains = points_of(
        dataset=["toy"] * 4,
        own=["A", "A", "A", "B"],
        rival=["blind", "x", "y", "z"],
        value=[0.01, 0.2, -0.2, 0.3],
    )
    assert n10.gain_marks(gains).tolist() == ["undecided", "above", "below", "above"]
    figure = n10.league_dots(gains, ["blind"])
    wanted = "A is above blind on 0 of 1 data sets; above other rivals of its league in 1 of 2 comparisons"
    assert titled(figure) == wanted
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["A less ...", "B less ...", "blind", "x", "y", "z"]
    changes = gains.assign(rival=["r", "r", "r", "s"], change=["one", "two", "three", "one"])
    assert titled(n10.change_dots(changes)) == "A is above r in 1 of 3 cases; B is above s in 1 of 1 cases"

    windows = points_of(
        dataset=["toy"] * 6, map=["A"] * 3 + ["B"] * 3, window=[*n10.WINDOWS] * 2, value=[0.5, 0.1, 0.2, 0.5, 0.1, 0.45]
    )
    assert titled(n10.anomaly_dots(windows)).startswith("1 of 2 windows overlap the patch")

    costs = pd.DataFrame({"dataset": "toy", "family": ["UA-Backprop", "f", "f"], "map": ["A", "CLUE", "g"]})
    figure = n10.cost_dots(costs.assign(seconds=[1.0, 3.0, 0.5]), own="A", fast="g")
    assert titled(figure) == "CLUE takes 3.0 times as long as A; g, 0.5 times"


def test_the_kinds_of_a_map_are_told_apart_where_its_images_say_so():
    images = [
        {"patch": "rare", "map": name, "example": i, "right": right, "rank": 0.1 * i + gain * right}
        for name, gain in (("knows", 0.5), ("does not", 0.0), ("not drawn", 0.5))
        for i in range(4)
        for right in (True, False)
    ]
    truths = pd.DataFrame(images).assign(kind="?", chance=0.1)
    points = n10.mean_scores(truths, ["patch", "map", "kind", "right", "chance"], {"rank": None})
    figure = n10.truth_dots(points, truths, ["knows", "does not"])
    assert titled(figure).startswith("In 1 of 2 cases the map of the right kind")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["knows", "does not"]


def test_a_picture_is_shown_beside_its_maps_by_league():
    maps = {f"map {i}": torch.full((8, 8), -2.0) for i in range(4)}
    leagues = {"unsigned": dict(list(maps.items())[:2]), "signed": dict(list(maps.items())[2:])}
    figure, frame = n10.rival_maps(X[0], torch.ones(8, 8), leagues, dataset="planted", title="?")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["picture", "map 0", "map 1", "to be found", "map 2", "map 3"]
    assert [figure.axes[place].get_ylabel() for place in (0, 3)] == ["unsigned", "signed"]
    assert list(frame) == list(maps) and (frame == -1.0).all(axis=None)
