"""A small variational autoencoder: the generative model along which a counterfactual picture can be looked for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_choice, check_count, check_examples
from xuqlib.device import device
from xuqlib.posteriors.fixing import generator_of, seed_of
from xuqlib.study.checked import Count, Counts, Maps, Pictures, Positive, Seed, Several, check_alike, checked
from xuqlib.study.data.loading import EMBEDDED, Examples, load
from xuqlib.study.files import versions
from xuqlib.study.training.checkpoints import find_checkpoint, folders, load_checkpoint, rounded, save_checkpoint
from xuqlib.study.training.fitting import check_parts, one_cycle
from xuqlib.study.training.recipes import Recipe


@checked
@dataclass(frozen=True)
class VAERecipe:
    """Everything that decides a trained autoencoder besides its seed and the machine.

    Args:
        latent: numbers that a picture is squeezed into.
        widths: channels of the two convolutions; narrow: channels of the feature maps that become the latent numbers.
        epochs, batch_size, learning_rate: of AdamW without weight decay, on a one-cycle schedule.
        num_train: train on a stratified subset of this size; all by default.
    """

    latent: Count
    widths: Counts = (32, 64)
    narrow: Count = 16
    epochs: Count = 10
    batch_size: Several = 128
    learning_rate: Positive = 3e-3
    num_train: Count | None = None


VAE_RECIPES = {
    "planted": VAERecipe(16, widths=(16, 32), epochs=16, batch_size=64),
    "digits": VAERecipe(8, widths=(16, 32), epochs=60, batch_size=64),
    "mnist": VAERecipe(16, epochs=10),
    "fer_plus": VAERecipe(32, epochs=4),
    "cifar10": VAERecipe(64, epochs=6),
}


@checked
class PictureVAE(nn.Module):
    """A convolutional variational autoencoder of pictures in [0, 1].

    Prior z ~ N(0, 1); q(z | x) and p(x | z) are Gaussians. The decoder's standard deviation is one learned number for
    all pixels, grey or colour, so that the weight of reconstruction against the prior need not be chosen. Nothing in
    it depends on the other examples of a batch, or on training mode.

    Args:
        shape: of one picture, (C, H, W), with H and W divisible by 4.
        latent, widths, narrow: see `VAERecipe`.

    Source: Kingma & Welling 2014, arXiv 1312.6114; the learned deviation: Rybkin et al. 2021, arXiv 2006.13202.
    """

    def __init__(self, shape: Counts, *, latent: Count, widths: Counts = (32, 64), narrow: Count = 16) -> None:
        super().__init__()
        if len(shape) != 3 or any(side < 4 or side % 4 for side in shape[1:]):
            raise ValueError(
                f"pictures of shape {tuple(shape)}: this autoencoder halves (C, H, W) twice; pass sides divisible by 4"
            )
        self.shape, self.latent = tuple(shape), check_count(latent, 1, "latent")
        (channels, height, width), (wide, wider) = shape, widths
        small = (narrow, height // 4, width // 4)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, wide, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(wide, wider, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(wider, narrow, 1), nn.ReLU(), nn.Flatten(), nn.Linear(math.prod(small), 2 * latent)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, math.prod(small)), nn.ReLU(), nn.Unflatten(1, small)),
            *(nn.Conv2d(narrow, wider, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(wider, wide, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1), nn.Sigmoid()),
        )
        self.log_std = nn.Parameter(torch.tensor(-2.0))

    @checked
    def encode(self, x: Pictures) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | x), (N, latent) each, of pictures (N, C, H, W)."""
        check_examples(x)
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but the vae was made for pictures {self.shape}; "
                "pass the vae of this data set"
            )
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    @checked
    def decode(self, z: Maps) -> Tensor:
        """Return the mean of p(x | z), pictures (N, C, H, W) in [0, 1], of latents (N, latent)."""
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ValueError(f"z has shape {tuple(z.shape)}; pass latents (N, {self.latent})")
        return self.decoder(z)

    @checked
    def elbo(self, x: Pictures, noise: Maps) -> Tensor:
        """Lower bound on log p(x) of each picture, (N,), in nats: log p(x | z) - KL(q(z | x) | p(z)).

        A density over pixels in [0, 1] can exceed 1, so the bound can be above 0.

        Args:
            x: pictures (N, C, H, W).
            noise: standard normal numbers (N, latent); z is mean + std * noise.
        """
        mean, log_var = self.encode(x)
        check_alike(noise=noise, latents=mean)
        decoded = self.decode(mean + (log_var / 2).exp() * noise)
        error = ((x - decoded) / self.log_std.exp()).square()
        likelihood = -0.5 * (error + 2 * self.log_std + math.log(2 * math.pi)).flatten(1).sum(1)
        return likelihood - kl_from_prior(mean, log_var)


@checked
def kl_from_prior(mean: Maps, log_var: Maps) -> Tensor:
    """Divergence of N(mean, exp(log_var)) from N(0, 1), summed over latents: (N,), in nats; inputs (N, latent)."""
    check_alike(mean=mean, log_var=log_var)
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


@checked
def fit_vae(
    vae: PictureVAE, train: Examples, recipe: VAERecipe, *, seed: Seed = 0, progress: bool = True
) -> pd.DataFrame:
    """Train an autoencoder in place, to the largest evidence lower bound of the training pictures.

    Args:
        vae: what to train; it ends on the CPU.
        train: examples whose x are pictures in [0, 1]; labels are not used.
        recipe: how; its sizes are not used here.
        seed: of the order and the noise. The global generator is left as it was.
        progress: show a bar over epochs.

    Returns:
        One row per epoch: epoch, train_loss (minus the bound, in nats per example), seconds.

    Raises:
        TypeError, ValueError: no `Examples`, too few of them, or pictures of another shape.
        FloatingPointError: the loss became infinite or NaN.
    """
    check_parts(train, train)
    stream, where = generator_of(seed, 1), device()
    vae.to(where)
    schedule_of = Recipe(
        epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate, weight_decay=0.0
    )
    optimiser, schedule = one_cycle(vae.parameters(), schedule_of, len(train))
    history = []
    for epoch in tqdm(range(1, recipe.epochs + 1), desc=f"vae {train.name}", disable=not progress, leave=False):
        started, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(train), generator=stream).split(recipe.batch_size):
            noise = torch.randn(len(batch), vae.latent, generator=stream)
            loss = -vae.elbo(train.x[batch].to(where), noise.to(where)).mean()
            total += loss.item() * len(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1000.0)  # a bound summed over pixels has rare, huge slopes
            optimiser.step()
            schedule.step()
        if not math.isfinite(total):
            raise FloatingPointError(f"training diverged in epoch {epoch} (loss {total}); lower learning_rate")
        seconds = time.perf_counter() - started
        history.append({"epoch": epoch, "train_loss": total / len(train), "seconds": seconds})
    vae.to("cpu").zero_grad(set_to_none=True)
    return pd.DataFrame(history)


@checked
def train_or_load_vae(
    dataset: str, *, preset: str = "full", seed: Seed = 0, retrain: bool = False, progress: bool = True
) -> PictureVAE:
    """Return a trained autoencoder: from its checkpoint where there is one of the same recipe, else by training.

    Checkpoints are looked for, and written, where `train_or_load` does so.

    Args:
        dataset: a name of `VAE_RECIPES`.
        preset: "full", the recipe; "quick", 10,000 examples and 3 epochs where the data is not embedded.
        seed: of the initial weights and of the training.
        retrain: train anew even where there is a checkpoint. `XUQ_RETRAIN=1` does so for a whole run.
        progress: show a bar over epochs.

    Raises:
        ValueError: unknown data set or preset.
        CheckpointError: a checkpoint that is damaged, or another's.
    """
    recipe = vae_recipe_for(dataset, preset)
    short = "-quick" if recipe != VAE_RECIPES[dataset] else ""
    name = f"{dataset}{short}-vae-seed{seed}"
    shape = load(dataset, split="test", num_examples=1).x.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, 0))
        vae = PictureVAE(shape, latent=recipe.latent, widths=recipe.widths, narrow=recipe.narrow)
    path = None if retrain else find_checkpoint(name, asdict(recipe), dataset=dataset, seed=seed)
    tensors = _trained(vae, name, dataset, recipe, seed, progress) if path is None else load_checkpoint(path)[0]
    vae.load_state_dict(tensors)
    return vae.eval()


def _trained(
    vae: PictureVAE, name: str, dataset: str, recipe: VAERecipe, seed: int, progress: bool
) -> Mapping[str, Tensor]:
    """Train, round, score and keep an autoencoder; return its tensors."""
    train = load(dataset, split="train", num_examples=recipe.num_train, seed=seed)
    history = fit_vae(vae, train, recipe, seed=seed, progress=progress)
    tensors = rounded(vae.state_dict())
    vae.load_state_dict(tensors)
    scores: dict[str, float] = {}
    for split in ("validation", "test"):
        scores |= {f"{split}_{key}": value for key, value in vae_scores(vae, load(dataset, split=split).x).items()}
    manifest = {"recipe": asdict(recipe), "dataset": dataset, "train_digest": train.digest, "seed": seed}
    manifest |= {"scores": scores, "seconds": round(history.seconds.sum(), 1)}
    manifest |= {"device": str(device()), "versions": versions()}
    save_checkpoint(name, tensors, manifest, folders()[-1])
    return tensors


@checked
def vae_recipe_for(dataset: str, preset: str = "full") -> VAERecipe:
    """Return a data set's recipe; "quick" shortens it as `recipe_for` does."""
    check_choice(dataset, tuple(VAE_RECIPES), "dataset of an autoencoder")
    check_choice(preset, ("quick", "full"), "preset")
    recipe = VAE_RECIPES[dataset]
    return recipe if preset == "full" or dataset in EMBEDDED else replace(recipe, epochs=3, num_train=10_000)


@torch.no_grad()
@checked
def vae_scores(vae: PictureVAE, x: Pictures, *, seed: Seed = 0) -> dict[str, float]:
    """Say how well an autoencoder knows pictures x, (N, C, H, W).

    Returns:
        elbo, the mean bound in nats per example; kl, its mean divergence; and of decode(encode(x).mean) the root mean
        square error `rmse` and the mean absolute error `mae` per pixel and channel, in [0, 1].
    """
    stream, rows = generator_of(seed, 2), []
    for part in x.split(512):
        mean, log_var = vae.encode(part)
        noise = torch.randn(mean.shape, generator=stream, dtype=torch.float64).to(mean)
        error = (vae.decode(mean) - part).flatten(1)
        found = vae.elbo(part, noise), kl_from_prior(mean, log_var), error.square().mean(1), error.abs().mean(1)
        rows.append(torch.stack(found))
    elbo, kl, mse, mae = torch.cat(rows, 1).double().mean(1).tolist()
    return {"elbo": elbo, "kl": kl, "rmse": mse**0.5, "mae": mae}
