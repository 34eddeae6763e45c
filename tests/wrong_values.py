"""Every public callable, one valid call of each, and every wrong value of every kind of argument.

Callables are found by walking the packages, kinds by the names of parameters, so a new function is tested by existing:
a parameter that no kind knows stops the test with a sentence that says what to add.

    python tests/wrong_values.py            counts of outcomes per module
    python tests/wrong_values.py deletion   and what is not clear, of callables whose name holds a word
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import linecache
import math
import pkgutil
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from core_networks import randn, seeded, table_mlp, tabular
from matplotlib.figure import Figure
from torch import Tensor, nn, tensor

import xuqlib
from xuqlib import (
    DeepEnsemble,
    Draws,
    ExplanationDistribution,
    Flipout,
    Laplace,
    MCDropConnect,
    MCDropout,
    Notebook,
    Recipe,
    explain,
    gradient,
    load,
    mini_vgg,
    smoothgrad,
)
from xuqlib.scale.saved import save_draws
from xuqlib.scale.store import StoredExplanations
from xuqlib.scale.stream import explain_dataset
from xuqlib.study.human_study.pairs import Pair, PairStudy, Showing
from xuqlib.study.intervals import Estimate
from xuqlib.study.judging.analytic import AnalyticDistribution
from xuqlib.study.judging.blurring import BlurringCurves
from xuqlib.study.judging.clue import Counterfactuals
from xuqlib.study.judging.coverage import Forecast
from xuqlib.study.record import CLAIM_COLUMNS
from xuqlib.study.training.vae import PictureVAE, VAERecipe
from xuqlib.uncertainty import UncertaintyOf

LIBRARY = str(Path(xuqlib.__file__).parent)

# What is no promise to users, and why: modules, classes or functions.
BEHIND = "reached only through a public function, which has checked what it was given"
RECORD = "what a function returns, a record of values; whoever reads it checks it"
COMMANDS = "files and processes of run_all.py, which has tests of its own for damage and wrong arguments"
TORCH = "called by torch with what another layer answered"
INTERNAL = {
    "checks": "the checks themselves",
    "conformal.ExplanationInterval.__init__": RECORD,
    "device": "takes no argument",
    "study.predictions.load_ipython_extension": "called by IPython with its own shell",
    "fast": BEHIND,
    "guided": BEHIND,
    "inputs.Inputs.": BEHIND,
    "inputs.as_inputs": BEHIND,
    "moments": BEHIND,
    "outputs": BEHIND,
    "path": BEHIND,
    "views": BEHIND,
    "explain.mean_probs": BEHIND,
    "explain.most_probable": BEHIND,
    "explainers.adapters.seeded": BEHIND,
    "explainers.baselines.expand": BEHIND,
    "explainers.declaring": BEHIND,
    "explainers.fullgrad.FullGradTerms": RECORD,
    "explainers.fullgrad.LogitGraph": BEHIND,
    "explainers.fullgrad.logit_graph": BEHIND,
    "explainers.layer_maps": BEHIND,
    "study.judging.similarity.spearman_rows": BEHIND,
    "posteriors.base.WeightPosterior.weights": BEHIND,
    "posteriors.base.check_draws": "the checks themselves",
    "posteriors.base.check_network": "the checks themselves",
    "posteriors.base.seed_on": BEHIND,
    "posteriors.draws.Draws.": BEHIND,
    "posteriors.draws.copy_with": BEHIND,
    "posteriors.draws.detached_copy": BEHIND,
    "posteriors.draws.inner": BEHIND,
    "posteriors.draws.rebuilt": BEHIND,
    "posteriors.draws.fixed_draws": BEHIND,
    "posteriors.draws.stacked": BEHIND,
    "posteriors.draws.trainable_copy": BEHIND,
    "posteriors.fixing": BEHIND,
    "posteriors.kinds": BEHIND,
    "posteriors.laplace.Laplace.weights": BEHIND,
    "posteriors.mc_dropout.can_drop": BEHIND,
    "posteriors.random_weights.DropConnectLayer": BEHIND,
    "posteriors.random_weights.FlipoutLayer": BEHIND,
    "posteriors.shared": BEHIND,
    "posteriors.trial": BEHIND,
    "posteriors.base.WeightPosterior.drawn": BEHIND,
    "posteriors.unrolled": BEHIND,
    "scale.batches": BEHIND,
    "scale.cluster": BEHIND,
    "scale.sources": BEHIND,
    "scale.store.Store": BEHIND,
    "scale.store.Variable": BEHIND,
    "scale.store.needs": BEHIND,
    "study.check": COMMANDS,
    "study.checked": "the checks themselves",
    "study.data.download": BEHIND,
    "study.address": COMMANDS,
    "study.editions": COMMANDS,
    "study.data.fer": BEHIND,
    "study.data.planted.background": BEHIND,
    "study.data.planted.colours": BEHIND,
    "study.data.planted.deal": BEHIND,
    "study.data.planted.distract": BEHIND,
    "study.data.planted.labels": BEHIND,
    "study.data.planted.Planted": RECORD,
    "study.data.planted_table.PlantedTable": RECORD,
    "study.data.readers": BEHIND,
    "study.data.signals": BEHIND,
    "study.data.tables": BEHIND,
    "study.data.words": BEHIND,
    "study.figures.charts.Picture": "matplotlib's own",
    "study.figures.charts.styled": "decorates the charts",
    "study.figures.maps.picture_png": BEHIND,
    "study.human_study.pairs.chance": "takes whatever has a text",
    "study.human_study.serving": "what a command and a browser call, with tests of their own",
    "study.judging.analytic.AnalyticDistribution.__init__": RECORD,
    "study.judging.clue.Autoencoder": "says what a user's own has to have",
    "study.judging.coverage.Forecast": RECORD,
    "study.judging.recalibration.Repair": RECORD,
    "study.judging.variance.VarianceSplit": RECORD,
    "study.names": "makes text of whatever it is given",
    "study.verdicts.Chosen.__init__": RECORD,
    "study.verdicts.found": COMMANDS,
    "study.verdicts.with_findings": COMMANDS,
    "study.record.csv_bytes": COMMANDS,
    "study.files.figures_folder": COMMANDS,
    "study.files.index_problems": COMMANDS,
    "study.files.is_running": COMMANDS,
    "study.record.parquet_bytes": COMMANDS,
    "study.files.read_index": COMMANDS,
    "study.files.read_object": COMMANDS,
    "study.files.read_published": COMMANDS,
    "study.files.remove_temporaries": COMMANDS,
    "study.files.replace_file": COMMANDS,
    "study.files.seal": COMMANDS,
    "study.files.sync_folder": COMMANDS,
    "study.files.update_index": COMMANDS,
    "study.files.whole_recipes": COMMANDS,
    "study.report.lights": BEHIND,
    "study.report.measuring": BEHIND,
    "study.report.page": BEHIND,
    "study.report.reading": BEHIND,
    "study.resuming": COMMANDS,
    "study.runs": COMMANDS,
    "study.site": COMMANDS,
    "study.training.checkpoints": BEHIND,
    "study.training.fitting.augmented_together": BEHIND,
    "study.training.fitting.loss_of": BEHIND,
    "study.training.fitting.predict": BEHIND,
    "study.training.fitting.targets_of": BEHIND,
    "study.training.resnet18.train_plainly": BEHIND,
    "study.training.fitting.check_parts": "the checks themselves",
    "study.training.fitting.one_cycle": BEHIND,
    "study.training.fitting_together": BEHIND,
    "study.training.mobilenet.InvertedResidual": BEHIND,
    "study.training.networks.Attention": BEHIND,
    "study.training.networks.TransformerBlock": BEHIND,
    "superpixels.check_segments": "the checks themselves",
    "superpixels.filled": BEHIND,
    "ua_backprop.logit_shares": BEHIND,
    "ua_backprop.settle": BEHIND,
    "uncertainty.Uncertainties.__init__": RECORD,
    "uncertainty.UncertaintyOf.at": BEHIND,
    "uncertainty.columns_of": BEHIND,
    "uncertainty.uncertainty_shares": BEHIND,
    "uncertainty.without_channels": BEHIND,
}


def is_internal(name: str) -> bool:
    """Whether it stands in INTERNAL, or behind something that does; a full stop at an end leaves the constructor."""
    within = (known for known in INTERNAL if f"{name}.".startswith(known if known.endswith(".") else f"{known}."))
    return any(not (known.endswith(".") and name.endswith("__init__")) for known in within)


def places() -> Iterator[tuple[str, str]]:
    """Modules without `xuqlib.`, each with "" and with what it defines, methods as `Class.method`."""
    for info in pkgutil.walk_packages(xuqlib.__path__, "xuqlib."):
        module, name = None if info.name.endswith("__main__") else importlib.import_module(info.name), info.name[7:]
        yield name, ""
        for key, value in vars(module).items() if module else ():
            yield name, key
            if inspect.isclass(value):
                yield from ((name, f"{key}.{each}") for each in vars(value))


def public() -> dict[str, Callable[..., Any]]:
    """Functions, classes and methods by their name without `xuqlib.`; a method as `module.Class.method`."""
    found: dict[str, Callable[..., Any]] = {}
    for info in pkgutil.walk_packages(xuqlib.__path__, "xuqlib."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            place = f"{info.name.removeprefix('xuqlib.')}.{name}"
            if inspect.isfunction(value) or hasattr(value, "cache_info"):
                found[place] = value
            elif inspect.isclass(value) and not issubclass(value, Exception):
                if not (issubclass(value, tuple) or inspect.isabstract(value)):
                    found[f"{place}.__init__"] = value
                for each, method in vars(value).items():
                    if inspect.isfunction(method) and not each.startswith("_") and each != "forward":
                        found[f"{place}.{each}"] = method
    return {name: value for name, value in sorted(found.items()) if not is_internal(name)}


# Values of a small world: 4 pictures of 3 x 8 x 8, 3 classes, 3 draws; 4 rows of 5 features.


def net() -> nn.Module:
    build = lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3, dropout=0.3)  # noqa: E731
    return seeded(build, dtype=torch.float32).eval()


def nets() -> list[nn.Module]:
    """Three that explain differently."""
    found = [net(), net(), net()]
    with torch.no_grad():
        for number, network in enumerate(found):
            for weight in network.parameters():
                weight.mul_(1 + number / 10)
    return found


def draws() -> Draws:
    return MCDropout(net()).sample(3)


def table_net() -> nn.Module:
    return seeded(table_mlp, dtype=torch.float32).eval()


def maps() -> Tensor:
    return randn(4, 8, 8, dtype=torch.float32).abs() / 10


def pictures() -> Tensor:
    return randn(4, 3, 8, 8, dtype=torch.float32).sigmoid()


def masks() -> Tensor:
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[:, 2:5, 2:5] = True
    return mask


def target() -> Tensor:
    return tensor([0, 1, 2, 0])


def logits() -> Tensor:
    return randn(3, 4, 3, dtype=torch.float32)


def picture_order() -> Tensor:
    return torch.arange(64).repeat(4, 1)


@cache
def explanation() -> ExplanationDistribution:
    return explain(draws(), gradient, pictures(), target(), progress=False)


def frame() -> pd.DataFrame:
    """Two posteriors, two seeds, two classes of three examples each."""
    rows = pd.MultiIndex.from_product([["one", "two"], [0, 1], range(6)], names=["posterior", "seed", "example"])
    table = rows.to_frame(index=False)
    stream = np.random.default_rng(0)
    for name in ("value", "other", "gain", "mean", "std", "confidence", "entropy"):
        table[name] = stream.random(len(table))
    table["low"], table["high"] = table["value"] - 0.1, table["value"] + 0.1
    table["class"] = np.where(table["example"] < 3, "cat", "dog")
    table["explainer"] = np.where(table["example"] % 2, "gradient", "lime")
    table["feature"], table["n"] = table["class"], 3
    table["answer"] = np.where(table["example"] % 2, "right", "wrong")
    return table


def claims() -> pd.DataFrame:
    row = dict.fromkeys(CLAIM_COLUMNS, "") | {"claim": "C1", "dataset": "planted", "verdict": "holds", "value": 1.0}
    return pd.DataFrame([{"notebook": "04", "row": 1, **row}])


def facts() -> dict[str, Any]:
    return {"metric": {"a": [1.0, 2, 3, 4], "b": [2.0, 1, 4, 3]}}


def pair(number: int = 0) -> Pair:
    return Pair(f"pair {number}", number, "a", "b", "caption", {"metric": (1.0, 2.0)}, b"", b"", b"")


@cache
def temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="xuq-wrong-")


def scratch() -> Path:
    return Path(tempfile.mkdtemp(dir=temporary().name))


@cache
def pair_study() -> PairStudy:
    study = PairStudy(scratch() / "study.sqlite", [pair(0), pair(1), pair(2)])
    for shown in study.queue("ada"):
        study.answer("ada", shown, "left", 1.0)
    return study


@cache
def notebook() -> Notebook:
    study = Notebook("04", preset="quick", seed=0, folder=scratch())
    study.claim("it holds", True, value=1.0)
    return study


@cache
def vae() -> PictureVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PictureVAE((3, 8, 8), latent=2, widths=(2, 2), narrow=2).eval()


@cache
def stored_draws() -> Draws:
    return draws()


@cache
def saved_draws() -> Path:
    path = scratch() / "draws"
    save_draws(stored_draws(), path)
    return path


@cache
def store() -> Path:
    """Explanations of `pictures()` on disk."""
    path = scratch() / "store"
    explain_dataset(stored_draws(), gradient, pictures(), to=path, target=target(), progress=False)
    return path


def forecast() -> Forecast:
    return Forecast(randn(4, 6), randn(4, 6, seed=1).abs() + 0.1)


def curves() -> BlurringCurves:
    shares = tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    return BlurringCurves(shares, randn(4, 3).abs() + 0.1, randn(4, 3).sigmoid(), torch.ones(4, 3, dtype=torch.bool))


def counterfactuals() -> Counterfactuals:
    numbers = torch.ones(4, dtype=torch.float64)
    return Counterfactuals(pictures(), torch.zeros(4, 2), pictures(), numbers, numbers, numbers)


def chart(rows: pd.DataFrame, chosen: Any) -> tuple[Figure, str]:
    figure = Figure(figsize=(1, 1))
    figure.subplots()
    return figure, "a sentence"


def quantus_like(*, model: Any, x_batch: Any, y_batch: Any, explain_func: Any, **_: Any) -> float:
    return float(explain_func(model, x_batch, y_batch).sum())


def recipe() -> Recipe:
    return Recipe(epochs=1, batch_size=8)


# One valid value of each parameter, by its name; a value that depends on the callable stands in CALLS.
VALID: dict[str, Callable[[], Any]] = {
    "a": maps,
    "answers": lambda: pair_study().answers(),
    "attribution": lambda: pictures() - 0.5,
    "b": lambda: maps().flip(0),
    "batch_size": lambda: 4,
    "budget": lambda: 0.5,
    "budgets": lambda: (0.5, 1.0),
    "by": lambda: ["posterior"],
    "captions": lambda: ["1", "2", "3", "4"],
    "choice": lambda: "left",
    "claims": claims,
    "clean": lambda: frame()[["value", "other", "entropy"]],
    "column_titles": lambda: ("a", "b"),
    "columns": lambda: ["value", "other"],
    "counts": lambda: (1,),
    "curves": curves,
    "cv": maps,
    "dataset": lambda: "digits",
    "delta": lambda: 1.0,
    "draw": lambda: chart,
    "draws": draws,
    "e": explanation,
    "epsilon": lambda: 0.1,
    "estimate": lambda: Estimate(1.0, 0.5, 1.5, "95 % over examples", n=4),
    "examples": lambda: load("digits", num_examples=12)[:4],
    "expected": forecast,
    "explainer": lambda: gradient,
    "facts": facts,
    "fewest": lambda: 1,
    "figure": lambda: chart(frame(), {})[0],
    "found": counterfactuals,
    "frame": frame,
    "held_out": lambda: randn(2, 4, 6, seed=2),
    "holds": lambda: True,
    "kind": lambda: "epistemic",
    "labels": lambda: ("x", "y"),
    "level": lambda: 0.9,
    "logits": logits,
    "maps": maps,
    "mask": masks,
    "masks": masks,
    "mean": pictures,
    "method": lambda: "mc_dropout",
    "metric": lambda: "metric",
    "n": lambda: 10,
    "name": lambda: "cat",
    "network": net,
    "num_copies": lambda: 2,
    "num_draws": lambda: 2,
    "num_examples": lambda: 2,
    "num_repeats": lambda: 2,
    "num_resamples": lambda: 5,
    "num_samples": lambda: 4,
    "num_starts": lambda: 2,
    "num_steps": lambda: 2,
    "odd": lambda: frame()[["value", "other", "entropy"]] + 0.1,
    "order": picture_order,
    "others": lambda: None,
    "overlap": lambda: randn(4).sigmoid(),
    "path": lambda: scratch() / "file",
    "posterior": lambda: MCDropout(net()),
    "preset": lambda: "quick",
    "probs": lambda: logits().softmax(-1).mean(0),
    "progress": lambda: False,
    "rater": lambda: "ada",
    "ratings": lambda: [[1, 2, 1, None], [1, 2, 2, 1]],
    "recipe": recipe,
    "reference": lambda: "blurred",
    "row_titles": tuple,
    "rows": lambda: [[pictures()[0], maps()[0]]],
    "scores": lambda: randn(4, 5).abs(),
    "seed": lambda: 0,
    "segments": lambda: torch.arange(64).view(1, 8, 8).repeat(4, 1, 1) // 16,
    "shape": lambda: (8, 8),
    "share": lambda: 0.5,
    "shown": lambda: Showing(pair(), 1, False),
    "size": lambda: 3,
    "slug": lambda: "a_figure",
    "statement": lambda: "it holds",
    "std": pictures,
    "study": pair_study,
    "target": target,
    "train": lambda: tabular(16),
    "vae": vae,
    "validation": lambda: tabular(8, seed=1),
    "value": lambda: "value",
    "values": lambda: randn(4, 3, 8, 8, dtype=torch.float32),
    "x": pictures,
}

Calls = dict[str, dict[str, Callable[[], Any]]]
CALLS: Calls = {
    "conformal.ConformalExplainer.__init__": {"explainer": lambda: "gradient", "posterior": lambda: MCDropConnect},
    "conformal.ConformalExplainer.fit": {
        "networks": nets,
        "x": lambda: torch.cat([pictures(), pictures().flip(0), pictures().flip(3)]),
        "target": lambda: target().repeat(3),
        "weights": lambda: torch.ones(12),
        "conservative": lambda: False,
    },
    "conformal.ConformalExplainer.interval": {"explained": net, "x": pictures, "band": lambda: "feature"},
    "distribution.ExplanationDistribution.__init__": {
        "values": lambda: explanation().values,
        "explainer": lambda: "gradient",
        "posterior": lambda: "MCDropout",
    },
    "distribution.ExplanationDistribution.cv": {"kind": lambda: "paper"},
    "distribution.ExplanationDistribution.undefined_share": {"kind": lambda: "paper"},
    "distribution.ExplanationDistribution.quantile": {"q": lambda: 0.5},
    "explainers.adapters.from_captum": {"method": lambda: "Saliency"},
    "explainers.baselines.make_baseline": {"kind": lambda: "black"},
    "explainers.fullgrad.saliency": {
        "terms": lambda: importlib.import_module("xuqlib.explainers.fullgrad").fullgrad_terms(
            net(), pictures(), target()
        )
    },
    "inputs.Inputs.__init__": {"given": pictures},
    "study.judging.orderings.importance": {"statistic": lambda: "mean"},
    "metrics.deletion.perturbed": {"kind": lambda: "deletion"},
    "study.judging.similarity.spearman": {"a": lambda: maps().flatten(1), "b": lambda: maps().flip(0).flatten(1)},
    "posteriors.deep_ensemble.DeepEnsemble.__init__": {"members": lambda: [net(), net()]},
    "posteriors.deep_ensemble.DeepEnsemble.sample": {"num_draws": lambda: None},
    "posteriors.draws.Draws.__init__": {"networks": lambda: [net()], "posterior": lambda: "mine"},
    "posteriors.laplace.Laplace.fit": {"loader": lambda: [(pictures(), target())]},
    "posteriors.mc_dropout.MCDropout.sample": {"masks": lambda: "fixed"},
    "scale.saved.load_draws": {"path": saved_draws, "network": net},
    "scale.saved.save_draws": {"draws": stored_draws, "path": saved_draws},
    "scale.store.StoredExplanations.__init__": {"path": store},
    "scale.store.open_explanations": {"path": store},
    "scale.stream.explain_dataset": {
        "data": pictures,
        "to": lambda: scratch() / "store",
        "draws": stored_draws,
        "batch_size": lambda: None,
        "overwrite": lambda: True,
    },
    "study.data.loading.Examples.__init__": {
        "name": lambda: "mine",
        "split": lambda: "test",
        "x": pictures,
        "y": target,
        "index": lambda: torch.arange(4),
        "class_names": lambda: ("a", "b", "c"),
        "masks": dict,
    },
    "study.data.loading.load": {"name": lambda: "digits", "num_examples": lambda: 12},
    "study.data.planted.generate": {"split": lambda: "validation"},
    "study.data.planted.kinds": {
        "masks": lambda: {key: value.numpy() for key, value in load("planted", num_examples=12).masks.items()}
    },
    "study.data.planted.shape": {"name": lambda: "cross"},
    "study.data.planted_pixels.generate": {"split": lambda: "validation"},
    "study.data.planted_signals.generate": {"split": lambda: "validation"},
    "study.data.planted_signals.motif": {"name": lambda: "wave"},
    "study.data.planted_table.generate": {"split": lambda: "validation"},
    "study.data.planted_words.generate": {"split": lambda: "validation"},
    "study.figures.charts.bars": {"x": lambda: "class", "y": lambda: "value", "interval": lambda: "95 %"},
    "study.figures.charts.curve": {"x": lambda: "other", "y": lambda: "value", "interval": lambda: "95 %"},
    "study.figures.charts.dots": {
        "x": lambda: "value",
        "y": lambda: "class",
        "label": lambda: "value",
        "interval": lambda: "95 %",
        "target": lambda: None,
    },
    "study.figures.choosers.class_dots": {
        "chosen": lambda: {"posterior": "one", "explainer": "lime", "statistic": "std", "class": "cat"},
        "frame": lambda: frame().assign(statistic="std").drop_duplicates(["posterior", "class", "explainer"]),
    },
    "study.figures.choosers.draw_distances": {"maps": maps},
    "study.figures.choosers.draw_step": {"maps": maps, "chosen": lambda: {"draw": 1}},
    "study.figures.choosers.explore": {"draw": lambda: chart},
    "study.figures.choosers.explore_classes": {
        "frame": lambda: frame().assign(statistic="std").drop_duplicates(["posterior", "class", "explainer"])
    },
    "study.figures.maps.draw_strip": {"columns": lambda: 2},
    "study.figures.maps.example_maps": {"maps": lambda: {"gradient": pictures() - 0.5}},
    "study.figures.maps.flat_map": {"kind": lambda: "signed", "values": lambda: pictures()[0]},
    "study.figures.maps.map_grid": {"kinds": lambda: ("picture", "signed")},
    "study.figures.maps.map_pngs": {"kind": lambda: "signed", "maps": lambda: {"gradient": maps()[0]}},
    "study.figures.maps.pixel_frame": {"maps": lambda: {"gradient": maps()[0]}},
    "study.figures.panels.panels": {
        "by": lambda: "posterior",
        "columns": lambda: 2,
        "size": lambda: (1.0, 1.0),
        "share": lambda: "xy",
        "draw": lambda: lambda axes, part: axes.plot(part["value"]),
    },
    "study.figures.rows.behind_first": {
        "by": lambda: ["posterior", "seed"],
        "frame": lambda: frame().assign(good=1),
    },
    "study.figures.rows.row_dots": {
        "frame": lambda: frame().assign(panel="p", group="g", row="r", mark="m"),
        "marks": lambda: ["m"],
        "label": lambda: "value",
        "line": lambda: 1.0,
    },
    "study.human_study.page.pairs_of": {"maps": lambda: {"a": maps(), "b": maps()}},
    "study.human_study.pairs.PairStudy.__init__": {"pairs": lambda: [pair(0), pair(1)]},
    "study.human_study.pairs.PairStudy.simulated": {"num_raters": lambda: 2, "accuracy": lambda: 0.8},
    "study.human_study.raters.alpha_interval": {"level": lambda: "nominal"},
    "study.human_study.raters.krippendorff_alpha": {"level": lambda: "nominal"},
    "study.human_study.raters.results": {"metrics": lambda: ["metric"]},
    "study.intervals.Estimate.__init__": {"value": lambda: 1.0},
    "study.intervals.Estimate.above": {"bound": lambda: 0.0},
    "study.intervals.Estimate.between": {"at_least": lambda: 0.0, "at_most": lambda: 1.0},
    "study.intervals.Estimate.over": {"rule": lambda: "mean"},
    "study.intervals.bootstrap": {"statistic": lambda: np.mean, "tables": lambda: (np.arange(6.0),)},
    "study.intervals.bootstrapped": {
        "statistic": lambda: "ratio of means",
        "tables": lambda: (np.arange(1.0, 6.0), np.arange(2.0, 7.0)),
    },
    "study.intervals.class_correlation": {"a": lambda: "value", "b": lambda: "other"},
    "study.intervals.class_means": {"statistics": lambda: ["value"]},
    "study.intervals.correlation": {"a": lambda: "value", "b": lambda: "other"},
    "study.intervals.clustered": {"frame": lambda: frame().query("posterior == 'one'")},
    "study.intervals.from_resamples": {"values": lambda: np.arange(6.0)},
    "study.intervals.mean_of_examples": {"values": lambda: [1.0, 2.0, 4.0]},
    "study.intervals.mean_of_trainings": {"values": lambda: [1.0, 2.0, 4.0]},
    "study.intervals.measured_once": {
        "statistic": lambda: "slope of logarithms",
        "tables": lambda: (np.arange(1.0, 6.0), np.arange(2.0, 7.0)),
    },
    "study.intervals.rank_correlation": {
        "a": lambda: [1.0, 2, 3, 5],
        "b": lambda: [1.0, 3, 2, 5],
        "given": lambda: None,
    },
    "study.intervals.rank_correlations": {
        "frame": lambda: frame()[["value", "other"]],
        "truth": lambda: frame()["gain"],
        "given": lambda: "other",
    },
    "study.intervals.ratio_of_rounds": {"a": lambda: [2.0, 3.0, 4.0, 3.0], "b": lambda: [1.0, 2.0, 1.0, 2.0]},
    "study.intervals.resamples": {
        "by": lambda: "posterior",
        "statistic": lambda: lambda rows, weights: weights @ rows["value"].to_numpy(),
    },
    "study.intervals.roc_area": {
        "values": lambda: [1.0, 2, 3, 5],
        "against": lambda: [1.0, 3, 2],
        "other_values": lambda: None,
        "other_against": lambda: None,
    },
    "study.judging.analytic.AnalyticDistribution.covariance": {"example": lambda: 0},
    "study.judging.analytic.analytic_distribution": {"posterior": lambda: MCDropConnect(net())},
    "study.judging.anomaly.iou": {"a": lambda: tensor([[0, 0], [1, 1]]), "b": lambda: tensor([[0, 1], [1, 1]])},
    "study.judging.anomaly.paste": {"others": lambda: None},
    "study.judging.blurring.default_shares": {"num_pixels": lambda: 64},
    "study.judging.blurring.greedy_order": {"budget": lambda: 0.05},
    "study.judging.blurring.uncertainty_curves": {"shares": lambda: (0.0, 0.5, 1.0)},
    "study.judging.blurring.uncertain": {"num_examples": lambda: 1},
    "study.judging.clue.clue": {"options": lambda: {"num_steps": 1}},
    "study.judging.clue.clue_counterfactuals": {"num_steps": lambda: 1, "num_starts": lambda: 1},
    "study.judging.clue.delta_clue": {"options": lambda: {"num_steps": 1}},
    "study.judging.clue.path_integral": {"counterfactuals": counterfactuals},
    "study.judging.coverage.compare_intervals": {
        "tests": lambda: {"one": {"expected": forecast(), "held_out": randn(2, 4, 6)}}
    },
    "study.judging.coverage.counting_coverage": {"num_networks": lambda: 5},
    "study.judging.coverage.image_blind": {"maps": lambda: randn(4, 6)},
    "study.judging.coverage.interval_score": {"low": lambda: -maps(), "high": maps, "value": maps},
    "study.judging.coverage.forecast": {"values": lambda: randn(3, 4, 6)},
    "study.judging.coverage.unit_scale": {"values": lambda: randn(3, 4, 6)},
    "study.judging.mitigation.fit_attended": {
        "recipe": lambda: Recipe(epochs=2, batch_size=8),
        "attend": lambda: lambda networks, x: x,
        "networks": lambda: [MCDropout(net()).network],
        "y": target,
    },
    "study.judging.predictions.score_points": {
        "table": lambda: pd.DataFrame(
            [
                {
                    "dataset": "digits",
                    "posterior": "one",
                    **{
                        f"{name}{end}": 0.5 for name in ("accuracy", "r2", "nll", "brier", "ece") for end in ("", "_se")
                    },
                }
            ]
        )
    },
    "study.judging.predictions.score_row": {
        "examples": lambda: load("digits", num_examples=12),
        "logits": lambda: randn(3, 12, 10),
    },
    "study.judging.properties.relative_input_stability": {"radius": lambda: 0.1},
    "study.judging.quantus.to_quantus": {"metric": lambda: quantus_like},
    "study.judging.recalibration.fit_spread": {"parts": lambda: lambda expected: [expected.std]},
    "study.judging.sanity.randomised": {"layers": lambda: ["16"]},
    "study.judging.scores.scores": {"examples": lambda: tabular(8), "draws": lambda: MCDropout(table_net()).sample(2)},
    "study.judging.steadiness.mask_walk": {"step_counts": lambda: (1, 2)},
    "study.judging.steadiness.pool": {"values": lambda: explanation().values},
    "study.judging.steadiness.log_quotients": {
        "explainer": lambda: "lime",
        "rival": lambda: "gradient",
        "frame": lambda: pd.DataFrame(
            {
                "posterior": "one",
                "example": [0, 0],
                "explainer": ["lime", "gradient"],
                **{cv: [1.0, 2.0] for cv in ("cv_ratio", "cv_pooled", "cv_signed", "cv_paper", "cv_paper_unscaled")},
            }
        ),
    },
    "study.judging.steadiness.quotients": {
        "explainer": lambda: "lime",
        "rival": lambda: "gradient",
        "frame": lambda: pd.DataFrame(
            {
                "posterior": "one",
                "example": [0, 0],
                "explainer": ["lime", "gradient"],
                **{cv: [1.0, 2.0] for cv in ("cv_ratio", "cv_pooled", "cv_signed", "cv_paper", "cv_paper_unscaled")},
            }
        ),
    },
    "study.judging.steadiness.std_errors": {
        "values": lambda: randn(4, 2, 6),
        "reference": lambda: randn(4, 2, 6, seed=1),
        "counts": lambda: (2,),
    },
    "study.judging.stress.corrupt": {"kind": lambda: "blur", "severity": lambda: 1},
    "study.judging.timing.by_operation": {"function": lambda: lambda: torch.ones(2).sum()},
    **{
        f"study.judging.timing.{name}": {"function": lambda: lambda: torch.ones(2, 2) @ torch.ones(2, 2)}
        for name in ("flops", "work", "bound")
    },
    "study.judging.timing.interleaved": {"candidates": lambda: {"one": int, "two": float}, "num_rounds": lambda: 1},
    "study.judging.timing.peak_memory": {"calls": lambda: ["pass"]},
    "study.judging.timing.peak_rates": {
        "device": lambda: "cpu",
        "dtype": lambda: torch.float32,
        "num_tries": lambda: 1,
    },
    "study.judging.timing.speedups": {
        "frame": lambda: pd.DataFrame({"candidate": ["a", "b"], "round": [0, 0], "seconds": [1.0, 2.0]}),
        "baseline": lambda: "a",
    },
    "study.judging.variance.variance_split": {"explainer": lambda: smoothgrad, "options": lambda: {"num_samples": 2}},
    "study.judging.yardsticks.flipping": {
        "function": lambda: lambda x: x.flatten(1).mean(1),
        "reference": lambda: pictures().flip(0),
    },
    "study.judging.yardsticks.flipping_area": {"values": lambda: randn(4, 3).abs() + 0.1},
    "study.judging.yardsticks.flipping_of_rows": {
        "function": lambda: lambda x: x.mean(1),
        "x": lambda: randn(4, 5, dtype=torch.float32),
        "maps": lambda: randn(4, 5, dtype=torch.float32).abs(),
        "known": lambda: randn(6, 5, dtype=torch.float32),
        "radius": lambda: 0.1,
        "size": lambda: 1,
    },
    "study.judging.yardsticks.input_stability": {
        "values": lambda: torch.stack([maps(), maps().flip(0)]),
        "copies": lambda: torch.stack([pictures(), pictures().flip(0)]),
    },
    "study.judging.yardsticks.blurred_rows": {"radius": lambda: 1.0},
    "study.judging.yardsticks.rank_agreement": {"values": lambda: randn(4, 3)},
    "study.judging.yardsticks.rank_improvement": {
        "values": lambda: torch.stack([maps()] * 4),
    },
    "study.judging.yardsticks.repeatability": {"values": lambda: torch.stack([maps(), maps().flip(0)])},
    "study.predictions.predicted": {"number": lambda: 1},
    "study.predictions.prediction": {"number": lambda: 1, "question": lambda: "How many?"},
    "study.record.Notebook.__init__": {
        "number": lambda: "04",
        "folder": scratch,
        "dataset": lambda: "digits",
        "posterior": lambda: "one",
    },
    "study.record.Notebook.check": {"told": lambda: {"value": 1.0}},
    "study.record.Notebook.claim": {"value": lambda: 1.0},
    "study.record.Notebook.published": {"slug": lambda: "std_error"},
    "study.record.Notebook.save": {"dataset": lambda: "digits", "posterior": lambda: "one"},
    "study.record.save": {
        "name": lambda: "a_figure",
        "notebook": lambda: "04",
        "dataset_digest": str,
        "posterior": lambda: "one",
        "folder": scratch,
        "device": lambda: "cpu",
    },
    "study.report.making.report": {
        "data": pictures,
        "labels": target,
        "name": lambda: "mine",
        "num_draws": lambda: 4,
        "out": lambda: scratch() / "report.html",
    },
    "study.training.fitting.augmented": {"augment": lambda: "shift"},
    "study.training.fitting.fit": {"posterior": table_net},
    "study.training.loading.train_or_load": {
        "dataset": lambda: "diabetes",
        "num_members": lambda: 1,
        "recipe": lambda: None,
        "preset": lambda: "full",
    },
    "study.training.networks.MeanVariance.__init__": {"body": table_net},
    "study.training.networks.TableTransformer.__init__": {"groups": lambda: [[0], [1, 2]]},
    "study.training.networks.TextTransformer.__init__": {"num_words": lambda: 10},
    "study.training.networks.mlp": {"num_features": lambda: 5},
    "study.training.recipes.Recipe.__init__": {"network": lambda: "mlp"},
    "study.training.recipes.build": {"examples": lambda: tabular(8)},
    "study.training.resnet18.plain_resnet18": {"num_classes": lambda: 3},
    "study.training.resnet18.trained_resnet18": {"dataset": lambda: "planted"},
    "study.training.vae.PictureVAE.__init__": {"shape": lambda: (3, 8, 8), "latent": lambda: 2},
    "study.training.vae.PictureVAE.decode": {"z": lambda: torch.zeros(4, 2)},
    "study.training.vae.PictureVAE.elbo": {"noise": lambda: torch.zeros(4, 2)},
    "study.training.vae.VAERecipe.__init__": {"latent": lambda: 2},
    "study.training.vae.fit_vae": {
        "recipe": lambda: VAERecipe(2, epochs=1),
        "train": lambda: load("planted", num_examples=12)[:0] if False else picture_examples(),
    },
    "study.training.vae.kl_from_prior": {"mean": lambda: randn(4, 2), "log_var": lambda: randn(4, 2)},
    "study.verdicts.about": {"table": claims, "names": lambda: ["C1"]},
    "study.verdicts.holm": {"p": lambda: [0.01, 0.04, 0.03]},
    "study.verdicts.primary": {"chosen": lambda: importlib.import_module("xuqlib.study.verdicts").read_chosen()},
    "study.judging.mitigation.paste_square": {
        "x": lambda: torch.rand(4, 1, 8, 8),
        "place": lambda: torch.tensor([0, 1, 2, 3]),
        "num_places": lambda: 4,
    },
    "study.verdicts.read_chosen": {"path": lambda: Path(xuqlib.__file__).parents[1] / "notebooks" / "claims.yaml"},
    "study.verdicts.gather": {"folder": lambda: Path(xuqlib.__file__).parents[1] / "figures" / "full"},
    "study.verdicts.verdict_bars": {"by": lambda: "notebook"},
    "study.verdicts.verdict_grid": {"counts": lambda: importlib.import_module("xuqlib.study.verdicts").tally(claims())},
    "study.verdicts.with_table": {"text": lambda: "no marks"},
    "superpixels.windows": {
        "x": lambda: randn(4, 1, 30, dtype=torch.float32),
        "axis": lambda: 2,
        "num_segments": lambda: 5,
    },
    "ua_backprop.spread_shares": {"shares": lambda: randn(4, 3), "maps": lambda: randn(4, 3, 8, 8).abs()},
    "ua_replacement.ua_replacement": {"target": lambda: None},
    "uncertainty.attribute_uncertainty": {"target": lambda: None},
}


@cache
def conformal() -> xuqlib.ConformalExplainer:
    twelve = torch.cat([pictures(), pictures().flip(0), pictures().flip(3)])
    return xuqlib.ConformalExplainer("gradient", scale="map").fit(nets(), twelve)


def picture_examples() -> Any:
    return xuqlib.Examples("mine", "train", pictures(), target(), torch.arange(4), class_names=("a", "b", "c"))


# What a method is called on.
INSTANCES: dict[str, Callable[[], Any]] = {
    "AnalyticDistribution": lambda: AnalyticDistribution(pictures(), pictures(), randn(2, 4, 3, 8, 8)),
    "ConformalExplainer": lambda: conformal(),
    "DeepEnsemble": lambda: DeepEnsemble([net(), net()]),
    "Estimate": lambda: Estimate(1.0, 0.5, 1.5),
    "Examples": picture_examples,
    "ExplanationDistribution": explanation,
    "ExplanationInterval": lambda: conformal().interval(net(), pictures()),
    "Flipout": lambda: Flipout(net()),
    "Laplace": lambda: Laplace(net()),
    "MCDropout": lambda: MCDropout(net()),
    "Notebook": notebook,
    "PairStudy": pair_study,
    "PictureVAE": vae,
    "Posterior": lambda: MCDropout(net()),
    "StoredExplanations": lambda: StoredExplanations(store()),
    "Uncertainties": lambda: xuqlib.uncertainties(draws(), pictures()),
    "UncertaintyOf": lambda: UncertaintyOf(draws()),
    "WeightPosterior": lambda: Flipout(net()),
}

# Kinds of arguments: the parameters of each, and what is wrong for it, made from a valid value where it needs one.
# A parameter is named by `name`, by `name: annotation` where names are used twice, or by `callable(name)`.
Wrong = dict[str, Callable[[Any], Any]]


class Kind(NamedTuple):
    parameters: str
    wrong: Wrong
    said: tuple[str, ...] = ()  # words that name such an argument as well as its own name does


def always(**values: Any) -> Wrong:
    return {label: lambda _, value=value: value for label, value in values.items()}


def changed(x: Tensor, place: int, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[place] = value
    return x


NO_NUMBER: Wrong = always(text="3", other_digits="٣", list=[3], complex=1j, none=None, nan=math.nan, inf=math.inf)
TENSOR: Wrong = {
    **always(none=None, text="x", number=3, list=[[1.0, 2.0]]),
    "array": lambda v: v.numpy(),
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "complex": lambda v: v.to(torch.complex64),
    "scalar": lambda v: v.flatten()[0],
    "one example less": lambda v: v[1:],
    "no example": lambda v: v[:0],
}
FLOATING: Wrong = {
    **TENSOR,
    "bool": lambda v: v > 0,
    "int": lambda v: v.long(),
    "nan": lambda v: changed(v, 1, math.nan),
    "inf": lambda v: changed(v, 1, math.inf),
    "one axis more": lambda v: v[..., None],
    "one axis less": lambda v: v[0],
}
COUNT: Wrong = {**NO_NUMBER, **always(bool=True, float=1.5, zero=0, negative=-1, huge=10**15)}
NUMBER: Wrong = {**NO_NUMBER, **always(negative=-0.1)}
SHARE: Wrong = {**NUMBER, **always(percent=90.0)}
NAME: Wrong = always(none=None, unknown="nope", empty="", number=3, list=["nope"], nan=math.nan)
TEXT: Wrong = always(none=None, number=3, bytes=b"text", list=["text"])
NAMES: Wrong = always(none=None, text="nope", number=3, unknown=["nope"], numbers=[3], empty=[])

KINDS: dict[str, Kind] = {
    "examples": Kind(
        "x: Tensor, x: Any, x: torch.Tensor, given: Any, study.judging.clue.changes(x)",
        {**FLOATING, "uint8": lambda v: (255 * v).byte(), "other width": lambda v: v[..., :-1]},
        ("x is", "x has", "maps have shape", "x holds", "batch", "input", "network", "pictures", "examples"),
    ),
    "target": Kind(
        """
        target: Any, target: Tensor | int | str | None, target: Tensor, target: Tensor | int | None,
        target: Tensor | None, y: Tensor, place: Tensor, study.report.making.report(labels)
        """,
        {
            **TENSOR,
            **always(float=0.5, bool=True),
            "floats": lambda v: v.float(),
            "bools": lambda v: v > 0,
            "out of range": lambda v: v + 3,
            "negative": lambda v: v - 1,
            "one more": lambda v: torch.cat([v, v[:1]]),
            "two axes": lambda v: v[:, None],
        },
        ("target", "class", "labels"),
    ),
    "seed": Kind(
        "seed: int, seed: int | None", {**NO_NUMBER, **always(negative=-1, float=1.5, bool=True, huge=10**30)}
    ),
    "count": Kind(
        """
        pool, batch_size, block, candidates: int, chunk, columns: int, depth, epochs, every, example: int,
        expansion, fewest, group, heads, hidden: int, image_size, in_channels, channels, latent, length, most, narrow,
        num_bins, num_classes, num_copies, num_draws: int, num_draws: int | None, num_examples: int, num_places,
        num_examples: int | None, num_features, num_folds, num_jobs, num_members, num_networks, num_outputs,
        num_pixels, num_raters, num_repeats, num_resamples, num_rounds, num_samples, num_segments, num_starts,
        num_steps, num_train, num_tries, num_words, patch, patience, seeds, severity, size: int, width,
        window, study.predictions.prediction(number), study.predictions.predicted(number)
        """,
        COUNT,
    ),
    "whole number": Kind(
        "axis, correction, example: int, first: int, warm_up, n, absent_id",
        {**NO_NUMBER, **always(bool=True, float=1.5, negative=-1, huge=10**15)},
    ),
    "wide numbers": Kind(
        "widths, hidden: Sequence[int]",
        always(none=None, text="32", empty=(), zero=(0,), negative=(-4, 4, 4), floats=(4.5,), number=3, bools=(True,)),
    ),
    "groups": Kind(
        "groups", always(none=None, text="ab", empty=[], number=3, strings=[["a"]], negative=[[-1]], gap=[[0], [5]])
    ),
    "counts": Kind(
        "counts: Sequence[int], step_counts",
        always(none=None, empty=(), text="12", zero=(0,), negative=(-1,), floats=(1.5,), huge=(10**15,), number=3),
    ),
    "shape": Kind(
        "shape",
        always(
            none=None,
            empty=(),
            text="88",
            zero=(0, 8),
            negative=(8, -8),
            floats=(8.0, 8.5),
            number=8,
            huge=(10**9, 10**9),
        ),
    ),
    "sizes": Kind(
        "size: tuple[float, float]",
        always(none=None, text="ab", one=(1.0,), zero=(0.0, 1.0), nan=(math.nan, 1.0), number=3),
    ),
    "number above or equal 0": Kind(
        """
        alpha, at, num_averaged, distance_weight, epsilon, floor, initial_std, kernel_width, kl_weight,
        learning_rate, min_change, noise: float, noise_variance, prior_std, radius, seconds, shortest,
        step_size, tau, tau1, tau2, weight_decay, delta, scale
        """,
        NUMBER,
    ),
    "any number": Kind("above, at_least, at_most, bound, line, value: float, low: float, high: float", NO_NUMBER),
    "share": Kind("accuracy, budget, level: float, p, q, repeats, share: float, silent, dropout", SHARE),
    "shares": Kind(
        "levels, budgets, shares: Sequence[float] | Tensor | None",
        always(
            none=None,
            number=0.9,
            text="90",
            percent=(90,),
            zero=(0.0,),
            negative=(-0.5,),
            nan=(math.nan,),
            strings=("0.9",),
            empty=(),
        ),
        ("budget is",),
    ),
    "pair of numbers": Kind(
        "between, interval: Sequence[float] | None",
        always(
            text="ab",
            one=(1.0,),
            three=(1.0, 2.0, 3.0),
            turned=(2.0, 1.0),
            nan=(math.nan, 1.0),
            number=3.0,
            strings=("a", "b"),
        ),
        ("is judged by",),
    ),
    "name": Kind(
        """
        against: str, dtype: str, augment, choice, coefficients, dataset: str, form, how, keep, kind: str,
        level: str, log: str, masks: str, method: str, metric: str, normalise, of, placement, precision,
        preset, psi, reduction, setting, share: str, split, statistic: str, stem, task, ties, network: str,
        baseline: str, rival, study.judging.steadiness.quotients(explainer),
        study.judging.steadiness.log_quotients(explainer), study.intervals.class_gap(name),
        study.data.loading.load(name), study.data.planted.shape(name), study.data.planted_signals.motif(name),
        layer: str | None, output: str | None
        """,
        NAME,
        ("unknown data set", "unknown corruption", "classes with"),
    ),
    "name, or a function": Kind(
        "output: Any, method: Callable[..., Any] | str", NAME, ("no method", "Captum method", "attribution class")
    ),
    "names": Kind(
        """
        kinds: Sequence[str], layers, metrics, sliders, statistics, columns: Sequence[str], by: Sequence[str],
        study.verdicts.about(names)
        """,
        NAMES,
        ("metric", "layer", "kind nope", "claim"),
    ),
    "column": Kind(
        """
        x: str, y: str, hue, low: str | None, high: str | None, by: str, given: str, value: str, a: str,
        b: str, target: str | None
        """,
        NAME,
        ("column",),
    ),
    "frame": Kind(
        "answers, claims, clean, counts: pd.DataFrame, frame, odd, table",
        {
            **always(
                none=None, text="frame", number=3, other_columns=pd.DataFrame({"nope": [1.0]}), nothing=pd.DataFrame()
            ),
            "dict": lambda v: v.to_dict("list"),
            "array": lambda v: v.to_numpy(),
            "no row": lambda v: v[:0],
        },
        ("frame", "column", "row", "answers", "claims", "no example", "examples"),
    ),
    "numbers": Kind(
        """
        a: Numbers, b: Numbers, against: Numbers | None, against: Numbers, given: Numbers | None, values: Numbers,
        values: np.ndarray, truth, other_values, other_against, mean: Numbers | None, std: Numbers | None
        """,
        always(
            none=None,
            text="12",
            number=3.0,
            empty=[],
            strings=["a", "b"],
            two_axes=np.ones((2, 2)),
            inf=[math.inf, 1.0, 2.0, 3.0],
        ),
        ("values", "numbers", "examples"),
    ),
    "tables": Kind(
        "tables", always(none=(None,), text=("abc",), empty=(np.ones(0),), unlike=(np.ones(3), np.ones(4)), nothing=())
    ),
    "ratings": Kind(
        "ratings", always(none=None, text="abc", number=3, empty=[], flat=[1, 2], strings=[["a"], [object()]])
    ),
    "maps": Kind(
        """
        a: Tensor, attribution, b: Tensor, cv, held_out, high: Tensor, labels: Tensor, log_var, logits,
        low: Tensor, maps: Tensor, maps: torch.Tensor, mean, noise: Tensor, overlap, probs: Tensor,
        reference: Tensor, scores, shares: Tensor, std, value: Tensor, values: Tensor, values: torch.Tensor,
        values: Tensor | None, z, total, aleatoric, epistemic, others, index, output: Output, copies, known
        """,
        FLOATING,
        ("maps", "map", "boxes", "target", "shape", "axes", "values", "terms"),
    ),
    "order": Kind(
        "order, segments, mask, masks: Tensor",
        {
            **TENSOR,
            "floats": lambda v: v.float() + 0.5,
            "negative": lambda v: v.long() - 100,
            "beyond": lambda v: v.long() + 10**6,
            "short": lambda v: v[..., :-1],
        },
        ("mask", "segments", "order"),
    ),
    "maps by name": Kind(
        "maps: Mapping[str, Tensor], maps: Mapping[str, torch.Tensor]",
        always(
            none=None,
            empty={},
            text="ab",
            list=[3],
            numbers={"a": 3.0, "b": 2.0},
            nameless={1: torch.ones(4, 8, 8), 2: torch.ones(4, 8, 8)},
            meta={"a": torch.ones(4, 8, 8, device="meta"), "b": torch.ones(4, 8, 8, device="meta")},
        ),
    ),
    "masks by name": Kind(
        "masks: dict[str, Tensor], masks: Mapping[str, np.ndarray]",
        always(none=None, empty={}, text="ab", list=[3], unknown={"nope": np.ones(3)}),
        ("mask",),
    ),
    "rows of maps": Kind(
        "rows",
        always(
            none=None,
            empty=[],
            text="ab",
            number=3,
            short=[[None]],
            numbers=[[3, 4]],
            meta=[[torch.ones(8, 8, device="meta")] * 2],
        ),
    ),
    "explanation": Kind(
        "e, explanation",
        {**always(none=None, text="e", number=3), "values": lambda v: v.values},
        ("explanation", "e is"),
    ),
    "draws": Kind(
        """
        draws: Draws, draws: Draws | Posterior, draws: Draws | Sequence[nn.Module], draws: Iterable[Network],
        networks, members
        """,
        {
            **always(none=None, text="draws", number=3, empty=[], numbers=[3], classes=[nn.Linear]),
            "training": lambda v: [nn.Sequential(nn.Dropout(), net())],
        },
        ("draw", "network", "members"),
    ),
    "network": Kind(
        """
        network: Network, network: Network | Draws, network: nn.Module, network: Posterior | nn.Module,
        posterior: Posterior | nn.Module, explained: nn.Module | ExplanationDistribution,
        body
        """,
        {
            **always(none=None, text="mlp", number=3, a_class=nn.Linear, no_layer=nn.Identity()),
            "training": lambda v: nn.Sequential(nn.Dropout(), v),
        },
        ("network", "of Identity", "fit got", "Identity has", "got a", "wanted logits", "the body"),
    ),
    "posterior": Kind(
        "posterior: Posterior, posterior: MCDropout, posterior: str | Posterior | Draws | None",
        {**always(none=None, text="laplace", number=3), "network": lambda v: net(), "draws": lambda v: draws()},
        ("Laplace, Flipout", "posterior"),
    ),
    "explainer": Kind(
        """
        explainer: Explainer, explainer: Explainer | str, explainer: str | Explainer,
        explainer: Callable[..., Tensor]
        """,
        always(
            none=None,
            number=3,
            name="nope",
            gives_none=lambda network, x, target=None, **_: None,
            gives_numbers=lambda network, x, target=None, **_: 3.0,
            gives_other_shape=lambda network, x, target=None, **_: x[..., :-1],
        ),
        ("explainer", "attribution", "is not linear"),
    ),
    "function": Kind(
        """
        draw, statistic: Callable[..., Any], statistic: Callable[[pd.DataFrame, np.ndarray], np.ndarray],
        metric: Callable[..., Any], parts, function, attend,
        posterior: Callable[[nn.Module], Posterior] | None
        """,
        {**always(none=None, text="mean", number=3), "gives none": lambda v: lambda *_, **__: None},
    ),
    "weights": Kind(
        "weights: Tensor | None",
        {
            **always(text="even", number=3),
            "a list": lambda v: v.tolist(),
            "too few": lambda v: v[:-1],
            "negative": lambda v: -v,
            "zero": lambda v: 0 * v,
            "nan": lambda v: changed(v, 0, math.nan),
        },
    ),
    "functions by name": Kind(
        "candidates: Candidates", always(none=None, empty={}, text="ab", list=[int], numbers={"a": 3})
    ),
    "vae": Kind("vae", {**always(none=None, text="vae", number=3), "network": lambda v: net()}),
    "record": Kind(
        """
        counterfactuals, curves, estimate, expected, found, pairs, running, shown, study: PairStudy, terms,
        chosen: Mapping[str, object], chosen: Mapping[str, Chosen], facts, tests, entries, statements,
        kinds: Mapping[str, str] | None,
        recipe, target_scale, feature_scale, feature_groups, train, validation, examples: Examples
        """,
        {**always(none=None, text="record", number=3, empty=()), "dict": lambda v: {"nope": 3}},
        ("Estimate", "pair"),
    ),
    "flag": Kind(
        """
        absolute, by_pixel, overwrite, partial, decides, keep_roots, log: bool, matched, own, paired, progress, rescale,
        retrain, scaled, soft, tokens, within, holds, conservative
        """,
        always(text="no", number=2, nan=math.nan, list=[]),
    ),
    "text": Kind(
        """
        caption, claim, dataset_digest, interval: str, label, note, notebook, number, posterior: str,
        posterior: str | None, question, slug, source, statement, text, title, unit, rater,
        study.record.save(name), study.data.loading.Examples.__init__(name), device: str | None,
        study.report.making.report(name),
        dataset: str | None, setup, study.record.Notebook.save(dataset), study.record.save(dataset),
        study.record.Notebook.__init__(dataset), study.record.Notebook.claim(dataset),
        study.record.Notebook.judge(dataset), distribution.ExplanationDistribution.__init__(explainer),
        distribution.ExplanationDistribution.__init__(how), study.intervals.Estimate.__init__(of),
        study.intervals.mean_of_examples(of), study.intervals.mean_of_trainings(of),
        study.intervals.from_resamples(of), study.intervals.wilson(of), study.intervals.bootstrapped(of),
        study.intervals.measured_once(of), study.intervals.ratio_of_rounds(of), study.record.Notebook.claim(test),
        rule
        """,
        TEXT,
    ),
    "number of a notebook": Kind(
        "study.record.Notebook.__init__(number), study.record.save(notebook)",
        always(none=None, number=4, short="4", long="004", letters="ab", other_digits="٠٤", path="../04"),
    ),
    "texts": Kind(
        """
        captions, column_titles, labels: tuple[str, str], labels: tuple[str, str] | None, row_titles, calls,
        class_names, classes, feature_names, marks, vocabulary, words
        """,
        always(text="ab", number=3, numbers=[3, 4, 5, 6], short=["a"]),
    ),
    "fill": Kind(
        """
        fill, kind: str | Tensor | None, baseline: str | Tensor | None, reference: str | Tensor
        """,
        {
            **always(unknown="nope", empty="", list=["black"]),
            "shape": lambda v: torch.ones(7),
            "meta": lambda v: torch.ones(1, device="meta"),
            "nan": lambda v: torch.full((1,), math.nan),
        },
        ("fill", "baseline", "reference"),
    ),
    "data set": Kind("data: Any", always(none=None, number=3, text="nope"), ("data", "x is", "no such")),
    "shard": Kind(
        "shard",
        always(text="nope", turned=(2, 1), negative=(-1, 2), floats=(0.5, 1), zero=(0, 0), number=3, three=(0, 1, 2)),
    ),
    "scheduler": Kind("scheduler", always(number=3, list=[])),
    "data folder": Kind("data", always(number=3, unknown="/nope/nope", empty="", list=["a"]), ("folder", "XUQ_DATA")),
    "path": Kind(
        "to, folder, out, path: Path, path: str | Path, state",
        {
            **always(none=None, number=3, tensor=torch.ones(1)),
            "under a file": lambda v: Path(__file__) / "nope" / "nope",
        },
        ("file", "folder", "NN_claims"),
    ),
    "device": Kind(
        "device: Any, device: torch.device | str | None, device: Where",
        always(unknown="nope", number=3.5, list=["cpu"], beyond="cuda:99", meta="meta"),
    ),
    "dtype": Kind("dtype", always(none=None, text="float32", int=torch.int64)),
    "bytes": Kind("content", always(none=None, text="bytes", number=3)),
    "loader": Kind(
        "loader",
        {
            **always(none=None, number=3, empty=[], numbers=[3], triples=[(torch.ones(4, 3, 8, 8),) * 3]),
            "short target": lambda v: [(pictures(), target()[:2])],
            "floats": lambda v: [(pictures(), target().float())],
            "nan": lambda v: [(pictures() * math.nan, target())],
        },
        ("loader", "batch", "target"),
    ),
    "optional part": Kind(
        "moments, probs: Tensor | None, target: Tensor | None in Examples, roots", always(text="x", number=3)
    ),
    "options": Kind(
        "options: Any, choices, init_options, settings, told: Any",
        {"unknown": lambda v: {**v, "no_such_option": 1}},
        ("no_such_option",),
    ),
    "recipe options": Kind(
        "options: tuple[tuple[str, Any], ...]",
        always(none=None, text="ab", number=3, flat=("dropout", 0.1), unknown=(("nope", 3),), dict={"dropout": 0.1}),
    ),
    "input name": Kind("wrt", always(unknown="nope", number=7, list=[0])),
    "figure": Kind("figure", always(none=None, text="figure", number=3)),
    "band": Kind("band", always(text="ab", number=3, one=(torch.ones(1),), numbers=(1.0, 2.0))),
}
UNKNOWN_KIND = "no kind knows the parameter {!r} ({}) of {}; add it to one in KINDS of tests/wrong_values.py"


@cache
def kinds_by_parameter() -> dict[str, str]:
    return {part.strip(): name for name, kind in KINDS.items() for part in _split(kind.parameters)}


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


# Annotations that say more than a type, and the type.
PLAIN = {
    "int": "Count Several Place Seed",
    "float": "Finite Amount Positive Share Level",
    "Tensor": "Batch Pictures Maps Map Floats Stack Boxes Masks Order Target",
    "str": "Column",
    "Sequence[str]": "Columns Names",
    "Sequence[int]": "Counts",
    "Sequence[float]": "Levels Shares Interval",
    "tuple[float, float]": "Size",
    "pd.DataFrame": "Table",
    "tuple[tuple[str, Any], ...]": "Options",
}


def plain(parameter: inspect.Parameter) -> str:
    """The annotation in types."""
    types = {name: of for of, names in PLAIN.items() for name in names.split()}
    return " | ".join(types.get(part, part) for part in str(parameter.annotation).split(" | "))


def kind_of(place: str, parameter: inspect.Parameter) -> str:
    annotation = plain(parameter)
    known = kinds_by_parameter()
    for key in (f"{place}({parameter.name})", f"{parameter.name}: {annotation}", parameter.name):
        if key in known:
            return known[key]
    raise AssertionError(UNKNOWN_KIND.format(parameter.name, annotation, place))


# What is accepted, and why that does no harm: `callable(parameter) label`, `callable(parameter)`, `(parameter) label`
# or `kind: label`.
HARMLESS: dict[str, str] = {
    "conformal.ConformalExplainer.__init__(explainer)": "explain says so, when fit calls it",
    "conformal.ConformalExplainer.__init__(posterior) gives none": "fit says so",
    "conformal.ConformalExplainer.__init__(options) unknown": "the explainer says so, when fit calls it",
    "conformal.ExplanationInterval.holds(attribution) nan": "what is no number lies in no interval",
    "conformal.ExplanationInterval.holds(attribution) inf": "an infinite attribution lies in no interval",
    "maps: int": "whole numbers are numbers",
    "maps: bool": "True and False are 1 and 0",
    "target: array": "an array of whole numbers is one class per example",
    "target: scalar": "one class for all examples",
    "target: number": "one class for all examples",
    **{
        f"study.report.making.report(labels) {kind}": "whole numbers are classes, whatever their dtype, in a column too"
        for kind in ("floats", "bools", "two axes")
    },
    "study.report.making.report(network) training": "a copy in eval mode is looked at",
    "study.report.making.report(posterior) draws": "draws that were given",
    "(chunk) huge": "at most so many at a time: all of them at once",
    "(init_options) unknown": "the method says so when it is made",
    "explainers.lime.lime(scale)": "of tables alone",
    "explainers.lime.lime_fit(scale)": "of tables alone",
    "explainers.lime.lime(segments)": "labels of any value; without examples, all share them",
    "explainers.lime.lime_fit(segments)": "labels of any value; without examples, all share them",
    "explainers.baselines.make_baseline(x)": "a baseline of what is there, of any shape",
    "superpixels.windows(x)": "only the shape counts",
    "superpixels.superpixels(x)": "pictures of any size",
    "inputs.Inputs.__init__(given)": "examples of any shape; draws() says what does not fit",
    "distribution.ExplanationDistribution.__init__(values)": "attributions of any shape",
    "distribution.ExplanationDistribution.__init__(target)": "a record of what explain has checked, read by nothing",
    "distribution.ExplanationDistribution.__init__(feature_names)": "labels of columns",
    "distribution.ExplanationDistribution.__init__(explainer)": "a label, and read by nothing",
    "distribution.ExplanationDistribution.__init__(posterior)": "a label, and read by nothing",
    "distribution.ExplanationDistribution.__init__(how)": "a label, and read by nothing",
    "posteriors.draws.Draws.__init__(posterior)": "a label, and read by nothing",
    "posteriors.draws.Draws.__init__(output)": "whoever reads the answers says that there is no such output",
    "posteriors.draws.Draws.__init__(networks) training": "whoever asks the draws says so",
    "uncertainty.UncertaintyOf.__init__(draws) training": "whoever explains it says so",
    "metrics.deletion.auc(scores)": "curves of as many examples as there are",
    "metrics.deletion.pixel_order(maps)": "maps of any shape, and infinity has a place in an order",
    "metrics.deletion.perturbed(x)": "numbers of any kind are replaced",
    "ua_backprop.logit_coefficients(logits)": "logits of any shape",
    "ua_backprop.spread_shares(maps) one axis more": "maps of any shape",
    "ua_backprop.spread_shares(maps) one axis less": "of places in one line",
    "study.judging.similarity.spearman(a) inf": "has a rank",
    "study.judging.similarity.spearman(b) inf": "has a rank",
    "study.judging.anomaly.iou(a) int": "boxes are whole numbers",
    "study.judging.anomaly.iou(b) int": "boxes are whole numbers",
    "study.judging.anomaly.paste(x) other width": "pictures of any size",
    "study.judging.controls.sobel(x) other width": "pictures of any size",
    "study.judging.mitigation.paste_square(x) other width": "pictures of any size",
    "study.judging.mitigation.unit_maps(maps)": "maps of any shape",
    "study.judging.properties.sparseness(maps)": "maps of any shape",
    "study.judging.stress.corrupt(x) other width": "pictures of any size",
    "study.training.fitting.augmented(x) other width": "pictures of any size",
    "study.judging.yardsticks.blurred_rows(x) other width": "pictures of any size",
    "study.judging.yardsticks.complexity(maps)": "maps of any shape",
    "study.judging.yardsticks.first_order(values)": "maps of any shape",
    "study.judging.yardsticks.input_stability(values) nan": "a copy with a NaN in its map does not count",
    "study.judging.controls.permuted_last_layer(network) training": "its copy is in eval mode",
    "study.judging.sanity.cascade(network) training": "only names are read",
    "study.judging.sanity.independent(network) training": "only names are read",
    "study.judging.coverage.agreement(held_out) nan": "maps that are NaN are left out",
    "study.judging.coverage.forecast(values)": "maps that are NaN are left out",
    "study.judging.coverage.image_blind(maps)": "maps that are not finite are left out",
    "study.judging.coverage.unit_scale(values)": "maps of any shape",
    "study.judging.recalibration.fit_spread(held_out)": "maps that are not finite are left out",
    "study.training.networks.MeanVariance.__init__(body) training": "is trained",
    "study.data.loading.Examples.__init__(index)": "rows that the reader numbers",
    "figures.maps.map_grid(row_titles) short": "one row of one title",
    "figures.* nan": "NaN is hatched, or left out of a line",
    "figures.* inf": "as NaN",
    "figures.* other width": "a picture and its maps are drawn side by side, each at its size",
    "figures.*(dataset)": "decides only whether pictures are hidden; a set of the reader's own has another name",
    "figures.maps.draw_strip(values)": "maps with or without channels, of as many draws as there are",
    "figures.maps.flat_map(values)": "a map with or without channels",
    "figures.maps.maps(mean)": "a map with or without channels",
    "figures.maps.maps(std)": "a map with or without channels",
    "figures.charts.curve(log) empty": "no axis is logarithmic",
    "figures.panels.panels(share) empty": "no axis is shared",
    "figures.panels.panels(draw) gives none": "it draws into the axes, and returns nothing",
    "figures.choosers.explore(sliders) empty": "no slider",
    "figures.choosers.stills(sliders) empty": "no slider",
    "study.data.loading.load(data) unknown": "an embedded data set needs no folder",
    "study.data.loading.Examples.__init__(split)": "a part of the reader's own has a name of its own",
    "study.data.loading.Examples.__init__(x)": "examples of any kind: pictures, words as whole numbers, masks",
    "study.data.loading.Examples.__init__(y)": "a regression, several classes at once, or a class per pixel",
    "study.data.loading.Examples.__init__(masks) empty": "no mask is known",
    "study.data.loading.Examples.__init__(feature_groups) dict": "whose columns build() reads",
    "study.human_study.raters.results(answers)": "without answers, a row says so",
    "study.human_study.raters.results(metrics) empty": "of no metric",
    "study.human_study.raters.follows_metric(answers)": "without answers, a row says so",
    "study.human_study.raters.krippendorff_alpha(ratings) empty": "NaN: nothing can be compared",
    "study.human_study.raters.alpha_interval(ratings) empty": "NaN: nothing can be compared",
    "study.human_study.raters.krippendorff_alpha(ratings) strings": "ratings of any kind that can be told apart",
    "study.human_study.raters.alpha_interval(ratings) strings": "ratings of any kind that can be told apart",
    "study.intervals.rank_correlation(a) inf": "has a rank",
    "study.intervals.rank_correlation(b) inf": "has a rank",
    "study.intervals.rank_correlation(given) inf": "has a rank",
    "study.intervals.roc_area(values) inf": "has a rank",
    "study.intervals.roc_area(against) inf": "has a rank",
    "study.judging.anomaly.chance(masks) short": "masks of any size",
    "study.judging.controls.other_image(maps)": "maps of any shape change places",
    "study.judging.coverage.interval_score(low)": "one end for all",
    "study.judging.coverage.interval_score(high)": "one end for all",
    "study.judging.coverage.interval_score(value)": "one value for all",
    "study.judging.mitigation.fit_attended(networks) training": "is trained",
    "study.judging.quantus.to_quantus(metric) gives none": "what a metric returns is handed on",
    "study.judging.steadiness.std_errors(values)": "as many draws of whatever shape",
    "study.judging.steadiness.std_errors(reference)": "as many draws of whatever shape",
    "study.judging.steadiness.pool(segments) beyond": "regions without a pixel",
    "study.judging.timing.by_operation(function) gives none": "what a call returns is dropped",
    "study.judging.timing.flops(function) gives none": "what a call returns is dropped",
    "study.judging.timing.work(function) gives none": "what a call returns is dropped",
    "study.judging.timing.bound(function) gives none": "what a call returns is dropped",
    "study.record.save(frame) other_columns": "any frame that was plotted",
    "study.record.Notebook.save(frame) other_columns": "any frame that was plotted",
    "study.intervals.Estimate.over(frame) other_columns": "any rows that a rule reads",
    "study.intervals.Estimate.over(settings) unknown": "whoever recomputes the rule says so",
    "study.record.Notebook.__init__(folder) under a file": "is made when something is saved, which says so",
    "study.record.Notebook.claim(value) nan": "a claim that could not be measured; the table shows it",
    "study.record.Notebook.claim(value) inf": "the table shows it",
    "study.training.networks.MeanVariance.__init__(body) no_layer": "any network that answers two columns",
    "study.training.recipes.Recipe.__init__(options) unknown": "the network that is built says so",
    "posteriors.*(network) training": "a posterior's copies answer in eval mode",
    "posteriors.*(members) training": "a posterior's copies answer in eval mode",
    "study.training.fitting.fit(posterior) training": "is trained",
}


class Case(NamedTuple):
    place: str
    call: Callable[..., Any]
    parameter: str
    kind: str
    label: str
    arguments: dict[str, Any]


class Outcome(NamedTuple):
    case: Case
    outcome: str  # clear, unclear, harmless, accepted or hangs
    said: str


class Hang(BaseException):
    """A call that ran past its time; no `except Exception` stops it."""


LIMIT_S = 5.0
MEMORY = 2 * 2**30  # bytes that a call may ask for on top of what is there


def parameters_of(place: str, call: Callable[..., Any]) -> list[inspect.Parameter]:
    owner = place.split(".")[-2]
    drop_self = inspect.isfunction(call) and owner[0].isupper()
    return list(inspect.signature(call).parameters.values())[drop_self:]


def bound(place: str, call: Callable[..., Any]) -> Callable[..., Any]:
    owner, name = place.split(".")[-2:]
    return call if name == "__init__" or not owner[0].isupper() else getattr(INSTANCES[owner](), name)


def valid_arguments(place: str, call: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of the valid call; a parameter that nothing is known of keeps its default."""
    own, found = CALLS.get(place, {}), {}
    for parameter in parameters_of(place, call):
        name = parameter.name
        if name in own:
            found[name] = own[name]()
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            if name not in VALID:
                raise AssertionError(f"no valid value of {name!r} for {place}; add one to VALID or CALLS of {__file__}")
            found[name] = VALID[name]()
        elif name in QUICK.split():
            found[name] = VALID[name]()
    return found


# Parameters with a default that the valid call gives all the same: else it would be slow, or show a bar.
QUICK = (
    "batch_size budgets num_copies num_repeats num_resamples num_samples num_starts num_steps progress recipe target"
)


# Their valid calls take seconds, and have tests of their own.
SLOW = {"study.judging.timing.peak_rates", "study.training.resnet18.trained_resnet18"}


def run(call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    given = dict(arguments)
    parameters = inspect.signature(call).parameters
    spread = next((p.name for p in parameters.values() if p.kind == p.VAR_KEYWORD), None)
    row = next((p.name for p in parameters.values() if p.kind == p.VAR_POSITIONAL), None)
    named = given.pop(spread, {}) if spread else {}
    before = []
    if row is not None:  # what comes before goes by position, too
        before = [
            given.pop(p.name) for p in parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD and p.name in given
        ]
        before += given.pop(row, ())
    return call(*before, **given, **named)


def limited(call: Callable[[], Any]) -> Any:
    """Run with a clock, and without memory for absurd requests."""

    def stop(*_: Any) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 0.5)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, previous)


FEWER = ("one example less", "one more", "short target")  # is wrong only where another argument counts the examples


def is_per_example(value: Any) -> bool:
    return isinstance(value, Tensor | list | tuple) and not (isinstance(value, Tensor) and not value.dim())


def cases(place: str, call: Callable[..., Any]) -> Iterator[Case]:
    target, valid = bound(place, call), valid_arguments(place, call)
    for parameter in parameters_of(place, call):
        name = parameter.name
        kind = kind_of(place, parameter)
        may_be_none = (
            parameter.default is None
            or "None" in str(parameter.annotation).split(" | ")
            or (parameter.annotation == "Any" and parameter.default is None)
        )
        base = valid.get(name, VALID[name]() if name in VALID and name not in valid else parameter.default)
        if parameter.kind == parameter.VAR_KEYWORD:
            base = valid.get(name, {})
        alone = (
            not any(len(valid[other]) == len(base) for other in valid if other != name and is_per_example(valid[other]))
            if is_per_example(base)
            else True
        )
        for label, make in KINDS[kind].wrong.items():
            if (label == "none" and may_be_none) or (label in FEWER and alone):
                continue
            try:
                value = make(base)
            except (AttributeError, TypeError, RuntimeError, IndexError, KeyError):
                continue  # this default has no such wrong form: None has no dtype
            yield Case(place, target, name, kind, label, {**valid, name: value})


def outcome(case: Case) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = limited(lambda: run(case.call, case.arguments))
    except Hang:
        return Outcome(case, "hangs", "")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Outcome(case, "clear" if is_clear(error, case) else "unclear", said)
    if case.label in ("nan", "inf") and shows_nan(result):
        return Outcome(case, "harmless", "the result is NaN or infinite, too")
    return Outcome(case, "harmless" if why_harmless(case) else "accepted", _short(result))


def shows_nan(result: Any) -> bool:
    """Whether there is NaN or infinity in what was returned, however deep."""
    if isinstance(result, Tensor):
        return result.is_floating_point() and not result.isfinite().all()
    if isinstance(result, pd.DataFrame):
        numbers = result.select_dtypes("number").to_numpy(float, na_value=math.nan)
        return not np.isfinite(numbers).all()
    if isinstance(result, pd.Series | np.ndarray):
        return not np.isfinite(np.asarray(result, float)).all()
    if isinstance(result, float):
        return not math.isfinite(result)
    if isinstance(result, dict):
        return any(map(shows_nan, result.values()))
    if isinstance(result, list | tuple):
        return any(map(shows_nan, result))
    return dataclasses.is_dataclass(result) and any(map(shows_nan, vars(result).values()))


def why_harmless(case: Case) -> str | None:
    """The key of HARMLESS that a case has, if any."""
    own = f"{case.place}({case.parameter})"
    keys = [f"{own} {case.label}", own, f"({case.parameter}) {case.label}", f"{case.kind}: {case.label}"]
    for package in ("figures", "posteriors"):
        if f"{package}." in case.place:
            keys += [f"{package}.*({case.parameter}) {case.label}", f"{package}.*({case.parameter})"]
            keys += [
                f"{package}.* {case.label}",
                own.removeprefix("study."),
                f"{own} {case.label}".removeprefix("study."),
            ]
    return next((key for key in keys if key in HARMLESS), None)


def _short(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"tensor {tuple(result.shape)}"
    return repr(result)[:100] if isinstance(result, str | float | int | dict | None) else type(result).__name__


def is_clear(error: Exception, case: Case) -> bool:
    """Whether an error is a sentence that names the argument, of a type that a caller may expect, and our own.

    One of another library is as good if it names both the argument and its value; so is Python's own of an argument
    that nobody knows, and the system's of a path.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, TypeError) and "unexpected keyword argument 'no_such_option'" in text:
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if not isinstance(error, TypeError | ValueError | IndexError | KeyError | FileNotFoundError | xuqlib.DataError):
        return False
    if "\n" in text.strip() or len(text) < 15 or len(text) > 2000:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    words = (case.parameter, case.parameter.replace("_", " "), *KINDS[case.kind].said)
    named = any(word in text for word in words)
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    ours = last.startswith(LIBRARY) and ("raise" in line or _raises(error))
    value = case.arguments[case.parameter]
    return named and (ours or repr(value) in text)


def _raises(error: Exception) -> bool:
    """Whether the last line is a raise that spans several lines."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = [
        linecache.getline(frame.filename, number)
        for number in range(max(1, (frame.lineno or 1) - 3), (frame.lineno or 1) + 1)
    ]
    return any("raise " in line for line in lines)


def main(words: list[str]) -> None:
    total: dict[str, Counter[str]] = {}
    for place, call in public().items():
        if words and not any(word in place for word in words):
            continue
        module = ".".join(place.split(".")[:3] if place.startswith("study.") else place.split(".")[:1])
        count = total.setdefault(module, Counter())
        try:
            if place not in SLOW:
                run(bound(place, call), valid_arguments(place, call))
            own = list(cases(place, call))
        except Exception as error:
            print(f"INVALID {place}: {type(error).__name__} {error}"[:300])
            count["invalid"] += 1
            continue
        for case in own:
            found = outcome(case)
            count[found.outcome] += 1
            if words and found.outcome != "clear":
                print(f"{found.outcome:9}{case.place}({case.parameter}) {case.label}: {found.said[:230]!r}")
    table = pd.DataFrame(total).T.fillna(0).astype(int)
    table.loc["all"] = table.sum()
    print(table.to_string())


if __name__ == "__main__":
    main(sys.argv[1:])
