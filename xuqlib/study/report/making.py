"""`report`: reads, chooses a posterior, measures part by part, and writes the page and its numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_choice, check_count, check_flag, check_seed, check_target
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import named
from xuqlib.inputs import Inputs
from xuqlib.outputs import Output, as_output
from xuqlib.posteriors.base import Posterior, check_network
from xuqlib.posteriors.draws import Draws, detached_copy, fixed_draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Counts, Names, Numbers
from xuqlib.study.files import replace_file, versions
from xuqlib.study.intervals import Estimate, wilson
from xuqlib.study.judging.controls import other_image
from xuqlib.study.judging.predictions import reliability
from xuqlib.study.report import OUTPUTS, measuring
from xuqlib.study.report.lights import CHECKS, NOT_TESTED, judge
from xuqlib.study.report.measuring import Networks, choose
from xuqlib.study.report.page import page_of
from xuqlib.study.report.reading import Given, Reading, ReportError, read
from xuqlib.study.resuming import fingerprint, kept
from xuqlib.study.runs import in_words
from xuqlib.uncertainty import logits_of

SHOWN = 10  # examples in each of the two lists
CHECKED = 20  # examples of the sanity checks
MOST_AT_ONCE = 2**24  # numbers of the attributions of one part
KINDS = {2: "table", 3: "signals", 4: "images"}  # by the axes of the examples
TIMED = 4  # examples that the estimate is made from


def report(
    network: nn.Module,
    data: Any,
    *,
    out: str | Path = "report.html",
    labels: Any = None,
    train: Any = None,
    classes: Names | None = None,
    image_size: int | None = None,
    channels: int = 3,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    shape: Counts | None = None,
    tokens: bool = False,
    output: Any = None,
    posterior: str | Posterior | Draws | None = None,
    explainer: str | Explainer = "gradient_x_input",
    name: str | None = None,
    num_examples: int = 200,
    num_draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a report about a network: how well it predicts, how far its confidence and its explanations can be trusted.

    One page that needs no kernel and no network, and beside it every number as JSON and the maps as safetensors. A run
    that was stopped goes on where it was, when it is called again with the same arguments.

    Args:
        network: any module, trained; from images (N, C, H, W), signals (N, C, T), tables (N, F) or token ids (N, T) to
            logits, or to one number. It is left as it was.
        data: examples that it was not trained on: a folder of images, with a folder for each class; a CSV or Parquet
            file, whose column target, label or y is the truth; `Examples`; a tensor, Dataset or DataLoader.
        out: the page, a file .html.
        labels: the truth of data in memory, (N,); by default what the data brings.
        train: labelled examples that it was trained on, as data: Laplace is fitted on them.
        classes: names of the classes in the order of the network's outputs; alphabetical by default.
        image_size: images are cut to squares with this side.
        channels: of images, 3 or 1.
        mean, std: of each channel, where the network was trained behind `transforms.Normalize(mean, std)`.
        shape: of the row of a table that is a signal, such as (2, 100): channels and time.
        tokens: whether the rows of a table are token ids.
        output: what of the answer is meant, as for `explain`: "logits", "probabilities", "binary" or "regression".
        posterior: "mc_dropout", "mc_dropconnect", "laplace", a posterior or draws; chosen by default, and said why.
        explainer: a name in `xuqlib.explainers.EXPLAINERS`, or a function like those.
        name: what the page calls the network; that of its class by default.
        num_examples: at most, drawn by the seed.
        num_draws: networks from the posterior, four or more.
        seed: of examples, draws and resamples.
        progress: whether a bar and an estimate are shown.

    Returns:
        What the JSON holds.

    Raises:
        ReportError: what was given does not fit together; before anything is measured.
    """
    try:
        check_flag(progress, "progress")
        check_count(num_examples, 2, "num_examples")
        check_count(num_draws, 4, "num_draws")
        check_seed(seed)
        named(explainer)
        target_file = _page_file(out)
        network = detached_copy(check_network(network))
        class_name = type(network).__name__
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise TypeError(f"name is {name!r}; pass what the page is to call the network, or leave it out")
        how = Reading(classes, image_size, channels, mean, std, shape, tokens)
        network = how.before(network)
        given, read_as = _settled(network, read(data, how, labels=labels, most=num_examples, seed=seed), output)
        batches = None
        paths = [Path(each).resolve() for each in (data, train) if isinstance(each, str | Path)]
        if len(set(paths)) < len(paths):
            raise ValueError(f"train and data are both {str(data)!r}; pass as data what it was not trained on")
        if train is not None:
            batches = _batches(network, train, how, output)
        networks = choose(
            network, given.inputs, posterior, train=batches, read_as=read_as, num_draws=num_draws, seed=seed
        )
        fixed_draws(networks.draws, given.inputs, read_as)  # which refuses what cannot be explained
    except (TypeError, ValueError, OSError) as error:
        raise ReportError(str(error)) from error
    about = {
        "name": class_name if name is None else name,
        "network": class_name,
        "weights": sum(each.numel() for each in network.parameters()),
        "data": _name_of(data),
        "examples": len(given.ids),
        "of": given.total,
        "kind": "tokens" if given.inputs.are_tokens else KINDS[given.inputs.x.ndim],
        "output": read_as.kind,
        "classes": None if given.class_names is None else list(given.class_names),
        "posterior": networks.name,
        "reason": networks.reason,
        "draws": len(networks.draws),
        "explainer": getattr(named(explainer), "__name__", type(explainer).__name__),
        "seed": seed,
        "versions": versions(),
    }
    parts, state = target_file.with_name(f"{target_file.name}.parts"), dict(network.state_dict())
    answered = networks.logits(networks.draws, given.inputs.at(slice(2)))
    made_of = [about, given.inputs.values, given.labels, given.ids, state, repr(network), answered, explainer]
    found = _measured(networks, given, explainer, seed, parts / fingerprint(made_of)[:16], progress)
    numbers = _numbers(about, given, networks, found, seed)
    maps = {name: value.contiguous() for name, value in found["maps"].items()}
    replace_file(target_file.with_suffix(".safetensors"), safetensors.torch.save(maps))
    replace_file(target_file.with_suffix(".json"), (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
    replace_file(target_file, page_of(numbers, given, maps).encode())
    shutil.rmtree(parts, ignore_errors=True)
    return numbers


def _name_of(data: Any) -> str:
    name = Path(data).name if isinstance(data, str | Path) else getattr(data, "name", None)
    return name if isinstance(name, str) and name else f"a {type(data).__name__}"


def _page_file(out: str | Path) -> Path:
    if not isinstance(out, str | Path):
        raise TypeError(f"out is a {type(out).__name__}; pass the path of a page, such as 'report.html'")
    path = Path(out)
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"out is {str(out)!r}; pass the path of a page, such as 'report.html'")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"out is {str(out)!r} but there is no folder {str(path.parent)!r} that can be written to")
    return path


def _settled(network: nn.Module, given: Given, output: Any) -> tuple[Given, Output]:
    """The examples in the dtype of the network, with labels that fit its answers; and what these are.

    Raises:
        TypeError, ValueError: other kinds of inputs or outputs, or labels that do not fit them.
    """
    dtype = next((each.dtype for each in network.parameters() if each.is_floating_point()), torch.float32)
    inputs = given.inputs.changed(lambda value: value.to(dtype) if value.is_floating_point() else value)
    if inputs.x.ndim not in (2, 3, 4):
        raise ValueError(f"x has shape {tuple(inputs.x.shape)}; a report is of tables, token ids, signals or images")
    read_as, labels = as_output(output), given.labels
    numbers = logits_of(Draws([network]), inputs.at(slice(2)), output=read_as)[0]
    kind = read_as.kind or ("logits" if numbers.shape[1] > 1 else "regression")
    check_choice(kind, OUTPUTS, "output of a report")
    whole = labels is not None and bool((labels == labels.round()).all())
    if read_as.kind is None and kind == "regression" and whole and set(labels.tolist()) <= {0, 1}:  # type: ignore[union-attr]
        raise ValueError(
            "the network answers one number, and the labels are 0 and 1; say output='binary' if it is the logit of "
            "yes, or output='regression'"
        )
    count = {"binary": 2, "regression": 1}.get(kind, numbers.shape[1])
    if kind == "regression":
        if numbers.shape[1] != 1:
            raise ValueError(f"the network answers {numbers.shape[1]} numbers; say which by output=lambda a: a[:, [0]]")
        labels = None if labels is None else labels.double()
    elif given.class_names is not None and len(given.class_names) != count:
        raise ValueError(
            f"there are {len(given.class_names)} classes ({', '.join(given.class_names[:4])}"
            f"{', ...' if len(given.class_names) > 4 else ''}) but the network tells {count} apart; name all of them "
            "by classes, in the order of its outputs"
        )
    elif labels is not None and not whole:
        raise ValueError(
            f"labels are numbers such as {labels[labels != labels.round()][0]:.3g}, but the network tells {count} "
            f"classes apart; pass class numbers, 0 to {count - 1}, or words"
        )
    elif labels is not None:
        labels = check_target(labels.long(), len(labels), count)
    names = None if kind == "regression" else given.class_names or tuple(str(each) for each in range(count))
    settled = Given(inputs, labels, given.ids, names, given.feature_names, given.vocabulary, given.total)
    return settled, Output(kind, read_as.key)


def _batches(network: nn.Module, train: Any, how: Reading, output: Any) -> list[tuple[Any, Tensor]]:
    """Training examples as `Laplace.fit` takes them."""
    try:
        given, _ = _settled(network, read(train, how, most=10**6, seed=0), output)
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"train cannot be used: {error}") from error
    if given.labels is None:
        raise ValueError("train has no labels; Laplace needs them")
    if not given.inputs.is_one_tensor:
        raise ValueError("train is no single tensor of numbers; pass a fitted posterior, posterior=Laplace(...)")
    labels = given.labels.to(given.inputs.x.dtype)[:, None] if given.class_names is None else given.labels
    return list(zip(given.inputs.x.split(64), labels.split(64), strict=True))


def _measured(
    networks: Networks, given: Given, explainer: str | Explainer, seed: int, folder: Path, progress: bool
) -> dict[str, Any]:
    """Measure part by part; each part is kept in the folder until the report is whole.

    Returns:
        logits and drawn, of the network and of the draws; table, a row per example; lists, rows of those that are
        shown; maps of these; checks, what each measured.
    """
    inputs, start = given.inputs, time.monotonic()
    size = max(1, min(25, MOST_AT_ONCE // (len(networks.draws) * inputs.x[0].numel())))
    starts = range(0, inputs.num_examples, size)
    num_parts = len(starts) + -(-2 * SHOWN // size) + 3
    if progress:
        sys.stderr.write(_estimate(networks, explainer, inputs))
    with tqdm(total=num_parts, desc="report", unit="part", disable=not progress) as bar:

        def part(name: str, measure: Callable[..., Any], *args: Any) -> Any:
            found = kept(folder / f"{name}.part", measure, networks, *args)
            bar.update()
            return found

        batches = [
            part(f"batch {first}", measuring.measure_batch, explainer, inputs.at(slice(first, first + size)))
            for first in starts
        ]
        own, drawn = (torch.cat([each[name] for each in batches], 1) for name in ("logits", "drawn"))
        noise = torch.as_tensor(networks.draws.noise_variance).flatten()[0]
        table = measuring.answers(drawn, given.labels, float(noise), is_regression=networks.is_regression)
        table["moves"] = torch.cat([each["moves"] for each in batches]).numpy()
        doubt = "epistemic" if networks.is_regression else "total"
        lists = {"least_sure": _largest(table[doubt]), "moves_most": _largest(table["moves"])}
        order = drawn.double().softmax(-1).mean(0).argsort(dim=1, descending=True, stable=True)
        classes, others = order[:, 0], order[:, min(1, order.shape[1] - 1)]
        rows = list(dict.fromkeys([*lists["least_sure"], *lists["moves_most"]]))
        maps = []
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            maps.append(part(f"maps {first}", measuring.measure_shown, explainer, _rows(inputs, some), classes[some]))
        some = torch.randperm(len(table), generator=generator_of(seed, 1))[:CHECKED].tolist()
        asked = _rows(inputs, some)
        checks = {
            "fullgrad": part("fullgrad", measuring.check_fullgrad, asked, classes[some]),
            "layers": part("layers", measuring.check_layers, asked),
            **part("alike", measuring.check_maps, explainer, asked, classes[some], others[some]),
        }
        bar.update(num_parts - bar.n)
    if progress:
        sys.stderr.write(f"measured in {in_words(time.monotonic() - start)}\n")
    joined = {name: torch.cat([each[name] for each in maps]) for name in maps[0]}
    checks["source"] = measuring.alike(joined["source"], other_image(joined["source"]))
    return {
        "logits": own,
        "drawn": drawn,
        "table": table,
        "lists": lists,
        "maps": {"rows": torch.tensor(rows), **joined},
        "checks": checks,
    }


def _estimate(networks: Networks, explainer: str | Explainer, inputs: Inputs) -> str:
    """How long a report will take, by the time that a few examples take."""
    few = inputs.at(slice(TIMED))
    measuring.measure_batch(networks, explainer, inputs.at(slice(1)))  # what is only done once
    start = time.monotonic()
    measuring.measure_batch(networks, explainer, few)
    middle = time.monotonic()
    measuring.measure_shown(networks, explainer, few, torch.zeros(few.num_examples, dtype=torch.long))
    each, shown = ((b - a) / few.num_examples for a, b in ((start, middle), (middle, time.monotonic())))
    total = each * (inputs.num_examples + 3 * CHECKED) + shown * 2 * SHOWN
    return (
        f"{inputs.num_examples} examples, {len(networks.draws)} draws ({networks.name}): about {in_words(total)}; "
        "if it is stopped, the same call goes on\n"
    )


def _rows(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    return inputs.changed(lambda value: value[list(rows)])


def _largest(values: pd.Series) -> list[int]:
    return [int(row) for row in values.sort_values(ascending=False, kind="stable").dropna().index[:SHOWN]]


def _numbers(
    about: dict[str, Any], given: Given, networks: Networks, found: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Everything that is said on the page, as JSON holds it."""
    own, drawn, table, checks = (found[name] for name in ("logits", "drawn", "table", "checks"))
    measured: dict[str, Estimate | str] = {
        "agree": measuring.agreement(networks, own[0], drawn),
        "layers": measuring.exactly(checks["layers"], torch.mean, "mean over the draws"),
        "fullgrad": measuring.exactly(checks["fullgrad"], torch.max, "largest of the examples"),
    }
    measured |= {name: measuring.mean_of(checks[name]) for name in ("halves", "weights", "class", "image", "source")}
    scores: dict[str, dict[str, Estimate]] = {}
    bounds, bins = {}, pd.DataFrame()
    labels = given.labels
    if labels is None:
        unknown = ("r2", "coverage") if networks.is_regression else ("chance", "gap")
        measured |= dict.fromkeys(unknown, "no labels were given")
    elif networks.is_regression:
        plain = measuring.answers(own, labels, 0.0, is_regression=True)
        scores = {
            "network": measuring.number_scores(plain, labels, seed),
            "draws": measuring.number_scores(table, labels, seed),
        }
        del scores["network"]["coverage"]  # one network says no interval
        measured |= {"r2": scores["network"]["r2"], "coverage": scores["draws"]["coverage"]}
    else:
        scores = {
            "network": measuring.class_scores(own, labels, seed),
            "draws": measuring.class_scores(drawn, labels, seed),
        }
        measured |= {"chance": scores["network"]["accuracy"], "gap": scores["network"]["gap"]}
        bounds["chance"] = (float(labels.bincount().max()) / len(labels),)
        plain = measuring.answers(own, labels, 0.0, is_regression=False)
        plain["answer"] = np.where(plain["right"], "right", "wrong")
        bins = reliability(plain, num_bins=10, fewest=5)
        ends = [(each.low, each.high) for each in map(wilson, bins["accuracy"], bins["num_answers"])]
        bins[["low", "high"]] = pd.DataFrame(ends, columns=["low", "high"])
    names = given.class_names
    outcomes = judge(measured, bounds)
    if labels is not None and "chance" in bounds and outcomes[0].light == "failed":
        outcomes[0] = outcomes[0]._replace(advice=outcomes[0].advice + _other_order(own, labels, names or ()))
    rows = table.assign(example=given.ids)
    if labels is not None:
        rows.insert(1, "label", labels.tolist())
    for column in () if names is None else [name for name in ("label", "answer") if name in rows]:
        rows[column] = [(names or ())[int(value)] for value in rows[column]]
    return _plain(
        {
            "about": about,
            "scores": {who: {name: _told(each) for name, each in of.items()} for who, of in scores.items()},
            "reliability": bins.to_dict("records"),
            "checks": [
                {
                    "name": each.name,
                    "question": CHECKS[each.name].question,
                    "measured": CHECKS[each.name].measured,
                    "light": each.light,
                    "bound": each.bound,
                    **({} if each.estimate is None else _told(each.estimate)),
                    "meaning": each.meaning,
                    "advice": each.advice,
                }
                for each in outcomes
            ],
            "examples": rows.to_dict("records"),
            **found["lists"],
            "not_tested": list(NOT_TESTED),
        }
    )


def _other_order(logits: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """The order of the classes in which the most answers would be right, and their share; nothing if that is theirs."""
    counts = torch.zeros(len(names), len(names))  # (output, label)
    counts.index_put_((logits[0].argmax(1), labels), torch.ones(len(labels)), accumulate=True)
    outputs, matched = linear_sum_assignment(counts.numpy(), maximize=True)
    if counts[outputs, matched].sum() <= counts.trace():
        return ""
    order = ", ".join(names[place] for place in matched)
    share = float(counts[outputs, matched].sum()) / len(labels)
    return f" With the classes in the order {order}, {100 * share:.0f} % of the answers would be right."


def _told(estimate: Estimate) -> dict[str, Any]:
    """An estimate without the rows that it rests on: those of the examples stand in the JSON once."""
    return {name: value for name, value in vars(estimate).items() if name not in ("rule", "rows")}


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of Python, and nothing where a number is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
