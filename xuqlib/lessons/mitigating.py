"""Does attention made of uncertainty help? Every arm of the experiment, on small training sets, seed by seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.lessons.paired import SCORES, gains, judge_seeds
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of, seed_of
from xuqlib.study.data.loading import Examples, load
from xuqlib.study.judging.mitigation import attended, fit_attended, unit_maps
from xuqlib.study.judging.rivals import RIVALS, fullgrad_of_prediction, random
from xuqlib.study.judging.scores import scores_of
from xuqlib.study.judging.stress import corrupt
from xuqlib.study.record import Notebook
from xuqlib.study.training.recipes import Recipe, build
from xuqlib.ua_backprop import ua_backprop
from xuqlib.ua_replacement import ua_replacement
from xuqlib.uncertainty import decompose, logits_of

Parts = dict[str, Tensor]  # "train" and each test to pictures (N, C, H, W), or to maps (N, H, W)
PAPER = "arXiv 2304.04824, sec. 4"
OURS = "UA-Backprop (recommended)"
MAPS: dict[str, Callable[..., Tensor]] = {
    "gradient": RIVALS["gradient"],
    "prediction": partial(fullgrad_of_prediction, setting="recommended"),
    "UA-Backprop (paper)": ua_backprop,
    OURS: partial(ua_backprop, setting="recommended"),
    "UA-Replacement": ua_replacement,  # told the mean training picture
}
CONTROLS = ("none", "random map", "shuffled pixels", "dataset-mean map", "gradient", "prediction")
FORMS = ("milder", "towards the mean", "inverted")  # of attention, by the maps of OURS
ARMS = (*CONTROLS, *list(MAPS)[2:], "end-to-end", *FORMS, "true mask")


@dataclass(frozen=True)
class Plan:
    """What every training of the experiment has in common.

    Args:
        dataset: a name of `load`, of pictures.
        clutter: whether every picture, of training and of test, holds a patch of noise; see `patched`.
        num_members: networks of each ensemble, LeNets with these `widths` and `hidden`.
        num_test: test pictures, others for each seed.
        epochs, batch_size, learning_rate: of every training; its steps follow from these and the training set.
        every: epochs between two maps in the arm "end-to-end".
        corruptions, severity: of the tests besides the clean one, as for `corrupt`.
        dtype: of networks and pictures.
    """

    dataset: str
    clutter: bool = False
    num_members: int = 2
    num_test: int = 100
    widths: Sequence[int] = (8, 16)
    hidden: int = 32
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-2
    every: int = 5
    corruptions: Sequence[str] = ("gaussian_noise", "contrast")
    severity: int = 3
    dtype: str = "float64"

    @property
    def name(self) -> str:
        """The data set, and whether it is cluttered."""
        return f"{self.dataset}, cluttered" if self.clutter else self.dataset

    def train(self, seed: int, num_examples: int) -> Examples:
        """Training pictures of a seed; the first n of more are the n of that seed."""
        return load(self.dataset, split="train", num_examples=num_examples, seed=seed)

    def test(self, seed: int) -> Examples:
        """Test pictures of a seed, neither cluttered nor corrupted."""
        return load(self.dataset, num_examples=self.num_test, seed=seed)

    def to(self, x: Tensor) -> Tensor:
        """Pictures in the dtype of the networks."""
        return x.to(getattr(torch, self.dtype))

    def fit(self, examples: Examples, x: Tensor, *, seed: int, stage: int, **options: Any) -> tuple[Draws, int]:
        """Train an ensemble on x with the labels of the examples; return it, and the steps of each network."""
        architecture = (("widths", tuple(self.widths)), ("hidden", self.hidden))
        recipe = Recipe("lenet", architecture, self.epochs, self.epochs, self.batch_size, self.learning_rate)
        networks: list[nn.Module] = []
        with torch.random.fork_rng():
            for member in range(self.num_members):
                torch.manual_seed(seed_of(seed, stage, member))
                networks.append(build(recipe, examples).to(x.dtype))
        steps = fit_attended(networks, x, examples.y, recipe, seed=seed_of(seed, stage), **options)
        return DeepEnsemble(networks).sample(), steps


def patched(x: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Paste a square of uniform noise, a third as wide as the picture, at a random place of each picture.

    Args:
        x: pictures (N, C, H, W) in [0, 1].
        seed: of places and noise.

    Returns:
        Pictures shaped like x, and the squares, (N, H, W), of x's dtype: 1 inside, 0 outside.
    """
    height, width = x.shape[-2:]
    side, stream = max(1, round(min(height, width) / 3)), np.random.default_rng(seed)
    top, left = (torch.from_numpy(stream.integers(0, size - side + 1, (len(x), 1))) for size in (height, width))
    rows, columns = torch.arange(height) - top, torch.arange(width) - left
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    noise = torch.from_numpy(stream.random(tuple(x.shape))).to(x)
    return torch.where(inside[:, None], noise, x), inside.to(x)


def pictures(plan: Plan, seed: int, num_train: int) -> tuple[Parts, Parts]:
    """The pictures of a seed, by part: "train", "clean" and one for each corruption; and their patches, 1 inside."""
    x, test = plan.train(seed, num_train).x, plan.test(seed).x
    found = {"train": x, "clean": test}
    found |= {kind: corrupt(test, kind, plan.severity, seed=seed) for kind in plan.corruptions}
    found = {name: plan.to(each) for name, each in found.items()}
    if not plan.clutter:
        return found, {name: torch.zeros_like(each[:, 0]) for name, each in found.items()}
    pairs = {name: patched(each, seed=seed_of(seed, name == "train")) for name, each in found.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def maps_of(arm: str, draws: Draws, parts: Parts, ours: Parts, *, seed: int = 0) -> Parts:
    """Say how much of each pixel an arm takes away, in [0, 1], by the networks of stage 1.

    Args:
        arm: of `ARMS`, but "end-to-end" and "true mask", whose maps are not of stage 1.
        draws: the ensemble of stage 1.
        parts: of `pictures`.
        ours: `unit_maps` of UA-Backprop (recommended), which "shuffled pixels", "dataset-mean map" (the mean of the
            training maps, for every picture) and the other forms of attention start from.
        seed: of the random maps, and of the shuffling.

    Returns:
        Part to maps, (N, H, W).
    """
    if arm == "none":
        return {name: torch.zeros_like(maps) for name, maps in ours.items()}
    if arm == "random map":
        return {name: random(draws, x, seed=seed_of(seed, i)) for i, (name, x) in enumerate(parts.items())}
    if arm == "shuffled pixels":
        flat = {name: maps.flatten(1) for name, maps in ours.items()}
        orders = [torch.rand(f.shape, generator=generator_of(seed, i)).argsort(1) for i, f in enumerate(flat.values())]
        return {name: flat[name].gather(1, order).view_as(ours[name]) for name, order in zip(flat, orders, strict=True)}
    if arm == "dataset-mean map":
        mean = unit_maps(ours["train"].mean(0, keepdim=True))
        return {name: mean.expand_as(maps) for name, maps in ours.items()}
    if arm == OURS or arm in FORMS:
        return {name: 1 - maps for name, maps in ours.items()} if arm == "inverted" else ours
    options = {"reference": parts["train"].mean(0, keepdim=True)} if arm == "UA-Replacement" else {}
    return {name: unit_maps(MAPS[arm](draws, x, **options)) for name, x in parts.items()}


def one_seed(seed: int, plan: Plan, num_train: int, arms: Sequence[str] = ARMS) -> pd.DataFrame:
    """Run all arms on one training set: stage 1 on plain pictures, then stage 2 on what each arm leaves of them.

    All arms of a seed share stage 1, the pictures, and the initial weights and order of stage 2, and their networks
    take equally many steps. "none" is stage 2 on the pictures as they are. "end-to-end" uses no stage 1, but
    UA-Backprop (recommended) of the networks being trained, every few epochs; test pictures get the maps of the
    networks at the end. "true mask" takes the patches out, and is left out where there are none.

    Args:
        seed: of the pictures, the networks and the training.
        plan: sizes of everything.
        num_train: training pictures.
        arms: of `ARMS`.

    Returns:
        A row per arm and test: dataset, num_train, seed, arm, test, accuracy, nll, ece, epistemic (mean, in nats), kept
        (mean attention), learnt (accuracy on the training inputs as they were shown), steps (of each network). The
        test "corrupted" is the mean over all but the clean one.
    """
    for arm in arms:
        check_choice(arm, ARMS, "arm")
    train, test, (parts, patches) = plan.train(seed, num_train), plan.test(seed), pictures(plan, seed, num_train)
    x, rows = parts["train"], []
    first, _ = plan.fit(train, x, seed=seed, stage=1)
    ours = {name: ua_maps(first, each) for name, each in parts.items()}
    for arm in arms:
        forms: dict[str, Any] = {"milder": {"tau": 2.0}, "towards the mean": {"fill": x.mean(0, keepdim=True)}}
        look = forms.get(arm, {})
        if arm == "true mask" and not plan.clutter:
            continue
        if arm == "end-to-end":
            again: dict[str, Any] = {"attend": lambda draws, x: attended(x, ua_maps(draws, x)), "every": plan.every}
            draws, steps = plan.fit(train, x, seed=seed, stage=2, **again)
            maps = {name: ua_maps(draws, each) for name, each in parts.items()}
            shown = attended(x, maps["train"])
        else:
            maps = patches if arm == "true mask" else maps_of(arm, first, parts, ours, seed=seed)
            shown = attended(x, maps["train"], **look)
            draws, steps = plan.fit(train, shown, seed=seed, stage=2)
        learnt = measured(draws, shown, train.y)["accuracy"]
        about = {"dataset": plan.name, "num_train": num_train, "seed": seed, "arm": arm}
        for name in list(parts)[1:]:
            kept = attended(torch.ones_like(parts[name]), maps[name], **look | {"fill": "black"}).mean()
            found = measured(draws, attended(parts[name], maps[name], **look), test.y)
            rows.append({**about, "test": name, **found, "kept": float(kept), "learnt": learnt, "steps": steps})
    return _with_mean(pd.DataFrame(rows))


def ua_maps(draws: Draws, x: Tensor) -> Tensor:
    """UA-Backprop (recommended) of the epistemic uncertainty, rescaled to [0, 1], (N, H, W)."""
    return unit_maps(MAPS[OURS](draws, x))


def measured(draws: Draws, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, nll (nats) and ece of the mean prediction, and the mean epistemic uncertainty (nats)."""
    logits = logits_of(draws, x)
    found = scores_of(logits, y)
    return {name: found[name] for name in SCORES[:3]} | {"epistemic": float(decompose(logits).epistemic.mean())}


def _with_mean(frame: pd.DataFrame) -> pd.DataFrame:
    keys, names = ["dataset", "num_train", "seed", "arm"], [*SCORES, "kept", "learnt", "steps"]
    worse = frame[frame["test"] != "clean"].groupby(keys, sort=False)[names].mean().reset_index()
    return pd.concat([frame, worse.assign(test="corrupted")], ignore_index=True).astype({"steps": int})


def one_picture(seed: int, plan: Plan, num_train: int) -> Parts:
    """The test picture of a seed with the largest epistemic uncertainty, and its map.

    Returns:
        "picture", (1, C, H, W); "map", that of `ua_maps`, and "shuffled", the same pixels in random order, (1, H, W).
    """
    parts = pictures(plan, seed, num_train)[0]
    draws, _ = plan.fit(plan.train(seed, num_train), parts["train"], seed=seed, stage=1)
    pick = int(decompose(logits_of(draws, parts["clean"])).epistemic.argmax())
    x = parts["clean"][pick : pick + 1]
    ours = {"map": ua_maps(draws, x)}
    return {"picture": x, **ours, "shuffled": maps_of("shuffled pixels", draws, {"map": x}, ours, seed=seed)["map"]}


def map_seconds(seed: int, plan: Plan, num_train: int) -> pd.Series:
    """Processor seconds of training one ensemble, and of each kind of map of its training pictures."""
    train, x = plan.train(seed, num_train), pictures(plan, seed, num_train)[0]["train"]
    times = [time.process_time()]
    draws, _ = plan.fit(train, x, seed=seed, stage=1)
    times.append(time.process_time())
    for name, make in MAPS.items():
        make(draws, x, **({"reference": x.mean(0, keepdim=True)} if name == "UA-Replacement" else {}))
        times.append(time.process_time())
    return pd.Series(np.diff(times), index=["one training", *MAPS], name="seconds")


def claim_gains(study: Notebook, frame: pd.DataFrame) -> None:
    """Claim that attention by uncertainty beats each control, and end-to-end training that; by test and score.

    Where the patches are known, claim instead that it beats none and its own pixels shuffled, and that the truth does.

    Args:
        study: the notebook that makes the claims.
        frame: of `one_seed`, all arms.
    """
    pairs = [("UA-Backprop (paper)", "none"), *((OURS, rival) for rival in CONTROLS), ("end-to-end", OURS)]
    for (dataset, num_train), part in frame.groupby(["dataset", "num_train"], sort=False):
        known = "true mask" in set(part["arm"])
        chosen = [(OURS, "none"), (OURS, "shuffled pixels"), ("true mask", "none")] if known else pairs
        for test in ("clean", "corrupted"):
            for arm, rival in chosen:
                here = part[(part["test"] == test) & part["arm"].isin([arm, rival])]
                source = PAPER if arm.startswith("UA-B") and rival in ("none", "gradient") else "this study"
                for score, values in gains(here, by=[], side="arm", against=rival, scores=SCORES[:2]).groupby("score"):
                    text = f"{dataset}, {num_train} pictures, {test} test: {arm} has a better {score} than {rival}"
                    facts = {"dataset": str(dataset), "source": source, "claim": "U6" if arm.startswith("UA-B") else ""}
                    judge_seeds(study, text, values["gain"], str(score), **facts)
