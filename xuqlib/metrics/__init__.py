"""What an explanation is worth: whether its pixels matter, and how like it is to another one."""

from xuqlib.metrics.deletion import auc, deletion, insertion, pixel_order
from xuqlib.metrics.similarity import on_evidence, sparseness, spearman, ssim

__all__ = ["auc", "deletion", "insertion", "on_evidence", "pixel_order", "sparseness", "spearman", "ssim"]
