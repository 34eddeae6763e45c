"""Train once, load ever after."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_choice, check_count
from xuqlib.device import device
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.fixing import seed_of
from xuqlib.posteriors.laplace import Laplace
from xuqlib.posteriors.mc_dropout import MCDropout
from xuqlib.posteriors.random_weights import Flipout, MCDropConnect
from xuqlib.study.checked import Count, Seed, checked
from xuqlib.study.data.loading import Examples, load
from xuqlib.study.files import versions
from xuqlib.study.resuming import fingerprint
from xuqlib.study.training.checkpoints import find_checkpoint, folders, load_checkpoint, rounded, save_checkpoint
from xuqlib.study.training.fitting import fit, loss_of, predict
from xuqlib.study.training.fitting_together import fit_together
from xuqlib.study.training.recipes import DROPOUT_EVERYWHERE, Recipe, build, recipe_for

Stored = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and manifest
# The last three are random in every layer, or behind every block, instead of at the output alone.
METHODS = (
    *("deep_ensemble", "mc_dropout", "mc_dropconnect", "flipout", "laplace"),
    *("mc_dropout_all", "mc_dropconnect_all", "flipout_all"),
)


@checked
def train_or_load(
    method: str,
    dataset: str,
    *,
    preset: str = "full",
    seed: Seed = 0,
    placement: str | None = None,
    num_members: Count = 5,
    recipe: Recipe | None = None,
    retrain: bool = False,
    progress: bool = True,
) -> Posterior:
    """Return a trained posterior: from its checkpoint where there is one of the same recipe, else by training.

    Published checkpoints are looked at first, then those of this machine's cache, where a new one is written. An
    ensemble trains the members it has no checkpoint of: MLPs together, others one after another, so an interrupted
    training goes on with the next. The network of Laplace is the ensemble's first member.

    Args:
        method: "deep_ensemble", "mc_dropout", "mc_dropconnect", "flipout" or "laplace"; "mc_dropout_all",
            "mc_dropconnect_all" and "flipout_all" are those with `placement="all"`.
        dataset: a name of `data.load` that has a recipe.
        preset: "full", the recipe; "quick", a shortened one where the data is not embedded.
        seed: of the initial weights and of the training.
        placement: "last" or "all": which layers are random. Ensembles and Laplace know only "last"; for the others it
            is the default, but MC-Dropout of transformers, one-dimensional networks and U-Nets has "all".
        num_members: of the ensemble.
        recipe: another than the data set's own, as it stands at every preset; its checkpoints bear its network's name.
        retrain: train anew even where there is a checkpoint. `XUQ_RETRAIN=1` does so for a whole run.

    Raises:
        ValueError: unknown method, data set, preset or placement.
        CheckpointError: a checkpoint that is damaged, or another's.

    Warns:
        UserWarning: a network is trained anew although there is a checkpoint; the message says why.
    """
    check_choice(method, METHODS, "method")
    if method.endswith("_all"):
        if placement == "last":
            raise ValueError(f"{method} has placement 'all', but placement is 'last'; leave one of the two out")
        method, placement = method.removesuffix("_all"), "all"
    job = _Job(dataset, preset, seed, retrain, progress, recipe)
    if placement is None:
        everywhere = method == "mc_dropout" and job.recipe.network in DROPOUT_EVERYWHERE
        placement = "all" if everywhere else "last"
    check_choice(placement, ("last", "all"), "placement")
    check_count(num_members, 1, "num_members")
    if placement == "all" and method in ("deep_ensemble", "laplace"):
        raise ValueError(f"{method} has no placement 'all'; it is for mc_dropout, mc_dropconnect and flipout")
    if method == "deep_ensemble":
        members = job.trained("plain", "last", num_members)
        ensemble = DeepEnsemble([member.network for member in members])
        ensemble.noise_variance = sum(member.noise_variance for member in members) / num_members
        ensemble.output = job.output
        return ensemble
    if method == "laplace":
        posterior = job.laplace(*job.trained("plain", "last"))
        posterior.output = job.output
        return posterior
    return job.trained(method, placement)[0]


@dataclass(frozen=True)
class _Job:
    """What `train_or_load` needs to know at every step."""

    dataset: str
    preset: str
    seed: int
    retrain: bool
    progress: bool
    given: Recipe | None = None

    @property
    def recipe(self) -> Recipe:
        return self.given or recipe_for(self.dataset, self.preset)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.recipe.options)

    @cached_property
    def output(self) -> str | None:
        """What the networks answer, where it is no logits."""
        if self.options.get("variance"):
            return "mean_variance"
        return "regression" if load(self.dataset, split="test", num_examples=1).task == "regression" else None

    def name(self, kind: str) -> str:
        own = "-quick" if self.recipe != recipe_for(self.dataset) else ""
        short = f"-{self.given.network}" if self.given else own
        return f"{self.dataset}{short}-{kind}-seed{self.seed}"

    def part(self, split: str) -> Examples:
        num_examples = self.recipe.num_train if split == "train" else None
        return load(self.dataset, split=split, num_examples=num_examples, seed=self.seed)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest of every network of this job says."""
        return {"recipe": asdict(self.recipe), "dataset": self.dataset, "seed": self.seed}

    def stored(self, name: str, own: Mapping[str, Any]) -> Stored | None:
        # A recipe that changed since makes a checkpoint of the old one stale.
        path = None if self.retrain else find_checkpoint(name, **self.facts, **own)
        return None if path is None else load_checkpoint(path)

    def trained(self, kind: str, placement: str, num_members: int = 1) -> list[Posterior]:
        """Load or train one network per member; "plain" gives ensembles of one."""
        suffixes = [f"-member{member}" if kind == "plain" else f"-{placement}" for member in range(num_members)]
        names = [self.name(kind + suffix) for suffix in suffixes]
        owns = [
            {"member": member} | ({} if kind == "plain" else {"placement": placement}) for member in range(num_members)
        ]
        posteriors = [self.untrained(kind, placement, member) for member in range(num_members)]
        looked_up = ((member, self.stored(names[member], owns[member])) for member in range(num_members))
        stored = {member: found for member, found in looked_up if found is not None}
        missing = {member: posteriors[member] for member in range(num_members) if member not in stored}
        together = self.recipe.network == "mlp" and not self.options.get("variance")
        groups = [missing] if together else [{member: posterior} for member, posterior in missing.items()]
        for group in filter(None, groups):
            stored |= self.train(group, names, owns)
        for member, posterior in enumerate(posteriors):
            tensors, manifest = stored[member]
            posterior.network.load_state_dict(tensors)
            posterior.network.eval()
            posterior.noise_variance = manifest["noise_variance"]
            posterior.output = self.output
        return posteriors

    def untrained(self, kind: str, placement: str, member: int) -> Posterior:
        shapes = load(self.dataset, split="test", num_examples=1)  # the smaller file, needed anyway
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, member))
            dropout = self.options.get("dropout", 0.25) if kind == "mc_dropout" else 0.0
            network = build(self.recipe, shapes, dropout=dropout, placement=placement)
        if kind == "mc_dropconnect":
            return MCDropConnect(network, placement=placement)
        if kind == "flipout":
            return Flipout(network, placement=placement)
        return MCDropout(network) if kind == "mc_dropout" else DeepEnsemble([network])

    def train(
        self, posteriors: Mapping[int, Posterior], names: Sequence[str], owns: Sequence[Mapping[str, Any]]
    ) -> dict[int, Stored]:
        """Train and keep members, by number: one with `fit`, several with `fit_together`."""
        started = time.perf_counter()
        train, validation, test = (self.part(split) for split in ("train", "validation", "test"))
        seeds = [seed_of(self.seed, member) for member in posteriors]
        if len(posteriors) > 1:
            networks = [posterior.network for posterior in posteriors.values()]
            histories = fit_together(networks, train, validation, self.recipe, seeds=seeds, progress=self.progress)
        else:
            (alone,) = posteriors.values()
            histories = [fit(alone, train, validation, self.recipe, seed=seeds[0], progress=self.progress)]
        facts = self.facts | {
            "train_digest": train.digest,
            "seconds": round((time.perf_counter() - started) / len(posteriors), 1),  # each member's share
            "device": str(device()),
            "versions": versions(),
        }
        kept: dict[int, Stored] = {}
        for (member, posterior), history in zip(posteriors.items(), histories, strict=True):
            manifest = {**facts, **owns[member], "epochs_run": len(history)}
            kept[member] = _keep(posterior, names[member], (validation, test), manifest)
        return kept

    def laplace(self, plain: Posterior) -> Laplace:
        posterior, name = Laplace(plain.network), self.name("laplace-last")
        own = {"placement": "last", "network": fingerprint(dict(sorted(plain.network.state_dict().items())))}
        stored = self.stored(name, own)
        if stored is None:
            train = self.part("train")
            pairs = torch.utils.data.TensorDataset(train.x, train.y)
            posterior.fit(torch.utils.data.DataLoader(pairs, batch_size=512))
            tensors = {f"{key}/{k}": v for key, factor in posterior.factors.items() for k, v in factor.items()}
            manifest = {**self.facts, **own, "train_digest": train.digest}
            manifest |= {"noise_variance": posterior.noise_variance, "versions": versions()}
            save_checkpoint(name, tensors, manifest, folders()[-1])
            return posterior
        tensors, manifest = stored
        for key, value in tensors.items():
            parameter, factor = key.split("/")
            posterior.factors.setdefault(parameter, {})[factor] = value
        posterior.noise_variance = manifest["noise_variance"]
        return posterior


def _keep(posterior: Posterior, name: str, parts: Iterable[Examples], manifest: dict[str, Any]) -> Stored:
    """Round a trained network, score it on the parts, and write its checkpoint."""
    tensors = rounded(posterior.network.state_dict())
    posterior.network.load_state_dict(tensors)
    scores = {f"{part.split}_{key}": value for part in parts for key, value in _score(posterior, part)}
    # A network that answers with a variance says itself how noisy its targets are.
    is_plain = "validation_nll" not in scores
    manifest |= {"scores": scores, "noise_variance": scores.get("validation_mse", 0.0) if is_plain else 0.0}
    save_checkpoint(name, tensors, manifest, folders()[-1])
    return tensors, manifest


def _score(posterior: Posterior, examples: Examples) -> list[tuple[str, float]]:
    output = predict(posterior.network, examples.x)
    if examples.task == "regression":
        mean = output[0] if isinstance(output, tuple) else output
        mse = float(F.mse_loss(mean, examples.y))
        found = [("mse", mse), ("r2", 1 - mse / float(examples.y.var(correction=0)))]
        return [*found, ("nll", float(loss_of(output, examples.y)))] if isinstance(output, tuple) else found
    found = [
        ("accuracy", float((output.argmax(1) == examples.y).float().mean())),
        ("nll", float(F.cross_entropy(output, examples.y))),
    ]
    return [*found, ("iou", _overlap(output.argmax(1), examples.y))] if examples.task == "segmentation" else found


def _overlap(predicted: Tensor, y: Tensor) -> float:
    """Intersection over union of each class but the first, over all pixels, and their mean."""
    classes = range(1, int(y.max()) + 1)
    shares = [((predicted == k) & (y == k)).sum() / ((predicted == k) | (y == k)).sum() for k in classes]
    return float(torch.stack(shares).mean())
