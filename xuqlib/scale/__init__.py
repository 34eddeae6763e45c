"""Explanations of more examples than fit into memory, on one machine or many."""

from xuqlib.scale.saved import load_draws, save_draws
from xuqlib.scale.store import StoredExplanations, open_explanations
from xuqlib.scale.stream import explain_dataset

__all__ = ["StoredExplanations", "explain_dataset", "load_draws", "open_explanations", "save_draws"]
