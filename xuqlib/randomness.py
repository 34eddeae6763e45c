"""What in a network is random, and whether it can be fixed."""

from __future__ import annotations

import inspect

import torch
from torch import nn


def check_network(network: nn.Module) -> None:
    """Refuse what is no network, or one whose operations cannot be seen.

    Raises:
        TypeError: not an `nn.Module`, or a scripted one.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"got a {type(network).__name__}; pass a network (nn.Module)")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise TypeError("a scripted network hides its operations; pass the nn.Module that it was scripted from")


def check_dropout(network: nn.Module) -> None:
    """Refuse a network without dropout that is on, or with dropout that cannot be fixed.

    Raises:
        ValueError: names the layers.
    """
    on, refused = False, []
    for name, module in network.named_modules():
        rate = getattr(module, "dropout", 0.0)
        if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
            refused.append(f"{name} ({type(module).__name__})")
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and isinstance(rate, float) and rate > 0:
            refused.append(f"{name} (dropout inside {type(module).__name__})")
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            on = on or 0 < module.p < 1
        elif _calls_dropout(module):
            on = True
    if refused:
        raise ValueError(f"dropout that cannot be fixed: {', '.join(refused)}; use nn.Dropout there, or set it to 0")
    if not on:
        raise ValueError(
            f"{type(network).__name__} has no dropout with 0 < p < 1, so this posterior is without randomness; "
            "add nn.Dropout layers (build with dropout=0.25), or choose another posterior"
        )


def _calls_dropout(module: nn.Module) -> bool:
    # F.dropout inside a user's forward leaves its name in the compiled code; torch's own layers are known above.
    if type(module).__module__.startswith("torch.nn."):
        return False
    methods = [method for name, method in inspect.getmembers(type(module), inspect.isfunction) if name != "__init__"]
    names = {name for method in methods for name in method.__code__.co_names if "dropout" in name and name.islower()}
    # The same name may be a layer, counted as such, or a rate that is switched off.
    return any(not isinstance(value, nn.Module) and value != 0 for value in (getattr(module, n, None) for n in names))
