"""Fit the members of an ensemble of MLPs at once: what `fit` gives one by one, several times as fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_seed
from xuqlib.device import device
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.data.loading import Examples
from xuqlib.study.training.fitting import check_parts, loss_of, one_cycle, targets_of
from xuqlib.study.training.recipes import Recipe


def fit_together(
    members: Sequence[nn.Module],
    train: Examples,
    validation: Examples,
    recipe: Recipe | None = None,
    *,
    seeds: Sequence[int],
    progress: bool = True,
) -> list[pd.DataFrame]:
    """Train several MLPs of one architecture at once, in place; each ends as `fit` with its seed would leave it.

    The members share the arithmetic and nothing else: parameters are stacked, so a layer of all members is one
    product, and each member has its own order, early stopping and best epoch. The sums run in another order than in
    `fit`, and may do so for another number of members, so the weights agree up to rounding, not bit for bit.

    Args:
        members: networks, each an `nn.Sequential` of `nn.Linear` and `nn.ReLU`, such as those of a DeepEnsemble.
        train: examples to learn from, a table (N, F).
        validation: examples that choose each member's epoch; never trained on.
        recipe: how; the defaults of `Recipe` if none is given. Its `network` and `options` are not used here.
        seeds: one per member, of its order.
        progress: show a bar over epochs.

    Returns:
        One frame per member with one row per epoch until it stopped: epoch, train_loss, validation_loss, and
        seconds, which is the epoch's time divided by the number of members.

    Raises:
        TypeError: no list of networks, or no `Examples`.
        ValueError: other layers, different architectures, frozen or shared parameters, not one seed per member,
            pictures, or a recipe with augmentation or bfloat16.
        FloatingPointError: a member's loss became infinite or NaN. No member is changed then.
    """
    recipe = recipe or Recipe()
    networks = _mlps(members, seeds)
    _check_data(train, validation, recipe)
    stack = _Stack(networks, device())
    optimiser, schedule = one_cycle(stack.parameters, recipe, len(train))
    x, targets = train.x.to(stack.device), targets_of(train, recipe.soft).to(stack.device)
    orders = [generator_of(seed, 1) for seed in seeds]  # what `fit` seeds the global generator with
    courses = [_Course(f"member {member}") for member in range(len(networks))]
    bar = tqdm(range(1, recipe.epochs + 1), desc=f"fit {train.name}", disable=not progress, leave=False)
    for epoch in bar:
        started = time.perf_counter()
        order = torch.stack([torch.randperm(len(x), generator=generator) for generator in orders])  # (M, N)
        batches = _batches(x, targets, order.to(stack.device), recipe.batch_size)
        train_losses = (_epoch(stack, batches, optimiser, schedule, train.task) / len(train)).tolist()
        target = targets_of(validation, recipe.soft)
        losses = [float(loss_of(output, target, task=train.task)) for output in stack.predict(validation.x)]
        seconds = (time.perf_counter() - started) / len(networks)
        for member, course in enumerate(courses):
            if not course.is_over(epoch, recipe.patience):
                course.add(epoch, train_losses[member], losses[member], seconds, stack.of(member))
        bar.set_postfix(validation_loss=f"{min(losses):.4f} to {max(losses):.4f}")
        if all(course.is_over(epoch + 1, recipe.patience) for course in courses):
            break
    for network, course in zip(networks, courses, strict=True):
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), course.weights, strict=True):
                parameter.copy_(value)
        network.eval().to("cpu")
    return [pd.DataFrame(course.history) for course in courses]


class _Stack:
    """MLPs of one architecture as one: parameters (M, ...), (M, B, F) to (M, B, C)."""

    def __init__(self, networks: Sequence[nn.Sequential], where: torch.device) -> None:
        self.device, self.num_members = where, len(networks)
        # Per layer its stacked weight (M, out, in) and bias (M, out); none for a ReLU.
        self.layers = [
            [
                torch.stack([parameter.detach().to(where) for parameter in same]).requires_grad_()
                for same in zip(*(layer.parameters() for layer in layers), strict=True)
            ]
            for layers in zip(*networks, strict=True)
        ]
        self.parameters = [parameter for layer in self.layers for parameter in layer]

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not layer:
                x = x.relu()
            elif len(layer) == 1:
                x = torch.bmm(x, layer[0].mT)
            else:
                x = torch.baddbmm(layer[1][:, None], x, layer[0].mT)
        return x

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return every member's output, (M, N, C), in batches of 512 as `fitting.predict`, on the CPU."""
        parts = [self(part.to(self.device).expand(self.num_members, -1, -1)) for part in x.split(512)]
        return torch.cat(parts, dim=1).float().cpu()

    def of(self, member: int) -> list[Tensor]:
        """Return views of one member's parameters, in the order of its network."""
        return [parameter[member].detach() for parameter in self.parameters]


@dataclass
class _Course:
    """One member's history, its lowest validation loss, and the epoch and weights of that."""

    name: str
    history: list[dict[str, float]] = field(default_factory=list)
    loss: float = float("inf")
    epoch: int = 0
    weights: list[Tensor] = field(default_factory=list)

    def is_over(self, epoch: int, patience: int) -> bool:
        """Whether `fit` would have stopped before this epoch."""
        return epoch > self.epoch + patience

    def add(self, epoch: int, train_loss: float, loss: float, seconds: float, weights: list[Tensor]) -> None:
        if not (math.isfinite(train_loss) and math.isfinite(loss)):
            raise FloatingPointError(
                f"training of {self.name} diverged in epoch {epoch} (loss {train_loss}); lower learning_rate"
            )
        self.history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": loss, "seconds": seconds})
        if loss < self.loss:
            self.loss, self.epoch, self.weights = loss, epoch, [weight.clone() for weight in weights]


def _epoch(stack: _Stack, batches: Iterable[tuple[Tensor, Tensor]], optimiser: Any, schedule: Any, task: str) -> Tensor:
    """Take a step per batch; return the sum of each member's losses over its examples, (M,)."""
    sums: list[Tensor] = []  # read once at the end: no step waits for a number
    for x, target in batches:
        num_members, size = x.shape[:2]
        if size == 1:
            continue  # as in `fit`
        output = stack(x).float()  # (M, B, C)
        losses = loss_of(output.flatten(0, 1), target.flatten(0, 1), "none", task=task)  # (M * B,)
        # Each member's mean; no member's loss depends on another's parameters.
        gradients = torch.autograd.grad(losses, stack.parameters, torch.full_like(losses, 1 / size))
        for parameter, gradient in zip(stack.parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # fused AdamW goes through memory, blind to strides
        optimiser.step()
        schedule.step()
        sums.append(losses.detach().view(num_members, size).sum(1))
    return torch.stack(sums).cpu().double().sum(0)


def _batches(x: Tensor, targets: Tensor, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give each member its own rows of x and of targets, (M, B, ...), in its order (M, N)."""
    for part in order.split(64 * batch_size, 1):  # many batches in one copy, but not a whole large table
        copies = [table.index_select(0, part.flatten()).unflatten(0, part.shape) for table in (x, targets)]
        yield from zip(*(copy.split(batch_size, 1) for copy in copies), strict=True)


def _mlps(members: Any, seeds: Any) -> list[nn.Sequential]:
    if not isinstance(members, Sequence):
        raise TypeError(f"fit_together got a {type(members).__name__}; pass a list of networks, as ensemble.members")
    if not members or len(seeds) != len(members):
        raise ValueError(f"fit_together got {len(members)} networks and {len(seeds)} seeds; pass a seed per network")
    for number, member in enumerate(members):
        odd = [layer for layer in member if not _is_plain(layer)] if type(member) is nn.Sequential else [member]
        if odd:
            raise ValueError(
                f"member {number} is or has a {type(odd[0]).__name__}; fit_together trains an nn.Sequential of "
                "nn.Linear and nn.ReLU without hooks: pass such networks, or train each with fit"
            )
        if _architecture(member) != _architecture(members[0]):
            raise ValueError(f"member {number} differs from member 0 in its layers; train each with fit")
    parameters = [parameter for member in members for layer in member for parameter in layer.parameters()]
    if not parameters or not all(parameter.requires_grad for parameter in parameters):
        raise ValueError("a parameter is frozen, or there is none; let all require gradients, or train each with fit")
    if len(set(parameters)) < len(parameters):  # by identity
        raise ValueError("two layers or members share a parameter; pass networks of their own, or train each with fit")
    for seed in seeds:
        check_seed(seed)
    return list(members)


def _is_plain(layer: nn.Module) -> bool:
    # Weight norm and its like compute the weight in a hook.
    return type(layer) in (nn.Linear, nn.ReLU) and not (layer._forward_pre_hooks or layer._forward_hooks)


def _architecture(network: nn.Sequential) -> list[Any]:
    return [[(parameter.shape, parameter.dtype) for parameter in layer.parameters()] for layer in network]


def _check_data(train: Any, validation: Any, recipe: Recipe) -> None:
    check_parts(train, validation)
    if train.x.ndim != 2:
        raise ValueError(f"train.x is {tuple(train.x.shape)}; fit_together is for tables (N, F): train each with fit")
    for name, wanted in (("augment", "none"), ("precision", "float32")):
        if (given := getattr(recipe, name)) != wanted:
            raise ValueError(
                f"the recipe's {name} is {given!r}; fit_together knows {wanted!r} alone: train each with fit"
            )
