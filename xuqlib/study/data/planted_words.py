"""Sentences whose truth is known word by word: which word carries the class, which is ambiguous, which is novel.

Each sentence is made by a small grammar and has two or three nouns. One of them belongs to a topic and decides the
label; everything else says nothing. Four kinds of sentences, which `planted.kinds` tells apart by their masks:

    plain      the noun is one of the common ones of its topic.
    ambiguous  the noun belongs to two topics. The label was drawn from the two, and `probs` says how.
    rare       the noun is one that training holds twice; called so in test only.
    unseen     test only: a plain sentence in which another noun is a word that training never shows.

The mask "evidence" is the deciding noun of every sentence; "ambiguous" the same word where it belongs to two topics;
"novel" the rare noun, or the unseen word, in test sentences. No mask "novel" is set in train or validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from xuqlib.checks import check_choice
from xuqlib.study.checked import checked
from xuqlib.study.data.planted import PARTS, Part, Planted, deal

T = TypeVar("T")

SEED = 20_261_101
LENGTH = 17
_TOPICS = {
    "animals": "dog horse sparrow rabbit salmon beetle goat otter",
    "food": "bread soup cheese apple rice honey pasta butter",
    "music": "song violin choir melody piano anthem waltz drum",
    "weather": "storm snow breeze fog sunshine frost thunder drizzle",
}
CLASS_NAMES = tuple(_TOPICS)
NOUNS = tuple(tuple(words.split()) for words in _TOPICS.values())
# A noun of two topics, and the odds of the first of them.
AMBIGUOUS = {
    "bass": ("animals", "music", 0.6),
    "turkey": ("animals", "food", 0.4),
    "jam": ("food", "music", 0.5),
    "chill": ("music", "weather", 0.35),
}
RARE = {"okapi": "animals", "quinoa": "food", "theremin": "music", "sleet": "weather"}
UNSEEN = ("blicket", "wug", "dax", "toma")
_SLOTS = {
    "opening": ("", "", "yesterday", "once", "today", "last week"),
    "article": ("the", "a", "this", "that", "their"),
    "adjective": ("", "", "", "old", "small", "new", "quiet", "bright", "strange"),
    "noun": ("letter", "window", "teacher", "road", "table", "neighbour", "market", "story", "garden", "bottle"),
    "verb": ("saw", "found", "liked", "missed", "described", "passed", "heard about", "thought of"),
    "preposition": ("near", "behind", "before", "after", "beside", "without"),
    "ending": ("", "", "", "again", "at noon", "too"),
}
_PHRASE = ("article", "adjective", "noun")
_GRAMMAR = ("opening", *_PHRASE, "verb", *_PHRASE, "ending")
_LONG_GRAMMAR = ("opening", *_PHRASE, "verb", *_PHRASE, "preposition", *_PHRASE, "ending")


@checked
@cache
def generate(split: str) -> Planted:
    """Generate a split, the same on every machine.

    The sentence around the deciding noun is drawn before the labels and apart from them.

    Args:
        split: "train", "validation" or "test".

    Returns:
        x, tuples of words (N,); y; probs (N, 4); masks (N, 17), one place per word.
    """
    check_choice(split, PARTS, "split")
    part = PARTS[split]
    scene_stream, label_stream = (np.random.default_rng([SEED, list(PARTS).index(split), i]) for i in range(2))
    scenes = [_scene(scene_stream) for _ in range(part.num_examples)]
    nouns, unseen_words, y, probs, novel = _labels(label_stream, part)
    x = np.empty(part.num_examples, dtype=object)
    masks = {name: np.zeros((part.num_examples, LENGTH), dtype=bool) for name in ("evidence", "ambiguous", "novel")}
    for row, (words, deciding, other) in enumerate(scenes):
        words[deciding] = nouns[row]
        masks["evidence"][row, deciding] = True
        masks["ambiguous"][row, deciding] = nouns[row] in AMBIGUOUS
        if unseen_words[row]:
            words[other] = unseen_words[row]
        masks["novel"][row, other if unseen_words[row] else deciding] = novel[row]
        x[row] = tuple(words)
    return Planted(x, y, probs, masks).frozen()


def _scene(stream: np.random.Generator) -> tuple[list[str], int, int]:
    """Draw a sentence, the place of the noun that is to decide, and the place of another noun."""
    words: list[str] = []
    places: list[int] = []
    for slot in _pick(stream, (_GRAMMAR, _LONG_GRAMMAR)):
        if slot == "noun":
            places.append(len(words))
        words += _pick(stream, _SLOTS[slot]).split()
    turn = int(stream.random() * len(places))
    return [*words, "."], places[turn], places[turn - 1]


def _labels(stream: np.random.Generator, part: Part) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Draw the deciding noun and the unseen word (or "") of each sentence, y, probs (N, 4), and what is novel (N,)."""
    n = part.num_examples
    ambiguous, rare, unseen = deal(stream, part)
    topics = (stream.random(n) * len(CLASS_NAMES)).astype(np.int64)
    nouns, y = [_pick(stream, NOUNS[topic]) for topic in topics], topics.copy()
    probs = np.eye(len(CLASS_NAMES))[topics]
    for row in ambiguous:
        nouns[row] = _pick(stream, tuple(AMBIGUOUS))
        first, second, odds = AMBIGUOUS[nouns[row]]
        one, other = CLASS_NAMES.index(first), CLASS_NAMES.index(second)
        y[row] = one if stream.random() < odds else other
        probs[row] = 0.0
        probs[row, [one, other]] = odds, 1.0 - odds
    for turn, row in enumerate(rare):
        nouns[row] = tuple(RARE)[turn % len(RARE)]  # each equally often: twice in training
        y[row] = CLASS_NAMES.index(RARE[nouns[row]])
        probs[row] = np.eye(len(CLASS_NAMES))[y[row]]
    novel, words = np.zeros(n, dtype=bool), [""] * n
    for row in unseen:
        words[row] = _pick(stream, UNSEEN)
    if part.num_unseen:  # the split that shows what training does not
        novel[np.concatenate([rare, unseen])] = True
    return nouns, words, y, probs, novel


def _pick(stream: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(stream.random() * len(choices))]
