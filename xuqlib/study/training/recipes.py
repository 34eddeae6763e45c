"""Recipes: all that decides a trained network besides its seed and the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from xuqlib.checks import check_choice, check_count, check_number
from xuqlib.study.data.loading import Examples
from xuqlib.study.training import networks

AUGMENTS = ("none", "shift", "shift+flip")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trained network besides its seed and the machine.

    The optimiser is AdamW, its rate a one-cycle schedule; what is kept is the epoch with the lowest validation loss.

    Args:
        network: name of a builder in `networks`; `options` are its arguments.
        epochs: passes over the training part, at most.
        patience: epochs without a lower validation loss before training stops.
        batch_size: examples per step.
        learning_rate: the peak of the cycle.
        weight_decay: of AdamW, on every weight.
        augment: "none", "shift" (by up to an eighth of the picture), or "shift+flip".
        precision: "float32" or "bfloat16" (autocast).
        num_train: train on a stratified subset of this size; all by default.
        soft: train on the soft labels (votes) instead of the class index.
    """

    network: str = "mlp"
    options: tuple[tuple[str, Any], ...] = ()
    epochs: int = 20
    patience: int = 10
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    augment: str = "none"
    precision: str = "float32"
    num_train: int | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        check_choice(self.network, ("mini_vgg", "mlp", "lenet", "resnet18"), "network")
        check_choice(self.augment, AUGMENTS, "augment")
        check_choice(self.precision, ("float32", "bfloat16"), "precision")
        for name, minimum in (("epochs", 1), ("patience", 1), ("batch_size", 2)):  # batch norm wants two examples
            check_count(getattr(self, name), minimum, name)
        check_number(self.learning_rate, 0, "learning_rate", above=True)
        check_number(self.weight_decay, 0, "weight_decay")


RECIPES: dict[str, Recipe] = {
    "planted": Recipe("mini_vgg", (("widths", (16, 32, 32)), ("hidden", 64)), epochs=20, augment="shift"),
    "digits": Recipe("mini_vgg", (("widths", (16, 32, 32)), ("hidden", 64)), epochs=60, patience=60, augment="shift"),
    "diabetes": Recipe("mlp", epochs=200, patience=30, batch_size=32, learning_rate=1e-3),
    "california_housing": Recipe("mlp", epochs=100, patience=100, learning_rate=5e-3),
    "mnist": Recipe("lenet", (("widths", (16, 32)), ("hidden", 64)), epochs=12, augment="shift"),
    "cifar10": Recipe("mini_vgg", epochs=15, augment="shift+flip", precision="bfloat16", weight_decay=5e-2),
    "fer_plus": Recipe(
        *("mini_vgg", (("widths", (32, 64, 128, 128)), ("hidden", 128))),
        epochs=16,
        augment="shift+flip",
        precision="bfloat16",
        weight_decay=5e-2,
        soft=True,
    ),
}
EMBEDDED = ("planted", "digits", "diabetes")


def recipe_for(dataset: str, preset: str = "full") -> Recipe:
    """Return a data set's recipe. "quick" shortens it on data that is not embedded: 10,000 examples, 3 epochs."""
    check_choice(dataset, tuple(RECIPES), "dataset")
    check_choice(preset, ("quick", "full"), "preset")
    recipe = RECIPES[dataset]
    if preset == "full" or dataset in EMBEDDED:
        return recipe
    return replace(recipe, epochs=3, num_train=10_000)


def build(recipe: Recipe, examples: Examples, *, dropout: float = 0.0, placement: str = "last") -> nn.Module:
    """Build an untrained network of the recipe for the shapes of `examples`."""
    options: dict[str, Any] = dict(recipe.options)
    if recipe.network == "mlp":
        options |= {"num_features": examples.x.shape[1], "num_outputs": examples.num_classes or 1}
    else:
        options |= {"in_channels": examples.x.shape[1], "num_classes": examples.num_classes}
    if recipe.network in ("mini_vgg", "lenet"):
        options["image_size"] = examples.x.shape[-1]
    return getattr(networks, recipe.network)(**options, dropout=dropout, placement=placement)
