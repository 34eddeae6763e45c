"""A report: its numbers are those of a plain loop, its page is harmless, and what does not fit is one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from core_networks import assert_same, randn, seeded, snapshot
from hostile import WRITABLE
from PIL import Image
from scipy.stats import spearmanr
from test_hostile_names import assert_harmless
from test_pickles import Hostile
from torch import nn
from torch.nn import functional as F

from xuqlib import Draws, Examples, MCDropConnect, MCDropout, report
from xuqlib.__main__ import main
from xuqlib.study.intervals import Estimate
from xuqlib.study.report import making, measuring
from xuqlib.study.report.lights import CHECKS, judge
from xuqlib.study.report.reading import Normalised, Reading, ReportError, load_weights, network_of, read

CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # float64 sums in another order
N, S = 24, 6
QUIET = {"num_draws": S, "progress": False}


def net(*, dropout: float = 0.3, activation: type[nn.Module] = nn.ReLU, classes: int = 3) -> nn.Module:
    """Images of 3 x 8 x 8; dropout in front of the last two layers, none where the rate is 0."""
    drops = [nn.Dropout(dropout) if dropout else nn.Identity() for _ in range(2)]
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), activation(), drops[0], nn.Conv2d(4, 4, 3), activation(), nn.Flatten(), drops[1]),
        nn.Linear(64, classes),
    )


def images() -> torch.Tensor:
    return randn(N, 3, 8, 8).sigmoid()


def labels() -> torch.Tensor:
    return torch.arange(N) % 3


class Made:
    """A report, its files, and the same draws by themselves."""

    def __init__(self, folder: Path) -> None:
        self.network, self.x, self.y = seeded(net), images(), labels()
        self.before = snapshot(self.network)
        self.out = folder / "report.html"
        self.numbers = report(self.network, self.x, labels=self.y, out=self.out, **QUIET)
        self.maps = safetensors.torch.load_file(folder / "report.safetensors")
        self.draws = list(MCDropout(self.network).sample(S, seed=0))
        self.frame = pd.DataFrame(self.numbers["examples"])
        self.checks = {each["name"]: each for each in self.numbers["checks"]}
        with torch.no_grad():
            self.probs = torch.stack([draw(self.x).softmax(1) for draw in self.draws])
        self.classes = self.probs.mean(0).argsort(1, descending=True)[:, :2]
        self.asked = torch.randperm(N, generator=making.generator_of(0, 1))[: making.CHECKED]

    def maps_of(self, draws, classes) -> np.ndarray:
        """Gradient times input, summed over channels, by a plain loop: (draw, example, height, width)."""
        found = []
        for draw in draws:
            x = self.x.clone().requires_grad_()
            draw(x).gather(1, classes[:, None]).sum().backward()
            found.append((x.grad * self.x).sum(1))
        return torch.stack(found).numpy()

    def alike(self, a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([spearmanr(a[row].ravel(), b[row].ravel()).statistic for row in self.asked])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("report"))


def test_answers_and_scores_are_those_of_a_plain_loop(made):
    with torch.no_grad():
        plain = seeded(net).eval()(made.x).softmax(1)
    truth = F.one_hot(made.y).double()
    for who, probs in (("network", plain), ("draws", made.probs.mean(0))):
        confidence, answer = probs.max(1)
        right = (answer == made.y).double()
        wanted = {
            "accuracy": right.mean(),
            "confidence": confidence.mean(),
            "gap": (confidence - right).mean(),
            "nll": -probs[range(N), made.y].log().mean(),
            "brier": ((probs - truth) ** 2).sum(1).mean(),
        }
        bins = (confidence * 15).long()
        gaps = [(right[bins == b].sum() - confidence[bins == b].sum()).abs() for b in range(15)]
        wanted["ece"] = sum(gaps) / N
        scores = made.numbers["scores"][who]
        for name, value in wanted.items():
            np.testing.assert_allclose(scores[name]["value"], float(value), rtol=1e-6, err_msg=f"{who} {name}")
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    assert made.frame["confidence"].to_numpy() == pytest.approx(made.probs.mean(0).amax(1).numpy())
    assert made.frame["label"].tolist() == [str(y) for y in made.y.tolist()]
    assert made.frame["right"].tolist() == (made.probs.mean(0).argmax(1) == made.y).tolist()


def test_uncertainty_and_movement_order_the_examples_that_are_shown(made):
    def entropy(p):
        return -(p * p.log()).sum(-1)

    total, aleatoric = entropy(made.probs.mean(0)), entropy(made.probs).mean(0)
    maps = made.maps_of(made.draws, made.classes[:, 0])
    moves = maps.std(0).sum((1, 2)) / np.abs(maps.mean(0)).sum((1, 2))
    for name, wanted in (("total", total), ("aleatoric", aleatoric), ("epistemic", total - aleatoric)):
        np.testing.assert_allclose(made.frame[name], wanted.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(made.frame["moves"], moves, rtol=1e-6)
    assert made.numbers["least_sure"] == total.argsort(descending=True)[:10].tolist()
    assert made.numbers["moves_most"] == list(np.argsort(-moves)[:10])


def test_the_maps_that_are_shown_are_those_of_a_plain_loop(made):
    rows = made.maps["rows"].tolist()
    assert set(rows) == {*made.numbers["least_sure"], *made.numbers["moves_most"]}
    maps = made.maps_of(made.draws, made.classes[:, 0])[:, rows]
    agree = np.maximum((maps > 0).mean(0), (maps < 0).mean(0))
    agree[agree == 0] = np.nan
    low, high = np.quantile(maps, [0.05, 0.95], axis=0)
    for name, wanted in {"mean": maps.mean(0), "spread": maps.std(0), "low": low, "high": high}.items():
        np.testing.assert_allclose(made.maps[name], wanted, rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(made.maps["certainty"], agree, **CLOSE)
    source = made.maps["source"].flatten(1).numpy()
    alike = [spearmanr(source[place], source[(place + 1) % len(rows)]).statistic for place in range(len(rows))]
    assert made.checks["source"]["value"] == pytest.approx(np.mean(alike))
    np.testing.assert_allclose(made.maps["source"].sum((1, 2)), made.frame["total"][rows], rtol=1e-6)


def test_the_checks_compare_the_maps_that_they_say(made):
    own, other = (made.maps_of(made.draws, made.classes[:, place]).mean(0) for place in (0, 1))
    draws = made.maps_of(made.draws, made.classes[:, 0])
    values = {name: each["value"] for name, each in made.checks.items()}
    assert values["class"] == pytest.approx(made.alike(own, other))
    assert values["halves"] == pytest.approx(made.alike(draws[: S // 2].mean(0), draws[S // 2 :].mean(0)))
    following = own.copy()
    following[made.asked] = own[made.asked.roll(-1)]
    assert values["image"] == pytest.approx(made.alike(own, following))
    fresh = measuring.with_new_weights(_networks(made))
    assert values["weights"] == pytest.approx(made.alike(own, made.maps_of(fresh, made.classes[:, 0]).mean(0)))
    assert values["agree"] == (made.probs.mean(0).argmax(1) == seeded(net).eval()(made.x).argmax(1)).double().mean()
    assert values["fullgrad"] < 1e-12 and made.checks["fullgrad"]["light"] == "passed"


def _networks(made: Made) -> measuring.Networks:
    network = seeded(net).eval()
    draw = measuring._dropout(S, 0)
    return measuring.Networks(network, draw(network), measuring.Output("logits"), "", "", draw)


@pytest.mark.parametrize("posterior", [None, "mc_dropconnect"])
def test_new_weights_keep_what_was_random(posterior):
    network = seeded(net).eval()
    x = measuring.Inputs(images())
    asked = {"train": None, "read_as": measuring.Output("logits"), "num_draws": 4, "seed": 0}
    networks = measuring.choose(network, x, posterior, **asked)
    fresh = measuring.with_new_weights(networks)
    own = dict(network.named_parameters())
    inside = dict(measuring.inner(fresh[0]).named_parameters())
    for name, weight in own.items():
        parent, _, end = name.rpartition(".")
        other = inside.get(name, inside.get(f"{parent}.layer.{end}"))
        assert other is not None and not (other == weight).any()
    answers = Draws(list(fresh))(images())
    assert (answers.std(0) > 0).all()  # draws still differ
    again = [draw(images()) for draw in measuring.with_new_weights(networks)]
    assert torch.equal(torch.stack(again), answers)


def test_the_features_differ_by_what_a_plain_loop_finds_and_by_nothing_where_only_the_last_layer_drops(made):
    features = torch.stack([_features(draw, made.x[made.asked]) for draw in made.draws])
    found = []
    for other in features[1:]:
        both = (other != 0) & (features[0] != 0)
        found.append(float((other - features[0]).abs()[both].mean() / features[0].abs()[both].mean()))
    assert (
        made.checks["layers"]["value"] == pytest.approx(np.mean(found)) and made.checks["layers"]["light"] == "passed"
    )
    last = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    network = seeded(lambda: last).eval()
    for posterior in (MCDropout(network), MCDropConnect(network, p=0.3)):
        networks = measuring.Networks(network, posterior.sample(3), measuring.Output("logits"), "", "")
        assert measuring.check_layers(networks, measuring.Inputs(images())).tolist() == [0, 0]


def _features(draw: nn.Module, x: torch.Tensor) -> torch.Tensor:
    given = []
    handle = measuring.inner(draw)[-1].register_forward_pre_hook(lambda _, values: given.append(values[0]))
    draw(x)
    handle.remove()
    return given[-1].detach()


def blind(network, x, target=None):
    """An explainer that knows no network."""
    return x.clone()


def test_what_is_wrong_is_found(tmp_path):
    """A smooth network, labels in another order, and an explainer that knows neither network nor class."""
    network = seeded(lambda: net(activation=nn.GELU))
    with torch.no_grad():
        network[-1].bias -= network.eval()(images()).mean(0)  # so that it answers every class
        answer = network(images()).argmax(1)
    assert len(answer.unique()) == 3
    given = {"labels": (answer + 1) % 3, "explainer": blind, "out": tmp_path / "report.html"}
    numbers = report(network, images(), **given, **QUIET)
    lights = {each["name"]: each["light"] for each in numbers["checks"]}
    failed = {"chance", "gap", "class", "weights", "fullgrad"}
    assert {name for name, light in lights.items() if light == "failed"} - {"agree", "source"} == failed
    assert lights["image"] == "passed" and lights["halves"] == "passed"
    advice = next(each["advice"] for each in numbers["checks"] if each["name"] == "chance")
    assert "in the order 1, 2, 0, 100 % of the answers would be right" in advice
    text = (tmp_path / "report.html").read_text()
    for each in numbers["checks"]:
        assert each["question"] in text
    assert all(CHECKS[name].failed.split("'")[0] in text for name in failed)


def test_a_light_is_the_side_on_which_the_whole_interval_lies():
    def light(name, low, high):
        (outcome,) = judge({name: Estimate((low + high) / 2, low, high)})
        return outcome.light

    assert [light("halves", *ends) for ends in ((0.8, 0.9), (0.6, 0.8), (0.5, 0.6))] == ["passed", "unclear", "failed"]
    assert [light("class", *ends) for ends in ((0.1, 0.4), (0.4, 0.6), (0.6, 0.7))] == ["passed", "unclear", "failed"]
    assert [light("gap", *ends) for ends in ((0, 0.04), (0, 0.1), (0.1, 0.2))] == ["passed", "unclear", "failed"]
    few, every = judge({"halves": Estimate(0.7, 0.6, 0.8), "r2": Estimate(0, -1, 1)})[::-1]
    assert every.meaning.endswith("take more examples.") and few.meaning.endswith("examples do not decide it.")
    (unasked,) = judge({"class": "there is one output"})
    assert unasked.light == "not asked" and "there is one output" in unasked.meaning and not unasked.advice


def test_the_network_and_the_generators_are_left_as_they_were(made, untouched_generators, tmp_path):
    assert made.network.training
    assert_same(made.before, snapshot(made.network))
    report(made.network, made.x[:6], labels=made.y[:6], out=tmp_path / "report.html", num_draws=4, progress=False)
    assert_same(made.before, snapshot(made.network))


def test_a_report_that_was_stopped_goes_on_and_writes_the_same_bytes(made, tmp_path, monkeypatch):
    out, measured = tmp_path / "report.html", []

    def watch(name, stop):
        measure = getattr(measuring, name)

        def watched(*args):
            if stop and name == "check_layers":
                raise KeyboardInterrupt
            measured.append(name)
            return measure(*args)

        return watched

    names = ("measure_batch", "measure_shown", "check_fullgrad", "check_layers", "check_maps")
    for stop in (True, False):
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(measuring, name, watch(name, stop))
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    report(made.network, made.x, labels=made.y, out=out, **QUIET)
                assert not out.exists()
            else:
                report(made.network, made.x, labels=made.y, out=out, **QUIET)
    assert sorted(measured) == sorted(names)  # each once
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in made.out.parent.iterdir())
    for path in made.out.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_json_holds_what_the_call_returned_and_the_page_says_its_numbers(made):
    assert json.loads((made.out.parent / "report.json").read_text()) == made.numbers
    text = made.out.read_text()
    for each in (*made.numbers["scores"]["network"].values(), *(c for c in made.numbers["checks"] if "value" in c)):
        assert f"<b>{each['value']:.3g}</b>" in text
    assert all(sentence.split("'")[0] in text for sentence in made.numbers["not_tested"])
    assert text.count('class="maps"') == len(made.maps["rows"])


def test_names_of_the_data_are_text_and_nothing_is_fetched_from_outside(tmp_path):
    names = list(WRITABLE.values())
    x, y = randn(len(names), 3, 8, 8), torch.arange(len(names))
    given = Examples(names[0], "test", x, y, torch.arange(len(names)), class_names=tuple(names))
    out = tmp_path / "report.html"
    report(seeded(lambda: net(classes=len(names))), given, out=out, name=names[1], num_draws=4, progress=False)
    found = assert_harmless(out.read_text(encoding="utf-8"))
    addresses = [value for name, value in found.attributes if name in ("href", "src", "action")]
    assert all(value.startswith("data:") for value in addresses) and not found.scripts
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy and "http" not in policy


# What is read.


def write_images(folder: Path, size: int = 8, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    for row, pixels in enumerate((images() * 255).byte().permute(0, 2, 3, 1).numpy()):
        place = folder / classes[row % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((size, size)).save(place / f"{row:02d}.png")
    return folder


def write_table(path: Path, *, column: str = "label", words: bool = True) -> Path:
    frame = pd.DataFrame(randn(N, 4).numpy(), columns=list("abcd"))
    frame[column] = [["no", "yes"][row % 2] for row in range(N)] if words else np.arange(N) % 2
    frame.to_csv(path, index=False)
    return path


def test_a_folder_of_classes_is_read_as_it_lies_there(tmp_path):
    folder = write_images(tmp_path / "images", size=12)
    given = read(folder, Reading(), most=10, seed=1)
    assert (len(given.ids), given.total, given.class_names) == (10, N, ("ant", "bee", "cat"))
    for name, x, y in zip(given.ids, given.inputs.x, given.labels, strict=True):
        with Image.open(folder / name) as image:
            assert torch.equal((x * 255).round().permute(1, 2, 0), torch.from_numpy(np.array(image)).float())
        assert name.startswith(given.class_names[y])
    small = read(folder, Reading(image_size=8, channels=1, classes=["cat", "bee", "ant"]), most=10, seed=1)
    assert small.inputs.x.shape == (10, 1, 8, 8) and (small.labels == 2 - given.labels).all()


def test_a_table_is_read_with_words_or_numbers_as_signals_or_tokens(tmp_path):
    table = write_table(tmp_path / "table.csv")
    given = read(table, Reading(), most=N, seed=0)
    assert given.class_names == ("no", "yes") and given.feature_names == tuple("abcd")
    assert given.labels.tolist() == [row % 2 for row in range(N)]
    torch.testing.assert_close(given.inputs.x, randn(N, 4).float())
    signal = read(table, Reading(shape=(2, 2)), most=N, seed=0)
    assert torch.equal(signal.inputs.x, given.inputs.x.reshape(N, 2, 2))
    pd.DataFrame(np.arange(20).reshape(5, 4)).assign(target=range(5)).to_csv(tmp_path / "ids.csv", index=False)
    tokens = read(tmp_path / "ids.csv", Reading(tokens=True), most=5, seed=0)
    assert tokens.inputs.are_tokens and tokens.inputs.values[0].tolist() == np.arange(20).reshape(5, 4).tolist()


def test_a_normalised_network_is_that_behind_the_transform():
    from torchvision.transforms import Normalize

    network, mean, std = seeded(net).eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    wanted = network(Normalize(mean, std)(images()))
    torch.testing.assert_close(Normalised(network, mean, std)(images()), wanted, rtol=1e-6, atol=1e-6)


class TokenNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(30, 4), nn.Linear(16, 3)

    def forward(self, ids):
        return self.body(self.embed(ids).relu().flatten(1))


def other_kinds():
    table = lambda outputs: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))  # noqa: E731
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 28, 3))
    softmax = nn.Sequential(table(3), nn.Softmax(1))
    binary = torch.arange(N) % 2
    yield "regression", table(1), randn(N, 4), randn(N, seed=1), {}, ("table", "regression")
    yield "binary", table(1), randn(N, 4), binary, {"output": "binary"}, ("table", "binary")
    yield "probabilities", softmax, randn(N, 4), labels(), {"output": "probabilities"}, ("table", "probabilities")
    yield "signals", signal, randn(N, 2, 30), labels(), {}, ("signals", "logits")
    yield "tokens", TokenNetwork(), torch.arange(N * 4).reshape(N, 4) % 30, labels(), {}, ("tokens", "logits")
    yield "no labels", table(3), randn(N, 4), None, {}, ("table", "logits")


KINDS = {name: rest for name, *rest in other_kinds()}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_measured_or_said_to_be_unknown(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "SHOWN", 2)
    network, x, y, options, wanted = KINDS[kind]
    network, out = seeded(lambda: network), tmp_path / "report.html"
    numbers = report(network, x, labels=y, out=out, **options, **QUIET)
    lights = {each["name"]: each["light"] for each in numbers["checks"]}
    assert (numbers["about"]["kind"], numbers["about"]["output"]) == wanted
    maps, rows = safetensors.torch.load_file(out.with_suffix(".safetensors")), pd.DataFrame(numbers["examples"])
    doubt = "epistemic" if kind == "regression" else "total"
    summed = maps["source"].flatten(1).sum(1).numpy()
    np.testing.assert_allclose(summed, rows[doubt][maps["rows"].numpy()], rtol=1e-6, atol=1e-12)
    if kind in ("regression", "binary"):
        assert lights["class"] == "not asked"
    if kind == "no labels":
        assert not numbers["scores"] and lights["chance"] == lights["gap"] == "not asked"
        assert "No labels were given" in out.read_text()
    elif kind == "regression":
        with torch.no_grad():
            error = (network.eval()(x)[:, 0] - y).numpy()
        scores = numbers["scores"]["network"]
        assert scores["rmse"]["value"] == pytest.approx((error**2).mean() ** 0.5)
        assert scores["r2"]["value"] == pytest.approx(1 - (error**2).mean() / y.numpy().var())
    elif kind == "binary":
        with torch.no_grad():
            answer = network.eval()(x)[:, 0] > 0
        assert numbers["scores"]["network"]["accuracy"]["value"] == (answer == y.bool()).double().mean()
    assert_harmless(out.read_text())


def test_the_posterior_is_chosen_by_what_there_is_and_the_page_says_why(tmp_path):
    x, network = images(), seeded(lambda: net(dropout=0)).eval()
    out, few = tmp_path / "report.html", {"num_draws": 4, "progress": False}
    numbers = report(network, x, labels=labels(), out=out, **few)
    (rate,) = {float(word) for word in numbers["about"]["posterior"].split("= ")[1:]}
    assert "the network has no dropout" in numbers["about"]["reason"] and "not fitted" in out.read_text()
    with torch.no_grad():
        for each in measuring.DROP_RATES:  # the largest at which the draws answer as the network
            draws = MCDropConnect(network, p=each, placement="all").sample(4)
            same = (draws(x).softmax(2).mean(0).argmax(1) == network(x).argmax(1)).double().mean()
            if same >= measuring.AGREEMENT:
                break
    assert rate == each
    train = Examples("mine", "train", x, labels(), torch.arange(N))
    fitted = report(network, x, labels=labels(), train=train, out=out, **few)
    assert fitted["about"]["posterior"] == "last-layer Laplace" and "training examples" in fitted["about"]["reason"]
    assert next(each for each in fitted["checks"] if each["name"] == "layers")["light"] == "failed"
    given = report(network, x, labels=labels(), posterior=MCDropConnect(network), out=out, **few)
    assert given["about"]["reason"] == "it was given"


# The command, and what does not fit.


CODE = """
from torch import nn


def table():
    return nn.Linear(4, 2)


def one():
    return nn.Linear(4, 1)


def broken():
    import no_such_package


def argued(width):
    return nn.Linear(width, 2)


nothing = dict
"""


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A folder with a reader's module, its weights, a folder of images and a table."""
    (tmp_path / "readers_code.py").write_text(CODE)
    write_table(tmp_path / "table.csv")
    write_table(tmp_path / "unlabelled.csv", column="truth")
    write_images(tmp_path / "images")
    safetensors.torch.save_model(seeded(lambda: nn.Linear(4, 2), dtype=torch.float32), tmp_path / "w.safetensors")
    safetensors.torch.save_model(nn.Linear(5, 2), tmp_path / "other.safetensors")
    safetensors.torch.save_model(nn.ModuleDict({"module": nn.Linear(4, 2)}), tmp_path / "wrapped.safetensors")
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "readers_code", raising=False)
    return tmp_path


TABLE = ["report", "--network", "readers_code:table", "--data", "table.csv", "--num-draws", "4"]


def test_the_command_writes_a_page_of_a_table(code, capsys):
    assert main([*TABLE, "--weights", "w.safetensors", "--out", "mine.html"]) == 0
    told = capsys.readouterr()
    assert told.out == "open mine.html in a browser\n" and "examples, 4 draws (MC-DropConnect" in told.err
    numbers = json.loads(Path("mine.json").read_text())
    x = torch.from_numpy(pd.read_csv("table.csv")[list("abcd")].to_numpy(np.float32))
    answer = seeded(lambda: nn.Linear(4, 2), dtype=torch.float32)(x).argmax(1)
    assert numbers["scores"]["network"]["accuracy"]["value"] == (answer == torch.arange(N) % 2).double().mean()
    page = Path("mine.html").read_text()
    assert "How far can readers_code:table (w.safetensors) be trusted?" in page and "Linear, 10 weights" in page
    assert f"<h3>row {numbers['examples'][numbers['least_sure'][0]]['example']}: answer " in page


def wrong(**changed):
    options = dict(zip(TABLE[1::2], TABLE[2::2], strict=True))
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["report", *(word for pair in options.items() for word in pair)]


WRONG = {
    "no colon": (wrong(network="readers_code"), "pass 'module:factory'"),
    "a file for a module": (wrong(network="readers_code.py:table"), "as it is imported: no path, no .py"),
    "no module": (wrong(network="nope:table"), "no module 'nope'"),
    "no factory": (
        wrong(network="readers_code:tables"),
        "has no function 'tables'; it has table, one,",
    ),
    "no network": (wrong(network="readers_code:nothing"), "gave a dict; wanted an nn.Module"),
    "a factory with arguments": (wrong(network="readers_code:argued"), "pass a function without any that calls it"),
    "weights of a wrapped network": (
        wrong(weights="wrapped.safetensors"),
        "bias is missing; weight is missing; module.bias is unknown; module.weight is unknown\n",
    ),
    "weights that do not fit": (wrong(weights="other.safetensors"), "weight is (2, 5), wanted (2, 4)"),
    "weights of one output": (wrong(weights="w.safetensors", network="readers_code:one"), "bias is (2,), wanted (1,)"),
    "pickled weights": (wrong(weights="w.pt"), "w.pt is no safetensors file"),
    "no weights": (wrong(weights="no.safetensors"), "no such file"),
    "no data": (wrong(data="no.csv"), "no such file or folder"),
    "no rows": (wrong(data="headed.csv"), "headed.csv has no rows"),
    "a missing number": (
        wrong(data="missing.csv", num_examples="2"),
        "missing.csv has 1 missing or infinite numbers, the first in row 20 (from 0), column 'b'",
    ),
    "numbers for classes": (wrong(data="halves.csv"), "labels are numbers such as 0.5, but the network tells 2"),
    "its training examples": (wrong(train="./table.csv"), "train and data are both 'table.csv'"),
    "no label": (wrong(data="unlabelled.csv"), "unlabelled.csv has no column target, label, y"),
    "a text": (wrong(data="readers_code.py"), "pass a .csv or .parquet file, or a folder of images"),
    "an empty table": (wrong(data="empty.csv"), "empty.csv cannot be read as a table"),
    "one class": (wrong(data="one"), "holds images of one class, 'ant'"),
    "images beside classes": (wrong(data="beside"), "images beside its folders of classes"),
    "an unreadable image": (wrong(data="unreadable"), "cannot read the image ant/00.png"),
    "unlike sizes": (wrong(data="unlike"), "images of 2 sizes, (8, 8) to (9, 9); say image_size"),
    "classes that are not there": (wrong(classes="yes,maybe"), "label 'no' is not among the classes"),
    "too many classes": (wrong(classes="yes,no,maybe"), "there are 3 classes (yes, no, maybe) but the network tells 2"),
    "one number for classes": (wrong(network="readers_code:one", data="numbers.csv"), "say output='binary'"),
    "a class twice": (wrong(classes="no,no"), "give each output a name of its own"),
    "mean of a table": (wrong(mean="0,0,0,0", std="1,1,1,1"), "mean and std are of 4 channels of images"),
    "mean of bytes": (wrong(data="images", mean="124,116,104", std="58,57,57"), "divide mean and std by 255"),
    "mean alone": (wrong(mean="0.5,0.5"), "pass both, or neither"),
    "shape that does not fit": (wrong(shape="3,2"), "shape is (3, 2) but a row has 4 numbers"),
    "no folder to write to": (wrong(out="nowhere/report.html"), "there is no folder 'nowhere'"),
    "another suffix": (wrong(out="report.pdf"), "pass the path of a page"),
    "too few draws": (wrong(num_draws="3"), "num_draws is 3; pass at least 4"),
    "Laplace without training examples": (wrong(posterior="laplace"), "pass them as train"),
    "training examples that are not there": (wrong(train="no.csv"), "train cannot be used"),
    "images for a table": (wrong(data="images"), "cannot be evaluated|mat1|shapes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_sentence_before_the_work(case, code, capsys, monkeypatch):
    (code / "empty.csv").write_text("")
    write_table(code / "numbers.csv", words=False)
    frame = pd.read_csv("table.csv")
    frame.head(0).to_csv("headed.csv", index=False)
    frame.assign(b=frame["b"].where(frame.index != 20)).to_csv("missing.csv", index=False)
    frame.assign(label=0.5).to_csv("halves.csv", index=False)
    arguments, sentence = WRONG[case]
    data = code / arguments[4]
    if data.name in ("one", "beside", "unreadable", "unlike"):
        write_images(data, classes=("ant",) if data.name == "one" else ("ant", "bee"))
    if data.name == "beside":
        Image.new("RGB", (8, 8)).save(data / "x.png")
    if data.name == "unlike":
        Image.new("RGB", (9, 9)).save(data / "ant" / "99.png")
    if data.name == "unreadable":
        (data / "ant" / "00.png").write_bytes(b"no image")
    monkeypatch.setattr(making, "_measured", lambda *_: pytest.fail("the work began"))
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1, told.err
    assert any(words in told.err for words in sentence.split("|")), told.err


def test_an_error_of_the_readers_own_code_is_not_hidden(code):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        main(wrong(network="readers_code:broken"))


def test_weights_are_loaded_and_nothing_is_unpickled(code):
    network = nn.Linear(4, 2)
    load_weights(network, code / "w.safetensors")
    assert torch.equal(network.weight, seeded(lambda: nn.Linear(4, 2), dtype=torch.float32).weight)
    torch.save(Hostile(code / "mark"), code / "w.pt")
    with pytest.raises(ReportError, match="no safetensors file"):
        load_weights(network, code / "w.pt")
    assert not (code / "mark").exists()


def test_a_network_comes_in_eval_mode():
    assert not network_of("torch.nn:ReLU").training
