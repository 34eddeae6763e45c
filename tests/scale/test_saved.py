"""Draws in a file: what comes back is what was saved, to the last bit, or is refused in one sentence."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import safetensors.torch
import torch
from core_networks import FunctionalDropout, inplace_cnn, randn, seeded, table_mlp
from safetensors import safe_open
from torch import nn

import xuqlib as xuq
from xuqlib.posteriors.base import Posterior
from xuqlib.study.files import DamagedError


def laplace() -> Posterior:
    return xuq.Laplace(seeded(table_mlp).eval()).fit([(randn(30, 5), randn(30, 3, seed=1))])  # a regression


def two_dropouts() -> nn.Module:
    first, second = nn.Linear(5, 8), nn.Linear(8, 3)
    return nn.Sequential(nn.Dropout(0.2), first, nn.ReLU(), nn.Dropout(0.5), second).double()


POSTERIORS = {
    "deep_ensemble": (lambda: xuq.DeepEnsemble([seeded(inplace_cnn, seed=i).eval() for i in range(3)]), True),
    "mc_dropout": (lambda: xuq.MCDropout(seeded(table_mlp)), False),
    "mc_dropout, all": (lambda: xuq.MCDropout(seeded(two_dropouts)), False),
    "mc_dropout, functional": (lambda: xuq.MCDropout(seeded(FunctionalDropout)), False),
    "mc_dropconnect": (lambda: xuq.MCDropConnect(seeded(inplace_cnn), p=0.3), True),
    "mc_dropconnect, all": (lambda: xuq.MCDropConnect(seeded(inplace_cnn), p=0.3, placement="all"), True),
    "flipout": (lambda: xuq.Flipout(seeded(table_mlp)), False),
    "laplace": (laplace, False),
}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_draws_come_back_to_the_last_bit_and_so_do_their_explanations(kind, tmp_path):
    make, of_pictures = POSTERIORS[kind]
    posterior, path, x = make(), tmp_path / "draws.safetensors", randn(2, 3, 8, 8) if of_pictures else randn(4, 5)
    draws = posterior.sample(3, seed=4)
    xuq.save_draws(draws, path)
    other = copy.deepcopy(posterior.network)  # of other weights, which do not matter
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    for given in (posterior, other):
        loaded = xuq.load_draws(str(path), given)
        assert torch.equal(loaded(x), draws(x))
        assert all(torch.equal(mine(x), theirs(x)) for mine, theirs in zip(loaded, draws, strict=True))
        of_lime = {"num_samples": 24, "num_segments": 4} if of_pictures else {"num_samples": 24}
        for name, options in {"gradient": {}, "integrated_gradients": {"num_steps": 3}, "lime": of_lime}.items():
            mine, theirs = (xuq.explain(some, name, x, 1, **options) for some in (loaded, draws))
            assert torch.equal(mine.values, theirs.values) and mine.how == theirs.how
        assert (loaded.posterior, loaded.output) == (draws.posterior, draws.output)
        assert torch.equal(torch.as_tensor(loaded.noise_variance), torch.as_tensor(draws.noise_variance))
    assert not torch.equal(other(x), posterior.network(x)), "the network that was given stays as it was"


def test_what_draws_share_is_stored_once(tmp_path):
    sizes = []
    for num_draws in (2, 12):
        for kind in ("mc_dropout", "mc_dropconnect"):
            xuq.save_draws(POSTERIORS[kind][0]().sample(num_draws), tmp_path / "draws")
            with safe_open(tmp_path / "draws", "pt") as file:
                tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
            sizes.append(sum(tensor.nbytes for tensor in tensors))
    dropout, dropconnect = sizes[2] - sizes[0], sizes[3] - sizes[1]
    posterior = POSTERIORS["mc_dropconnect"][0]()
    (last,) = posterior.layers
    assert (dropout, dropconnect) == (0, 10 * posterior.network.get_submodule(last).weight.nbytes)
    loaded = xuq.load_draws(tmp_path / "draws", posterior)
    first, *others = [[id(each) for each in draw.parameters()] for draw in loaded]
    assert all(sum(a != b for a, b in zip(first, other, strict=True)) == 1 for other in others)


@pytest.mark.parametrize("place", [0, 3, 40, 400, -1, "cut", "other"])
def test_a_damaged_file_is_named(place, tmp_path):
    posterior, path = xuq.MCDropout(seeded(table_mlp)), tmp_path / "draws.safetensors"
    xuq.save_draws(posterior.sample(2), path)
    content = bytearray(path.read_bytes())
    if isinstance(place, int):
        content[place] ^= 1
    path.write_bytes(content[:-9] if place == "cut" else b"weights" if place == "other" else content)
    with pytest.raises(DamagedError, match=r"draws\.safetensors is damaged"):
        xuq.load_draws(path, posterior)


def test_another_network_and_a_folder_are_refused(tmp_path):
    path, network = tmp_path / "draws", seeded(two_dropouts)
    posterior = xuq.MCDropout(network)
    xuq.save_draws(posterior.sample(2), path)
    with pytest.raises(
        ValueError, match=r"another network than this Sequential: its tensors are others, such as '1\.w"
    ):
        xuq.load_draws(path, seeded(inplace_cnn))
    network[3].p = 0.4
    with pytest.raises(ValueError, match="its layers have other settings"):
        xuq.load_draws(path, network)
    for call in (partial(xuq.save_draws, posterior.sample(2)), lambda path: xuq.load_draws(path, network)):
        with pytest.raises(ValueError, match="a folder; pass the path of a file"):
            call(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        xuq.load_draws(tmp_path / "nothing", network)


def test_what_no_posterior_made_is_not_saved(tmp_path):
    network = seeded(table_mlp).eval()
    resampled = xuq.MCDropout(network).sample(2, masks="resampled")
    for draws in (xuq.Draws([network]), resampled):
        with pytest.raises(ValueError, match="no fixed networks of a posterior"):
            xuq.save_draws(draws, tmp_path / "draws")
    mixed = xuq.DeepEnsemble([network, seeded(lambda: nn.Linear(5, 3))]).sample()
    with pytest.raises(ValueError, match="several kinds"):
        xuq.save_draws(mixed, tmp_path / "draws")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"a", b'{"a": "of eight bytes and more"}'], ids=["csv", "one byte", "json"]
)
def test_only_a_file_of_draws_is_replaced(tmp_path, content):
    path, draws = tmp_path / "test.csv", xuq.MCDropout(seeded(table_mlp).eval()).sample(2)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="test.csv is there, and no file of save_draws; pass another path, or delete"):
        xuq.save_draws(draws, path)
    assert path.read_bytes() == content
    path.write_bytes(b"")  # as a program leaves that makes a name for a file
    for _ in range(2):
        xuq.save_draws(draws, path)
    cut = path.read_bytes()[:-1]
    path.write_bytes(cut)  # which load_draws asks to save again
    xuq.save_draws(draws, path)
    assert len(path.read_bytes()) == len(cut) + 1


def test_a_checkpoint_is_not_replaced_by_draws(tmp_path):
    network = seeded(table_mlp).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors", {"made": "by hand"})
    with pytest.raises(ValueError, match="no file of save_draws"):
        xuq.save_draws(xuq.MCDropout(network).sample(2), tmp_path / "weights.safetensors")
