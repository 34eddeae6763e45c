"""The pictures and the human labels of notebook 26."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xuqlib.study.data.download import File, Layout, locate
from xuqlib.study.data.readers import cifar10

PATH = "cifar10_human/cifar10n_labels.npz"
SHA256 = "6024485a143efa682792c21d7f2adfdef5a374dce699bb2fcd4d62cd55cc4852"
HELP = f"the labels of CIFAR-10N are needed; put {PATH} into the folder of your data"


def human_labels(count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some training pictures of CIFAR-10, their classes, and one person's answers.

    The answers are CIFAR-10N's random_label1.

    Args:
        count: pictures, in an order drawn anew.
        seed: of that order.

    Source: Wei et al. 2022. arXiv 2110.12088.
    """
    found = locate((Layout("npz", (File(PATH, sha256=SHA256),)),), None, HELP)
    with np.load(found.paths[0], allow_pickle=False) as file:
        clean, given = (
            file[name].astype(np.int64) for name in ("clean_label", "random_label1")
        )
    raw = cifar10("train")
    if not np.array_equal(raw.y, clean):
        raise ValueError(
            f"the labels in {PATH} are in another order than the pictures; "
            "fetch both again"
        )
    rows = np.random.default_rng(seed).permutation(len(clean))[:count]
    return (
        torch.from_numpy(raw.x[rows]).float() / 255,
        torch.from_numpy(clean[rows]),
        torch.from_numpy(given[rows]),
    )
