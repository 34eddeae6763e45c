"""A device without hardware: PrivateUse1 of torch, computed on the CPU, that counts what a GPU would wait for.

    with counting() as counts:
        network.to("pretend")(x.to("pretend"))
    counts.launches, counts.waits, counts.bytes["to_device"]

A tensor on "pretend" is an ordinary tensor whose storage knows a storage of the CPU over the same memory, so numbers,
views, strides and autograd are torch's own. As on CUDA, operations refuse to mix devices (but for numbers without axes,
and indices), and generators of the CPU: the device has its own. The host waits for every copy between ordinary memory
and the device, unless that is `non_blocking`, and for every question after a number or a shape. Operations are counted
as launches, a lower bound on a GPU's kernels. Import it before the first backward pass of a process, in which autograd
counts the devices.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretend"
_SILENT = {"resize_", "set_", "_local_scalar_dense", "is_set_to", "_fused_sdp_choice"}  # launch nothing
_QUESTIONS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_IN_HALF = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "scaled_dot_product_attention")
_set_storage = torch.ops.aten.set_.source_Storage_storage_offset
_cpu_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_aten: Any = torch.ops.aten


@dataclass
class Counts:
    """What the device was asked, while counted.

    Attributes:
        operations: launches by their names.
        waited: why the host waited, and for whom: (reason, file:line of the innermost caller outside of torch).
        bytes: by "to_device" and "to_host".
    """

    operations: Counter[str] = field(default_factory=Counter)
    waited: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        return self.operations.total()

    @property
    def waits(self) -> int:
        return self.waited.total()


_counted: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is asked of the device inside; may be nested."""
    _counted.append(counts := Counts())
    try:
        yield counts
    finally:
        _counted.remove(counts)


def _caller() -> str:
    frame: Any = sys._getframe(1)
    while frame and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    return "/".join(frame.f_code.co_filename.split("/")[-2:]) + f":{frame.f_lineno}" if frame else "a backward pass"


def _count_launch(name: str) -> None:
    for counts in _counted:
        counts.operations[name] += 1


def _count_wait(reason: str) -> None:
    for counts in _counted:
        counts.waited[reason, _caller()] += 1


_ordinary: Any = torch.Generator
_generators: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # the device's, by their address


class _AnyGenerator(type(_ordinary)):  # type: ignore[misc]
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _ordinary)


class _Generator(_ordinary, metaclass=_AnyGenerator):
    """Stands for `torch.Generator`: one on the device gives other numbers than one on the CPU of the same seed."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != NAME:
            return _ordinary(device)
        made: Any = _ordinary.__new__(cls)
        _generators[made._cdata] = made
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)

    def manual_seed(self, seed: int) -> Any:
        return super().manual_seed(seed ^ 1)


def _is_here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _on_host(tensor: Tensor) -> Tensor:
    """The tensor of the CPU over the same memory."""
    storage: Any = tensor.untyped_storage()
    with torch._C.DisableTorchFunction():
        blank = torch.empty(0, dtype=tensor.dtype)
        return blank.set_(storage.on_host, tensor.storage_offset(), tensor.shape, tensor.stride())


def _storage_over(on_host: Any) -> Any:
    make: Any = torch._C._construct_storage_from_data_pointer
    storage = make(on_host.data_ptr(), torch.device(NAME, 0), on_host.nbytes())
    storage.on_host = on_host  # torch keeps the Python object of a storage as long as the storage
    return storage


def _laid(tensor: Tensor, like: Tensor, storage: Any) -> Tensor:
    return _set_storage.redispatch(_cpu_keys, tensor, storage, like.storage_offset(), like.shape, like.stride())


def _on_device(host: Tensor, base: Tensor | None = None) -> Tensor:
    """The pretended tensor over the memory of one of the CPU; in the storage of `base` if it is a view of that."""
    with torch.inference_mode(torch.is_inference_mode_enabled() if base is None else base.is_inference()):
        blank: Tensor = torch._C._acc.create_empty_tensor((0,), host.dtype)
    return _laid(blank, host, _storage_over(host.untyped_storage()) if base is None else base.untyped_storage())


def _computed(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of the device on the CPU."""
    name = op._schema.name.removeprefix("aten::")
    pairs: list[tuple[Tensor, Tensor]] = []  # the device's tensors, and the CPU's

    def lowered(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [lowered(each) for each in value]
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, torch.Generator) and value._cdata not in _generators:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {op}")
        if _is_here(value):
            pairs.append((value, _on_host(value)))
            return pairs[-1][1]
        if isinstance(value, Tensor) and name in ("index_put_", "_index_put_impl_") and not value.is_floating_point():
            _count_copy("to_device", value.nbytes)  # an index is taken along
        elif isinstance(value, Tensor) and value.dim() and name != "index":  # which torch took along before
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {value.device}! ({op} at {_caller()})"
            )
        return value

    def raised(result: Any) -> Any:
        if isinstance(result, list | tuple):
            return type(result)([raised(each) for each in result])
        if not isinstance(result, Tensor):
            return result
        for here, host in pairs:
            if host is result:  # written in place, or into out=
                return here
        bases = [h for h, host in pairs if host.untyped_storage()._cdata == result.untyped_storage()._cdata]
        return _on_device(result, bases[-1] if bases else None)

    given, named = lowered(args), {key: lowered(value) for key, value in kwargs.items()}
    for place, (argument, value) in enumerate(zip(op._schema.arguments, args, strict=False)):
        if argument.alias_info and argument.alias_info.is_write and isinstance(value, Tensor) and not _is_here(value):
            raise RuntimeError(f"a result on {NAME}:0 cannot be written into a tensor of the CPU ({op})")
        if str(argument.type) == "Tensor" and isinstance(value, bool | int | float):  # a number beside a tensor
            dtype = pairs[0][1].dtype
            is_float = isinstance(value, float) and dtype.is_floating_point
            given[place] = torch.tensor(value, dtype=dtype if is_float else None)
    result = op(*given, **named)
    if _QUESTIONS & set(op.tags):
        _count_wait("item" if name == "_local_scalar_dense" else name)
    if not op.is_view and name not in _SILENT:
        _count_launch(name)
    for here, host in pairs:
        now, was = host.untyped_storage(), here.untyped_storage()
        if now.nbytes() != was.nbytes() or (host.shape, host.stride()) != (here.shape, here.stride()):  # resized
            _laid(here, host, was if now.nbytes() == was.nbytes() else _storage_over(now))
    return raised(result)


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunction():  # what modes see are the calls of those who set them
        return _computed(op, *args, **kwargs)


def _count_copy(way: str, size: int, waits: bool = True) -> None:
    for counts in _counted:
        counts.bytes[way] += size
    if waits:
        _count_wait(way)


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    with torch._C.DisableTorchFunction():
        hosts = [_on_host(each) if _is_here(each) else each for each in (source, target)]
        hosts[1].copy_(hosts[0])
        if _is_here(source) and _is_here(target):
            _count_launch("copy_")
        else:  # CUDA converts to the target's dtype where the numbers are, and sends them then
            way, sent = ("to_device", target) if _is_here(target) else ("to_host", source)
            _count_copy(way, source.numel() * sent.element_size(), not non_blocking)
    return target


def _convolution_backward(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    transposed, groups, needed = rest[3], rest[5], rest[6]
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]] if needed[2] else None
    return _fallback(_aten.convolution_backward.default, g, x, weight, bias, *rest)


def _in_half(name: str, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)
    with torch.autocast(NAME, enabled=False):
        lower = [a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
        return getattr(_aten, name).default(*lower, **kwargs)


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return _on_device(torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _on_device(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of the module of a backend. Random numbers without a generator are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)


def _register() -> list[torch.library.Library]:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_fallback, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own: dict[str, Any] = {
        "_copy_from": _copied,
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "set_.source_Storage_storage_offset": functools.partial(_set_storage.redispatch, _cpu_keys),
        "convolution_overrideable": functools.partial(_fallback, _aten.convolution.default),
        "convolution_backward_overrideable": _convolution_backward,
    }
    for name, kernel in own.items():
        aten.impl(name, kernel, "PrivateUse1")
    for name in _IN_HALF:
        aten.impl(name, functools.partial(_in_half, name), "AutocastPrivateUse1")
    copied: Any = torch.UntypedStorage.__deepcopy__

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        if self.device.type != NAME:
            return copied(self, memo)
        return memo.setdefault(self._cdata, _storage_over(self.on_host.clone()))

    torch.Generator = _Generator  # type: ignore[misc, assignment]
    torch.UntypedStorage.__deepcopy__ = deepcopy  # type: ignore[method-assign]
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that `.to` keeps parameters the same, as on CUDA
    return [every, aten]


_libraries = _register()  # which torch forgets with these objects
