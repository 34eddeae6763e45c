"""Draws in a file, so that they need not be drawn again: safetensors, in which what draws share is stored once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from xuqlib.checks import check_noise
from xuqlib.device import check_device
from xuqlib.posteriors.base import Posterior, check_network
from xuqlib.posteriors.draws import Draws, detached_copy, rebuilt
from xuqlib.posteriors.fixing import FixedNetwork, Plans, Seed, SeedOn
from xuqlib.posteriors.shared import look_alike, look_of
from xuqlib.study.files import DamagedError, replace_file, seal
from xuqlib.study.resuming import fingerprint

_BEGINS = b'{"__metadata__":{"draws":'  # each of our files


def save_draws(draws: Draws, path: str | Path) -> None:
    """Write draws into one file of safetensors; `load_draws` gives them back, equal to the last bit.

    Stored are the tensors in which draws differ, those that they share once, and the seeds of dropout masks. Layers
    and their settings are not: they come from the network that `load_draws` is given.

    Args:
        draws: from `posterior.sample`.
        path: of the file; one of `save_draws` that is there is replaced.

    Raises:
        TypeError, ValueError: draws that no posterior made, of several kinds, or whose masks are resampled; path is a
            folder, or another file that is there.
    """
    if not isinstance(draws, Draws):
        raise TypeError(f"draws is a {type(draws).__name__}; pass posterior.sample(num_draws)")
    file = _file(path)
    if file.exists():
        with file.open("rb") as there:
            begins = there.read(8 + len(_BEGINS))
        if begins and begins[8:] != _BEGINS:  # behind the length of the header
            raise ValueError(f"{file.name} is there, and no file of save_draws; pass another path, or delete it")
    networks = [draw for draw in draws if isinstance(draw, FixedNetwork) and draw.resampling is None]
    if len(networks) < len(draws):
        raise ValueError(
            "draws are no fixed networks of a posterior; pass posterior.sample(num_draws), as it gives them"
        )
    if not look_alike(list({id(draw.network): draw.network for draw in networks}.values())):
        raise ValueError("draws are networks of several kinds; save those of each kind in a file of its own")
    keys: dict[int, str] = {}  # by the identity of a tensor, under what it is stored
    tensors, kept = {"noise_variance": check_noise(draws.noise_variance)}, list[dict[str, Any]]()
    for number, draw in enumerate(networks):
        own = {}
        for name, tensor in _tensors(draw.network).items():
            own[name] = keys.setdefault(id(tensor), f"{number}.{name}")
            tensors[own[name]] = tensor
        shared = kept[0]["tensors"] if kept else {}
        differing = {name: key for name, key in own.items() if shared.get(name) != key}
        kept.append({"seed": _written(draw.seed), "tensors": differing})
    facts = {"posterior": draws.posterior, "output": draws.output, "looks": _looks(networks[0].network), "draws": kept}
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    facts["sha256"] = _seal(facts, copies)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, safetensors.torch.save(copies, {"draws": json.dumps(facts)}))


def load_draws(path: str | Path, network: Posterior | nn.Module) -> Draws:
    """Read the draws that `save_draws` wrote.

    Args:
        path: of the file.
        network: the posterior that the draws are from, or its `network`; of an ensemble, any member. Its weights do
            not matter, and stay as they are. The draws are where it is.

    Returns:
        Draws that answer, and are explained, as those that were saved, to the last bit. Masks that a device drew by its
        own generator need a device of that kind.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: path is a folder; the file is damaged; it holds draws of another network.
    """
    file = _file(path)
    facts, tensors = _read(file)
    given = detached_copy(check_network(network.network if isinstance(network, Posterior) else network))
    own, first = _tensors(given), facts["draws"][0]["tensors"]
    shapes = {name: tensor.shape for name, tensor in own.items()}
    wanted = {name: tensors[key].shape for name, key in first.items()}
    differing = [name for name in (wanted | shapes) if wanted.get(name) != shapes.get(name)]
    if differing or facts["looks"] != _looks(given):
        what = f"its tensors are others, such as {differing[0]!r}" if differing else "its layers have other settings"
        raise ValueError(
            f"{file.name} holds draws of another network than this {type(given).__name__}: {what}; pass the posterior "
            "that they were drawn from, or its network"
        )

    def laid(name: str, key: str) -> Tensor:
        old, value = own[name], tensors[key]
        new = torch.empty_like(old, dtype=value.dtype).copy_(value)
        return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new

    made: dict[str, tuple[nn.Module, Plans]] = {}  # draws that differ in their masks alone share a network
    base = rebuilt(given, {own[name]: laid(name, key) for name, key in first.items()})
    draws = []
    for draw in facts["draws"]:
        differs = {} if draw is facts["draws"][0] else draw["tensors"]
        what = json.dumps(differs)
        if what not in made:
            held = _tensors(base)
            fresh = {held[name]: laid(name, key) for name, key in differs.items()}
            made[what] = rebuilt(base, fresh) if differs else base, Plans()
        inside, plans = made[what]
        draws.append(FixedNetwork(inside, _read_seed(draw["seed"]), plans=plans))
    noise = tensors["noise_variance"]
    return Draws(
        draws,
        posterior=facts["posterior"],
        noise_variance=noise if noise.ndim else float(noise),
        output=facts["output"],
    )


def _file(path: str | Path) -> Path:
    if not isinstance(path, str | Path):
        raise TypeError(f"path is a {type(path).__name__}; pass the path of a file")
    if Path(path).is_dir():
        raise ValueError(f"path is {Path(path).name!r}, a folder; pass the path of a file")
    return Path(path)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what a file says of its draws, and its tensors."""
    file.open("rb").close()  # which names a file that is not there
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["draws"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
        is_whole = facts["sha256"] == _seal(facts, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise DamagedError(f"{file.name} is damaged, or no file of save_draws; save the draws again")
    return facts, tensors


def _seal(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(seal(facts).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names; one that has two has both."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def _looks(network: nn.Module) -> str:
    """A digest of the layers and their settings."""
    return fingerprint([look_of(module) for module in network.modules()])


def _written(seed: Seed | None) -> Any:
    return [seed.number, torch.device(seed.device).type] if isinstance(seed, SeedOn) else seed


def _read_seed(written: Any) -> Seed | None:
    return SeedOn(written[0], str(check_device(written[1]))) if isinstance(written, list) else written
