"""Fit one network by its recipe."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xuqlib.checks import check_choice
from xuqlib.device import device, has_bfloat16
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.fixing import seed_of
from xuqlib.posteriors.random_weights import Flipout
from xuqlib.study.checked import Batch, Count, Seed, checked
from xuqlib.study.data.loading import Examples
from xuqlib.study.training.recipes import AUGMENTS, Recipe


@checked
def fit(
    posterior: Posterior | nn.Module,
    train: Examples,
    validation: Examples,
    recipe: Recipe | None = None,
    *,
    seed: Seed = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a network, or the network of a posterior, in place.

    The loss is that of `loss_of` for the task of the examples; a Flipout posterior adds its divergence over the number
    of training examples. The network ends in eval mode with the weights of its best epoch.

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
    network = _trainable(posterior)
    check_parts(train, validation)
    where = device()
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Tensor]] = (float("inf"), 0, {})
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, 1))
        network.to(where)
        optimiser, schedule = one_cycle(network.parameters(), recipe, len(train))
        bar = tqdm(range(1, recipe.epochs + 1), desc=f"fit {train.name}", disable=not progress, leave=False)
        for epoch in bar:
            started = time.perf_counter()
            train_loss = _epoch(posterior, network, train, recipe, optimiser, schedule)
            answer, target = predict(network, validation.x), targets_of(validation, recipe.soft)
            loss = float(loss_of(answer, target, task=validation.task))
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


def _trainable(posterior: Any) -> nn.Module:
    network = posterior.network if isinstance(posterior, Posterior) else posterior
    if not isinstance(network, nn.Module):
        raise TypeError(f"fit got a {type(posterior).__name__}; pass a posterior or a network (nn.Module)")
    if isinstance(posterior, DeepEnsemble) and len(posterior.members) > 1:
        raise ValueError(f"fit trains one network, not {len(posterior.members)}; call it for each of ensemble.members")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient: nothing to train")
    return network


def check_parts(train: Any, validation: Any) -> None:
    """Refuse to train on anything but `Examples`, two at least, or to validate on none."""
    for what, examples, minimum in (("train", train, 2), ("validation", validation, 1)):
        if not isinstance(examples, Examples):
            raise TypeError(f"{what} is a {type(examples).__name__}; pass Examples, as load gives them")
        if len(examples) < minimum:
            raise ValueError(f"{what} has {len(examples)} examples; pass at least {minimum}")


def one_cycle(parameters: Iterable[Tensor], recipe: Recipe, num_examples: int) -> tuple[Any, Any]:
    """Return the recipe's AdamW on these parameters and its one-cycle schedule, a step per batch."""
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    steps = -(-num_examples // recipe.batch_size) * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    return optimiser, schedule


def _computing(recipe: Recipe, where: torch.device) -> torch.autocast:
    """In the precision of the recipe, as far as the device has it."""
    return torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bfloat16" and has_bfloat16(where))


def _epoch(
    posterior: Posterior | nn.Module, network: nn.Module, train: Examples, recipe: Recipe, optimiser: Any, schedule: Any
) -> float:
    network.train()
    where = next(network.parameters()).device
    pictures = train.x.ndim == 4
    if pictures:
        network.to(memory_format=torch.channels_last)
    targets, total = targets_of(train, recipe.soft), 0.0
    for batch in torch.randperm(len(train)).split(recipe.batch_size):
        if len(batch) == 1:
            continue  # batch norm has no variance to take
        x, target = train.x[batch], targets[batch]
        if train.task == "segmentation":
            x, target = augmented_together(x, target, recipe.augment)
        elif recipe.augment != "none":  # which is for pictures
            x = augmented(x, recipe.augment)
        x, target = x.to(where), target.to(where)
        if pictures:
            x = x.contiguous(memory_format=torch.channels_last)
        with _computing(recipe, where):
            output = network(x)
        output = tuple(part.float() for part in output) if isinstance(output, tuple) else output.float()
        loss = loss_of(output, target, task=train.task)
        total += loss.item() * len(batch)
        if isinstance(posterior, Flipout):
            loss = loss + posterior.kl_weight * posterior.kl() / len(train)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return total / len(train)


@checked
def augmented(x: Batch, augment: str) -> Tensor:
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


def augmented_together(x: Tensor, y: Tensor, augment: str) -> tuple[Tensor, Tensor]:
    """Shift (and mirror) pictures (N, C, H, W) and the class or soft label of each pixel in the same way."""
    labels = y.unsqueeze(1) if y.ndim < x.ndim else y
    both = augmented(torch.cat([x, labels.to(x)], dim=1), augment)
    return both[:, : x.shape[1]], both[:, x.shape[1] :].to(y).reshape(y.shape)


Output = Tensor | tuple[Tensor, ...]


@torch.no_grad()
@checked
def predict(network: nn.Module, x: Tensor, *, batch_size: Count = 512) -> Any:
    """Return a network's output in eval mode, in batches, on the CPU; its mode is restored.

    A network that answers with several tensors, such as mean and variance, gives a tuple of them.
    """
    was_training = network.training
    network.eval()
    where = next((p.device for p in network.parameters()), torch.device("cpu"))
    outputs = [network(part.to(where)) for part in x.split(batch_size)]
    network.train(was_training)
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat([part.float().cpu() for part in parts]) for parts in zip(*outputs, strict=True))
    return torch.cat([output.float().cpu() for output in outputs])


@checked
def targets_of(examples: Examples, soft: bool) -> Tensor:
    """Return what to learn: soft labels (N, C, ...) if wanted and there are any, else y."""
    return examples.probs if soft and examples.probs is not None else examples.y


@checked
def loss_of(output: Output, target: Tensor, reduction: str = "mean", *, task: str | None = None) -> Tensor:
    """Return the loss of what a network answers, as a mean, or with `reduction="none"` of each example, (N,).

    Args:
        output: logits (N, C), or of each pixel (N, C, H, W); one logit (N, 1) of the second of two classes; values
            (N, C) of a regression; or a pair of mean and variance, (N, 1) each.
        target: as in `Examples.y`, or soft labels shaped like the logits.
        reduction: "mean" or "none".
        task: as in `Examples.task`. Without one, a single output is a regression, and several are classes.

    Returns:
        Cross-entropy in nats, averaged over pixels; the negative logarithm of a Gaussian's density for a mean and a
        variance; the squared error for other regressions, averaged over outputs; and for "multilabel" the cross-entropy
        of each label by itself, averaged over labels.

    Raises:
        ValueError: more than two classes for one output.
    """
    if isinstance(output, tuple):
        mean, variance = output
        column, variances = target.flatten(), variance.flatten()
        return F.gaussian_nll_loss(mean.flatten(), column, variances, full=True, reduction=reduction)
    single = output.ndim == 1 or output.shape[1] == 1
    if single and task in (None, "regression"):
        return F.mse_loss(output.flatten(), target.flatten(), reduction=reduction)
    if single and task == "classification":
        if target.max() > 1:
            raise ValueError(
                f"the network has one output but class {int(target.max())} is a target; give it one per class"
            )
        return F.binary_cross_entropy_with_logits(output.flatten(), target.to(output), reduction=reduction)
    if output.ndim == 2 and task in (None, "classification"):
        return F.cross_entropy(output, target, reduction=reduction)
    if task == "regression":
        losses = F.mse_loss(output, target, reduction="none")
    elif task == "multilabel":
        losses = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    else:
        losses = F.cross_entropy(output, target, reduction="none")  # (N, H, W)
    losses = losses.flatten(1).mean(1)
    return losses.mean() if reduction == "mean" else losses
