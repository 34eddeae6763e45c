"""Which pictures are worth a label? Retraining on the ones that networks are most uncertain about."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.lessons.mitigating import PAPER, Plan, measured, ua_maps
from xuqlib.lessons.paired import SCORES, gains, judge_seeds
from xuqlib.metrics.similarity import sparseness
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.record import Notebook
from xuqlib.uncertainty import uncertainties

CHOICES = ("random", "total", "epistemic", "epistemic, concentrated")


def more_pictures(
    seed: int, plan: Plan, num_train: int, added: Sequence[int], num_pool: int, choices: Sequence[str] = CHOICES
) -> pd.DataFrame:
    """Retrain from scratch on the training pictures and k more of a pool: which ones are worth a label?

    Args:
        seed, plan, num_train: as for `one_seed`; pictures are plain, whatever the plan says of clutter.
        added: numbers k of pictures to add, above 0; k = 0, the same for every choice, has its rows, too.
        num_pool: pictures to choose from.
        choices: of `CHOICES`: "random"; the largest "total" or "epistemic" uncertainty to stage 1; or, of the 2 k with
            the largest epistemic uncertainty, those with the sparsest map (UA-Backprop, recommended).

    Returns:
        A row per choice and k: dataset, num_train, seed, choice, added, accuracy, nll, ece, epistemic, clean test.
    """
    train, every = (plan.train(seed, count) for count in (num_train, num_train + num_pool))
    test, pool = plan.test(seed), every[~torch.isin(every.index, train.index)]
    draws, _ = plan.fit(train, plan.to(train.x), seed=seed, stage=1)

    def retrained(rows: Tensor) -> dict[str, float]:
        more = every[torch.isin(every.index, torch.cat([train.index, pool.index[rows]]))]
        found, _ = plan.fit(more, plan.to(more.x), seed=seed, stage=2)
        return measured(found, plan.to(test.x), test.y)

    orders, rows = _orders(draws, plan.to(pool.x), seed), []
    start = retrained(torch.arange(0))
    for choice in choices:
        check_choice(choice, CHOICES, "choice")
        for k in [0, *added]:
            best = orders[choice.split(",")[0]]
            if choice.endswith("concentrated") and k:
                best = _sparsest(draws, plan.to(pool.x), best[: 2 * k])
            about = {"dataset": plan.dataset, "num_train": num_train, "seed": seed, "choice": choice, "added": k}
            rows.append({**about, **(retrained(best[:k]) if k else start)})
    return pd.DataFrame(rows)


def claim_pictures(study: Notebook, frame: pd.DataFrame) -> None:
    """Claim that uncertain pictures are better to add than random ones, at the largest number added.

    Args:
        study: the notebook that makes the claims.
        frame: of `more_pictures`.
    """
    most = frame[frame["added"] == frame["added"].max()]
    for dataset, part in most.groupby("dataset", sort=False):
        found = gains(part, by=[], side="choice", against="random", scores=SCORES[:2])
        for (choice, score), values in found.groupby(["choice", "score"], sort=False)["gain"]:
            text = f"{int(part['added'].iloc[0])} pictures added by {choice} give a better {score} than random ones"
            source = PAPER if choice == "epistemic" else "this study"
            judge_seeds(study, text, values, str(score), dataset=str(dataset), source=source)


def _orders(draws: Draws, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Rows of a pool, the ones to take first in front."""
    u = uncertainties(draws, x)
    found = {"random": torch.randperm(len(x), generator=generator_of(seed, 3))}
    return found | {kind: getattr(u, kind).argsort(descending=True, stable=True) for kind in ("total", "epistemic")}


def _sparsest(draws: Draws, x: Tensor, rows: Tensor) -> Tensor:
    """These rows, the ones with the sparsest map in front; a flat map is last."""
    return rows[sparseness(ua_maps(draws, x[rows])).nan_to_num(-1).argsort(descending=True, stable=True)]
