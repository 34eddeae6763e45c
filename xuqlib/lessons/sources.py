"""Where uncertainty comes from: every kind of UA-Backprop map at once, and how well the maps find a planted patch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.lessons.reporting import judge
from xuqlib.metrics.similarity import spearman
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples, load
from xuqlib.study.data.planted import kinds
from xuqlib.study.judging.anomaly import chance, mass_accuracy, rank_accuracy
from xuqlib.study.judging.rivals import distance_to_blur
from xuqlib.study.record import Notebook
from xuqlib.study.training.loading import train_or_load
from xuqlib.ua_backprop import SETTINGS, class_maps, logit_coefficients, spread_shares
from xuqlib.uncertainty import (
    KINDS,
    Uncertainties,
    attribute_uncertainty,
    decompose,
    logits_of,
    probability_shares,
    uncertainties,
)

Maps = dict[tuple[str, str], Tensor]  # (map, setting) to (N, H, W)
PAPER = "arXiv 2304.04824, sec. 3"
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}  # of |sum - U| / max(U, 1 nat)
ORDER = ("plain", "ambiguous", "rare", "unseen")
ALONE = "no setting"  # of maps that are none of UA-Backprop's
# Pairs of maps of one setting that are compared; the last is the floor, since maps of any two pictures have a likeness.
PAIRS = {
    "total, aleatoric": ("total", "aleatoric"),
    "total, epistemic": ("total", "epistemic"),
    "aleatoric, epistemic": ("aleatoric", "epistemic"),
    "epistemic, even shares": ("epistemic", "even shares"),
    "epistemic, prediction": ("epistemic", "prediction"),
    "epistemic, other picture": ("epistemic", "epistemic"),
}


def of_each_kind(num_examples: int) -> tuple[Examples, np.ndarray]:
    """The first planted test pictures of each kind, at most `num_examples` of it, and the kind of each, (N,)."""
    every = load("planted")
    names = kinds({name: mask.numpy() for name, mask in every.masks.items()})
    rows = np.concatenate([np.flatnonzero(names == name)[:num_examples] for name in ORDER])
    return every[rows], names[rows]


def ensemble(dataset: str, dtype: torch.dtype, *, preset: str, training_seed: int = 0, seed: int = 0) -> Draws:
    """Five networks that were trained apart on a data set, in a dtype."""
    trained = train_or_load("deep_ensemble", dataset, preset=preset, seed=training_seed, progress=False)
    return trained.sample(5, seed=seed).to(dtype)


class Sharpened(nn.Module):
    """A network with its logits multiplied by a factor: it answers alike, and the surer the larger the factor."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor, self.training = network, factor, False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return self.factor * logits


def maps_of(
    draws: Draws | Sequence[nn.Module], x: Tensor, *, settings: Sequence[str] = tuple(SETTINGS), block: int = 16
) -> Maps:
    """Make UA-Backprop's maps of all kinds and settings, and two controls from the same maps of logits.

    The maps "total", "aleatoric" and "epistemic" equal `ua_backprop`. The controls sum to the total uncertainty, as
    "total" does: "even shares" gives the same share of it to every logit of every draw, so it knows nothing of where
    in the network the uncertainty is; "prediction" gives all of it to the predicted logit, so it explains what the
    prediction rests on, and is as large as the uncertainty.

    Args:
        draws: fixed networks with at least two classes.
        x: pictures (N, C, H, W).
        settings: names in `ua_backprop.SETTINGS`.
        block: examples in one pass.

    Returns:
        (map, setting) to (N, H, W), of x's dtype, in nats.

    Raises:
        TypeError, ValueError: as for `ua_backprop`.

    Source: arXiv 2304.04824, section 3; see `ua_backprop` for what is derived anew.
    """
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    logits = logits_of(draws, x)  # (S, N, C)
    predicted, total = logits.double().softmax(-1).mean(0).argmax(1), decompose(logits).total
    to_predicted = total[:, None] / len(draws) * nn.functional.one_hot(predicted, logits.shape[-1])  # (N, C)
    found: Maps = {}
    for name in settings:
        check_choice(name, SETTINGS, "setting")
        chosen = SETTINGS[name]
        handed_on = logit_coefficients(logits, chosen.coefficients, chosen.tau1)
        shares = {
            kind: torch.einsum("sni,snij->snj", probability_shares(logits, kind), handed_on).to(x.device)
            for kind in KINDS
        }
        even = (total[:, None] / logits[:, 0].numel()).expand(logits.shape)
        shares |= {"even shares": even.to(x.device), "prediction": to_predicted.expand(logits.shape).to(x.device)}
        parts: dict[str, list[Tensor]] = {kind: [] for kind in shares}
        for first in range(0, len(x), block):
            here = slice(first, first + block)
            maps = [class_maps(network, x[here], psi=chosen.psi) for network in draws]  # (n, C, H, W) each
            for kind, share in shares.items():
                pairs = zip(share[:, here], maps, strict=True)
                spread = [spread_shares(*pair, normalise=chosen.normalise, tau2=chosen.tau2) for pair in pairs]
                parts[kind].append(torch.stack(spread).sum(0))
        found |= {(kind, name): torch.cat(part).to(x) for kind, part in parts.items()}
    return found


def rivals_of(draws: Draws | Sequence[nn.Module], x: Tensor) -> Maps:
    """Maps to stand beside `maps_of`: signed input x gradient of two kinds, and |x - blur|, which knows no network."""
    found = {(f"input x gradient, {kind}", ALONE): attribute_uncertainty(draws, x, kind) for kind in KINDS[1:]}
    return found | {("|x - blur|", ALONE): distance_to_blur(draws, x)}


def gaps(maps: Mapping[tuple[str, str], Tensor], parts: Uncertainties) -> Tensor:
    """How far the sums of the maps of each kind and setting are from the uncertainty: |sum - U| / max(U, 1 nat).

    Args:
        maps: (map, setting) to (N, H, W); only those named after a kind are looked at.
        parts: of the same examples.

    Returns:
        (map, N), float64, maps in their order.
    """
    pairs = [(values, getattr(parts, kind)) for (kind, _), values in maps.items() if kind in KINDS]
    return torch.stack([(_sum(values) - wanted).abs() / wanted.clamp(min=1) for values, wanted in pairs])


def complete_maps(
    maps: Mapping[tuple[str, str], Tensor], parts: Uncertainties, masks: Mapping[str, Tensor], kind: np.ndarray
) -> pd.DataFrame:
    """What complete maps, and one that is not, miss of the uncertainty, and how well they find the unseen patch.

    Args:
        maps: of `maps_of` and `rivals_of`.
        parts, masks, kind: of the same pictures, as for `gaps` and `patch_scores`.

    Returns:
        A row per map and setting: miss, the largest |sum - U| in nats; rank, mass and chance, means over the unseen
        pictures. "flat" spreads the epistemic uncertainty evenly; the controls spread the total one.
    """
    names = ("epistemic", "even shares", "prediction", "input x gradient, epistemic")
    shown = {key: values for key, values in maps.items() if key[0] in names}
    like = next(iter(shown.values()))
    level = (parts.epistemic / like[0].numel()).to(like)
    shown["flat", ALONE] = level[:, None, None].expand_as(like)
    goals = {key: parts.total if key[0] in names[1:3] else parts.epistemic for key in shown}
    miss = pd.Series({key: float((_sum(values) - goals[key]).abs().max()) for key, values in shown.items()})
    scores = patch_scores(shown, masks, kind).query("patch == 'unseen'").groupby(["map", "setting"], sort=False)
    return scores[["rank", "mass", "chance"]].mean().assign(miss=miss)


def patch_scores(
    maps: Mapping[tuple[str, str], Tensor], masks: Mapping[str, Tensor], kind: Sequence[str] | np.ndarray
) -> pd.DataFrame:
    """How much of each map lies on the patch that makes a planted picture uncertain.

    The patch is the morph of an ambiguous picture, and the rare or unseen shape of a novel one. Of unseen pictures the
    square that decides the class, which is elsewhere and as large, is scored too, as "unseen: evidence".

    Args:
        maps: (map, setting) to (N, H, W).
        masks: of the same examples, bool (N, H, W): "evidence", "ambiguous", "novel".
        kind: of the same examples, as `planted.kinds` names them.

    Returns:
        Columns patch, map, setting, example, mass and rank, as `mass_accuracy` and `rank_accuracy`, and chance.
    """
    names, frames = np.asarray(kind), []
    wanted = {"ambiguous": "ambiguous", "rare": "novel", "unseen": "novel", "unseen: evidence": "evidence"}
    for patch, mask in wanted.items():
        rows = torch.from_numpy(np.flatnonzero(names == patch.split(":")[0]))
        if not len(rows):
            continue
        here = masks[mask][rows]
        for (name, setting), values in maps.items():
            shown = values[rows].cpu()
            columns = {"mass": mass_accuracy(shown, here), "rank": rank_accuracy(shown, here), "chance": chance(here)}
            about = {"patch": patch, "map": name, "setting": setting, "example": rows.numpy()}
            frames.append(pd.DataFrame(about | {key: value.numpy() for key, value in columns.items()}))
    return pd.concat(frames, ignore_index=True)


def likeness(found: Mapping[str, Mapping[tuple[str, str], Tensor]]) -> pd.DataFrame:
    """Rank correlation over pixels of the `PAIRS` of maps, picture by picture.

    Args:
        found: data set to maps of `maps_of`, of at least two examples.

    Returns:
        Columns dataset, setting, pair, example, spearman; pictures with a constant map are left out.
    """
    frames = []
    for dataset, maps in found.items():
        for setting in [name for name in SETTINGS if ("epistemic", name) in maps]:
            for pair, (left, right) in PAIRS.items():
                a, b = maps[left, setting], maps[right, setting]
                b = b.roll(1, 0) if pair.endswith("other picture") else b
                about = {"dataset": dataset, "setting": setting, "pair": pair, "example": range(len(a))}
                frames.append(pd.DataFrame(about | {"spearman": spearman(a[:, None], b[:, None])}))
    return pd.concat(frames, ignore_index=True).dropna()


def sharpening(draws: Draws | Sequence[nn.Module], x: Tensor, factors: Sequence[float]) -> pd.DataFrame:
    """What epistemic uncertainty, its gradient and its map become while the logits of all draws grow.

    Args:
        draws, x: as for `maps_of`.
        factors: what the logits are multiplied by.

    Returns:
        Columns factor, quantity ("uncertainty", "sum of UA-Backprop", "sum of input x gradient", in nats, and "own
        share", the mean over draws and classes of c[i, i], without a unit), example, value.
    """
    frames = []
    for factor in factors:
        sharper = Draws([Sharpened(network, factor) for network in draws])
        logits, slope = logits_of(sharper, x), attribute_uncertainty(sharper, x)
        paper = SETTINGS["paper"]
        handed_on = logit_coefficients(logits, paper.coefficients, paper.tau1)  # (S, N, C, C)
        found = {
            "uncertainty": decompose(logits).epistemic,
            "sum of UA-Backprop": _sum(maps_of(sharper, x, settings=["paper"])["epistemic", "paper"]),
            "sum of input x gradient": _sum(slope),
            "own share": handed_on.diagonal(dim1=-2, dim2=-1).mean((0, -1)),
        }
        for quantity, value in found.items():
            columns = {"factor": factor, "quantity": quantity, "example": range(len(x)), "value": value.cpu().numpy()}
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def claim_completeness(study: Notebook, draws: Mapping[str, Draws], x: Mapping[str, Tensor]) -> None:
    """Claim, for float32 and for float64, that the maps of every kind and setting sum to their uncertainty.

    Args:
        study: the notebook that makes the claims.
        draws, x: networks and pictures of each data set; copies of both are taken to either dtype.
    """
    for number, bound in BOUNDS.items():
        found = []
        for name, networks in draws.items():
            copies, part = Draws([copy.deepcopy(network) for network in networks]).to(number), x[name].to(number)
            found.append(gaps(maps_of(copies, part), uncertainties(copies, part)).flatten())
        gap, of = torch.cat(found), ", ".join(draws)
        text = f"{str(number).removeprefix('torch.')}: every map sums to its uncertainty, within {bound:g} max(U, 1)"
        largest, unit = float(gap.max()), "of max(U, 1 nat)"
        study.claim(text, largest <= bound, value=largest, unit=unit, n=len(gap), dataset=of, source=PAPER, claim="U1")


def claim_patches(study: Notebook, scores: pd.DataFrame, *, seeds: int) -> None:
    """Claim, for each patch and setting, that the map of its kind has more of it among its largest pixels than others.

    Args:
        study: the notebook that makes the claims.
        scores: of `patch_scores`, means over trainings.
        seeds: number of trainings.
    """
    table = scores.set_index(["patch", "map", "setting", "example"]).sort_index()
    rank, chances = table["rank"], table["chance"]
    for setting in SETTINGS:
        for patch in ORDER[1:]:
            kind, other = KINDS[1:] if patch == "ambiguous" else KINDS[:0:-1]
            own = rank.loc[patch, kind, setting]
            rivals = {
                "chance": chances.loc[patch, kind, setting],
                f"the {other} map": rank.loc[patch, other, setting],
                "FullGrad of the prediction": rank.loc[patch, "prediction", setting],
                "input x gradient": rank.loc[patch, f"input x gradient, {kind}", ALONE],
                "|x - blur|": rank.loc[patch, "|x - blur|", ALONE],
            }
            for name, rival in rivals.items():
                source, claim = (PAPER, "U4") if name in list(rivals)[:2] else ("this study", "")
                text = f"{setting}: rank accuracy of the {kind} map on the {patch} patch is above that of {name}"
                judge(study, text, own - rival, seeds=seeds, source=source, claim=claim)
        sides = [rank.loc[patch, "epistemic", setting] for patch in ("unseen", "unseen: evidence")]
        text = (
            f"{setting}: the epistemic map has more of the unseen patch among its largest pixels than of the evidence"
        )
        judge(study, text, sides[0] - sides[1], seeds=seeds)


def _sum(maps: Tensor) -> Tensor:
    return maps.double().flatten(1).sum(1).cpu()
