"""Claims about UA-Backprop against its rivals, from the tables of `rivalry`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from xuqlib.lessons.contests import judge_weakest
from xuqlib.lessons.pointing import CONTROL_NAMES, GREEDY, NAMES, OURS, SETTINGS_OF
from xuqlib.lessons.reporting import judge
from xuqlib.lessons.rivalry import FAMILIES, SIGNED
from xuqlib.study.intervals import BOOTSTRAP, from_resamples
from xuqlib.study.record import Notebook

PAPER = "arXiv 2304.04824, sec. 4"
# Each of these is judged on every data set; of the others the row shows the data set where it is hardest to beat.
HEADLINE = [*(name for name in CONTROL_NAMES if name != NAMES["intensity"]), SIGNED, "CLUE"]
MARGIN = 0.02  # of pictures whose answer is kept: fewer by less than this counts as no fewer


def claim_blurring(study: Notebook, frame: pd.DataFrame, seeds: Mapping[str, int]) -> None:
    """Claim that UA-Backprop, in either setting, lowers the uncertainty sooner than every rival and control.

    Args:
        study: the notebook that makes the claims.
        frame: of `at_budget`.
        seeds: data set to its number of trainings.
    """
    wide = frame.pivot(index=["dataset", "example"], columns="map", values="auc_urr")
    for own in SETTINGS_OF.values():
        for rival in [name for name in dict.fromkeys(frame["map"]) if name not in (GREEDY, *SETTINGS_OF.values())]:
            gains = (wide[own] - wide[rival]).dropna().rename("advantage").reset_index()
            source = "this study" if rival in (*CONTROL_NAMES, OURS) else PAPER
            text = f"blurring, AUC-URR at 5 %: {own} is above {rival}"
            if rival not in HEADLINE:
                names: dict[str, Any] = {"dataset": ", ".join(seeds), "seeds": min(seeds.values()), "source": source}
                names["claim"] = "U2"
                judge_weakest(study, f"on every data set, {text}", gains, by="dataset", **names)
                continue
            for dataset, part in gains.groupby("dataset", sort=False):
                facts = _facts(dataset, seeds) | {"source": source, "claim": "U2"}
                judge(study, text, part["advantage"], **facts)


def claim_replacement(study: Notebook, frame: pd.DataFrame, seeds: Mapping[str, int], *, seed: int = 0) -> None:
    """Claim that UA-Replacement beats signed gradient x input, keeps the answer, and comes half as far as greedy."""
    for dataset, part in frame.groupby("dataset", sort=False):
        wide, facts = part.pivot(index="example", columns="map"), _facts(dataset, seeds)
        score, kept = wide["auc_urr"], wide["kept"]
        for rival in (SIGNED, *SETTINGS_OF.values()):
            text = f"blurring, AUC-URR at 5 %: {OURS} is above {rival}"
            claim = "signed" if rival == SIGNED else ""
            judge(study, text, (score[OURS] - score[rival]).dropna(), **facts, claim=claim)
        text = f"5 % blurred in the order of {OURS} keep the answer as often as {SIGNED}, within {MARGIN:g}"
        judge(study, text, kept[OURS] - kept[SIGNED], above=-MARGIN, **facts, claim="signed")
        both = score[[OURS, GREEDY]].dropna().to_numpy()
        drawn = np.random.default_rng(seed).integers(len(both), size=(1000, len(both)))
        means = np.array([both.mean(0), *both[drawn].mean(1)])  # (1 + resample, 2)
        ratios = np.divide(means[:, 0], means[:, 1], out=np.full(len(means), np.nan), where=means[:, 1] > 0)
        found, text = from_resamples(ratios), f"{OURS} reaches more than half of the greedy ceiling's AUC-URR at 5 %"
        interval = (found.low, found.high)
        study.claim(text, found.above(0.5), value=found.value, interval=interval, note=BOOTSTRAP, n=len(both), **facts)


def claim_anomalies(study: Notebook, frame: pd.DataFrame, seeds: Mapping[str, int]) -> None:
    """Claim that UA-Backprop's window overlaps the pasted patch more than a random one, or a rival's.

    Args:
        study, seeds: as for `claim_blurring`.
        frame: of `pointing.anomaly_scores`.
    """
    each = frame.groupby(["dataset", "map", "example"], sort=False)[["iou", "iou_clean", "iou_random"]].mean()
    wide = each["iou"].unstack("map")
    for own in SETTINGS_OF.values():
        scores, text = each.xs(own, level="map"), f"anomaly, IoU: the window of {own} is above"
        for dataset, part in scores.groupby("dataset", sort=False):
            facts = _facts(dataset, seeds) | {"claim": "U3"}
            judge(study, f"{text} a random window", part["iou"] - part["iou_random"], source=PAPER, **facts)
            judge(study, f"{text} its window in the clean picture", part["iou"] - part["iou_clean"], **facts)
        for rival in [name for name in dict.fromkeys(frame["map"]) if name not in SETTINGS_OF.values()]:
            gains = (wide[own] - wide[rival]).dropna().rename("advantage").reset_index()
            source = "this study" if rival in (*CONTROL_NAMES, OURS) else PAPER
            names = {"dataset": ", ".join(dict.fromkeys(gains["dataset"])), "source": source, "claim": "U3"}
            judge_weakest(study, f"on every data set, {text} that of {rival}", gains, by="dataset", **names)


def claim_kinds(study: Notebook, truth: pd.DataFrame, *, seeds: int) -> None:
    """Claim that the map of the right kind has more of a planted patch among its largest pixels than the other kind's.

    Args:
        study: as for `claim_blurring`.
        truth: of `patch_scores` with the column kind, each picture's mean over trainings.
        seeds: number of trainings.
    """
    rank = truth.set_index(["map", "patch", "kind", "example"])["rank"].sort_index()
    for name in (*SETTINGS_OF.values(), OURS, SIGNED):
        claim = "U4" if name in SETTINGS_OF.values() else ""
        for patch in ("ambiguous", "rare", "unseen"):
            own, other = ("aleatoric", "epistemic") if patch == "ambiguous" else ("epistemic", "aleatoric")
            text = f"{name}: rank accuracy on the {patch} patch, the {own} map is above the {other} one"
            gain = rank[name, patch, own] - rank[name, patch, other]
            judge(study, text, gain, dataset="planted", seeds=seeds, claim=claim)


def claim_speed(study: Notebook, frame: pd.DataFrame) -> None:
    """Claim that UA-Backprop is faster than every rival that is more than one gradient of U; undecided within 20 %.

    Args:
        study: as for `claim_blurring`.
        frame: of `at_budget`, whose seconds were measured in one process at a time.
    """
    seconds = frame.groupby(["dataset", "map"], sort=False)["seconds"].median()
    passed = [
        *CONTROL_NAMES,
        GREEDY,
        OURS,
        *FAMILIES["UA-Backprop"],
        *(n for n in NAMES.values() if n.startswith("grad")),
    ]
    for dataset in dict.fromkeys(frame["dataset"]):
        rivals = seconds[dataset].drop(passed, errors="ignore")
        for own in SETTINGS_OF.values():
            ratio, note = float(rivals.min() / seconds[dataset, own]), f"fastest rival: {rivals.idxmin()}; no interval"
            holds = True if ratio > 1.2 else False if ratio < 0.8 else None
            text = f"{own} takes less time than every rival but the plain gradient (seconds of the fastest / its own)"
            study.claim(text, holds, value=ratio, note=note, dataset=dataset, source=PAPER, claim="U5")


def _facts(dataset: Any, seeds: Mapping[str, int]) -> dict[str, Any]:
    return {"dataset": dataset, "seeds": seeds[dataset]}
