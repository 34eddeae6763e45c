"""Counterfactuals of an uncertainty: what would the picture have to look like for the networks to be sure?

CLUE looks for it along a generative model, here a VAE: it moves the picture's latent numbers until the uncertainty of
the decoded picture is low, and attributes the uncertainty to the pixels that changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_examples, check_fixed, check_number
from xuqlib.path import rows_per_pass, slope
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Amount, Count, Pictures, Positive, Seed, check_alike, checked
from xuqlib.uncertainty import KINDS, UncertaintyOf, logits_of, uncertainties


class Autoencoder(Protocol):
    """What CLUE needs of a generative model: (mean, log variance), and images. `PictureVAE` is one."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode(self, z: Tensor) -> Tensor: ...


class Counterfactuals(NamedTuple):
    """Pictures that the networks are surer about, how they began, and the uncertainties of both and of x.

    Attributes:
        pictures: decode(latents), (N, C, H, W).
        latents: where the search ended, (N, L).
        reconstructions: decode(encode(x).mean), where it began, (N, C, H, W).
        before, reconstructed, after: uncertainty of x, reconstructions and pictures, (N,), float64, in nats. A VAE
            blurs, so the networks may be less sure of a reconstruction than of x.
    """

    pictures: Tensor
    latents: Tensor
    reconstructions: Tensor
    before: Tensor
    reconstructed: Tensor
    after: Tensor


@checked
def clue(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    kind: str = "epistemic",
    *,
    vae: Autoencoder,
    against: str = "x",
    **options: Any,
) -> Tensor:
    """Attribute the uncertainty of each picture to the pixels that CLUE's counterfactual changes: |x - decoded|.

    Nowhere negative and not complete: it is in units of pixels, not of nats. The paper's map shows also what the VAE
    cannot draw, wherever the networks are sure or not: compare it with `against="reconstruction"`.

    Args:
        draws, x, kind, vae: see `clue_counterfactuals`.
        against: "x", as the paper; or "reconstruction", decode(encode(x).mean), which has the VAE's blur too.
        **options: num_steps, learning_rate, distance_weight or chunk, passed on to `clue_counterfactuals`.

    Returns:
        Attribution summed over channels, (N, H, W), of x's dtype.

    Raises:
        TypeError, ValueError: as for `clue_counterfactuals`; unknown `against` or option.

    Source: Antoran et al. 2021, arXiv 2006.06848.
    """
    check_choice(against, ("x", "reconstruction"), "against")
    found = clue_counterfactuals(draws, x, kind, vae=vae, **options)
    return changes(found, x if against == "x" else found.reconstructions)


@checked
def delta_clue(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    kind: str = "epistemic",
    *,
    vae: Autoencoder,
    delta: Positive,
    num_starts: Count = 3,
    seed: Seed = 0,
    against: str = "x",
    **options: Any,
) -> Tensor:
    """Attribute as `clue` does, with the latents kept within a ball around those of x, from several starts in it.

    The paper returns a set of counterfactuals; this is the map of the best one of each example.

    Args:
        delta, num_starts, seed: see `clue_counterfactuals`; the others, Returns and Raises: as for `clue`.

    Source: Ley, Bhatt & Weller 2021, arXiv 2104.06323.
    """
    return clue(draws, x, kind, vae=vae, against=against, delta=delta, num_starts=num_starts, seed=seed, **options)


@checked
def changes(found: Counterfactuals, x: Pictures) -> Tensor:
    """Return |x - counterfactual| summed over channels, (N, H, W); x may also be the reconstructions."""
    check_alike(x=x, found=found.pictures)
    return (x.detach() - found.pictures).abs().sum(1)


@checked
def clue_counterfactuals(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    kind: str = "epistemic",
    *,
    vae: Autoencoder,
    num_steps: Count = 40,
    learning_rate: Positive = 0.1,
    distance_weight: Amount = 2.0,
    delta: Positive | None = None,
    num_starts: Count = 1,
    seed: Seed = 0,
    chunk: Count | None = None,
) -> Counterfactuals:
    """Find the latent z of each picture that minimises U(decode(z)) + distance_weight * mean |decode(z) - x|.

    Adam moves each example's z on its own, from encode(x).mean; the best of all steps counts, so the objective is
    never above that of the reconstruction. The uncertainty may be.

    Args:
        draws: fixed networks with at least two classes, from `posterior.sample`, or a list of networks.
        x: pictures (N, C, H, W), on the device of draws and vae.
        kind: "total", "aleatoric" or "epistemic".
        vae: generative model of such pictures, as from `train_or_load_vae`.
        num_steps, learning_rate: of Adam.
        distance_weight: in nats per unit of the mean difference of pixels and channels. The paper's weight multiplies
            the sum and is set per data set in proportion to 1 / (C H W); the 2 is a choice.
        delta: radius of the ball around encode(x).mean that z is kept in, in latent units; None for no ball.
        num_starts: starts per example; all but the first, which is encode(x).mean, are spread evenly over the ball.
        seed: of the starts, which are the same for all examples.
        chunk: examples in one pass; chosen by the size of x and the number of draws if None.

    Raises:
        TypeError, ValueError: bad draws, x or option; networks with one output; a vae of other pictures; several
            starts without a ball.
    """
    draws, rows = _prepared(draws, x, kind, vae, chunk)
    search = _Search(
        *(UncertaintyOf(draws, kind), vae, check_number(distance_weight, 0, "distance_weight")),
        check_count(num_steps, 1, "num_steps"),
        check_number(learning_rate, 0, "learning_rate", above=True),
    )
    if check_count(num_starts, 1, "num_starts") > 1 and delta is None:
        raise ValueError(f"num_starts is {num_starts} but there is no ball to start in; pass delta, its radius")
    radius = math.inf if delta is None else check_number(delta, 0, "delta", above=True)
    parts = []
    with torch.inference_mode(False):
        for part in x.detach().clone().split(rows):
            with torch.no_grad():
                origin = vae.encode(part)[0]
            offsets = _offsets(num_starts, origin, radius, seed)
            values, latents = zip(*(search.descend(part, origin, offset, radius) for offset in offsets), strict=True)
            best = torch.stack(values).argmin(0)  # (N,), the first of equal ones
            latent = torch.stack(latents)[best, torch.arange(len(part), device=best.device)]
            with torch.no_grad():
                parts.append((vae.decode(latent), latent, vae.decode(origin)))
    pictures, latent, reconstructions = (torch.cat(found) for found in zip(*parts, strict=True))
    known = [getattr(uncertainties(draws, shown), kind) for shown in (x, reconstructions, pictures)]
    return Counterfactuals(pictures, latent, reconstructions, *known)


@checked
def path_integral(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    kind: str = "epistemic",
    *,
    vae: Autoencoder,
    num_steps: Count = 32,
    counterfactuals: Counterfactuals | None = None,
    chunk: Count | None = None,
) -> Tensor:
    """Attribute the uncertainty that x has and its counterfactual has not, along pictures that the VAE can draw.

    Integrated gradients of U on a bent path: from the counterfactual to the reconstruction along decode(z), z on the
    straight line between their latents, then straight from the reconstruction to x. Complete: the attribution sums to
    U(x) - U(counterfactual), up to quadrature; that is U(x) only where the counterfactual is certain.

    Args:
        draws, x, kind, vae, chunk: see `clue_counterfactuals`.
        num_steps: midpoints on each of the two pieces; one forward and one backward pass each.
        counterfactuals: where the path begins, from `clue_counterfactuals` of the same x; with its defaults if None.

    Returns:
        Attribution in nats, summed over channels with its sign, (N, H, W), of x's dtype.

    Raises:
        TypeError, ValueError: as for `clue_counterfactuals`; counterfactuals of another number of examples.

    Source: Perez et al. 2022, arXiv 2107.08756, with the search of CLUE for the first point (a choice).
    """
    draws, rows = _prepared(draws, x, kind, vae, chunk)
    check_count(num_steps, 1, "num_steps")
    if counterfactuals is None:
        counterfactuals = clue_counterfactuals(draws, x, kind, vae=vae, chunk=chunk)
    if len(counterfactuals.latents) != len(x):
        raise ValueError(
            f"counterfactuals are of {len(counterfactuals.latents)} examples but x has {len(x)}; pass those of this x"
        )
    uncertainty, parts = UncertaintyOf(draws, kind), []
    for part, latent in zip(x.detach().split(rows), counterfactuals.latents.split(rows), strict=True):
        with torch.no_grad():
            origin = vae.encode(part)[0]
            middle = vae.decode(origin)
        drawn = _along(uncertainty, vae.decode, latent, origin, num_steps)
        parts.append(drawn + _along(uncertainty, torch.clone, middle, part, num_steps))
    return torch.cat(parts)


class _Search(NamedTuple):
    """What decides the search besides the pictures."""

    uncertainty: UncertaintyOf
    vae: Autoencoder
    distance_weight: float
    num_steps: int
    learning_rate: float

    def objective(self, z: Tensor, x: Tensor) -> Tensor:
        decoded = self.vae.decode(z)
        distance = (decoded - x).abs().flatten(1).mean(1)
        return self.uncertainty(decoded)[:, 0] + self.distance_weight * distance

    def descend(self, x: Tensor, origin: Tensor, offset: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Return the lowest objective that Adam met, (N,), and its latents, (N, L)."""
        z = (origin + offset).requires_grad_()
        adam = torch.optim.Adam([z], lr=self.learning_rate)
        lowest, best = x.new_full((len(x),), math.inf), z.detach().clone()
        for step in range(self.num_steps + 1):
            with torch.enable_grad():
                values = self.objective(z, x)
            lower = values.detach() < lowest
            lowest, best = torch.where(lower, values.detach(), lowest), torch.where(lower[:, None], z.detach(), best)
            if step < self.num_steps:
                (z.grad,) = torch.autograd.grad(values.sum(), z)  # the weights of draws and vae get none
                adam.step()
                with torch.no_grad():
                    away = z - origin
                    z.copy_(origin + away * (radius / away.norm(dim=1, keepdim=True)).clamp(max=1))
        return lowest, best


def _offsets(num_starts: int, origin: Tensor, radius: float, seed: int) -> list[Tensor]:
    """Starts relative to the origin, (L,) each: the origin itself, then points spread evenly over the ball."""
    stream, (size,) = generator_of(seed), origin.shape[1:]
    found = [origin.new_zeros(size)]
    for _ in range(num_starts - 1):
        direction = torch.randn(size, generator=stream, dtype=torch.float64)
        share = torch.rand((), generator=stream, dtype=torch.float64) ** (1 / size)  # of the radius
        found.append((radius * share * direction / direction.norm()).to(origin))
    return found


def _along(
    uncertainty: UncertaintyOf, decode: Callable[[Tensor], Tensor], first: Tensor, last: Tensor, num_steps: int
) -> Tensor:
    """Integrate the slope of U from decode(first) to decode(last), by midpoints of the line between: (N, H, W)."""
    with torch.no_grad():
        here, total = decode(first), torch.zeros(())
        for step in range(num_steps):
            middle, there = (decode(first.lerp(last, (step + part) / num_steps)) for part in (0.5, 1.0))
            total = total + slope(uncertainty, middle, 0) * (there - here)
            here = there
    return total.sum(1)


def _prepared(
    draws: Draws | Sequence[nn.Module], x: Tensor, kind: str, vae: Autoencoder, chunk: int | None
) -> tuple[Draws, int]:
    """Check what all functions take; return the draws and how many examples enter one pass."""
    check_examples(x)
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; CLUE moves pictures (N, C, H, W) along a vae of pictures")
    check_choice(kind, KINDS, "kind")
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    for network in draws:
        check_fixed(network)
    if not callable(getattr(vae, "encode", None)) or not callable(getattr(vae, "decode", None)):
        raise TypeError(f"vae is a {type(vae).__name__}; pass one with encode and decode, as from train_or_load_vae")
    if isinstance(vae, nn.Module):
        check_fixed(vae)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(x[:1])[0])
    if decoded.shape[1:] != x.shape[1:]:
        given, wanted = tuple(decoded.shape[1:]), tuple(x.shape[1:])
        raise ValueError(f"the vae decodes to {given} but pictures are {wanted}; pass the vae of this data set")
    if logits_of(draws, x[:1]).shape[-1] < 2:
        raise ValueError("the draws have one output; CLUE lowers entropies of class probabilities, not of a regression")
    rows = rows_per_pass(x[:1], chunk)
    # All draws stay in the graph of a pass, so many draws want fewer examples.
    return draws, rows if chunk else max(1, min(rows, 8 * rows // len(draws)))
