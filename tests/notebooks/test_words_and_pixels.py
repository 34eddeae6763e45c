"""What notebooks 19 and 21 count: agreement of draws, ranks of words and pixels, and what hiding takes away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import n19
from notebook_cells import definitions
from torch import nn

words = definitions("19")
pixels = definitions("21", square=2)
NO_GRADIENT = torch.tensor([0, 0])  # targets of two examples


def test_two_of_three_draws_that_agree_are_one_pair_of_three():
    labels = torch.tensor([[1, 4], [1, 4], [2, 4]])  # (draw, sentence)
    assert words.pair_agreement(labels).tolist() == pytest.approx([1 / 3, 1])


def test_padding_is_no_top_word():
    values = torch.tensor([[1.0, 2.0, 9.0]])
    assert words.top_words(values, torch.tensor([[True, True, False]])).tolist() == [1]


def test_the_rank_of_a_word_is_the_share_of_other_words_below_it_and_a_tie_is_half():
    values = torch.tensor([[3.0, 1.0, 3.0, 9.0], [0.0, 1.0, 2.0, 9.0]])
    wanted = torch.tensor([[True, False, False, False], [False, False, True, False]])
    is_word = torch.tensor([[True, True, True, False]] * 2)
    assert words.rank(values, wanted, is_word).tolist() == [0.75, 1.0]


def test_a_sentence_without_the_word_has_no_rank():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert np.isnan(words.rank(torch.rand(1, 3), nothing, ~nothing)).all()


def test_hiding_a_word_of_a_linear_network_takes_away_its_share():
    network = nn.Linear(3, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, -2.0, 4.0]])
    falls = words.hide_each(network, torch.ones(2, 3), NO_GRADIENT)
    assert torch.equal(falls, torch.tensor([[1.0, -2.0, 4.0]] * 2))


def test_the_area_ends_with_the_sentence():
    curves = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert words.area(curves, torch.tensor([1, 2])) == [0.5, 0.5]


def test_a_sentence_is_printed_with_brackets_around_words_that_have_no_number():
    class Examples:
        words = (("a", "wug"),)
        x = torch.tensor([[5, 1, 0, 0]])

    assert words.sentence(Examples, 0) == ["a", "[wug]"]


def test_coloured_words_prints_every_word_once_per_map():
    rows = {"mean": (torch.tensor([0.5, -1.0]), "signed", "logits"), "truth": (torch.tensor([0.0, 1.0]), "truth", "")}
    frame = n19.word_frame(["old", "dog"], rows)
    figure = n19.coloured_words(frame, title="")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["old", "dog", "mean  (±1 logits)", "old", "dog", "truth"]
    assert frame["value"].tolist() == [0.5, -1.0, 0.0, 1.0]


def test_roc_is_the_chance_that_a_wanted_pixel_is_larger():
    values = torch.tensor([[[0.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [2.0, 3.0]]])
    wanted = torch.tensor([[[False, True], [True, False]], [[False, False], [False, False]]])
    found = pixels.roc(values, wanted)
    # Pairs of a wanted and another pixel: 1 > 0, 1 < 2, 2 > 0, and 2 = 2, which counts half.
    assert found[0] == 2.5 / 4 and np.isnan(found[1])


def test_hiding_a_square_takes_away_what_its_pixels_are_above_the_mean_colour():
    class Sum(nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3))[:, None]

    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    falls = pixels.hide_squares(Sum(), x, NO_GRADIENT).sum(1)  # (image, row, column)
    above = (x - x.mean((2, 3), keepdim=True)).sum(1)
    by_square = above.unflatten(1, (2, 2)).unflatten(3, (2, 2)).sum((2, 4))
    torch.testing.assert_close(falls, by_square.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_a_place_lies_in_its_quarter():
    mask = pixels.same_quarter((1, 5), (4, 8))
    assert mask[:2, 4:].all() and int(mask.sum()) == 8


def test_the_most_unsure_pixel_lies_on_the_mask():
    values = torch.tensor([[9.0, 1.0], [2.0, 0.0]])
    assert pixels.most_unsure(values, values < 5) == (1, 0)
