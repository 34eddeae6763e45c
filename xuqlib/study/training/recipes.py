"""Recipes: all that decides a trained network besides its seed and the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from xuqlib.checks import check_choice
from xuqlib.study.checked import Amount, Count, Options, Positive, Several, Share, checked
from xuqlib.study.data.loading import EMBEDDED, Examples
from xuqlib.study.training import networks

AUGMENTS = ("none", "shift", "shift+flip")
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mini_vgg": networks.mini_vgg,
    "mlp": networks.mlp,
    "lenet": networks.lenet,
    "resnet18": networks.resnet18,
    "cnn_1d": networks.cnn_1d,
    "lstm": networks.SignalLSTM,
    "text_transformer": networks.TextTransformer,
    "vision_transformer": networks.VisionTransformer,
    "table_transformer": networks.TableTransformer,
    "unet": networks.UNet,
}
# Networks whose dropout stands in every block where nothing else is said.
DROPOUT_EVERYWHERE = ("cnn_1d", "lstm", "text_transformer", "vision_transformer", "table_transformer", "unet")


@checked
@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trained network besides its seed and the machine.

    The optimiser is AdamW, its rate a one-cycle schedule; what is kept is the epoch with the lowest validation loss.

    Args:
        network: one of `BUILDERS`; `options` are its arguments. Two are for any network: "dropout", the drop
            probability of MC-Dropout (a quarter by default); and "variance", which reads two outputs of a regression
            as mean and variance.
        epochs: passes over the training part, at most.
        patience: epochs without a lower validation loss before training stops.
        batch_size: examples per step.
        learning_rate: the peak of the cycle.
        weight_decay: of AdamW, on every weight.
        augment: "none", "shift" (by up to an eighth of the picture), or "shift+flip".
        precision: "float32" or "bfloat16" (autocast; float32 on a CPU without arithmetic for it).
        num_train: train on a stratified subset of this size; all by default.
        soft: train on the soft labels (votes) instead of the class index.
    """

    network: str = "mlp"
    options: Options = ()
    epochs: Count = 20
    patience: Count = 10
    batch_size: Several = 128  # batch norm wants two examples
    learning_rate: Positive = 3e-3
    weight_decay: Amount = 1e-2
    augment: str = "none"
    precision: str = "float32"
    num_train: Count | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        check_choice(self.network, tuple(BUILDERS), "network")
        check_choice(self.augment, AUGMENTS, "augment")
        check_choice(self.precision, ("float32", "bfloat16"), "precision")


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
    "planted_words": Recipe(
        *("text_transformer", (("width", 32), ("dropout", 0.1))), epochs=15, batch_size=64, learning_rate=2e-3
    ),
    "planted_signals": Recipe("cnn_1d", (("widths", (16, 16, 32)), ("dropout", 0.1)), epochs=20),
    "planted_table": Recipe("mlp", (("hidden", (64, 64)), ("dropout", 0.1), ("variance", True)), epochs=40),
    "planted_pixels": Recipe("unet", (("dropout", 0.1),), epochs=12, batch_size=32, learning_rate=1e-2),
    "trec": Recipe("text_transformer", (("dropout", 0.2),), epochs=20, batch_size=64, learning_rate=1e-3),
    "ecg5000": Recipe("cnn_1d", (("widths", (16, 32, 32)), ("dropout", 0.1)), epochs=60, patience=60, batch_size=32),
    "ecg200": Recipe("lstm", (("dropout", 0.1),), epochs=100, patience=100, batch_size=16, learning_rate=1e-2),
    "adult": Recipe("table_transformer", (("dropout", 0.1),), epochs=3, batch_size=256),
    "bike_sharing": Recipe("mlp", (("hidden", (64, 64)), ("dropout", 0.1), ("variance", True)), epochs=40),
    "nuclei": Recipe("unet", (("dropout", 0.1),), epochs=20, batch_size=8, learning_rate=1e-2, augment="shift+flip"),
    "fashion_mnist": Recipe(
        *("vision_transformer", (("patch", 7), ("width", 48), ("depth", 2), ("dropout", 0.1))),
        epochs=8,
        learning_rate=3e-3,
        num_train=10_000,
    ),
}


# Data sets of more than 10,000 training examples.
LARGE = ("california_housing", "mnist", "cifar10", "fer_plus", "adult", "bike_sharing", "fashion_mnist")


@checked
def recipe_for(dataset: str, preset: str = "full") -> Recipe:
    """Return a data set's recipe; "quick" shortens it where data is not embedded: 10,000 examples at most, 3 epochs."""
    check_choice(dataset, tuple(RECIPES), "dataset")
    check_choice(preset, ("quick", "full"), "preset")
    recipe = RECIPES[dataset]
    if preset == "full" or dataset in EMBEDDED:
        return recipe
    return replace(recipe, epochs=3, num_train=10_000 if dataset in LARGE else None)


@checked
def build(recipe: Recipe, examples: Examples, *, dropout: Share = 0.0, placement: str = "last") -> nn.Module:
    """Build an untrained network of the recipe for the shapes of `examples`.

    Raises:
        ValueError: a variance of what is no regression.
    """
    options: dict[str, Any] = {"variance": False} | dict(recipe.options) | {"dropout": dropout, "placement": placement}
    variance, shape = options.pop("variance"), examples.x.shape
    if variance and examples.task != "regression":
        raise ValueError(f"the recipe asks for a variance but {examples.name} has classes; leave the option out")
    if recipe.network in ("mlp", "table_transformer"):
        options["num_outputs"] = examples.num_classes or examples.y.shape[1] * (2 if variance else 1)
    else:
        options["num_classes"] = examples.num_classes
    if recipe.network == "mlp":
        options["num_features"] = shape[1]
    elif recipe.network == "table_transformer":
        options["groups"] = tuple(examples.feature_groups.values())
    elif recipe.network == "text_transformer":
        options |= {"num_words": len(examples.vocabulary or ()), "length": shape[1]}
    else:
        options["in_channels"] = shape[1]
    if recipe.network in ("mini_vgg", "lenet", "vision_transformer"):
        options["image_size"] = shape[-1]
    network = BUILDERS[recipe.network](**options)
    return networks.MeanVariance(network) if variance else network
