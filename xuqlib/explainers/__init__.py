"""Explainers: plain functions `(network, x, target) -> attribution`, shaped like x, and the registry of their names.

A new one is a function, or a file, in this folder; `@explainer` above its definition says all that others need to know.
"""

import importlib
import pkgutil

from xuqlib.explainers.declaring import EXPLAINERS, Explainer, explainer

for _module in pkgutil.iter_modules(__path__):  # each enters its explainers in EXPLAINERS
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["EXPLAINERS", "Explainer", "explainer"]
