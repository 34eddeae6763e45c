"""What is inside UA-Backprop: maps of all logits made once, and from them every choice that the method leaves open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from xuqlib.metrics.deletion import pixel_order
from xuqlib.metrics.similarity import spearman
from xuqlib.posteriors.draws import Draws
from xuqlib.study.judging.blurring import auc_urr, uncertainty_curves
from xuqlib.study.judging.rivals import distance_to_blur, random, shuffled_shares
from xuqlib.ua_backprop import (
    COEFFICIENTS,
    SETTINGS,
    Setting,
    class_maps,
    logit_coefficients,
    spread_shares,
    ua_backprop,
)
from xuqlib.uncertainty import KINDS, attribute_uncertainty, logits_of, probability_shares

BUDGET = 0.05  # share of the pixels that are blurred when a map is scored
EVEN = 1e9  # a tau1 at which every logit of a draw receives the same
UNCHANGED = ("", "unchanged")
FULLGRAD, SIGNED = ("rival", "FullGrad of the prediction"), ("rival", "signed gradient x input of U")
SHUFFLED, EVENLY = ("coefficients", "shuffled shares"), ("coefficients", "even within a draw")
CONTROLS = (EVENLY, SHUFFLED, FULLGRAD, ("rival", "|x - blur|"), ("rival", "random"))


def logit_maps(draws: Draws, x: Tensor, *, block: int = 16, **options: Any) -> Tensor:
    """Maps of every logit of every draw by `class_maps`, `block` examples in a pass: (draw, example, class, H, W)."""
    return torch.stack(
        [torch.cat([class_maps(network, part, **options) for part in x.split(block)]) for network in draws]
    )


def logit_shares(logits: Tensor, kind: str, chosen: Setting) -> Tensor:
    """The share of an uncertainty that each logit receives, (draw, example, class), float64, in nats."""
    handed_on = logit_coefficients(logits, chosen.coefficients, chosen.tau1)
    return torch.einsum("sni,snij->snj", probability_shares(logits, kind), handed_on)


def combined(shares: Tensor, maps: Tensor, chosen: Setting) -> Tensor:
    """Spread the shares of all logits over the pixels by their maps, and add: (N, H, W), float64, in nats."""
    pairs = zip(shares, maps, strict=True)
    return torch.stack([spread_shares(*pair, normalise=chosen.normalise, tau2=chosen.tau2) for pair in pairs]).sum(0)


def variants(
    draws: Draws, x: Tensor, settings: Iterable[Setting], kind: str = "epistemic", *, block: int = 16
) -> dict[Setting, Tensor]:
    """UA-Backprop with each of many settings; the explanations of the logits are made once for each psi.

    Each map equals that of `ua_backprop` with the setting's fields as arguments.

    Args:
        draws, x, kind: as for `ua_backprop`; x is pictures.
        settings: which maps to make.
        block: examples in one pass; the maps of all logits of all examples are held at once.

    Returns:
        Setting to map, (N, H, W), float64, in nats.
    """
    wanted, logits, found = list(settings), logits_of(draws, x), {}
    for psi in dict.fromkeys(setting.psi for setting in wanted):
        maps = logit_maps(draws, x, block=block, psi=psi)
        for chosen in wanted:
            if chosen.psi == psi:
                found[chosen] = combined(logit_shares(logits, kind, chosen), maps, chosen)
    return {chosen: found[chosen] for chosen in wanted}


def scored(
    draws: Draws, x: Tensor, maps: Mapping[Any, Tensor], kind: str = "epistemic", *, num_steps: int
) -> pd.DataFrame:
    """Blur the pixels of x in the order of each map, up to `BUDGET`: how fast does the uncertainty fall?

    Args:
        draws, x: as for `uncertainty_curves`.
        maps: any name to (N, H, W).
        kind: of the uncertainty that is watched.
        num_steps: pictures looked at on the way; the area is by trapezoid between them.

    Returns:
        A row per map and example: map, example, auc (AUC-URR, see `auc_urr`), kept (whether the answer was the same
        at the budget).
    """
    frames, shares = [], [BUDGET * step / num_steps for step in range(num_steps + 1)]
    for name, values in maps.items():
        curves = uncertainty_curves(draws, x, pixel_order(values), kind, shares=shares)
        columns = {"map": [name] * len(x), "example": range(len(x)), "auc": auc_urr(curves, BUDGET).numpy()}
        frames.append(pd.DataFrame(columns | {"kept": curves.kept[:, -1].double().numpy()}))
    return pd.concat(frames, ignore_index=True)


def sweep(draws: Draws, x: Tensor, settings: Sequence[Setting], *, num_steps: int, block: int = 16) -> pd.DataFrame:
    """Score the epistemic map of each of many settings by the fall of the epistemic uncertainty.

    Args:
        draws, x, settings, block: as for `variants`; settings differ from each other.
        num_steps: as for `scored`.

    Returns:
        A row per setting and example: the fields of `Setting`, example, auc, kept.
    """
    frame = scored(draws, x, variants(draws, x, settings, block=block), num_steps=num_steps)
    fields = pd.DataFrame(frame["map"].tolist(), columns=list(Setting._fields))
    return pd.concat([fields, frame.drop(columns="map")], axis=1)


def own_shares(draws: Draws, x: Tensor, settings: Iterable[Setting]) -> pd.DataFrame:
    """What a probability's share leaves with its own logit: the mean of c[i, i] over draws and classes.

    Returns:
        A row per setting and example: the fields of `Setting`, example, own, between 0 and 1.
    """
    logits, frames = logits_of(draws, x), []
    for chosen in settings:
        handed_on = logit_coefficients(logits, chosen.coefficients, chosen.tau1)  # (S, N, C, C)
        own = handed_on.diagonal(dim1=-2, dim2=-1).mean((0, -1)).cpu().numpy()
        frames.append(pd.DataFrame({**chosen._asdict(), "example": range(len(own)), "own": own}))
    return pd.concat(frames, ignore_index=True)


def changed_maps(
    draws: Draws, x: Tensor, name: str, *, num_path: int = 8, block: int = 16, seed: int = 0
) -> dict[tuple[str, str], Tensor]:
    """The epistemic map of a named setting, the same with one part of the method changed at a time, and rivals.

    Args:
        draws, x: as for `ua_backprop`; x is pictures.
        name: of the setting, in `ua_backprop.SETTINGS`.
        num_path: steps of Integrated Gradients.
        block: examples in one pass.
        seed: of the shuffled shares and of the random map.

    Returns:
        (part, change) to map, (N, H, W): `UNCHANGED`; of the part "coefficients" other coefficients, the same share
        for every logit of a draw, and each share dealt to another logit; of "logit map" the other psi and other
        explainers; of "normalisation" the other one, with the other setting's tau2; of "kind" another uncertainty's
        shares; and of "rival" rivals and controls.
    """
    logits = logits_of(draws, x)
    maps = {setting.psi: logit_maps(draws, x, block=block, psi=setting.psi) for setting in SETTINGS.values()}
    chosen, (other,) = SETTINGS[name], [SETTINGS[key] for key in SETTINGS if key != name]

    def changed(kind: str = "epistemic", **fields: Any) -> Tensor:
        setting = chosen._replace(**fields)
        return combined(logit_shares(logits, kind, setting), maps[setting.psi], setting)

    found = {UNCHANGED: changed()}
    for coefficients in COEFFICIENTS:
        if coefficients != chosen.coefficients:
            found["coefficients", coefficients] = changed(coefficients=coefficients)
    found[EVENLY] = changed(coefficients="softmax", tau1=EVEN)
    found[SHUFFLED] = shuffled_shares(draws, x, setting=name, seed=seed, chunk=block)
    found["logit map", f"FullGrad, {other.psi}"] = changed(psi=other.psi)
    for explainer in ("gradient_x_input", "gradient", "integrated_gradients"):
        options: dict[str, Any] = {"num_steps": num_path} if explainer == "integrated_gradients" else {}
        made = ua_backprop(draws, x, setting=name, explainer=explainer, chunk=block, **options)
        found["logit map", explainer.replace("_", " ")] = made
    found["normalisation", other.normalise] = changed(normalise=other.normalise, tau2=other.tau2)
    found |= {("kind", f"{kind} shares"): changed(kind) for kind in KINDS[:2]}
    found[FULLGRAD] = _of_prediction(logits, maps[chosen.psi])
    found[SIGNED] = attribute_uncertainty(draws, x)
    controls = {"|x - blur|": distance_to_blur(draws, x), "random": random(draws, x, seed=seed)}
    return found | {("rival", control): made for control, made in controls.items()}


def ablation(draws: Draws, x: Tensor, *, num_steps: int, **options: Any) -> pd.DataFrame:
    """Score `changed_maps` of each named setting, and say how much they look like others.

    Args:
        draws, x: as for `changed_maps`.
        num_steps: as for `scored`.
        **options: num_path, block and seed of `changed_maps`.

    Returns:
        A row per setting, part, change and example: auc, kept; and the rank correlations over pixels with the
        unchanged map, unchanged, and with FullGrad of the prediction, prediction.
    """
    frames = []
    for name in SETTINGS:
        maps = changed_maps(draws, x, name, **options)
        frame = scored(draws, x, maps, num_steps=num_steps)
        for column, like in {"unchanged": maps[UNCHANGED], "prediction": maps[FULLGRAD]}.items():
            pairs = [spearman(values[:, None].double(), like[:, None].double()) for values in maps.values()]
            frame[column] = pd.concat(pairs, ignore_index=True)
        frame[["part", "change"]] = frame.pop("map").tolist()
        frames.append(frame.assign(setting=name))
    return pd.concat(frames, ignore_index=True)


def crossed(draws: Draws, x: Tensor, *, num_steps: int, block: int = 16) -> pd.DataFrame:
    """Score the map of each kind of uncertainty by the fall of each kind.

    Returns:
        A row per setting, kind of the map, uncertainty watched and example: setting, kind, uncertainty, auc, kept.
    """
    logits, frames = logits_of(draws, x), []
    for name, chosen in SETTINGS.items():
        maps = logit_maps(draws, x, block=block, psi=chosen.psi)
        found = {kind: combined(logit_shares(logits, kind, chosen), maps, chosen) for kind in KINDS}
        for kind in KINDS:
            frame = scored(draws, x, found, kind, num_steps=num_steps).rename(columns={"map": "kind"})
            frames.append(frame.assign(uncertainty=kind, setting=name))
    return pd.concat(frames, ignore_index=True)


def few_draws(draws: Draws, x: Tensor, *, counts: Sequence[int], num_steps: int, block: int = 16) -> pd.DataFrame:
    """Score maps made of the first few draws by the fall of the epistemic uncertainty over all draws.

    Args:
        draws, x: as for `variants`.
        counts: of draws, at most as many as there are.

    Returns:
        A row per setting, map ("UA-Backprop", and of all draws "even within a draw" and `FULLGRAD`), number of draws
        and example: setting, name, draws, auc, kept.
    """
    logits, found = logits_of(draws, x), {}
    for name, chosen in SETTINGS.items():
        maps = logit_maps(draws, x, block=block, psi=chosen.psi)
        for count in counts:
            shares = logit_shares(logits[:count], "epistemic", chosen)
            found[name, "UA-Backprop", count] = combined(shares, maps[:count], chosen)
        even = chosen._replace(coefficients="softmax", tau1=EVEN)
        found[name, EVENLY[1], len(draws)] = combined(logit_shares(logits, "epistemic", even), maps, even)
        found[name, FULLGRAD[1], len(draws)] = _of_prediction(logits, maps)
    frame = scored(draws, x, found, num_steps=num_steps)
    frame[["setting", "name", "draws"]] = frame.pop("map").tolist()
    return frame


def _of_prediction(logits: Tensor, maps: Tensor) -> Tensor:
    predicted = logits.double().softmax(-1).mean(0).argmax(1)
    return maps[:, torch.arange(maps.shape[1]), predicted].double().mean(0)
