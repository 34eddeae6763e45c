"""Weight randomisation: what is forgotten, what stays shared, and what an explanation makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from core_networks import FunctionalRelu, randn, seeded
from torch import nn

from xuqlib import DeepEnsemble, Flipout, MCDropConnect, MCDropout, gradient, guided_backprop
from xuqlib.posteriors.draws import inner
from xuqlib.study.judging.sanity import OTHER_PICTURE, cascade, independent, randomised, sanity_checks
from xuqlib.study.judging.similarity import spearman
from xuqlib.study.training.networks import mini_vgg


def vgg(dropout=0.0, seed=0):
    build = {"image_size": 8, "widths": (4, 4, 4), "hidden": 16, "num_classes": 3, "dropout": dropout}
    return seeded(lambda: mini_vgg(**build), seed=seed, dtype=torch.float32)


def pictures(count=4):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_layers_are_named_from_the_output_with_their_normalisation():
    assert independent(vgg()) == [["15"], ["13"], ["8", "9"], ["4", "5"], ["0", "1"]]
    assert cascade(vgg())[:3] == [["15"], ["15", "13"], ["15", "13", "8", "9"]]
    assert independent(seeded(FunctionalRelu)) == [["last"], ["first"]]
    with pytest.raises(ValueError, match="nothing to randomise"):
        independent(nn.ReLU())


def test_only_the_named_layers_forget_and_the_draws_stay_as_they_were(untouched_generators):
    draws = DeepEnsemble([vgg()]).sample()
    before = {key: value.clone() for key, value in draws[0].state_dict().items()}
    after = randomised(draws, ["8", "9"], seed=1)[0].state_dict()
    changed = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"8", "9"}
    assert (after["network.9.running_mean"] == 0).all()
    assert (after["network.9.running_var"] == 1).all()
    assert all(torch.equal(value, draws[0].state_dict()[key]) for key, value in before.items())
    bound = 1 / math.sqrt(4 * 9)  # torch draws a kernel uniformly within 1 / sqrt(fan in)
    assert after["network.8.weight"].abs().max() <= bound
    assert after["network.8.weight"].std() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_the_seed_decides_what_the_new_weights_are():
    draws = DeepEnsemble([vgg()]).sample()
    first, again, other = (randomised(draws, ["15"], seed=seed)(pictures()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_members_forget_independently():
    draws = randomised(DeepEnsemble([vgg(seed=1), vgg(seed=2)]).sample(), cascade(vgg())[-1])
    weights = [draw.get_parameter("network.13.weight") for draw in draws]
    assert float(torch.corrcoef(torch.stack([weight.flatten() for weight in weights]))[0, 1]) < 0.2


def test_what_draws_share_stays_shared_and_masks_stay_as_they_were():
    posterior = MCDropout(vgg(dropout=0.5))
    draws = posterior.sample(3, seed=4)
    after = randomised(draws, ["16"])
    assert [draw.seed for draw in after] == [draw.seed for draw in draws]
    assert len({id(inner(draw)) for draw in after}) == 1
    dropped = [(draws[i].network[:16], after[i].network[:16]) for i in range(3)]
    assert all(torch.equal(a(pictures()), b(pictures())) for a, b in dropped)  # nothing before the output has changed


@pytest.mark.parametrize("posterior", [MCDropConnect, Flipout])
def test_random_weights_stay_random_and_the_rest_stays_shared(posterior):
    draws = posterior(vgg()).sample(3)
    names = independent(inner(draws[0]))
    assert names[0] == ["15.layer"]
    after = randomised(draws, [*names[0], *names[1]])
    last = [inner(draw).get_parameter("15.layer.weight") for draw in after]
    assert not torch.equal(last[0], last[1])
    assert inner(after[0]).get_parameter("13.weight") is inner(after[1]).get_parameter("13.weight")
    assert inner(after[0]).get_parameter("0.weight") is inner(draws[0]).get_parameter("0.weight")


def test_layers_that_cannot_be_randomised_are_refused():
    draws = DeepEnsemble([vgg()]).sample()
    with pytest.raises(ValueError, match="'99' is not known"):
        randomised(draws, ["99"])
    with pytest.raises(ValueError, match="ReLU"):
        randomised(draws, ["2"])


def test_a_gradient_forgets_with_the_network_and_a_map_of_the_picture_alone_does_not():
    draws = DeepEnsemble([vgg(seed=seed) for seed in range(3)]).sample()
    x, target = pictures(), torch.zeros(4, dtype=torch.long)
    found = sanity_checks(draws, gradient, x, target)
    last = found[(found["step"] == 5) & (found["statistic"] == "mean")]
    assert last["signed"].abs().mean() < 0.25
    blind = sanity_checks(draws, lambda network, x, target: x, x, target)
    same = blind.query("step > 0 and statistic == 'mean'")[["signed", "absolute", "ssim"]]
    assert same.to_numpy() == pytest.approx(1)
    assert blind.query("step > 0 and statistic == 'std'")["signed"].isna().all()  # a spread of 0 has no pattern


def test_every_row_says_what_it_compares_and_the_floor_is_another_picture():
    draws = MCDropout(vgg(dropout=0.5)).sample(3)
    x, target = pictures(), torch.zeros(4, dtype=torch.long)
    found = sanity_checks(draws, guided_backprop, x, target, how="independent", seed=2)
    assert len(found) == (1 + 5) * 2 * 4
    assert found.groupby("step", sort=False)["layer"].first().tolist() == [OTHER_PICTURE, "16", "13", "8", "4", "0"]
    maps = torch.stack([guided_backprop(draw, x, target) for draw in draws]).double()
    floor = found.query("step == 0 and statistic == 'std'")["signed"]
    std = maps.std(0, correction=0)
    assert floor.tolist() == pytest.approx(spearman(std, std.roll(-1, 0)).tolist())
    after = torch.stack([guided_backprop(draw, x, target) for draw in randomised(draws, ["8", "9"], seed=2)]).double()
    signed = found.query("layer == '8' and statistic == 'mean'")["signed"]
    assert signed.tolist() == pytest.approx(spearman(maps.mean(0), after.mean(0)).tolist(), abs=1e-3)  # ties of float32
    with pytest.raises(ValueError, match="unknown how"):
        sanity_checks(draws, gradient, x, target, how="backwards")


def test_tables_have_no_structural_similarity():
    draws = DeepEnsemble([seeded(FunctionalRelu)]).sample()
    found = sanity_checks(draws, gradient, randn(3, 5), torch.zeros(3, dtype=torch.long))
    assert found["ssim"].isna().all()
    assert found["signed"].notna().any()
