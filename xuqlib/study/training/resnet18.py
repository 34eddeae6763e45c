"""The ResNet-18s of `checkpoints/your_own`: torchvision's, trained as most networks are, no thought of uncertainty."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from xuqlib.checks import check_choice
from xuqlib.device import device, has_bfloat16
from xuqlib.posteriors.fixing import seed_of
from xuqlib.study.checked import Count, Pictures, Seed, Target, checked
from xuqlib.study.data.loading import load
from xuqlib.study.files import DamagedError, replace_file, versions
from xuqlib.study.resuming import packed, unpacked
from xuqlib.study.training.checkpoints import find_checkpoint, folders, load_checkpoint, rounded, save_checkpoint
from xuqlib.study.training.fitting import augmented, one_cycle
from xuqlib.study.training.recipes import Recipe

RECIPES = {
    "planted": Recipe("resnet18", epochs=24, batch_size=64, augment="shift"),
    "cifar10": Recipe("resnet18", epochs=6, augment="shift+flip", precision="bfloat16", weight_decay=5e-2),
}
# Groups whose convolutions keep their random start, so that the checkpoint of `planted` is small enough to publish.
FROZEN: dict[str, tuple[str, ...]] = {"planted": ("layer3", "layer4"), "cifar10": ()}


@checked
def plain_resnet18(num_classes: Count, *, stem: str = "torchvision", seed: Seed = 0) -> nn.Module:
    """Build torchvision's ResNet-18, untrained, in eval mode.

    Args:
        num_classes: its outputs.
        stem: "torchvision", or "small": a first convolution of 3 x 3 without stride, for pictures of 32 x 32.
        seed: of its weights.
    """
    import torchvision

    check_choice(stem, ("torchvision", "small"), "stem")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return network.eval()


@checked
def train_plainly(
    network: nn.Module, x: Pictures, y: Target, recipe: Recipe, *, seed: Seed = 0, state: Path | None = None
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
    is_short = recipe.precision == "bfloat16" and has_bfloat16(where)
    network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimiser, schedule = one_cycle(weights, recipe, len(x))
    parts, first = (network, optimiser, schedule), 0
    if state is not None and state.exists():
        try:
            *saved, first = unpacked(state.read_bytes(), state.name)
        except DamagedError as error:
            warnings.warn(f"{error}, in {state.parent}; the training begins anew", stacklevel=2)
        else:
            for part, values in zip(parts, saved, strict=True):
                part.load_state_dict(values)
    for epoch in range(first, recipe.epochs):
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(seed, epoch))
            network.train()
            for batch in torch.randperm(len(x)).split(recipe.batch_size):
                pictures = augmented(x[batch], recipe.augment).to(where, memory_format=torch.channels_last)
                with torch.autocast(where.type, torch.bfloat16, enabled=is_short):
                    logits = network(pictures)
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(logits.float(), y[batch].to(where)).backward()
                optimiser.step()
                schedule.step()
        if state is not None:
            replace_file(state, packed([*(dict(part.state_dict()) for part in parts), epoch + 1], state.name))
    return network.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@checked
def trained_resnet18(dataset: str, *, seed: Seed = 0) -> nn.Module:
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
    path = find_checkpoint(f"your_own/{name}", facts, seed=seed)
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
