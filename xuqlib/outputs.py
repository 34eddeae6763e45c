"""Outputs: what of a network's answer is explained, and how its numbers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from xuqlib.checks import check_logits

OUTPUTS = ("logits", "probabilities", "binary", "multilabel", "regression", "mean_variance", "segmentation")
Where = tuple[int, ...] | Tensor | None


@dataclass(frozen=True)
class Output:
    """What of a network's answer is explained, as numbers (N, K), and what those numbers are.

    "logits": of K classes, which exclude each other. "probabilities": of such classes, the softmax applied already.
    "binary": one logit, of yes against no. "multilabel": K such logits, each by itself. "regression": K numbers.
    "mean_variance": a pair (mean, variance), (N, K) each, or something with these two names, or both side by side in
    one tensor (N, 2 K); explained are K means, then K variances. "segmentation": logits (N, K, ...) of the classes of
    each place (one of K = 1: yes against no), summed over places.

    Attributes:
        kind: one of these names; None where nobody said: logits if there are several numbers, else a regression.
        key: name, attribute or position in the answer, or a function of the answer, that gives these numbers.
        where: "segmentation" alone: the places that are summed: one place, such as (row, column); a mask that
            broadcasts to (N, ...), shaped like the places, or (N, K, ...), one for each class. By default those where
            the class is the most probable in the mean over draws.
    """

    kind: str | None = None
    key: str | int | Callable[[Any], Any] | None = None
    where: Where = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in OUTPUTS:
            raise ValueError(f"unknown kind of output {self.kind!r}; known: {', '.join(OUTPUTS)}")
        if self.where is not None and self.kind != "segmentation":
            raise ValueError(f"where is for segmentation, the output is {self.kind!r}; leave it out")

    @property
    def is_plain(self) -> bool:
        """Whether numbers are explained as the network gives them."""
        return self.key is None and self.kind in (None, "logits", "regression")

    def at(self, examples: slice) -> Output:
        """Return the same for some of the examples."""
        return self.changed(lambda mask: mask if len(mask) == 1 else mask[examples])

    def changed(self, change: Callable[[Tensor], Tensor]) -> Output:
        """Return the same with its mask changed, such as moved to a device."""
        return replace(self, where=change(self.where)) if isinstance(self.where, Tensor) else self

    def read(self, answer: Any, num_rows: int) -> Tensor:
        """Return the numbers of an answer: (N, K), or (N, K, ...) for a segmentation.

        Raises:
            TypeError, ValueError: the answer does not hold what this output says.
        """
        if callable(self.key):
            picked = self.key(answer)
        elif self.key is not None or not (isinstance(answer, Tensor) or self.kind in (None, "mean_variance")):
            picked = _part(answer, self.kind if self.key is None else self.key)
        else:
            picked = answer
        if self.kind == "mean_variance" and not isinstance(picked, Tensor):
            is_pair = isinstance(picked, tuple | list) and len(picked) == 2
            parts = picked if is_pair else (_part(picked, "mean"), _part(picked, "variance"))
            picked = torch.cat([check_logits(part, num_rows) for part in parts], 1)
        if self.kind == "segmentation" and isinstance(picked, Tensor) and picked.dim() > 2 and len(picked) == num_rows:
            return picked
        numbers = check_logits(picked, num_rows)
        allowed = {"binary": numbers.shape[1] == 1, "mean_variance": numbers.shape[1] % 2 == 0, "segmentation": False}
        if not allowed.get(self.kind or "", True):
            raise ValueError(
                f"network returned shape {tuple(numbers.shape)}; binary is one logit, (N,) or (N, 1), mean_variance a "
                "pair (mean, variance), or (N, 2 K), a segmentation (N, classes, ...), places last"
            )
        return numbers

    def columns(self, numbers: Tensor) -> Tensor:
        """Return what is explained, (N, K), of what `read` returned."""
        if self.kind != "segmentation":
            return numbers
        if isinstance(self.where, tuple):
            return numbers[..., *cast(tuple[Any, ...], self.where)]
        if self.where is None:
            return numbers.flatten(2).sum(2)
        copies = 1 if len(self.where) == 1 else len(numbers) // len(self.where)
        return (numbers * self.where.repeat(copies, *[1] * (numbers.dim() - 1)).to(numbers)).flatten(2).sum(2)

    def settled(self, numbers: Tensor, num_examples: int) -> Output:
        """Return the same with its places as a mask, checked against numbers that were read.

        Raises:
            ValueError: numbers that are not of this kind, or of none that was named; a place or mask that does not fit.
        """
        self.check(numbers)
        if self.kind is None and numbers.shape[1] > 1 and are_probabilities(numbers):
            raise ValueError(
                'network\'s answers are probabilities, whose rows sum to 1; say output="probabilities", or "logits" if '
                "they are logits after all"
            )
        if self.where is None:
            return self
        places, mask = numbers.shape[2:], self.where
        if isinstance(mask, tuple):
            fits = len(mask) == len(places) and all(0 <= i < n for i, n in zip(mask, places, strict=True))
        else:
            while mask.dim() < numbers.dim():
                mask = mask.unsqueeze(0 if mask.dim() == len(places) else 1)
            wanted = (num_examples, numbers.shape[1], *places)
            fits = mask.shape[2:] == places and all(n in (1, of) for n, of in zip(mask.shape, wanted, strict=True))
        if not fits:
            given = self.where if isinstance(self.where, tuple) else f"of shape {tuple(self.where.shape)}"
            raise ValueError(
                f"where is {given}; the places are {tuple(places)}, counted from 0: one of them, or a mask"
            )
        return replace(self, where=mask)

    def check(self, numbers: Tensor) -> None:
        """Refuse numbers whose values are not of this kind."""
        if self.kind == "probabilities" and not are_probabilities(numbers):
            raise ValueError(
                "network's rows are no probabilities, which are not negative and sum to 1; are they logits?"
            )
        if self.kind == "mean_variance" and not bool((numbers.chunk(2, -1)[1] >= 0).all()):
            raise ValueError(
                "a variance is negative, so the network gives something else, such as its logarithm; say how to read "
                'it: output=(lambda a: (a[:, :1], a[:, 1:].exp()), "mean_variance")'
            )

    def check_classes(self) -> None:
        """Refuse an output whose numbers are not about classes that exclude each other.

        Raises:
            ValueError: says what to do instead.
        """
        one_place = self.kind == "segmentation" and isinstance(self.where, tuple)
        if not one_place and self.kind not in (None, "logits", "probabilities", "binary"):
            raise ValueError(
                f"the output is {self.kind}, whose uncertainty is no entropy of classes; use attribute_uncertainty, or "
                "pick one label, output=(lambda answer: answer[:, k], 'binary'), or one place by Output.where"
            )

    def of_classes(self, numbers: Tensor) -> Tensor:
        """Return logits of classes that exclude each other, (N, C), of what was read, (N, K, ...)."""
        if self.kind == "probabilities":
            return numbers.clamp(min=torch.finfo(numbers.dtype).tiny).log()
        logits = self.columns(numbers)
        is_one = self.kind in ("binary", "segmentation") and logits.shape[1] == 1
        return torch.cat([-logits / 2, logits / 2], 1) if is_one else logits  # whose softmax is the sigmoid


def as_output(given: Any, known: str | None = None) -> Output:
    """Return what was given as an output: a name of OUTPUTS, a key or function of the answer, or (key, name).

    Args:
        known: the kind that the draws' posterior knows, for where none is given.
    """
    if isinstance(given, Output):
        return given
    if given is None or (isinstance(given, str) and given in OUTPUTS):
        return Output(given or known)
    if isinstance(given, tuple) and len(given) == 2:
        return Output(given[1], given[0])
    if isinstance(given, str) or callable(given):
        return Output(known, given)
    raise TypeError(
        f"output is {given!r}; pass one of {', '.join(OUTPUTS)}, a key or function of the answer, or (key, name)"
    )


def probabilities(numbers: Tensor, kind: str | None) -> Tensor:
    """Return the probability of each class or label, the last axis of what draws answer."""
    if kind == "probabilities":
        return numbers
    return numbers.sigmoid() if kind in ("binary", "multilabel") else numbers.softmax(-1)


def are_probabilities(numbers: Tensor) -> bool:
    """Whether rows are not negative and sum to 1."""
    numbers = numbers.detach()
    return bool((numbers >= 0).all() and ((numbers.sum(-1) - 1).abs() < 100 * torch.finfo(numbers.dtype).eps).all())


def _part(answer: Any, key: Any) -> Any:
    """The part of an answer that has this name or position."""
    try:
        return answer[key] if isinstance(answer, Mapping) or isinstance(key, int) else getattr(answer, key)
    except (KeyError, IndexError, AttributeError, TypeError):
        known = list(answer) if isinstance(answer, Mapping) else f"a {type(answer).__name__}"
        raise ValueError(f"network's answer has no {key!r}; it is {known}: say by output= what is explained") from None
