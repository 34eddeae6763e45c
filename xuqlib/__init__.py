"""How far can you trust a neural network's explanation, and where does its uncertainty come from?"""

import copyreg
import importlib

import lazy_loader

# `__init__.pyi` says where each name is defined: there it is imported from when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# lazy_loader gives this module a class of its own, which joblib and Dask cannot send to other processes but by name.
copyreg.pickle(type(importlib.import_module(__name__)), lambda module: (importlib.import_module, (module.__name__,)))
