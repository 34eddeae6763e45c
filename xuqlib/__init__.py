"""How far can you trust a neural network's explanation, and where does its uncertainty come from?"""

import lazy_loader

# `__init__.pyi` says where each name is defined: there it is imported from when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
