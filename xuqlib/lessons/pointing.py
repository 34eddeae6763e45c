"""Does a map of the uncertainty point at what causes it? UA-Backprop and every rival, measured by the same tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.lessons.sources import ensemble
from xuqlib.metrics.deletion import pixel_order
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import load
from xuqlib.study.judging.anomaly import iou, paste, random_windows, window
from xuqlib.study.judging.blurring import (
    BUDGETS,
    auc_urr,
    greedy_order,
    highest_reduction,
    reduction,
    uncertain,
    uncertainty_curves,
)
from xuqlib.study.judging.clue import clue, clue_counterfactuals, delta_clue, path_integral
from xuqlib.study.judging.rivals import CONTROLS, RIVALS
from xuqlib.study.judging.stress import fgsm
from xuqlib.study.resuming import side_by_side
from xuqlib.study.training.vae import PictureVAE, train_or_load_vae
from xuqlib.ua_backprop import ua_backprop, ua_backprop_linear
from xuqlib.ua_replacement import ua_replacement

Maker = Callable[..., Tensor]  # (draws, x, kind) to (N, H, W)
# The names that the figures show. "signed" keeps the sign of each pixel, "abs" does not.
NAMES = {
    "gradient": "gradient, abs",
    "gradient_x_input": "gradient x input, signed",
    "gradient_x_input_abs": "gradient x input, abs",
    "smoothgrad": "SmoothGrad, abs",
    "ig_black": "IG from black",
    "ig_blurred": "IG from blurred",
    "fullgrad_of_u": "FullGrad of U, signed",
    "lime": "LIME of U",
    "covgi_diag": "CovGI, diag",
    "covgi_marg": "CovGI, marg",
    "covig_diag": "CovIG, diag",
    "covig_marg": "CovIG, marg",
    "random": "random",
    "distance_to_blur": "|x - blur|",
    "intensity": "intensity",
    "fullgrad_of_prediction": "FullGrad of prediction",
    "shuffled_shares": "shuffled shares",
}
OURS, SETTINGS_OF = "UA-Replacement", {"paper": "UA-Backprop (paper)", "recommended": "UA-Backprop (recommended)"}
GREEDY = "greedy ceiling"
CONTROL_NAMES = [NAMES[name] for name in CONTROLS if name in NAMES]
EPISTEMIC_ONLY = [name for name in NAMES.values() if name.startswith("Cov")]
SHORT = [*SETTINGS_OF.values(), OURS, "gradient x input, signed", "IG from black", *CONTROL_NAMES]
MIN_CHANGE = 0.03  # of a pasted patch, on average over its pixels: a black patch on black cannot be found
DELTA = 1.0  # radius of delta-CLUE's ball; CLUE moves about twice as far on planted pictures


class Case(NamedTuple):
    """Pictures of one kind, the networks of one training, and the maps of their uncertainty that can be made.

    Attributes:
        dataset, pictures: names of the data set, and of which pictures these are.
        training: seed of the training.
        draws: its five networks.
        x, y: pictures (N, C, H, W) and true classes, (N,), or None where there is no true class.
        mean: the mean training picture, (C, H, W).
        makers: name to maker, as `makers` gives them.
    """

    dataset: str
    pictures: str
    training: int
    draws: Draws
    x: Tensor
    y: Tensor | None
    mean: Tensor
    makers: Mapping[str, Maker]


def makers(
    mean: Tensor,
    vae: PictureVAE,
    *,
    num_steps: int = 25,
    num_samples: int = 300,
    clue_steps: int = 40,
    candidates: int = 4,
    group: int = 1,
) -> dict[str, Maker]:
    """All maps of an uncertainty by the name that figures show: (draws, x, kind) to (N, H, W).

    Args:
        mean: the mean training picture, (C, H, W): UA-Replacement's reference.
        vae: generative model of such pictures, for CLUE and its kin.
        num_steps: of integrals, and noisy copies of SmoothGrad.
        num_samples: of LIME.
        clue_steps: of each search of CLUE and its kin.
        candidates, group: of the greedy ceiling, which no map is: it looks at the networks again after each pixel.
    """
    sizes: dict[str, dict[str, int]] = {
        name: {"num_steps": num_steps} for name in ("ig_black", "ig_blurred", "covig_diag", "covig_marg")
    }
    sizes |= {"lime": {"num_samples": num_samples}, "smoothgrad": {"num_samples": num_steps}}
    known = {name: partial(make, **sizes.get(name, {})) for name, make in (RIVALS | CONTROLS).items()}
    search: dict[str, Any] = {"vae": vae, "num_steps": clue_steps}
    return {
        **{name: partial(ua_backprop, setting=setting) for setting, name in SETTINGS_OF.items()},
        "UA-Backprop, linear": ua_backprop_linear,
        OURS: partial(ua_replacement, reference=mean),
        **{NAMES[name]: known[name] for name in RIVALS},
        "CLUE": partial(clue, **search),
        "delta-CLUE": partial(delta_clue, delta=DELTA, num_starts=2, **search),
        "path integral": partial(_path, vae=vae, num_steps=num_steps, clue_steps=clue_steps),
        **{NAMES[name]: known[name] for name in CONTROLS if name in NAMES},
        GREEDY: partial(greedy_map, candidates=candidates, group=group),
    }


def greedy_map(
    draws: Draws | Sequence[nn.Module], x: Tensor, kind: str = "epistemic", *, candidates: int, group: int = 1
) -> Tensor:
    """The order of `greedy_order` up to the 5 % budget as a map, (N, H, W): the first pixel is the largest, 0."""
    order = greedy_order(draws, x, kind, budget=BUDGETS[1], candidates=candidates, group=group)
    return -order.argsort(1).view(len(x), *x.shape[2:]).to(x)


def cases(
    dataset: str,
    *,
    training_seeds: Sequence[int],
    num_examples: int,
    num_scanned: int,
    dtype: torch.dtype,
    preset: str,
    seed: int = 0,
    **sizes: int,
) -> dict[str, list[Case]]:
    """The same test pictures for every training: "uncertain" ones, and as many at "random".

    Uncertain are those above the median of the epistemic uncertainty of all networks of all trainings together.

    Args:
        dataset: name of pictures that `load` and `train_or_load_vae` know.
        training_seeds: of the deep ensembles of five.
        num_examples: in each set.
        num_scanned: test examples that both are chosen from.
        **sizes: of `makers`.

    Returns:
        Name of the pictures to cases, one per training.
    """
    data, trained = load(dataset, num_examples=num_scanned, seed=seed), {}
    for number in training_seeds:
        trained[number] = ensemble(dataset, dtype, preset=preset, training_seed=number, seed=seed)
    x, mean = data.x.to(dtype), load(dataset, split="train").x.mean(0, dtype=torch.float64).to(dtype)
    made = makers(mean, train_or_load_vae(dataset, preset=preset, progress=False).to(dtype), **sizes)
    every = Draws([network for draws in trained.values() for network in draws])
    sets = uncertain(every, x, num_examples=num_examples, seed=seed)._asdict()
    return {
        pictures: [Case(dataset, pictures, n, each, x[rows], data.y[rows], mean, made) for n, each in trained.items()]
        for pictures, rows in sets.items()
    }


def attacked(case: Case, epsilon: float) -> Case:
    """The case's pictures after `fgsm` on its own networks, each pixel moved by epsilon."""
    if case.y is None:
        raise ValueError(f"pictures {case.pictures!r} have no true class to lead away from; attack test pictures")
    return case._replace(pictures="attacked", x=fgsm(case.draws, case.x, case.y, epsilon))


def novel(case: Case, dataset: str, *, seed: int = 0) -> Case:
    """As many pictures of another data set, of no class that the case's networks know."""
    x = load(dataset, num_examples=len(case.x), seed=seed).x
    return case._replace(pictures="novel", x=x.to(case.x), y=None)


def blur_scores(
    case: Case, name: str, kind: str = "epistemic", *, fill: str = "blurred", shares: Sequence[float]
) -> pd.DataFrame:
    """Blur the pictures in the order of one map, and follow uncertainty and answer: a row per example and share.

    Args:
        case: pictures and networks.
        name: one of `case.makers`.
        kind: of the uncertainty that the map explains and that is followed.
        fill: what pixels become: "blurred", "black", "mean_colour", or "data mean", the mean training picture.
        shares: of the pixels, rising from 0 to 1; they hold `BUDGETS`.

    Returns:
        Columns dataset, pictures, training, map, kind, fill, example, share; uncertainty of the picture itself, in
        nats; urr, murr and auc_urr up to the share (the last is NaN at 0); kept, whether the answer is unchanged;
        right, whether it is true (at 0 and `BUDGETS` alone, else NaN); seconds of the processor, of the map,
        per example.
    """
    check_choice(name, tuple(case.makers), "map")
    start = process_time()
    maps = case.makers[name](case.draws, case.x, kind)
    seconds = (process_time() - start) / len(case.x)
    order, replacement = pixel_order(maps), case.mean if fill == "data mean" else fill
    found = uncertainty_curves(case.draws, case.x, order, kind, fill=replacement, shares=shares)
    areas = [torch.full((len(case.x),), torch.nan), *(auc_urr(found, share) for share in shares[1:])]
    right = torch.full(found.kept.shape, torch.nan, dtype=torch.float64)
    if case.y is not None:
        at = [0.0, *BUDGETS]
        true = uncertainty_curves(case.draws, case.x, order, kind, target=case.y, fill=replacement, shares=at).kept
        right[:, [list(shares).index(share) for share in at]] = true.double()
    columns = {
        "share": found.shares.expand(found.kept.shape),
        "uncertainty": found.uncertainty[:, :1].expand(found.kept.shape),
        "urr": reduction(found),
        "murr": highest_reduction(found),
        "auc_urr": torch.stack(areas, 1),
        "kept": found.kept.double(),
        "right": right,
    }
    example = np.repeat(np.arange(len(case.x)), len(shares))
    about = _about(case, name) | {"kind": kind, "fill": fill, "example": example}
    return pd.DataFrame(about | {key: value.flatten().numpy() for key, value in columns.items()} | {"seconds": seconds})


def gather(
    measure: Callable[..., pd.DataFrame],
    each: Sequence[Case],
    names: Sequence[str],
    *,
    num_jobs: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """Measure every map of every case, by `blur_scores` or `anomaly_scores`, in processes of one thread each.

    Args:
        measure: what is called with a case, a name and the options.
        each, names: cases, and names of their makers.
        num_jobs: processes.
        **options: passed on.
    """
    jobs = (delayed(measure)(case, name, **options) for case in each for name in names)
    return pd.concat(side_by_side(jobs, num_jobs), ignore_index=True)


def anomaly_scores(case: Case, name: str, *, size: int, seed: int = 0) -> pd.DataFrame:
    """Paste a patch of another picture, as bright as what it covers, and look where the epistemic map is largest.

    Args:
        case, name: as for `blur_scores`.
        size: side of patch and search window, in pixels.
        seed: of patches and places, the same for every map.

    Returns:
        Columns dataset, pictures, training, map, example; iou of patch and window; iou_clean, of the window in the map
        of the picture without its patch; iou_random, of a window at random.
    """
    found = paste(case.x, None, size, seed=seed, matched=True, min_change=MIN_CHANGE)
    make, columns = case.makers[name], {}
    for column, x in (("iou", found.pictures), ("iou_clean", case.x)):
        columns[column] = iou(window(make(case.draws, x, "epistemic"), size), found.boxes, size)
    columns["iou_random"] = iou(random_windows(len(case.x), case.x.shape[2:], size, seed=seed + 1), found.boxes, size)
    about = _about(case, name) | {"example": range(len(case.x))}
    return pd.DataFrame(about | {key: value.numpy() for key, value in columns.items()})


def kind_maps(
    case: Case, names: Sequence[str], kinds: Sequence[str], *, num_jobs: int = 1
) -> dict[tuple[str, str], Tensor]:
    """Each map of each kind of uncertainty that it can explain, in several processes: (name, kind) to (N, H, W)."""
    keys = [(name, kind) for name in names for kind in kinds if kind == "epistemic" or name not in EPISTEMIC_ONLY]
    jobs = (delayed(case.makers[name])(case.draws, case.x, kind) for name, kind in keys)
    return dict(zip(keys, side_by_side(jobs, num_jobs), strict=True))


def _path(
    draws: Draws, x: Tensor, kind: str = "epistemic", *, vae: PictureVAE, num_steps: int, clue_steps: int
) -> Tensor:
    start = clue_counterfactuals(draws, x, kind, vae=vae, num_steps=clue_steps)
    return path_integral(draws, x, kind, vae=vae, num_steps=num_steps, counterfactuals=start)


def _about(case: Case, name: str) -> dict[str, Any]:
    return {"dataset": case.dataset, "pictures": case.pictures, "training": case.training, "map": name}
