"""Fit once, load ever after: recipes, training and checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xuqlib import networks
from xuqlib.checkpoints import find_checkpoint, folders, load_checkpoint, rounded, save_checkpoint
from xuqlib.checks import check_choice, check_count, check_number
from xuqlib.data import Examples, load
from xuqlib.draws import seed_of
from xuqlib.posteriors import DeepEnsemble, Flipout, Laplace, MCDropConnect, MCDropout, Posterior
from xuqlib.study import device, versions

AUGMENTS = ("none", "shift", "shift+flip")
METHODS = ("deep_ensemble", "mc_dropout", "mc_dropconnect", "flipout", "laplace")


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
    "mnist": Recipe("lenet", epochs=12, augment="shift", precision="bfloat16"),
    "cifar10": Recipe("mini_vgg", epochs=15, augment="shift+flip", precision="bfloat16", weight_decay=5e-2),
    "fer_plus": Recipe("mini_vgg", epochs=12, augment="shift+flip", precision="bfloat16", weight_decay=5e-2, soft=True),
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


def fit(
    posterior: Posterior | nn.Module,
    train: Examples,
    validation: Examples,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a network, or the network of a posterior, in place.

    The loss is cross-entropy for classes and the mean squared error for regression; a Flipout posterior adds its
    divergence over the number of training examples. The network ends in eval mode with the weights of its best epoch.

    Args:
        posterior: what to train; a posterior's `network` is trained.
        train: examples to learn from.
        validation: examples that choose the epoch; never trained on.
        recipe: how; the defaults of `Recipe` if none is given. Its `network` and `options` are not used here.
        seed: of the order, the augmentation, and the dropout. The global generator is left as it was.
        progress: show a bar over epochs.

    Returns:
        One row per epoch: epoch, train_loss, validation_loss, seconds.

    Raises:
        TypeError: neither a posterior nor a network, or no `Examples`.
        ValueError: an ensemble of several, whose members are to be trained one by one; nothing to train, or on.
        FloatingPointError: the loss became infinite or NaN.
    """
    recipe = recipe or Recipe()
    check_count(seed, 0, "seed")
    network = _trainable(posterior, train, validation)
    where = device()
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Tensor]] = (float("inf"), 0, {})
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, 1))
        network.to(where)
        optimiser, schedule = _optimiser(network, recipe, len(train))
        bar = tqdm(range(1, recipe.epochs + 1), desc=f"fit {train.name}", disable=not progress, leave=False)
        for epoch in bar:
            started = time.perf_counter()
            train_loss = _epoch(posterior, network, train, recipe, optimiser, schedule)
            loss = float(_loss(predict(network, validation.x), _targets(validation, recipe.soft)))
            if not (torch.isfinite(torch.tensor([train_loss, loss]))).all():
                raise FloatingPointError(f"training diverged in epoch {epoch} (loss {train_loss}); lower learning_rate")
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "validation_loss": loss,
                    "seconds": time.perf_counter() - started,
                }
            )
            bar.set_postfix(validation_loss=f"{loss:.4f}")
            if loss < best[0]:
                best = (loss, epoch, {key: value.detach().clone() for key, value in network.state_dict().items()})
            elif epoch - best[1] >= recipe.patience:
                break
        network.load_state_dict(best[2])
    network.eval().to("cpu")
    return pd.DataFrame(history)


def _trainable(posterior: Any, train: Any, validation: Any) -> nn.Module:
    network = posterior.network if isinstance(posterior, Posterior) else posterior
    if not isinstance(network, nn.Module):
        raise TypeError(f"fit got a {type(posterior).__name__}; pass a posterior or a network (nn.Module)")
    if isinstance(posterior, DeepEnsemble) and len(posterior.members) > 1:
        raise ValueError(f"fit trains one network, not {len(posterior.members)}; call it for each of ensemble.members")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient: nothing to train")
    for what, examples, minimum in (("train", train, 2), ("validation", validation, 1)):
        if not isinstance(examples, Examples):
            raise TypeError(f"{what} is a {type(examples).__name__}; pass Examples, as load gives them")
        if len(examples) < minimum:
            raise ValueError(f"{what} has {len(examples)} examples; pass at least {minimum}")
    return network


def _optimiser(network: nn.Module, recipe: Recipe, num_examples: int) -> tuple[Any, Any]:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    steps = -(-num_examples // recipe.batch_size) * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    return optimiser, schedule


def _epoch(
    posterior: Posterior | nn.Module, network: nn.Module, train: Examples, recipe: Recipe, optimiser: Any, schedule: Any
) -> float:
    network.train()
    where = next(network.parameters()).device
    pictures = train.x.ndim == 4
    if pictures:
        network.to(memory_format=torch.channels_last)
    targets, total = _targets(train, recipe.soft), 0.0
    for batch in torch.randperm(len(train)).split(recipe.batch_size):
        if len(batch) == 1:
            continue  # batch norm has no variance to take
        x = augmented(train.x[batch], recipe.augment).to(where)
        if pictures:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            output = network(x)
        loss = _loss(output.float(), targets[batch].to(where))
        total += loss.item() * len(batch)
        if isinstance(posterior, Flipout):
            loss = loss + posterior.kl_weight * posterior.kl() / len(train)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return total / len(train)


def augmented(x: Tensor, augment: str) -> Tensor:
    """Shift (and mirror) each picture at random, with the global generator; "none" returns x itself."""
    check_choice(augment, AUGMENTS, "augment")
    if augment == "none":
        return x
    if x.ndim != 4:
        raise ValueError(f"augment is {augment!r}, which moves pictures (N, C, H, W); x is {tuple(x.shape)}")
    n, _, height, width = x.shape
    reach = height // 8
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    top, left = torch.randint(0, 2 * reach + 1, (2, n))
    rows = top[:, None] + torch.arange(height)  # (N, H)
    columns = left[:, None] + torch.arange(width)
    if augment == "shift+flip":
        mirrored = torch.rand(n) < 0.5
        columns[mirrored] = columns[mirrored].flip(1)
    # Advanced indices around the channel slice: (N, H, W, C), back to channels first.
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, *, batch_size: int = 512) -> Tensor:
    """Return a network's output in eval mode, in batches, on the CPU; its mode is restored."""
    was_training = network.training
    network.eval()
    where = next((p.device for p in network.parameters()), torch.device("cpu"))
    outputs = torch.cat([network(part.to(where)).float().cpu() for part in x.split(batch_size)])
    network.train(was_training)
    return outputs


def _targets(examples: Examples, soft: bool) -> Tensor:
    return examples.probs if soft and examples.probs is not None else examples.y


def _loss(output: Tensor, target: Tensor) -> Tensor:
    if output.ndim == 1 or output.shape[1] == 1:
        return F.mse_loss(output.flatten(), target.flatten())
    return F.cross_entropy(output, target)


def train_or_load(
    method: str,
    dataset: str,
    *,
    preset: str = "full",
    seed: int = 0,
    placement: str = "last",
    num_members: int = 5,
    retrain: bool = False,
    progress: bool = True,
) -> Posterior:
    """Return a trained posterior: from its checkpoint where there is one of the same recipe, else by training.

    Published checkpoints are looked at first, then those of this machine's cache, where a new one is written. An
    ensemble is trained member by member, so an interrupted training goes on with the next. The network of Laplace
    is the ensemble's first member.

    Args:
        method: "deep_ensemble", "mc_dropout", "mc_dropconnect", "flipout" or "laplace".
        dataset: a name of `data.load` that has a recipe.
        preset: "full", the recipe; "quick", a shortened one where the data is not embedded.
        seed: of the initial weights and of the training.
        placement: "last" or "all": which layers are random. Ensembles and Laplace know only "last".
        num_members: of the ensemble.
        retrain: train anew even where there is a checkpoint. `XUQ_RETRAIN=1` does so for a whole run.

    Raises:
        ValueError: unknown method, data set, preset or placement.
        CheckpointError: a checkpoint whose digest is wrong.
    """
    check_choice(method, METHODS, "method")
    check_choice(placement, ("last", "all"), "placement")
    check_count(num_members, 1, "num_members")
    check_count(seed, 0, "seed")
    if placement == "all" and method in ("deep_ensemble", "laplace"):
        raise ValueError(f"{method} has no placement 'all'; it is for mc_dropout, mc_dropconnect and flipout")
    job = _Job(dataset, preset, seed, retrain, progress)
    if method == "deep_ensemble":
        members = [job.trained("plain", "last", member) for member in range(num_members)]
        ensemble = DeepEnsemble([member.network for member in members])
        ensemble.noise_variance = sum(member.noise_variance for member in members) / num_members
        return ensemble
    if method == "laplace":
        return job.laplace(job.trained("plain", "last", 0))
    return job.trained(method, placement, 0)


@dataclass(frozen=True)
class _Job:
    """What `train_or_load` needs to know at every step."""

    dataset: str
    preset: str
    seed: int
    retrain: bool
    progress: bool

    @property
    def recipe(self) -> Recipe:
        return recipe_for(self.dataset, self.preset)

    def name(self, kind: str) -> str:
        short = "-quick" if self.recipe != recipe_for(self.dataset) else ""
        return f"{self.dataset}{short}-{kind}-seed{self.seed}"

    def part(self, split: str) -> Examples:
        num_examples = self.recipe.num_train if split == "train" else None
        return load(self.dataset, split=split, num_examples=num_examples, seed=self.seed)

    def stored(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        # A recipe that changed since makes a checkpoint of the old one stale.
        path = None if self.retrain else find_checkpoint(name, asdict(self.recipe))
        return None if path is None else load_checkpoint(path)

    def trained(self, kind: str, placement: str, member: int) -> Posterior:
        """Load or train one network; "plain" gives an ensemble of one."""
        suffix = f"-member{member}" if kind == "plain" else f"-{placement}"
        name = self.name(kind + suffix)
        posterior = self.untrained(kind, placement, member)
        stored = self.stored(name)
        if stored is None:
            stored = self.train(posterior, name, member)
        tensors, manifest = stored
        posterior.network.load_state_dict(tensors)
        posterior.network.eval()
        posterior.noise_variance = manifest["noise_variance"]
        return posterior

    def untrained(self, kind: str, placement: str, member: int) -> Posterior:
        shapes = load(self.dataset, split="test", num_examples=1)  # the smaller file, needed anyway
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, member))
            network = build(self.recipe, shapes, dropout=0.25 if kind == "mc_dropout" else 0.0, placement=placement)
        if kind == "mc_dropconnect":
            return MCDropConnect(network, placement=placement)
        if kind == "flipout":
            return Flipout(network, placement=placement)
        return MCDropout(network) if kind == "mc_dropout" else DeepEnsemble([network])

    def train(self, posterior: Posterior, name: str, member: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        started = time.perf_counter()
        train, validation, test = (self.part(split) for split in ("train", "validation", "test"))
        history = fit(
            posterior, train, validation, self.recipe, seed=seed_of(self.seed, member), progress=self.progress
        )
        tensors = rounded(posterior.network.state_dict())
        posterior.network.load_state_dict(tensors)
        scores = {f"{part.split}_{key}": value for part in (validation, test) for key, value in _score(posterior, part)}
        manifest: dict[str, Any] = {
            "recipe": asdict(self.recipe),
            "dataset": self.dataset,
            "train_digest": train.digest,
            "seed": self.seed,
            "member": member,
            "epochs_run": len(history),
            "scores": scores,
            "noise_variance": scores.get("validation_mse", 0.0),
            "seconds": round(time.perf_counter() - started, 1),
            "device": str(device()),
            "versions": versions(),
        }
        save_checkpoint(name, tensors, manifest, folders()[-1])
        return tensors, manifest

    def laplace(self, plain: Posterior) -> Laplace:
        posterior, name = Laplace(plain.network), self.name("laplace-last")
        stored = self.stored(name)
        if stored is None:
            train = self.part("train")
            pairs = torch.utils.data.TensorDataset(train.x, train.y)
            posterior.fit(torch.utils.data.DataLoader(pairs, batch_size=512))
            tensors = {f"{key}/{k}": v for key, factor in posterior.factors.items() for k, v in factor.items()}
            manifest: dict[str, Any] = {"recipe": asdict(self.recipe), "dataset": self.dataset}
            manifest["train_digest"] = train.digest
            manifest |= {"seed": self.seed, "noise_variance": posterior.noise_variance, "versions": versions()}
            save_checkpoint(name, tensors, manifest, folders()[-1])
            return posterior
        tensors, manifest = stored
        for key, value in tensors.items():
            parameter, factor = key.split("/")
            posterior.factors.setdefault(parameter, {})[factor] = value
        posterior.noise_variance = manifest["noise_variance"]
        return posterior


def _score(posterior: Posterior, examples: Examples) -> list[tuple[str, float]]:
    output = predict(posterior.network, examples.x)
    if examples.num_classes is None:
        mse = float(F.mse_loss(output, examples.y))
        return [("mse", mse), ("r2", 1 - mse / float(examples.y.var(correction=0)))]
    return [
        ("accuracy", float((output.argmax(1) == examples.y).float().mean())),
        ("nll", float(F.cross_entropy(output, examples.y))),
    ]
