"""What an explanation is worth: whether its pixels matter."""

from xuqlib.metrics.deletion import auc, deletion, insertion, pixel_order

__all__ = ["auc", "deletion", "insertion", "pixel_order"]
