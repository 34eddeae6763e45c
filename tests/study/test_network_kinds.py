"""Networks for words, signals, tables and pixels: what they compute, equal to a slow or another way of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from core_networks import EXACT, randn, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib import MCDropout
from xuqlib.study.training.networks import (
    Attention,
    MeanVariance,
    SignalLSTM,
    TableTransformer,
    TextTransformer,
    TransformerBlock,
    UNet,
    VisionTransformer,
    cnn_1d,
    mlp,
)

IDS = torch.tensor([[5, 2, 9, 0, 0, 0], [1, 3, 3, 4, 8, 2]])
GROUPS = ((0,), (1, 2, 3), (4,))
ROWS = torch.tensor([[0.5, 1, 0, 0, -1.0], [2.0, 0, 0, 1, 0.3], [0.1, 0, 1, 0, 0.0]], dtype=torch.float64)
BUILDERS: dict[str, tuple[Callable[..., nn.Module], Tensor, tuple[int, ...]]] = {
    "words": (lambda **o: TextTransformer(num_words=10, num_classes=3, length=6, width=8, heads=2, **o), IDS, (2, 3)),
    "picture": (
        lambda **o: VisionTransformer(image_size=8, width=8, heads=2, depth=2, num_classes=3, **o),
        randn(2, 3, 8, 8),
        (2, 3),
    ),
    "table": (lambda **o: TableTransformer(groups=GROUPS, num_outputs=3, width=8, heads=2, **o), ROWS, (3, 3)),
    "signal": (lambda **o: cnn_1d(widths=(4, 8), num_classes=3, **o), randn(2, 1, 30), (2, 3)),
    "lstm": (lambda **o: SignalLSTM(in_channels=2, num_classes=3, width=8, **o), randn(2, 2, 30), (2, 3)),
    "pixels": (lambda **o: UNet(widths=(8, 8, 8), num_classes=3, **o), randn(2, 3, 8, 12), (2, 3, 8, 12)),
}


def num_dropouts(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Dropout | nn.Dropout2d) for module in network.modules())


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_network_has_dropout_everywhere_at_the_end_alone_or_nowhere(kind):
    build, x, shape = BUILDERS[kind]
    everywhere, last = (
        num_dropouts(build(dropout=0.3, placement="all")),
        num_dropouts(build(dropout=0.3, placement="last")),
    )
    assert everywhere > last == 1
    assert num_dropouts(build()) == 0, "a rate of 0 builds no dropout"
    assert seeded(build).eval()(x).shape == shape
    with pytest.raises(ValueError, match="unknown placement 'first'; known: last, all"):
        build(placement="first")


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_answer_does_not_depend_on_the_other_rows(kind):
    build, x, _ = BUILDERS[kind]
    network = seeded(build).eval()
    torch.testing.assert_close(network(x[1:2]), network(x)[1:2], **EXACT)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_draw_of_it_is_one_function_and_two_draws_are_two(kind):
    build, x, _ = BUILDERS[kind]
    draws = MCDropout(seeded(lambda: build(dropout=0.4, placement="all")).eval()).sample(3, seed=1)
    answers = [draw(x) for draw in draws]
    torch.testing.assert_close(draws[1](x[1:2]), answers[1][1:2], **EXACT)
    assert torch.equal(draws[1](x), answers[1])
    assert not torch.allclose(answers[0], answers[1]) and not torch.allclose(answers[1], answers[2])


def test_a_block_is_the_transformer_layer_of_torch():
    block = seeded(lambda: TransformerBlock(8, 2)).eval()
    oracle = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    pairs = {
        "self_attn.in_proj_": block.attention.queries_keys_values,
        "self_attn.out_proj.": block.attention.out,
        "linear1.": block.dense[0],
        "linear2.": block.dense[3],
        "norm1.": block.first_norm,
        "norm2.": block.second_norm,
    }
    weights = {f"{name}{kind}": getattr(layer, kind) for name, layer in pairs.items() for kind in ("weight", "bias")}
    oracle.load_state_dict(weights)
    x, ignored = randn(3, 5, 8), torch.arange(5) >= torch.tensor([5, 3, 1])[:, None]
    torch.testing.assert_close(block(x), oracle.train()(x), **EXACT)
    wanted = oracle(x, src_key_padding_mask=ignored)
    torch.testing.assert_close(block(x, ignored)[~ignored], wanted[~ignored], **EXACT)


def test_padding_changes_no_answer():
    network = seeded(lambda: TextTransformer(num_words=10, num_classes=3, length=9, width=8, heads=2)).eval()
    padded = F.pad(IDS, (0, 3))
    torch.testing.assert_close(network(padded), network(IDS), **EXACT)
    torch.testing.assert_close(network(IDS[:1, :3]), network(IDS[:1]), **EXACT)
    moved = IDS[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(network(moved), network(IDS)), "the order of words counts"


def test_a_sentence_of_padding_alone_has_a_finite_answer():
    network = seeded(lambda: TextTransformer(num_words=10, length=4, width=8, heads=2)).eval()
    assert torch.isfinite(network(torch.zeros(2, 4, dtype=torch.int64))).all()


def test_a_category_is_a_token_of_its_own_and_a_number_scales_its_token():
    network = seeded(lambda: TableTransformer(groups=GROUPS, width=8, heads=2, depth=1)).eval()
    seen: list[Tensor] = []
    network.inner.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    network(ROWS)
    for row, x in enumerate(ROWS):
        for group, columns in enumerate(GROUPS):
            wanted = network.bias[group] + sum(x[column] * network.weight[column] for column in columns)
            torch.testing.assert_close(seen[0][row, group], wanted, **EXACT)
    assert "member" not in network.state_dict(), "which columns belong together is no weight"


def test_an_lstm_reads_a_window_of_steps_at_a_time():
    network = seeded(lambda: SignalLSTM(in_channels=2, num_classes=3, window=4, width=8)).eval()
    x = randn(2, 2, 10)
    cell = nn.LSTMCell(8, 8, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in network.lstm.state_dict().items()})
    state, states = (torch.zeros(2, 8, dtype=torch.float64),) * 2, []
    for step in range(3):  # 10 steps in windows of 4: the last has two zeros
        part = F.pad(x, (0, 2))[:, :, 4 * step : 4 * step + 4]
        state = cell(part.flatten(1), state)
        states.append(state[0])
    torch.testing.assert_close(network(x), network.head(torch.stack(states).mean(0)), **EXACT)


def test_mean_and_variance_are_read_from_two_outputs_and_the_variance_is_above_0():
    body = seeded(lambda: mlp(num_features=5, num_outputs=2, hidden=(4,)))
    x = randn(6, 5)
    mean, variance = MeanVariance(body)(x)
    assert mean.shape == variance.shape == (6, 1)
    assert torch.equal(mean[:, 0], body(x)[:, 0])
    torch.testing.assert_close(variance[:, 0], (1 + body(x)[:, 1].exp()).log() + 1e-6, **EXACT)
    assert (MeanVariance(nn.Identity())(torch.tensor([[0.0, -1e4]]))[1] > 0).all()


def test_a_unet_sees_the_whole_picture_and_keeps_its_detail():
    network = seeded(lambda: UNet(in_channels=1, widths=(4, 8, 8))).eval()
    x = randn(1, 1, 16, 16)
    moved = x.clone()
    moved[0, 0, 0, 0] += 1
    reach = (network(moved) - network(x))[0].abs().amax(0) > 1e-12
    assert reach[0, 0] and reach[6, 6], "through the coarsest level a pixel reaches over more than two convolutions"
    with pytest.raises(
        ValueError, match=r"x has shape \(1, 1, 10, 16\); this U-Net halves it 2 times: pass sides divis"
    ):
        network(x[:, :, :10])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width is 10 and heads is 4; pass a width that the heads divide"):
        Attention(10, 4)
    with pytest.raises(ValueError, match="image_size is 30 and patch is 4; pass a patch that divides it"):
        VisionTransformer(image_size=30)
    with pytest.raises(ValueError, match="groups is .*pass a list of at least one"):
        TableTransformer(groups=())
