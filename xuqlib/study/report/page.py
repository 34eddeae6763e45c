"""The page of a report: plain HTML with its pictures inside. Every name that came with data is text."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.study.figures.charts import HUES, LOOK, Picture, curve
from xuqlib.study.figures.maps import map_pngs
from xuqlib.study.names import known, plain
from xuqlib.study.report.reading import Given
from xuqlib.study.site.pages import page

SIGNS = {"passed": "✓", "failed": "✗", "unclear": "?", "not asked": "-"}
SCORES = {
    "accuracy": "accuracy",
    "confidence": "mean confidence",
    "gap": "confidence less accuracy",
    "ece": "calibration error (ECE, 15 bins)",
    "ece by chance": "the same, if it were calibrated",
    "nll": "negative log likelihood (nats)",
    "brier": "Brier score",
    "r2": "R2",
    "rmse": "root mean squared error",
    "coverage": "truths inside the 90 % interval",
}
OPEN = 3  # examples of a list that are not folded
MOST_ROWS = 16  # features of an example that are shown; of more, those with the largest mean


def page_of(numbers: Mapping[str, Any], given: Given, maps: Mapping[str, Tensor]) -> str:
    """Write the page.

    Args:
        numbers: as `report` returns them.
        given: the examples.
        maps: of `measure_shown`, and "rows", the examples that they are of.
    """
    about, checks = numbers["about"], numbers["checks"]
    parts = [f"<h1>How far can {_text(about['name'])} be trusted?</h1>", _summary(numbers)]
    parts += ["<h2>How well does it predict, and can its confidence be believed?</h2>", _scores(numbers)]
    parts += ["<h2>Sanity checks</h2>", _checks(checks)]
    parts += ["<h2>The examples that it is least sure of</h2>", _how_to_read(about)]
    shown = {int(row): place for place, row in enumerate(maps["rows"])}
    parts.append(_folded([_example(numbers, given, maps, shown[row], row) for row in numbers["least_sure"]]))
    parts.append("<h2>The examples whose explanation moves most</h2>")
    parts.append(
        "<p>Ordered by the ratio CV: the spread of a map over draws, summed, over the size of its mean, summed. "
        f"Pure noise has about {(about['draws'] * np.pi / 2) ** 0.5:.1f} with {about['draws']} draws.</p>"
    )
    moving = [
        f"<h3>{_title(numbers, row)}</h3><p>It is among the least sure, above.</p>"
        if row in numbers["least_sure"]
        else _example(numbers, given, maps, shown[row], row)
        for row in numbers["moves_most"]
    ]
    parts.append(_folded(moving))
    parts += ["<h2>What was not tested</h2>", _list(numbers["not_tested"])]
    advice = [each["advice"] for each in checks if each["advice"]]
    advice += ["Look at the examples above: are their labels right, and would you be sure of them?"]
    parts += ["<h2>What to do next</h2>", _list(list(dict.fromkeys(advice)))]
    made = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts.append(
        f"<h2>How it was made</h2><p>Seed {about['seed']}; {_text(made)}. Every number of this page is in the "
    )
    parts.append("JSON file beside it, and the maps in the safetensors file.</p>")
    return page(f"Report: {about['name']}", f'<div class="report">{"".join(parts)}</div>', alone=True)


def _text(name: object) -> str:
    return html.escape(plain(name, 500))


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(each)}</li>' for each in sentences)}</ul>"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _light(light: str) -> str:
    return f'<span class="light {light.split()[-1]}">{SIGNS[light]} {light}</span>'


def _summary(numbers: Mapping[str, Any]) -> str:
    about, checks, own = numbers["about"], numbers["checks"], numbers["scores"].get("network", {})
    first = "No labels were given, so nothing is known of how often it is right."
    if "accuracy" in own:
        share, low, high = (_percent(own["accuracy"][end]) for end in ("value", "low", "high"))
        first = f"It is right on {share} of the examples ({low} to {high}), and {_percent(own['confidence']['value'])} "
        first += "sure on average."
    elif own:
        first = f"It explains {_percent(own['r2']['value'])} of the variance of the truth ({_interval(own['r2'])} R2)."
    counts = [(light, sum(each["light"] == light for each in checks)) for light in SIGNS]
    lights = " ".join(f"{_light(light)} {count}" for light, count in counts if count)
    classes = about["classes"]
    named = "" if classes is None else f"; the outputs stand for {', '.join(classes[:12])}"
    named += ", ..." if classes is not None and len(classes) > 12 else ""
    rows = {
        "network": f"{about['network']}, {about['weights']:,} weights, which answers {about['output']}{named}",
        "data": f"{about['examples']} of {about['of']} examples of {about['data']} ({about['kind']})",
        "posterior": f"{known(about['posterior'])}, {about['draws']} draws: {about['reason']}",
        "explanation": f"{known(about['explainer'])} of the class with the largest mean probability over draws",
    }
    cells = "".join(f"<tr><th>{name}</th><td>{_text(text)}</td></tr>" for name, text in rows.items())
    failed = [f"{each['question']} {each['meaning']}" for each in checks if each["light"] == "failed"]
    return f"<p>{first}</p><p>Checks: {lights}</p>{_list(failed) if failed else ''}<table>{cells}</table>"


def _scores(numbers: Mapping[str, Any]) -> str:
    scores = numbers["scores"]
    if not scores:
        return "<p>No labels were given, so nothing can be said about this.</p>"
    heads = {"network": "network as it is", "draws": "mean of the draws"}
    rows = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads.values()) + "<th>interval</th></tr>"]
    for name, words in SCORES.items():
        found = [scores[who].get(name) for who in heads]
        if any(found):
            cells = "".join(f"<td>{_interval(each)}</td>" for each in found)
            rows.append(f"<tr><th>{words}</th>{cells}<td>{_text(next(filter(None, found))['of'])}</td></tr>")
    text = f"<table>{''.join(rows)}</table>"
    if len(numbers["reliability"]) > 1:
        frame = pd.DataFrame(numbers["reliability"])
        figure = curve(
            frame,
            x="confidence",
            y="accuracy",
            low="low",
            high="high",
            interval="95 % Wilson",
            labels=("mean confidence of the answers of a bin", "accuracy"),
            title="Is it as often right as it says?",
        )
        figure.axes[0].plot([0, 1], [0, 1], color="#555555", linestyle=":", linewidth=1.5)
        figure.axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02))
        points = ", ".join(f"{row.accuracy:.2f} at {row.confidence:.2f}" for row in frame.itertuples())
        text += _image(figure, f"Accuracy at each confidence: {points}")
        text += "<p>On the dotted line, answers are as often right as the network says; below it, it is too sure.</p>"
    return text


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    is_exact = estimate["low"] in (None, estimate["high"])
    ends = "" if is_exact else f" ({_number(estimate['low'])} to {_number(estimate['high'])})"
    return f"<b>{_number(estimate['value'])}</b>{ends}"


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = ["<tr><th>check</th><th></th><th>measured</th><th>what it means</th></tr>"]
    for each in checks:
        about = f"{each['measured']}; passed if {each['bound']}; {each.get('of')}"
        found = f"{_interval(each)}<br><small>{_text(about)}</small>" if "value" in each else ""
        rows.append(
            f"<tr><th>{_text(each['question'])}</th><td>{_light(each['light'])}</td>"
            f"<td>{found}</td><td>{_text(each['meaning'])}</td></tr>"
        )
    text = "A check is passed, or failed, if its whole interval lies on that side of the bound. The bounds are choices."
    return f"<p>{text}</p><table>{''.join(rows)}</table>"


def _how_to_read(about: Mapping[str, Any]) -> str:
    unit = "variance over draws" if about["output"] == "regression" else "uncertainty, in nats"
    return _list(
        [
            "mean, spread (standard deviation), 5 % and 95 %: of the explanation over draws. Above 0 speaks for the "
            "answer, below 0 against it.",
            "sign certainty: the share of the draws that agree whether it is above or below 0; near 0.5 nothing is "
            "known.",
            f"where the uncertainty comes from: UA-Backprop's map, which adds up to the {unit}. That it adds up does "
            "not make it right.",
        ]
    )


def _folded(examples: Sequence[str]) -> str:
    """The first few as they are, the others behind a line that unfolds them."""
    first, others = "".join(examples[:OPEN]), examples[OPEN:]
    return f"{first}<details><summary>{len(others)} more</summary>{''.join(others)}</details>" if others else first


def _title(numbers: Mapping[str, Any], row: int) -> str:
    example = numbers["examples"][row]
    answer = example["answer"] if isinstance(example["answer"], str) else _number(example["answer"])
    sure = "" if "confidence" not in example else f" ({_percent(example['confidence'])} sure)"
    label = "" if "label" not in example else f", truth {plain(example['label'])}"
    called, number = plain(example["example"]), "row" if numbers["about"]["kind"] == "table" else "example"
    called = f"{number} {called}" if called.isdigit() else called
    return _text(f"{called}: answer {plain(answer)}{sure}{label}")


def _example(numbers: Mapping[str, Any], given: Given, maps: Mapping[str, Tensor], place: int, row: int) -> str:
    example, about = numbers["examples"][row], numbers["about"]
    unit = "" if about["output"] == "regression" else " nats"
    facts = ", ".join(f"{name} {_number(example[name])}{unit}" for name in ("total", "aleatoric", "epistemic"))
    text = (
        f"<h3>{_title(numbers, row)}</h3><p>Uncertainty: {facts}. Ratio CV of the map: {_number(example['moves'])}.</p>"
    )
    own = {name: values[place] for name, values in maps.items() if name != "rows"}
    x = given.inputs.x[row].detach().cpu()
    if about["kind"] == "images":
        return text + _map_row(x, own)
    if about["kind"] == "signals":
        return text + _image(_lines(x, own), f"Course of the explanation of {plain(example['example'])}")
    names, value = _feature_names(given, row, own["mean"]), given.inputs.values[given.inputs.explained][row]
    frame = pd.DataFrame({name: each.flatten().numpy() for name, each in own.items()})
    frame.insert(0, "value", value.flatten().cpu().numpy())
    frame.index = pd.Index(names)
    if len(frame) > MOST_ROWS:
        text += f"<p>The {MOST_ROWS} of {len(frame)} features with the largest mean:</p>"
        frame = frame.iloc[frame["mean"].abs().argsort(kind="stable")[::-1][:MOST_ROWS]]
    cells = [
        f"<tr><th>{_text(name)}</th>{''.join(f'<td>{_number(each)}</td>' for each in line)}</tr>"
        for name, line in zip(frame.index, frame.itertuples(index=False), strict=True)
    ]
    heads = ("", "value", "mean", "spread", "5 %", "95 %", "sign certainty", "uncertainty from here")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f'{text}<table class="numbers"><tr>{head}</tr>{"".join(cells)}</table>'


def _feature_names(given: Given, row: int, values: Tensor) -> list[str]:
    if given.inputs.are_tokens:
        ids = given.inputs.values[given.inputs.explained][row].tolist()
        return [str(each) if given.vocabulary is None else given.vocabulary[each] for each in ids]
    return list(given.feature_names or (f"feature {place}" for place in range(values.numel())))


def _map_row(x: Tensor, own: Mapping[str, Tensor]) -> str:
    signed = map_pngs({name: own[name] for name in ("mean", "low", "high")}, kind="signed")
    spread, source = (map_pngs({"": own[name]}, kind="spread")[""] for name in ("spread", "source"))
    certainty, most = map_pngs({"": (own["certainty"] - 0.5).clamp(min=0)}, kind="ratio")[""]  # a half knows nothing
    cells = [
        ("example", map_pngs({"": x}, kind="picture")[""][0], ""),
        ("mean", signed["mean"][0], f"±{signed['mean'][1]:.2g}"),
        ("spread", spread[0], f"0 to {spread[1]:.2g}"),
        ("5 %", signed["low"][0], f"±{signed['low'][1]:.2g}"),
        ("95 %", signed["high"][0], f"±{signed['high'][1]:.2g}"),
        ("sign certainty", certainty, f"0.5 to {0.5 + most:.2g}"),
        ("where the uncertainty comes from", source[0], f"0 to {source[1]:.2g}"),
    ]
    figures = "".join(
        f"<figure>{_inline(png, name)}<figcaption>{name}<br><small>{scale}</small></figcaption></figure>"
        for name, png, scale in cells
    )
    return f'<div class="maps">{figures}</div>'


def _lines(x: Tensor, own: Mapping[str, Tensor]) -> Figure:
    """A signal, or many features: its values, its explanation with the interval, sign certainty, and uncertainty."""
    with mpl.rc_context(LOOK):
        figure = Picture(figsize=(11, 8))
        axes = figure.subplots(4, 1, sharex=True)
        where = np.arange(own["mean"].numel())
        for channel in x.reshape(-1, where.size):
            axes[0].plot(where, channel, linewidth=1.5)
        axes[1].fill_between(where, own["low"].flatten(), own["high"].flatten(), color=HUES[0], alpha=0.25, linewidth=0)
        axes[1].plot(where, own["mean"].flatten(), color=HUES[0], linewidth=1.5)
        axes[1].axhline(0, color="black", linewidth=1)
        axes[2].plot(where, own["certainty"].flatten(), color=HUES[2], linewidth=1.5)
        axes[2].set_ylim(0.45, 1.02)
        axes[3].fill_between(where, own["source"].flatten(), color=HUES[4], linewidth=0)
        for each, label in zip(axes, ("value", "mean, 90 %\nof draws", "sign\ncertainty", "uncertainty"), strict=True):
            each.set_ylabel(label)
        axes[3].set_xlabel("place")
    return figure


def _image(figure: Figure, words: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return f"<p>{_inline(buffer.getvalue(), words)}</p>"


def _inline(png: bytes, words: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{_text(words)}">'
