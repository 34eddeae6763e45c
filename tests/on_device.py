"""What holds on a device, shown on a pretended one; `test_device.py` runs this file in a process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pretend_device
import pytest
import torch
from core_networks import EXACT, FunctionalDropout, OneOutput, inplace_cnn, late_cnn, randn, seeded, table_mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.explainers import EXPLAINERS, gradients
from xuqlib.metrics.deletion import deletion, insertion, pixel_order
from xuqlib.posteriors import fixing
from xuqlib.posteriors.draws import Draws
from xuqlib.study.judging.blurring import greedy_order, uncertainty_curves
from xuqlib.study.judging.stress import pgd

NAME = "pretend"
HERE = torch.device(NAME, 0)


class Residual(nn.Module):
    """A residual network: a stem, a block with a skip connection and batch norms, dropout in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.relu(self.norm(self.stem(x))))
        h = F.relu(h + self.two(F.relu(self.one(h))))
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    """A small encoder over the rows of an image, with torch's own dropout inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(24, 2, dim_feedforward=16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.movedim(1, 2).flatten(2)).mean(1))


class Tokens(nn.Module):
    """A classifier of token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.drop, self.head = (
            nn.Embedding(9, 6),
            nn.Linear(6, 6),
            nn.Dropout(0.3),
            nn.Linear(6, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.mix(self.embed(ids)))).mean(1))


def normed_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


PICTURES, TABLE = randn(3, 3, 8, 8), randn(4, 5)
IDS = torch.arange(12).view(2, 6) % 9
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "cnn": (inplace_cnn, PICTURES),
    "late cnn": (late_cnn, PICTURES),
    "mlp": (table_mlp, TABLE),
    "mlp with norms": (normed_mlp, TABLE),
    "functional": (FunctionalDropout, TABLE),
    "residual": (Residual, PICTURES),
    "transformer": (Transformer, PICTURES),
    "tokens": (Tokens, IDS),
    "regression": (OneOutput, TABLE),
}
POSTERIORS: dict[str, Callable[[Callable[[], nn.Module]], xuq.Posterior]] = {
    "dropout": lambda build: xuq.MCDropout(seeded(build).eval()),
    "dropconnect": lambda build: xuq.MCDropConnect(seeded(build).eval(), p=0.3, placement="last"),
    "flipout": lambda build: xuq.Flipout(seeded(build).eval(), placement="all"),
    "ensemble": lambda build: xuq.DeepEnsemble([seeded(build, seed=seed).eval() for seed in range(3)]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"num_steps": 3},
    "smoothgrad": {"num_samples": 3},
    "lime": {"num_samples": 24, "num_segments": 4},
}


def draws_of(posterior: str, network: str, num_draws: int = 3) -> Draws:
    return POSTERIORS[posterior](NETWORKS[network][0]).sample(num_draws, seed=1)


@cache
def pair(posterior: str, network: str) -> tuple[Draws, Draws, Tensor]:
    """Draws on the CPU, the same draws put on the device, and examples on the CPU."""
    return draws_of(posterior, network), draws_of(posterior, network).to(HERE), NETWORKS[network][1]


def places(draws: Draws) -> set[str]:
    return {tensor.device.type for network in draws for tensor in (*network.parameters(), *network.buffers())}


def identities(draws: Draws) -> list[tuple[int, int]]:
    return [(id(t), t.data_ptr()) for network in draws for t in (*network.parameters(), *network.buffers())]


def launches(work: Callable[[], Any]) -> pretend_device.Counts:
    """What `work` asks of the device, once all that is made once has been made."""
    work()
    with pretend_device.counting() as counts:
        work()
    return counts


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_explanations_on_a_device_are_those_of_the_cpu(posterior, network):
    cpu, there, x = pair(posterior, network)
    names = [name for name in EXPLAINERS if name != "guided_backprop" or network not in ("regression", "late cnn")]
    for name in names:
        if network == "tokens" and name == "smoothgrad":
            continue
        options = OPTIONS.get(name, {})
        wanted = xuq.explain(cpu, name, x, device="cpu", **options)
        for draws in (cpu, there) if name == "gradient" else (cpu,):
            with pretend_device.counting() as counts:
                found = xuq.explain(draws, name, x, device=HERE, **options)
            assert counts.launches and found.values.is_cpu
            assert_close(found.values, wanted.values, **EXACT, msg=f"{posterior} {network} {name}")
            assert found.target is wanted.target is None or torch.equal(found.target, wanted.target)
    assert places(cpu) == {"cpu"} and places(there) == {"pretend"}


FUNCTIONS: dict[str, Callable[[Draws, Tensor], Any]] = {
    "draws(x)": lambda draws, x: draws(x),
    "uncertainties": lambda draws, x: xuq.uncertainties(draws, x).epistemic,
    "attribute_uncertainty": lambda draws, x: xuq.attribute_uncertainty(draws, x),
    "attribute_uncertainty by integrated gradients": lambda draws, x: xuq.attribute_uncertainty(
        draws, x, explainer="integrated_gradients", num_steps=3
    ),
    "ua_backprop": lambda draws, x: xuq.ua_backprop(draws, x),
    "ua_backprop, recommended": lambda draws, x: xuq.ua_backprop(draws, x, setting="recommended"),
    "ua_replacement": lambda draws, x: xuq.ua_replacement(draws, x, reference="mean"),
    "deletion": lambda draws, x: deletion(draws, x, pixel_order(x[:, 0]), torch.tensor([0, 1, 2]).to(x.device)),
    "insertion": lambda draws, x: insertion(draws, x, pixel_order(x[:, 0]).cpu(), [0, 1, 2], num_steps=4),
    "uncertainty_curves": lambda draws, x: torch.stack(
        uncertainty_curves(draws, x, pixel_order(x[:, 0]), shares=[0, 0.3, 1])[1:3]
    ),
    "greedy_order": lambda draws, x: greedy_order(draws, x, budget=0.05, group=2, candidates=2),
    "lime": lambda draws, x: xuq.explainers.lime.lime_fit(draws, x, 1, num_samples=24, num_segments=4).attribution,
    "lime of given segments": lambda draws, x: xuq.explain(
        draws,
        "lime",
        x,
        1,
        num_samples=24,
        segments=torch.arange(64).view(1, 8, 8).expand(3, -1, -1) // 16,
        fill=x.roll(1, 0),
        device=HERE,
    ).mean(),
    "lime of one draw": lambda draws, x: xuq.lime(draws[1], x, 1, num_samples=24, num_segments=4),
    "captum": lambda draws, x: xuq.explain(draws, xuq.from_captum("Saliency"), x, device=HERE).mean(),
    "captum, random": lambda draws, x: xuq.explain(
        draws, xuq.from_captum("GradientShap"), x, 1, baselines=torch.zeros_like(x), n_samples=2, device=HERE
    ).mean(),
    "pgd": lambda draws, x: pgd(draws, x.sigmoid(), torch.tensor([0, 1, 2]), 0.1, num_steps=3, batch_size=2),
    "keep the moments": lambda draws, x: xuq.explain(draws, "gradient", x, keep="moments", device=HERE).cv("signed"),
    "keep the mean": lambda draws, x: xuq.explain(draws, "gradient", x, keep="mean", device=HERE).mean(),
}


@pytest.mark.parametrize("network", ["late cnn", "residual"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_draws_and_examples_may_be_anywhere(name, network):
    cpu, there, x = pair("dropout", network)
    function = FUNCTIONS[name]
    wanted = function(cpu, x).cpu()
    for draws, given in ((there, x), (there, x.to(HERE)), (cpu, x.to(HERE))):
        before = identities(draws), given.data_ptr()
        found = function(draws, given)
        assert_close(found.cpu(), wanted, **EXACT, equal_nan=True)
        assert (identities(draws), given.data_ptr()) == before


@pytest.mark.parametrize("kind", ["dropout", "dropconnect", "flipout", "ensemble"])
def test_a_posterior_on_a_device_gives_draws_there_which_are_those_of_the_cpu(kind):
    cpu, x = draws_of(kind, "cnn"), PICTURES
    there = POSTERIORS[kind](lambda: inplace_cnn().to(HERE)).sample(3, seed=1) if kind != "ensemble" else None
    if there is None:
        there = xuq.DeepEnsemble([seeded(inplace_cnn, seed=seed).eval().to(HERE) for seed in range(3)]).sample()
    assert places(there) == {"pretend"}
    assert_close(there(x.to(HERE)).cpu(), cpu(x), **EXACT)


def sampled_from(kind: str) -> tuple[xuq.Posterior, int, Tensor]:
    """A posterior on the CPU, the bytes of all that it draws from, and examples."""
    posterior, x = POSTERIORS["dropout"](table_mlp), TABLE
    tensors = []
    if kind == "laplace":
        posterior = xuq.Laplace(seeded(table_mlp).eval()).fit([(randn(40, 5), randn(40, 3, seed=1).argmax(1))])
        tensors = [tensor for factor in posterior.factors.values() for tensor in factor.values()]
    elif kind != "dropout":
        posterior, x = POSTERIORS[kind](inplace_cnn), PICTURES
    tensors += [*posterior.network.parameters(), *posterior.network.buffers()]
    return posterior, sum(tensor.nbytes for tensor in tensors), x


SAMPLED = ["dropout", "dropconnect", "flipout", "laplace"]


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_device_draws_by_its_own_generator_and_a_seed_fixes_what(kind):
    posterior, _, x = sampled_from(kind)
    draws, again, few = (
        posterior.sample(count, seed=1, device=where) for count, where in [(4, HERE), (4, NAME), (2, NAME)]
    )
    assert places(draws) == {NAME} and places(Draws([posterior.network])) == {"cpu"}
    answers = draws(x)
    assert torch.equal(again(x), answers) and torch.equal(few(x), answers[:2])
    assert not torch.isclose(answers[0], answers[1]).all()
    cpu = posterior.sample(4, seed=1)
    assert not any(torch.isclose(*pair).all() for pair in zip(answers.cpu(), cpu(x), strict=True))
    assert torch.equal(posterior.sample(4, seed=1, device="cpu")(x), cpu(x))
    found = xuq.explain(draws, "gradient", x, 1, device=HERE).values
    assert_close(found, torch.stack([xuq.gradient(draw, x.to(HERE), 1).cpu() for draw in draws]), **EXACT)
    assert_close(found, xuq.explain(draws, "gradient", x, 1, device="cpu").values, **EXACT)


@pytest.mark.parametrize("kind", SAMPLED)
def test_what_draws_share_is_sent_once_and_no_noise(kind):
    posterior, size, x = sampled_from(kind)
    asked_of = []
    for num_draws in (3, 9):
        with pretend_device.counting() as counts:
            draws = posterior.sample(num_draws, seed=1, device=HERE)
        assert counts.bytes == {"to_device": size} and counts.waits == 0
        asked_of.append(counts.launches)
    random_tensors = {"dropout": 0, "dropconnect": 1, "flipout": 3, "laplace": 2}[kind]
    assert (asked_of[1] - asked_of[0]) / 6 <= 8 * random_tensors
    tried = 2 * x[0].nbytes  # the first and the last example
    assert asked(draws, "gradient", x).bytes["to_device"] == x.nbytes + tried, "masks are drawn there, too"


def test_draws_of_a_device_come_back_from_a_file_with_their_masks(tmp_path):
    posterior, _, x = sampled_from("dropout")
    draws = posterior.sample(3, seed=1, device=HERE)
    xuq.save_draws(draws, tmp_path / "draws")
    loaded = xuq.load_draws(tmp_path / "draws", posterior)
    assert places(loaded) == {"cpu"}, "where the network is that was passed"
    assert_close(loaded(x), draws(x).cpu(), **EXACT)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # by the pretended mse_loss
@pytest.mark.parametrize("is_regression", [False, True])
def test_laplace_is_fitted_where_its_network_is(is_regression, monkeypatch):
    # laplace-torch's generator, of which nothing is drawn here: a pretended device has none
    monkeypatch.setattr("curvlinops.kfac.Generator", lambda device: torch.Generator())
    x, y = randn(40, 5), randn(40, 3, seed=1)
    batches = [(x, y if is_regression else y.argmax(1))]
    cpu = xuq.Laplace(seeded(table_mlp).eval()).fit(batches)
    there = xuq.Laplace(seeded(table_mlp).eval().to(HERE)).fit(batches)
    draws = there.sample(3, seed=1)
    assert places(draws) == {"pretend"}
    assert_close(draws(x).cpu(), cpu.sample(3, seed=1)(x), rtol=1e-6, atol=1e-8)
    assert_close(there.noise_variance, cpu.noise_variance)


def test_a_stream_of_explanations_is_computed_on_a_device(tmp_path):
    pytest.importorskip("zarr", reason="the extra `cluster` is not installed")
    posterior, x = POSTERIORS["dropout"](late_cnn), PICTURES
    options: dict[str, Any] = {"num_draws": 3, "progress": False, "batch_size": 2}
    stored = xuq.explain_dataset(posterior, "gradient", x, to=tmp_path / "a", device="cpu", **options)
    with pretend_device.counting() as counts:
        found = xuq.explain_dataset(posterior, "gradient", x, to=tmp_path / "b", device="pretend", **options)
    assert counts.launches
    for name, values in stored.dataset.items():
        if values.dtype.kind == "f":
            assert_close(
                torch.tensor(found.dataset[name].values), torch.tensor(values.values), equal_nan=True, msg=name
            )


FOLDED = [
    *(("dropout", network) for network in ("cnn", "late cnn", "mlp", "residual", "transformer", "tokens")),
    *(("dropconnect", network) for network in ("cnn", "late cnn", "mlp")),
    ("flipout", "mlp"),
    ("flipout", "mlp with norms"),
]


def asked(draws: Draws, explainer: str, x: Tensor, **options: Any) -> pretend_device.Counts:
    """What an explanation asks of the device, by draws of which nothing is there yet; what is made once, is made."""
    xuq.explain(draws, explainer, x, device=HERE, **options)
    fixing._on_device.cache_clear()
    with pretend_device.counting() as counts:
        xuq.explain(draws, explainer, x, device=HERE, **options)
    return counts


def sizes(draws: Draws) -> int:
    """Bytes of the weights and buffers of draws, each counted once."""
    tensors = {id(t): t.nbytes for network in draws for t in (*network.parameters(), *network.buffers())}
    return sum(tensors.values())


@pytest.mark.parametrize(
    ("explainer", "options"),
    [
        ("gradient", {}),
        ("gradient", {"keep": "mean"}),
        ("guided_backprop", {"keep": "moments"}),
        ("integrated_gradients", {"target": 1}),
        ("lime", {}),
    ],
)
@pytest.mark.parametrize(("posterior", "network"), FOLDED)
def test_draws_side_by_side_cost_few_launches_and_no_wait(posterior, network, explainer, options):
    x, few, many = NETWORKS[network][1], draws_of(posterior, network, 4), draws_of(posterior, network, 12)
    few_asked, many_asked = (asked(d, explainer, x, **OPTIONS.get(explainer, {}), **options) for d in (few, many))
    assert (many_asked.launches - few_asked.launches) / 8 <= 3
    assert many_asked.waits <= few_asked.waits <= 25


@pytest.mark.parametrize("explainer", ["gradient", "guided_backprop"])
@pytest.mark.parametrize("network", ["residual", "cnn"])
def test_draws_one_by_one_cost_no_wait_more(network, explainer):
    x, few, many = PICTURES, draws_of("flipout", network, 4), draws_of("flipout", network, 12)
    few_asked, many_asked = (asked(draws, explainer, x, **OPTIONS.get(explainer, {})) for draws in (few, many))
    assert many_asked.waits <= few_asked.waits <= 10


@pytest.mark.parametrize("explainer", ["gradient", "integrated_gradients"])
@pytest.mark.parametrize(("posterior", "network"), [*FOLDED, ("flipout", "cnn"), ("flipout", "residual")])
def test_weights_examples_and_masks_are_sent_once(posterior, network, explainer, monkeypatch):
    x, draws, masks, whole = NETWORKS[network][1], draws_of(posterior, network, 6), [], fixing.sent
    fixing._on_device.cache_clear()
    monkeypatch.setattr(fixing, "sent", lambda mask, where: masks.append(mask) or whole(mask, where))
    counts = asked(draws, explainer, x, **OPTIONS.get(explainer, {}))
    assert all(mask.dtype == torch.bool for mask in masks)
    examples = x.nbytes * (2 if network == "tokens" else 1)  # token ids, and a switch of each
    once = sum(mask.nbytes for mask in masks) // 2  # for the explanation that was not counted, too
    assert counts.bytes["to_device"] <= sizes(draws) + examples + once


def test_noise_and_baselines_are_made_and_sent_once_however_examples_are_cut(monkeypatch):
    draws, x, noise, whole = draws_of("dropout", "cnn"), PICTURES, [], gradients.sent
    monkeypatch.setattr(gradients, "sent", lambda tensor, where: noise.append(tensor.shape) or whole(tensor, where))
    xuq.explain(draws, "smoothgrad", x, device=HERE, chunk=1, num_samples=4, seed=5)
    assert noise == [(4, 3, 8, 8)]
    for chunk in (1, 3):
        with_one, without = (
            asked(draws, "integrated_gradients", x, num_steps=3, chunk=chunk, baseline=baseline)
            for baseline in (x.flip(0), None)
        )
        assert with_one.bytes["to_device"] - without.bytes["to_device"] == x.nbytes
        assert with_one.waits - without.waits == 2  # one to send it, one to ask whether it is finite


def test_buffers_that_draws_share_are_moved_once_and_shared_still():
    draws, x = draws_of("dropconnect", "cnn", 5), PICTURES
    size, shared = sizes(draws), len({id(buffer) for network in draws for buffer in network.buffers()})
    with pretend_device.counting() as counts:
        draws.to(HERE)
    assert counts.bytes["to_device"] == size
    assert len({id(buffer) for network in draws for buffer in network.buffers()}) == shared
    assert xuq.explain(draws, "gradient", x, device=HERE).how == "chain"


def test_a_class_that_is_none_is_refused_before_the_device_is_asked_for_it():
    for network in ("residual", "cnn"):
        with pytest.raises(ValueError, match="target 7 of example 1 is out of range"):
            xuq.explain(draws_of("dropout", network), "gradient", PICTURES, torch.tensor([0, 7, 1]), device=HERE)


def test_what_moved_since_it_was_tried_is_tried_again_and_no_weight_is_pulled_back():
    draws = draws_of("dropout", "mlp")
    xuq.gradient(draws[1], TABLE, 1), xuq.lime(draws[1], TABLE, 1, num_samples=24)
    draws.to(HERE)
    with pretend_device.counting() as counts:
        xuq.lime(draws[1], TABLE, 1, num_samples=24)
    assert counts.launches, "LIME took the weights back to the CPU"
    with pytest.raises(ValueError, match="same device"):
        xuq.gradient(draws[1], TABLE, 1)


def test_mixing_devices_is_refused_as_by_cuda():
    x = TABLE.to(HERE)
    for call in (
        lambda: x + TABLE,
        lambda: TABLE @ x.T,
        lambda: nn.Linear(5, 2).double()(x),
        lambda: torch.zeros_like(TABLE).add_(x),
    ):
        with pytest.raises(RuntimeError, match="same device|cannot be written"):
            call()
    assert torch.equal((x * torch.tensor(2.0)).cpu(), TABLE * 2), "but numbers without axes may be anywhere"


def test_launches_waits_and_bytes_are_counted():
    x = TABLE.to(HERE)
    with pretend_device.counting() as counts:
        y = TABLE.to(HERE, non_blocking=True) + x.T.T
        assert float(y.relu().sum()) > 0
        y.nonzero(), y.cpu(), y.double()
    assert counts.operations == {"add": 1, "relu": 1, "sum": 1, "nonzero": 1}
    assert Counter(reason for reason, _ in counts.waited) == {"item": 1, "nonzero": 1, "to_host": 1}
    assert counts.bytes == {"to_device": TABLE.nbytes, "to_host": TABLE.nbytes}


def test_a_step_of_an_attack_sends_nothing_and_waits_for_nothing():
    draws, x = draws_of("dropout", "residual").to(HERE), PICTURES.sigmoid().to(HERE)
    waits = []
    for num_steps in (2, 5):
        pgd(draws, x, torch.tensor([0, 1, 2]), 0.1, num_steps=num_steps)
        with pretend_device.counting() as counts:
            pgd(draws, x, torch.tensor([0, 1, 2]), 0.1, num_steps=num_steps)
        waits.append(counts.waits)
    assert waits[1] - waits[0] <= 3  # is x finite?


def test_moments_on_a_device_are_those_of_the_cpu_whatever_is_taken_in_at_once(monkeypatch):
    draws, x = draws_of("dropout", "cnn", 7), PICTURES
    wanted = xuq.explain(draws, "gradient", x, keep="moments", device="cpu").moments
    for numbers in (1, 2 * x.numel(), 2**24):
        monkeypatch.setattr("xuqlib.moments._WAITING", numbers)
        found = xuq.explain(draws, "gradient", x, keep="moments", device=HERE).moments
        for kind in ("raw", "folded", "rescaled"):
            assert found[kind].count == 7
            assert_close(found[kind].mean, wanted[kind].mean, **EXACT)
            assert_close(found[kind].std(), wanted[kind].std(), rtol=1e-9, atol=1e-12)
