"""What an explanation is worth: whether its pixels matter, and how like it is to another one."""

from xuqlib.metrics.deletion import auc, deletion, insertion, pixel_order
from xuqlib.metrics.similarity import spearman, ssim

__all__ = ["auc", "deletion", "insertion", "pixel_order", "spearman", "ssim"]
