"""What the package hands on of the study."""

from xuqlib.study.data.loading import DataError, Examples, load
from xuqlib.study.judging.analytic import analytic_distribution
from xuqlib.study.judging.rivals import ua_backprop_linear
from xuqlib.study.judging.scores import scores
from xuqlib.study.judging.variance import variance_split
from xuqlib.study.record import Notebook, versions
from xuqlib.study.report.making import report
from xuqlib.study.training.fitting import fit
from xuqlib.study.training.loading import train_or_load
from xuqlib.study.training.networks import lenet, mini_vgg, mlp, resnet18
from xuqlib.study.training.recipes import Recipe

__all__ = [
    "DataError",
    "Examples",
    "Notebook",
    "Recipe",
    "analytic_distribution",
    "fit",
    "lenet",
    "load",
    "mini_vgg",
    "mlp",
    "report",
    "resnet18",
    "scores",
    "train_or_load",
    "ua_backprop_linear",
    "variance_split",
    "versions",
]
