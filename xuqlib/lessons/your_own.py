"""A reader's own network: an ordinary ResNet-18 and a folder of pictures, made without a thought of uncertainty."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.checks import check_choice
from xuqlib.device import device
from xuqlib.explainers.fullgrad import fullgrad_terms
from xuqlib.explainers.gradients import gradient, guided_backprop
from xuqlib.lessons.reporting import judge
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import seed_of
from xuqlib.posteriors.random_weights import MCDropConnect
from xuqlib.study.data.loading import Examples, load
from xuqlib.study.judging.blurring import auc_urr, highest_reduction, uncertainty_curves
from xuqlib.study.judging.scores import scores_of
from xuqlib.study.record import Notebook, versions
from xuqlib.study.training.checkpoints import find_checkpoint, folders, load_checkpoint, rounded, save_checkpoint
from xuqlib.study.training.fitting import augmented, one_cycle
from xuqlib.study.training.recipes import Recipe
from xuqlib.ua_backprop import SETTINGS, ua_backprop
from xuqlib.uncertainty import uncertainties

RECIPES = {
    "planted": Recipe("resnet18", epochs=24, batch_size=64, augment="shift"),
    "cifar10": Recipe("resnet18", epochs=6, augment="shift+flip", precision="bfloat16", weight_decay=5e-2),
}
# Groups whose convolutions keep their random start, so that the checkpoint of `planted` is small enough to publish.
FROZEN: dict[str, tuple[str, ...]] = {"planted": ("layer3", "layer4"), "cifar10": ()}
BOUND = 1e-5  # of |sum - U| / max(U, 1 nat), in float32


def write_pictures(examples: Examples, folder: Path) -> Path:
    """Write pictures as PNG files, a folder per class, as `torchvision.datasets.ImageFolder` reads them.

    Args:
        examples: pictures (N, 3, H, W) in [0, 1] with class names; what was read from 8 bits is written unchanged.
        folder: made if need be; files are named after their row.
    """
    import PIL.Image

    names = [f"{label}_{name}" for label, name in enumerate(examples.class_names or ())]  # ImageFolder sorts by name
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    pictures = (examples.x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row, (picture, label) in enumerate(zip(pictures, examples.y.tolist(), strict=True)):
        PIL.Image.fromarray(picture).save(folder / names[label] / f"{row:05d}.png")
    return folder


def plain_resnet18(num_classes: int, *, stem: str = "torchvision", seed: int = 0) -> nn.Module:
    """Build torchvision's ResNet-18, untrained, in eval mode.

    Args:
        num_classes: its outputs.
        stem: "torchvision", or "small": a first convolution of 3 x 3 without stride, for pictures of 32 x 32.
        seed: of its weights.
    """
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return network.eval()


def train_plainly(
    network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, seed: int = 0, state: Path | None = None
) -> nn.Module:
    """Train a classifier in place as most networks are trained, and return it in eval mode.

    Args:
        network: its parameters that require a gradient are trained.
        x, y: pictures (N, C, H, W) and their classes (N,).
        recipe: how; its last epoch is kept. `network` and `options` are not used.
        seed: of order and augmentation.
        state: file that keeps all after each epoch, to go on from; None keeps nothing.
    """
    where = device()
    network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimiser, schedule = one_cycle(weights, recipe, len(x))
    parts, first = (network, optimiser, schedule), 0
    if state is not None and state.exists():
        *saved, first = torch.load(state, weights_only=True)
        for part, values in zip(parts, saved, strict=True):
            part.load_state_dict(values)
    for epoch in range(first, recipe.epochs):
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(seed, epoch))
            network.train()
            for batch in torch.randperm(len(x)).split(recipe.batch_size):
                pictures = augmented(x[batch], recipe.augment).to(where, memory_format=torch.channels_last)
                with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    logits = network(pictures)
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(logits.float(), y[batch].to(where)).backward()
                optimiser.step()
                schedule.step()
        if state is not None:
            partial = state.with_suffix(".partial")
            torch.save([*(part.state_dict() for part in parts), epoch + 1], partial)
            os.replace(partial, state)
    return network.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def trained_resnet18(dataset: str, *, seed: int = 0) -> nn.Module:
    """Load the ResNet-18 of a data set, or train it on its training part: into the cache, going on after each epoch.

    Args:
        dataset: one of `RECIPES`.
        seed: of weights and training.
    """
    check_choice(dataset, RECIPES, "data set")
    train, frozen = load(dataset, split="train"), FROZEN[dataset]
    network = plain_resnet18(int(train.num_classes or 0), stem="torchvision" if frozen else "small", seed=seed)
    name, recipe = f"{dataset}-resnet18-seed{seed}", RECIPES[dataset]
    facts = {**asdict(recipe), "num_train": len(train), "frozen": frozen}
    path = find_checkpoint(f"your_own/{name}", facts)
    if path is not None:
        network.load_state_dict(load_checkpoint(path)[0], strict=not frozen)
        return network
    left_out = {
        f"{group}.{inner}.weight"
        for group in frozen
        for inner, module in network.get_submodule(group).named_modules()
        if isinstance(module, nn.Conv2d)
    }
    for key in left_out:
        network.get_parameter(key).requires_grad_(False)
    folder = folders()[-1] / "your_own"
    folder.mkdir(parents=True, exist_ok=True)
    order, state = train.y.argsort(stable=True), folder / f"{name}.state"  # class by class, as in a folder
    train_plainly(network, train.x[order], train.y[order], recipe, seed=seed, state=state)
    kept = rounded({key: value for key, value in network.state_dict().items() if key not in left_out})
    network.load_state_dict(kept, strict=False)
    save_checkpoint(name, kept, {"recipe": facts, "seed": seed, "versions": versions()}, folder)
    state.unlink()
    return network.requires_grad_(True)


def compare_scores(
    plain: Tensor, draws: Tensor, target: Tensor, *, num_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Score a network and its posterior on the same examples, and their difference, with a paired bootstrap.

    Args:
        plain: logits of the network, (1, example, class).
        draws: logits of the draws, (draw, example, class).
        target: true classes, (N,).
        num_resamples, seed: of the bootstrap over examples; both sides get the same examples.

    Returns:
        A row per score, accuracy, nll (nats), brier and ece: network, posterior, difference (posterior less network),
        and low and high of the difference, 95 %.
    """
    stream = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(target), (num_resamples, len(target)), generator=stream)
    # The mean prediction is all that the scores read.
    sides = [logits.double().softmax(-1).mean(0, keepdim=True).log() for logits in (plain, draws)]
    found = [pd.Series(scores_of(side, target)) for side in sides]
    gaps = [scores_of(sides[1][:, r], target[r]) for r in rows], [scores_of(sides[0][:, r], target[r]) for r in rows]
    low, high = (pd.DataFrame(gaps[0]) - pd.DataFrame(gaps[1])).quantile([0.025, 0.975]).to_numpy()
    columns = {"network": found[0], "posterior": found[1], "difference": found[1] - found[0], "low": low, "high": high}
    return pd.DataFrame(columns).rename_axis("score")


def misses(maps: Mapping[str, Tensor], wanted: Tensor) -> dict[str, float]:
    """Largest |sum - U| / max(U, 1 nat) of each kind of map, (N, H, W), for uncertainties (N,)."""
    gaps = {name: (values.double().flatten(1).sum(1) - wanted).abs() for name, values in maps.items()}
    return {name: float((gap / wanted.clamp(min=1)).max()) for name, gap in gaps.items()}


def blur_in_order(
    draws: Draws, x: Tensor, orders: Mapping[str, Tensor], *, budget: float = 0.05, num_steps: int = 10
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Blur pictures in the order of several maps, and follow the fall of the epistemic uncertainty.

    Args:
        draws: fixed networks with at least two classes.
        x: pictures (N, C, H, W).
        orders: map to pixel numbers, (N, H * W), first to be blurred first.
        budget: share of the pixels.
        num_steps: up to the budget.

    Returns:
        Columns map, example, share, reduction (the running maximum of URR) and kept (1 where the answer is still the
        first one); and columns map, example, auc (AUC-URR at the budget). Examples without uncertainty are left out.
    """
    shares, curves, areas = np.linspace(0, budget, num_steps + 1), [], []
    for name, order in orders.items():
        found = uncertainty_curves(draws, x, order, shares=shares.tolist())
        index = {"map": name, "example": np.repeat(range(len(x)), len(shares)), "share": np.tile(shares, len(x))}
        values = {"reduction": highest_reduction(found), "kept": found.kept.double()}
        curves.append(pd.DataFrame(index | {key: value.flatten().numpy() for key, value in values.items()}))
        areas.append(pd.DataFrame({"map": name, "example": range(len(x)), "auc": auc_urr(found, budget).numpy()}))
    return pd.concat(curves, ignore_index=True).dropna(), pd.concat(areas, ignore_index=True).dropna()


def other_networks(num_classes: int, *, image_size: int = 32, seed: int = 0) -> dict[str, nn.Module]:
    """Build an untrained ResNet-50 and a small vision transformer of torchvision, in float64 and in eval mode."""
    from torchvision.models import VisionTransformer, resnet50

    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = VisionTransformer(image_size, num_classes=num_classes, **sizes)
        nn.init.normal_(transformer.heads.head.weight)  # torchvision starts it at 0
        found: dict[str, nn.Module] = {"ResNet-50": resnet50(num_classes=num_classes), "transformer": transformer}
    return {name: network.double().eval() for name, network in found.items()}


def what_holds(network: nn.Module, x: Tensor, *, num_draws: int = 2, seed: int = 0) -> dict[str, float]:
    """Measure on one network what Guided Backprop, FullGrad and UA-Backprop promise.

    Args:
        network: in eval mode; draws are DropConnect masks of its last layer.
        x: pictures, in the network's dtype.

    Returns:
        guided: distance of Guided Backprop from the gradient, relative to the gradient; 0 if they are the same.
        fullgrad: largest |sum of all terms - logit|, relative to the largest |logit|; 0 if FullGrad is complete.
        ua_backprop: largest |sum - U| / max(U, 1 nat) over both settings.
    """
    logits = network(x).detach()
    classes = logits.argmax(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="network called no ReLU")
        guided, plain = guided_backprop(network, x, classes), gradient(network, x, classes)
    gap = fullgrad_terms(network, x, classes).total() - logits.gather(1, classes[:, None]).squeeze(1)
    draws = MCDropConnect(network, p=0.3).sample(num_draws, seed=seed)
    maps = {setting: ua_backprop(draws, x, setting=setting) for setting in SETTINGS}
    return {
        "guided": float((guided - plain).norm() / plain.norm()),
        "fullgrad": float(gap.abs().max() / logits.abs().max()),
        "ua_backprop": max(misses(maps, uncertainties(draws, x).epistemic).values()),
    }


def claim_all(
    study: Notebook, table: pd.DataFrame, missed: Mapping[str, float], areas: pd.DataFrame, *, num_scored: int
) -> None:
    """Claim that the maps are complete, that they beat a random order, and that the posterior predicts no worse.

    Args:
        study: the notebook that makes the claims.
        table: of `compare_scores`, on `num_scored` examples.
        missed: of `misses`.
        areas: of `blur_in_order`, with the map "random".
    """
    values = areas.set_index(["map", "example"])["auc"]
    for name, largest in missed.items():
        text = f"{name}: the map sums to the epistemic uncertainty, within {BOUND:g} max(U, 1), in float32"
        study.claim(
            text, largest <= BOUND, value=largest, unit="of max(U, 1 nat)", n=areas["example"].nunique(), claim="U1"
        )
    for name in [name for name in values.index.unique("map") if name != "random"]:
        judge(study, f"{name}: AUC-URR at 5 % is above that of a random order", values[name] - values["random"])
    wanted = {"accuracy": (1, -0.01, ""), "nll": (-1, 0.0, "nats"), "ece": (-1, 0.0, "")}
    texts = {
        "accuracy": "the posterior's accuracy is no more than one point below the network's",
        "nll": "the posterior's negative log likelihood is below the network's",
        "ece": "the posterior's expected calibration error is below the network's",
    }
    for score, (sign, bound, unit) in wanted.items():
        low, high = sorted(sign * table.loc[score, ["low", "high"]].to_numpy(dtype=float))
        holds = True if low > bound else False if high <= bound else None
        ends, note = tuple(table.loc[score, ["low", "high"]]), "95 % bootstrap over examples, paired"
        value = float(table["difference"][score])
        study.claim(texts[score], holds, value=value, interval=ends, unit=unit, note=note, n=num_scored)
