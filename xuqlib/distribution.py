"""ExplanationDistribution: the attributions of one example by many draws, their statistics, and what looks wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xuqlib.checks import check_choice, check_count, check_flag, check_number, check_tensor
from xuqlib.moments import Moments

if TYPE_CHECKING:
    import pandas as pd
    import xarray

CV_KINDS = ("paper", "signed", "ratio")
# Where a finding begins; choices, set so that the trained networks of this study stay silent.
MANY_UNDEFINED = 0.5  # share of an example's pixels without a CV
UNIFORM = 0.05  # spread of a folded map over its pixels, relative to its mean
NEAR_CEILING = 0.9  # folded CV, relative to that of noise
FEW_DRAWS = 10


@dataclass
class ExplanationDistribution:
    """Attributions along an axis called `draw`, and what they say together.

    Everything stays per example: no statistic mixes examples. Statistics are float64, shaped (example, ...).

    Args:
        values: attributions (draw, example, *x.shape[1:]); None where only moments were kept.
        running: their moments, where the values were not kept.
        target: class that was explained for each example, (N,); None for a regression.
        explainer, posterior: names, for tables and figures.
        feature_names: of the columns of a table.
        how: the draws were evaluated: as a "chain" of layers, by "vmap", or each by itself in a "loop", and why.
    """

    values: Tensor | None
    running: Moments | None = None
    target: Tensor | None = None
    explainer: str = ""
    posterior: str = ""
    feature_names: tuple[str, ...] | None = None
    how: str = ""

    def __post_init__(self) -> None:
        if (self.values is None) == (self.running is None):
            raise ValueError("pass either values, (draw, example, ...), or running moments")
        if self.values is not None:
            check_tensor(self.values, "values")
        if self.values is not None and self.values.ndim < 3:
            raise ValueError(
                f"values have shape {tuple(self.values.shape)}; wanted (draw, example, feature), (draw, example, "
                "channel, height, width), or other axes after the examples"
            )

    @cached_property
    def moments(self) -> Moments:
        return self.running if self.running is not None else Moments.over(self._values("moments"))

    @property
    def num_draws(self) -> int:
        return len(self.values) if self.values is not None else self.moments.num_draws

    @property
    def num_examples(self) -> int:
        return len(self.mean())

    @property
    def has_channels(self) -> bool:
        """Whether these are images or volumes, whose channels are folded; a signal's axes are left as they are."""
        return self.mean().ndim > 3

    def __repr__(self) -> str:
        what = " ".join(word for word in (self.posterior, self.explainer) if word)
        shape = tuple(self.mean().shape[1:])
        how = f", {self.how}" if self.how.startswith("loop") else ""
        return f"ExplanationDistribution({what}: {self.num_draws} draws x {self.num_examples} examples x {shape}{how})"

    def __getitem__(self, examples: int | slice | Tensor) -> ExplanationDistribution:
        """Pick examples, keeping every draw; a single one stays an axis of length one."""
        values = self._values("picking examples")
        if isinstance(examples, int):
            examples = torch.arange(values.shape[1])[examples].reshape(1)
        target = None if self.target is None else self.target[examples]
        return replace(self, values=values[:, examples], target=target)

    def mean(self) -> Tensor:
        """Mean over draws, shaped like x, in the unit of the attribution."""
        return self.moments["raw"].mean

    def std(self, *, correction: int = 0) -> Tensor:
        """Standard deviation over draws, divisor num_draws - correction, shaped like x. 0 is the paper's choice."""
        return self.moments["raw"].std(check_count(correction, 0, "correction"))

    def cv(self, kind: str = "paper", *, floor: float = 0.05, rescale: bool = True) -> Tensor:
        """Coefficient of variation, std over mean, by one of three definitions.

        Args:
            kind: "paper", of maps made non-negative (|.| summed over channels; each draw's map clipped at its 99th
                percentile and scaled to [0, 1]), (N, H, W) or (N, F); "signed", std / |mean| of the attributions as
                they are, shaped like x; "ratio", sum of std over sum of |mean|, one number per example, (N,).
            floor: "paper" and "signed" are NaN where |mean| is at most this share of the example's largest one.
            rescale: "paper" only; False leaves out the clipping and scaling, which hide differences in scale.

        Returns:
            Unitless; NaN where undefined. `undefined_share` says how much that is.

        Source: arXiv 2403.17224, section 3; it leaves the folding open, so the definitions are choices.
        """
        check_choice(kind, CV_KINDS, "kind")
        check_number(floor, 0, "floor")
        check_flag(rescale, "rescale")
        if kind == "ratio":
            spread, size = self.std().flatten(1).sum(1), self.mean().abs().flatten(1).sum(1)
            return torch.where(size > 0, spread / size, math.nan)
        name = "raw" if kind == "signed" else "rescaled" if rescale else "folded"
        mean, std = self.moments[name].mean.abs(), self.moments[name].std()
        largest = mean.flatten(1).amax(1).view(-1, *(1,) * (mean.ndim - 1))
        return torch.where((mean > floor * largest) & (largest > 0), std / mean, math.nan)

    def undefined_share(self, kind: str = "paper", **options: Any) -> Tensor:
        """Share of pixels or features of each example whose CV is NaN, (N,), in [0, 1]."""
        undefined = self.cv(kind, **options).isnan().double()
        return undefined.flatten(1).mean(1) if undefined.ndim > 1 else undefined

    @property
    def noise_ceiling(self) -> float:
        """The "paper" CV, without rescaling, that pure zero-mean Gaussian noise of one size would have.

        Folding signs gives noise a mean: sqrt((pi/2 - 1) / channels). A CV near it shows no steadiness at all.
        """
        channels = self.mean().shape[1] if self.has_channels else 1
        return math.sqrt((math.pi / 2 - 1) / channels)

    def snr(self) -> Tensor:
        """Signal to noise |mean| / std, shaped like x: bounded where the mean vanishes; NaN where nothing spreads."""
        return torch.where(self.std() > 0, self.mean().abs() / self.std(), math.nan)

    def quantile(self, q: float) -> Tensor:
        """Quantile over draws, shaped like x. 0.05 is Bykov et al.'s "intersection", 0.95 their "union"."""
        if check_number(q, 0, "q") > 1:
            raise ValueError(f"q is {q}; a quantile lies in [0, 1]")
        return self._values("quantile").double().quantile(q, dim=0)

    def median(self) -> Tensor:
        """Median over draws, shaped like x."""
        return self.quantile(0.5)

    def mad(self) -> Tensor:
        """Median absolute deviation from the median over draws, shaped like x; not scaled to a Gaussian's std."""
        return (self._values("mad").double() - self.median()).abs().quantile(0.5, dim=0)

    def sign_agreement(self) -> Tensor:
        """Share of draws that agree with the more common sign, shaped like x; NaN where every draw gives 0."""
        values = self._values("sign_agreement")
        agreeing = torch.maximum((values > 0).double().mean(0), (values < 0).double().mean(0))
        return torch.where(agreeing > 0, agreeing, math.nan)

    def standard_error(self, of: str = "mean") -> Tensor:
        """How far a statistic may be off because the draws are finite: its standard error over draws, shaped like x.

        Args:
            of: "mean": std / sqrt(num_draws). "std" and "cv" (signed, without floor): the jackknife over draws, or,
                where only moments were kept, the Gaussian std / sqrt(2 (num_draws - 1)), "std" alone.

        Raises:
            ValueError: fewer than two draws, or "cv" from moments.
        """
        check_choice(of, ("mean", "std", "cv"), "of")
        n = self.num_draws
        if n < 2:
            raise ValueError("a standard error over draws needs at least two draws")
        if of == "mean":
            return self.std(correction=1) / math.sqrt(n)
        if self.values is None and of == "std":
            return self.std(correction=1) / math.sqrt(2 * (n - 1))
        deviation = self._values(f"standard_error of {of}").double() - self.mean()
        # Leaving draw t out of n: the mean moves by -deviation / (n - 1), the mean square follows.
        left_mean = -deviation / (n - 1)
        left_square = (n * self.std() ** 2 - deviation**2) / (n - 1)
        left_std = (left_square - left_mean**2).clamp(min=0).sqrt()
        left = left_std if of == "std" else left_std / (self.mean() + left_mean).abs()
        return ((n - 1) * left.var(0, correction=0)).sqrt()

    def summary(self) -> pd.DataFrame:
        """One row per example: target, mean |attribution|, mean std, and the three CVs (medians of the maps)."""
        import pandas as pd

        columns: dict[str, Any] = {"example": range(self.num_examples)}
        if self.target is not None:
            columns["target"] = self.target.tolist()
        columns["mean_abs"] = self.mean().abs().flatten(1).mean(1)
        columns["std"] = self.std().flatten(1).mean(1)
        columns["cv_ratio"] = self.cv("ratio")
        for name, cv in (
            ("cv_paper", self.cv("paper")),
            ("cv_paper_unscaled", self.cv("paper", rescale=False)),
            ("cv_signed", self.cv("signed")),
        ):
            columns[name] = cv.flatten(1).nanmedian(1).values
            columns[f"{name}_undefined"] = cv.flatten(1).isnan().double().mean(1)
        return pd.DataFrame(columns)

    def diagnose(self) -> list[str]:
        """Name the signatures of explanations that failed, or whose statistics cannot be trusted.

        Values that are not finite, maps of zeros, draws that do not differ, a map that is nearly equal everywhere, a CV
        that is undefined on most pixels or as large as that of noise without a sign, and too few draws.

        Returns:
            One sentence per finding: what was found, for how many examples, and what to do. Empty if nothing was.

        Source: arXiv 2403.17224, section 5, names undefined CVs and uniformly activated maps.
        """
        mean, std, size = (each.flatten(1) for each in (self.mean(), self.std(), self.moments["folded"].mean))
        finite = (mean.isfinite() & std.isfinite()).all(1)  # (N,)
        dead = finite & ((mean == 0) & (std == 0)).all(1)
        alive = finite & ~dead
        # Round-off of the running variance is this far below the mean.
        identical = alive & (std <= 1e-12 * mean.abs().amax(1, keepdim=True)).all(1) & (self.num_draws > 1)
        evenness = size.std(1, correction=0) / size.mean(1)
        uniform = alive & (evenness < UNIFORM) & (size.shape[1] > 1)
        share, ceiling = self.undefined_share("paper"), self.noise_ceiling
        cv = self.cv("paper", rescale=False).flatten(1).nanmedian(1).values
        undefined = alive & ~uniform & (share > MANY_UNDEFINED)
        noisy = alive & ~identical & (cv > NEAR_CEILING * ceiling)
        findings = [
            (~finite, "hold NaN or infinite attributions: look for overflow in the network or its input"),
            (dead, "are zero everywhere, in every draw: check the target, for dead ReLUs, and what LIME has to hide"),
            (identical, "are the same in every draw: check that the posterior is random where it matters"),
            (
                uniform,
                "are nearly equal everywhere (over pixels or features they vary by "
                f"{100 * evenness[uniform].mean():.1f} % of their mean): do not read a place into them; try another "
                "explainer",
            ),
            (
                undefined,
                f"have no coefficient of variation on {100 * share[undefined].mean():.1f} % of their pixels or "
                'features, where the mean is too small: report that share, and use cv("ratio") or sign_agreement()',
            ),
            (
                noisy,
                f"are no steadier than noise without a sign (median folded CV {cv[noisy].mean():.2f}, noise has "
                f"{ceiling:.2f}): do not trust a single draw's map; look at the mean and its standard_error()",
            ),
        ]
        sentences = [
            f"The explanations of {int(which.sum())} of {len(which)} examples {what}."
            for which, what in findings
            if which.any()
        ]
        if self.num_draws == 1:
            sentences.append("There is 1 draw, so no spread can be told: take at least 10.")
        elif self.num_draws < FEW_DRAWS:
            error = 1 / math.sqrt(2 * (self.num_draws - 1))
            sentences.append(
                f"There are {self.num_draws} draws, so each std is off by about {error:.0%}: take at least {FEW_DRAWS}."
            )
        return sentences

    def to_frame(self) -> pd.DataFrame:
        """Return every attribution in tidy form: draw, example, then channel, height, width or feature; attribution.

        Axes of other examples are called axis_1, axis_2 and so on.

        It has one row per number: pick examples first, `e[:4].to_frame()`. `summary` is one row per example.
        """
        import pandas as pd

        axes = self._axes()
        index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
        return pd.DataFrame({"attribution": self._values("to_frame").flatten().numpy()}, index=index).reset_index()

    def to_xarray(self) -> xarray.DataArray:
        """Return the attributions with named axes, as (draw, example, channel, height, width); see `to_frame`.

        Raises:
            ImportError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray needs xarray; install it (pip install xarray), or use to_frame()") from error
        axes = self._axes()
        return xarray.DataArray(self._values("to_xarray").numpy(), dims=list(axes), coords=axes, name="attribution")

    def _axes(self) -> dict[str, list[Any]]:
        values = self._values("a table of draws")
        known = {3: ("feature",), 5: ("channel", "height", "width"), 6: ("channel", "depth", "height", "width")}
        names = ("draw", "example", *known.get(values.ndim, [f"axis_{axis}" for axis in range(1, values.ndim - 1)]))
        axes: dict[str, list[Any]] = {name: list(range(size)) for name, size in zip(names, values.shape, strict=True)}
        if self.feature_names is not None:
            axes["feature"] = list(self.feature_names)
        return axes

    def _values(self, what: str) -> Tensor:
        if self.values is None:
            raise ValueError(f'{what} needs every draw, but only moments were kept; explain with keep="all"')
        return self.values
