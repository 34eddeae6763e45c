"""A trial: whether a network is a fixed function of each example, found by asking it."""

from __future__ import annotations

import random
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from xuqlib.checks import check_fixed
from xuqlib.device import device_of
from xuqlib.posteriors.fixing import FixedNetwork, naming_inputs
from xuqlib.views import View, at

_ATTEMPTS = 5  # since another thread may draw numbers meanwhile
_passed: MutableMapping[Any, set[Any]] = WeakKeyDictionary()


def try_out(network: Callable[[Tensor], Any], x: Tensor, check: Callable[[Any], None] = lambda answer: None) -> Any:
    """Refuse a network whose answer to an example depends on the others of its batch, or on chance.

    The first example is evaluated in two batches of two. A network that passed is not asked again about examples of
    that shape and dtype.

    Args:
        network, x: as for `gradient`, or a view.
        check: refuses what it says of two examples.

    Returns:
        What the network says of two examples; None where it was not asked, since it passed with a tensor before.

    Raises:
        TypeError: network cannot be called.
        ValueError: a layer in training mode; the answers differ; a global generator was used; x cannot be evaluated.
    """
    check_fixed(network)
    where = device_of(network, x) if isinstance(network, nn.Module) else None  # it may have moved since
    asked, about = network, (tuple(x.shape[1:]), x.dtype, x.device, where)
    if isinstance(network, View):
        asked, about = network.network, (*about, *network.kind)
    if isinstance(asked, FixedNetwork):
        if asked.resampling is not None:  # which answers by chance on purpose
            return None
        asked = asked.network
    try:
        passed = _passed.setdefault(asked, set())
    except TypeError:  # something that no weak reference can be made to
        passed = set()
    if about in passed:
        return None
    view, first = at(network, slice(0, 1)), x[:1]
    untouched = before = _generators()
    with torch.no_grad():
        batches = [torch.cat([first, other]) for other in (first / 2, x[-1:] if len(x) > 1 else first.roll(1, -1))]
        for _ in range(_ATTEMPTS):
            answers = [_answer(view, batch) for batch in batches]
            is_random = (after := _generators()) != before
            if not is_random:
                break
            before = after
        if not is_random and not _agree(*answers):
            if not _agree(answers[0], _answer(view, batches[0])):
                raise ValueError(
                    "network's answer to an example changes from call to call: it keeps something from one call to the "
                    "next, or draws from a random generator of its own; explain one that does neither"
                )
            raise ValueError(
                "network's answer to an example changes with the others of its batch; explain one that treats each by "
                "itself (a BatchNorm needs running statistics, and the examples stand on the first axis)"
            )
        if is_random:
            _restore(untouched)
            raise ValueError(
                "network draws random numbers in its forward pass, so its answer changes from call to call; explain a "
                "draw from posterior.sample(...) of a network whose randomness is nn.Dropout, or in weights"
            )
    check(answers[0])
    if isinstance(answers[0], Tensor):
        passed.add(about)
    return answers[0]


def _answer(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    with naming_inputs(x):
        return network.read(x) if isinstance(network, View) else network(x.clone())  # it may write into its input


def _agree(one: Any, other: Any) -> bool:
    """Whether two answers say the same of their first example, up to rounding; what is no tensor is not compared."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape or not one.dim():
        return type(one) is type(other)
    if not one.is_floating_point():
        return torch.equal(one[0], other[0])
    size = float(one[0].abs().nan_to_num(0, 0, 0).max()) if one[0].numel() else 0.0
    rounding = 64 * torch.finfo(one.dtype).eps * size
    return torch.allclose(one[0], other[0], rtol=0, atol=rounding, equal_nan=True)


def _generators() -> tuple[Any, ...]:
    name, keys, *place = np.random.get_state()  # noqa: NPY002 - the generator that all share, which is watched
    return random.getstate(), (name, tuple(keys), *place), bytes(torch.get_rng_state().numpy())


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(torch.frombuffer(bytearray(states[2]), dtype=torch.uint8))
