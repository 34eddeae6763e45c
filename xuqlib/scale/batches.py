"""What is found out about a batch of examples, and how that is laid out in a store."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xuqlib.checks import check_target
from xuqlib.device import check_device
from xuqlib.device import device as default_device
from xuqlib.explain import explain, mean_probs, most_probable
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import declared_by
from xuqlib.moments import Moments
from xuqlib.outputs import as_output
from xuqlib.path import blocks
from xuqlib.posteriors.base import Posterior, WeightPosterior
from xuqlib.posteriors.draws import Draws
from xuqlib.scale.cluster import check_versions
from xuqlib.scale.sources import Batch, Source
from xuqlib.scale.store import Store, Variable
from xuqlib.study.files import versions
from xuqlib.uncertainty import decompose, logits_of

NUMBERS_AT_ONCE = 2**23  # of attributions of some draws of a batch
DRAWS_AT_ONCE = 32  # whose trunk is evaluated once
WEIGHTS_AT_ONCE = 2**26  # numbers in what some draws do not share with the others
AXES = {1: ("feature",), 2: ("channel", "time"), 3: ("channel", "height", "width")}
AXES |= {4: ("channel", "depth", "height", "width")}
PLACES = ("row", "column", "depth")
POOLS: dict[int, Callable[[Tensor, int], Tensor]] = {2: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool2d}
POOLS |= {4: F.adaptive_avg_pool3d}
MOMENTS = {"raw": "", "folded": "folded_", "rescaled": "rescaled_"}  # and how their arrays begin
MAPS = {
    "mean": "mean attribution over draws",
    "std": "standard deviation of the attribution over draws",
    "sign_agreement": "share of draws that agree with the more common sign",
    "folded_mean": "mean over draws of |attribution|, summed over channels",
    "folded_std": "standard deviation of that",
    "rescaled_mean": "mean over draws of |attribution|, clipped at its 99th percentile and scaled to [0, 1]",
    "rescaled_std": "standard deviation of that",
    "attribution": "attribution of each draw",
}
FACTS = {
    "total": "total uncertainty of the prediction",
    "aleatoric": "aleatoric part of the uncertainty",
    "epistemic": "epistemic part of the uncertainty",
    "answer_mean": "mean over draws of what the networks answer",
    "answer_std": "standard deviation of that",
    "target": "class that is explained; -1 for none",
    "id": "name of the example",
    "rounding": "relative error (L2) of the stored mean map by rounding",
}


@dataclass
class Job:
    """All that a process needs to explain any batch, and nothing that it can make itself.

    Attributes:
        draws: they themselves, or a posterior, of which each process takes `num_draws` by `seed`.
        target: class of each example, (N,), or one for all; "labels", of the data; None, the predicted one.
        num_draws, seed: for a posterior.
        dtype: of the stored maps.
        device: where to compute; None, on the own of each process.
    """

    path: Path
    draws: Draws | Posterior
    num_draws: int
    seed: int
    explainer: Explainer
    source: Source
    target: Tensor | int | str | None
    output: Any
    keep: str
    pool: int | None
    dtype: str
    device: str | None
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # each process draws for itself

    @cached_property
    def where(self) -> torch.device:
        """Where this process computes.

        Raises:
            RuntimeError: it has no such device.
        """
        try:
            return default_device() if self.device is None else check_device(self.device)
        except ValueError as error:
            raise RuntimeError(f"{error} (on {platform.node()})") from error

    @cached_property
    def group_size(self) -> int:
        """How many draws are used together: all, unless their weights are too large for that."""
        output = as_output(self.output, self.draws.output)
        if output.kind == "segmentation" and output.where is None:
            return self.num_draws  # they say together which places belong to a class
        if isinstance(self.draws, WeightPosterior):
            return _group_size(self.draws.sample(min(self.num_draws, 2), seed=self.seed), self.num_draws)
        assert self.held is not None
        return _group_size(self.held, self.num_draws)

    @cached_property
    def held(self) -> Draws | None:
        """All draws, where they are evaluated; None where they are drawn for each batch, for want of room."""
        if isinstance(self.draws, Draws):
            return self.draws.on(self.where)
        if isinstance(self.draws, WeightPosterior) and self.group_size < self.num_draws:
            return None
        return self.draws.sample(self.num_draws, seed=self.seed).on(self.where)

    def groups(self, batch: Batch) -> Iterator[tuple[Draws, Draws, Tensor]]:
        """Yield the draws, `group_size` at a time, as they are and as they are `seen` with the batch, and its x."""
        for some in blocks(self.num_draws, self.group_size):
            if self.held is not None:
                draws = self.held[some]
            else:
                assert isinstance(self.draws, WeightPosterior)
                draws = self.draws.drawn(range(some.start, some.stop), self.seed).on(self.where)
            yield draws, *draws.seen(batch.inputs, self.output)

    def run(self, number: int, rows: range) -> None:
        """Explain a batch and write it, unless it is whole: by a worker that died before it could say so.

        Raises:
            RuntimeError: this process has other versions than the one that made the store.
        """
        check_versions(self.versions)
        store = Store(self.path)
        if not store.is_whole(number):
            store.write(number, self.explained(rows))

    def explained(self, rows: range) -> dict[str, np.ndarray]:
        """What is stored of some examples, by the names of `variables`."""
        batch = self.source.read(rows)
        target = self._target(batch, rows)
        answers, probs = [], torch.zeros(())
        for some, draws, x in self.groups(batch):
            if target is None:
                probs = probs + mean_probs(draws, x, self.where) * (len(draws) / self.num_draws)
            answers.append(logits_of(some, batch.inputs, output=self.output))
        target = most_probable(probs) if target is None else check_target(target, len(x), 2**31)
        numbers = torch.cat(answers)
        split = decompose(numbers, draws.noise_variance, draws.output)
        found = {name: value.float().numpy() for name, value in vars(split).items()}
        found["answer_mean"], found["answer_std"] = (
            each.float().numpy() for each in (numbers.double().mean(0), numbers.double().std(0, correction=0))
        )
        found["target"] = np.full(len(x), -1) if target is None else target.cpu().numpy()
        found["id"] = np.array(batch.ids, dtype=np.dtypes.StringDType())
        return found | self._maps(batch, target, rows)

    def _target(self, batch: Batch, rows: range) -> Tensor | int | None:
        if isinstance(self.target, str):
            if batch.labels is None:
                raise ValueError('target is "labels", but the data has no class numbers; pass one, or one per example')
            return batch.labels
        return self.target[rows.start : rows.stop] if isinstance(self.target, Tensor) else self.target

    def _maps(self, batch: Batch, target: Tensor | None, rows: range) -> dict[str, np.ndarray]:
        moments, values = Moments(), []
        positive = negative = torch.zeros(())
        for value in self._attributions(batch, target, rows):
            value = pooled(value, self.pool)
            moments.append(value)
            positive, negative = positive + (value > 0), negative + (value < 0)
            if self.keep == "all":
                values.append(value)
        agreeing = torch.maximum(positive, negative).double() / self.num_draws
        maps = {"sign_agreement": torch.where(agreeing > 0, agreeing, torch.nan)}
        for kind, prefix in MOMENTS.items():
            maps |= {f"{prefix}mean": moments[kind].mean, f"{prefix}std": moments[kind].std()}
        if values:
            maps["attribution"] = torch.stack(values)
        stored = {name: value.numpy().astype(self.dtype) for name, value in maps.items()}
        mean, back = moments["raw"].mean.flatten(1), torch.from_numpy(stored["mean"]).double().flatten(1)
        error = (back - mean).norm(dim=1) / mean.norm(dim=1)
        return stored | {"rounding": error.float().nan_to_num().numpy()}

    def _attributions(self, batch: Batch, target: Tensor | None, rows: range) -> Iterator[Tensor]:
        options = self._options(rows)
        for _, draws, x in self.groups(batch):
            at_once = min(DRAWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // x.numel()))
            for some in blocks(len(draws), at_once):
                yield from self._of_some(draws[some], x, target, options)

    def _of_some(
        self, draws: Draws, x: Any, target: Tensor | int | None, options: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        e = explain(draws, self.explainer, x, target, device=self.where, progress=False, **options)
        assert e.values is not None
        # Copies: a view of the last draw would keep the others while the next draws are explained.
        yield from (value.clone() for value in e.values)

    def _options(self, rows: range) -> dict[str, Any]:
        per_example = declared_by(self.explainer).per_example or {}
        is_cut = {
            name: name in per_example and hasattr(value, "__len__") and len(value) == len(self.source)
            for name, value in self.options.items()
        }
        return {name: value[rows.start : rows.stop] if is_cut[name] else value for name, value in self.options.items()}


def _group_size(draws: Draws, num_draws: int) -> int:
    first, last = (
        {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        for network in (draws[0], draws[-1])
    )
    own = sum(tensor.numel() for key, tensor in first.items() if key not in last)
    return min(max(1, WEIGHTS_AT_ONCE // max(own, 1)), num_draws)


def pooled(attribution: Tensor, size: int | None) -> Tensor:
    """Average maps (N, C, ...) to `size` places along each axis; as they are if it is None."""
    return attribution if size is None else POOLS[attribution.ndim - 1](attribution, size)


def variables(job: Job, num_examples: int) -> dict[str, Variable]:
    """The arrays of a store, by their names, laid out by what is found out about the first example."""
    found, made = job.explained(range(1)), {}
    unit = "squared units of the target" if job.draws.output in ("regression", "mean_variance") else "nats"
    shape = found["mean"].shape[1:]
    axes = AXES.get(len(shape), tuple(f"axis_{axis}" for axis in range(1, len(shape) + 1)))
    for name, values in found.items():
        draws = (("draw", job.num_draws),) if name == "attribution" else ()
        sizes = values.shape[1 + len(draws) :]
        if name in MAPS:
            along = axes if len(sizes) == len(axes) else axes[1:]
        else:
            along = PLACES if len(sizes) > 1 and not name.startswith("answer") else ("output", *PLACES)
        dtype = job.dtype if name in MAPS else {"id": "str", "target": "int64"}.get(name, "float32")
        laid = [*draws, ("example", num_examples), *zip(along[: len(sizes)], sizes, strict=True)]
        is_split = name in ("total", "aleatoric", "epistemic")
        made[name] = Variable(
            tuple(axis for axis, _ in laid),
            tuple(size for _, size in laid),
            dtype,
            (MAPS | FACTS)[name],
            unit if is_split else "",
        )
    return made
