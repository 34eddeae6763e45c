"""How long a call takes, fairly: against its rivals in one process, and against what the machine can do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from xuqlib.device import check_device
from xuqlib.fast.engine import computing_in
from xuqlib.study.checked import Count, Names, Place, Table, check_columns, checked

Candidates = Mapping[str, Callable[[], Any]]
_Mode = TypeVar("_Mode", bound=TorchDispatchMode)


@checked
def interleaved(candidates: Candidates, *, num_rounds: Count = 5, warm_up: Place = 1) -> pd.DataFrame:
    """Time candidates in turn, A B A B, so that whatever else the machine does falls on all of them alike.

    Args:
        candidates: name of each and what to call; what it returns is dropped.
        num_rounds: each candidate runs once in each; every round begins one candidate later than the last.
        warm_up: rounds before these, which do not count.

    Returns:
        Columns candidate, round, seconds (wall clock).
    """
    names, rows = list(candidates), []
    gc.freeze()  # else each collection below would look at all of torch again
    try:
        for number in range(-warm_up, num_rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                gc.collect()
                _synchronise()
                start = perf_counter()
                candidates[name]()
                _synchronise()
                rows.append((name, number, perf_counter() - start))
    finally:
        gc.unfreeze()
    return pd.DataFrame(rows[warm_up * len(names) :], columns=["candidate", "round", "seconds"])


@checked
def speedups(frame: Table, baseline: str) -> pd.DataFrame:
    """Say how long each candidate of `interleaved` takes, and how many times as fast as the baseline it is.

    Returns:
        Columns candidate; median, low, high, in seconds, the range being over rounds; ratio, of medians; ratio_low and
        ratio_high, the range over rounds of the ratio within a round.

    Raises:
        ValueError: the baseline was not timed.
    """
    check_columns(frame, "candidate", "round", "seconds")
    seconds = frame.pivot(index="round", columns="candidate", values="seconds")[list(frame["candidate"].unique())]
    if baseline not in seconds:
        raise ValueError(f"baseline {baseline!r} was not timed; choose one of {', '.join(map(str, seconds.columns))}")
    ratios, median = seconds.rdiv(seconds[baseline], axis=0), seconds.median()
    columns = {"median": median, "low": seconds.min(), "high": seconds.max(), "ratio": median[baseline] / median}
    return pd.DataFrame({**columns, "ratio_low": ratios.min(), "ratio_high": ratios.max()}).reset_index()


class Work(NamedTuple):
    """What a call asks of a machine: multiplications and additions, bytes read and written, and operations started."""

    flops: int
    bytes: int
    launches: int


class _Counting(TorchDispatchMode):
    """Counts as torch's `FlopCounterMode` does, without its hooks on every module, which a fast path must obey."""

    flops = bytes = launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=output)
        if not func.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, output)) if isinstance(each, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.launches += 1
        return output


@checked
def work(function: Callable[[], Any]) -> Work:
    """Count what a call does: products and convolutions, and the tensors that every operation reads and writes.

    Operations that only look at a tensor in another way do not count, nor does what happens outside of torch. It is the
    second call that counts, since networks are tried out in the first.
    """
    function()
    with _alone(_Counting()) as counter:
        function()
    return Work(counter.flops, counter.bytes, counter.launches)


@contextmanager
def _alone(mode: _Mode) -> Iterator[_Mode]:
    """Enter a mode with one thread: several wait for each other under it, many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mode:
            yield mode
    finally:
        torch.set_num_threads(threads)


@checked
def flops(function: Callable[[], Any]) -> int:
    """Count the multiplications and additions in a call's matrix products and convolutions; see `work`."""
    return work(function).flops


@dataclass(frozen=True)
class _Like:
    """What a tensor was like, whose numbers do not matter."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> torch.Tensor:
        size = 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return torch.rand(size, device=self.device).to(self.dtype).as_strided(self.shape, self.strides)


class _Noting(TorchDispatchMode):
    """Notes a call's matrix products and convolutions: how often each came, with tensors like which."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func._overloadpacket in flop_registry:
            like = tree_map_only(
                torch.Tensor, lambda t: _Like(tuple(t.shape), t.stride(), t.dtype, t.device), (args, kwargs or {})
            )
            key = repr((func, like))
            self.calls[key] = (func, like, self.calls[key][2] + 1 if key in self.calls else 1)
        return func(*args, **(kwargs or {}))


@checked
def bound(function: Callable[[], Any], *, num_tries: Count = 5) -> float:
    """Seconds that a call's convolutions and matrix products take by themselves, each at the best of some tries.

    No other way to do these same products is as fast, so a call that takes little longer has nothing left to save but
    the products themselves. What a call does once for many draws counts once. It is the second call that counts, as in
    `flops`.
    """
    function()
    with _alone(_Noting()) as noted:
        function()
    total = 0.0
    with torch.no_grad(), computing_in("float32", torch.device("cpu")):  # which keeps TF32 out
        for func, like, count in noted.calls.values():
            args, kwargs = tree_map_only(_Like, _Like.tensor, like)
            times = []
            for _ in range(num_tries + 1):  # the first warms up
                start = perf_counter()
                func(*args, **kwargs)
                _synchronise()
                times.append(perf_counter() - start)
            total += count * min(times[1:])
    return total


@checked
def peak_rates(device: Any, dtype: torch.dtype, *, num_tries: Count = 3) -> pd.DataFrame:
    """Measure how fast this machine multiplies matrices and convolves: columns operation, rate (FLOP/s, best try)."""
    device = check_device(device)
    rows, like = 32 if torch.device(device).type == "cpu" else 2048, partial(torch.rand, device=device, dtype=dtype)
    calls: dict[str, Callable[[], Any]] = {}
    for size in (1024, 2048):
        calls[f"matmul {size}"] = partial(torch.mm, like(size, size), like(size, size))
    for channels, size in ((32, 32), (64, 32), (256, 16)):
        shapes = (rows, channels, size, size), (channels, channels, 3, 3)
        x, weight = (like(shape).contiguous(memory_format=torch.channels_last) for shape in shapes)
        calls[f"convolution {channels}, {size}x{size}"] = partial(F.conv2d, x, weight, padding=1)
    with torch.no_grad(), computing_in("float32", torch.device(device)):  # which keeps TF32 out
        best = interleaved(calls, num_rounds=num_tries, warm_up=0).groupby("candidate", sort=False)["seconds"].min()
    work = pd.Series({name: flops(call) for name, call in calls.items()})
    return (work / best).rename_axis("operation").rename("rate").reset_index()


@checked
def by_operation(function: Callable[[], Any]) -> pd.DataFrame:
    """Profile a call: columns operation, seconds that torch spends in it and not in what it calls, and their share."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it prints that it starts and stops
    with torch.profiler.profile() as profiler:
        function()
    column = "self_device_time_total" if torch.cuda.is_initialized() else "self_cpu_time_total"
    rows = [(event.key, getattr(event, column) / 1e6) for event in profiler.key_averages()]
    frame = pd.DataFrame(rows, columns=["operation", "seconds"]).sort_values("seconds", ascending=False)
    return frame.assign(share=frame["seconds"] / frame["seconds"].sum())


# A process begins with the peak of the one that started it, so each call is forked from a process between.
_CHILD = """
import os, resource, sys
setup, peak, *calls = sys.argv[1:]
exec(setup)
for call in calls:
    if os.fork() == 0:
        exec(call)
        print("peak", eval(peak), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""


@checked
def peak_memory(calls: Names, *, setup: str = "pass") -> list[int]:
    """Measure the peak memory of each call in a fresh process: resident bytes, or CUDA's allocated ones.

    Args:
        calls: Python statements.
        setup: imports and definitions for all calls; they run once, in the process that the others come from.

    Raises:
        RuntimeError: a call failed.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = f"{unit} * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    if torch.cuda.is_available():
        peak = "__import__('torch').cuda.max_memory_allocated()"
    command = [sys.executable, "-c", _CHILD, setup, peak, *calls]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"a call whose memory was to be measured failed:\n{ran.stderr}")
    return [int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("peak ")]


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
