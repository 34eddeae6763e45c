"""Sentences: two published sets, and how a sentence becomes words and words become numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from xuqlib.study.data.download import Folder, Layout, known_file, locate
from xuqlib.study.data.readers import Raw, frozen

PADDING, UNKNOWN = 0, 1
# A word that training shows once is unknown, so that the number of the unknown has something to learn from.
LEAST_OFTEN = 2
_WORD = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")

TREC_CLASSES = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}
COGCOMP = "https://cogcomp.seas.upenn.edu/Data/QA/QC"
CNN_SENTENCE = "https://raw.githubusercontent.com/yoonkim/CNN_sentence/23e0e1f7355705bb083043fda05c031b15acb38c"


def words_of(sentence: str) -> tuple[str, ...]:
    """Cut a sentence into lower-case words, with inner apostrophes and hyphens, and single signs."""
    return tuple(_WORD.findall(sentence.lower()))


def vocabulary_of(sentences: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the words that occur at least twice, the commonest first, after the padding and the unknown word."""
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = sorted((-count, word) for word, count in counts.items() if count >= LEAST_OFTEN)
    return ("<padding>", "<unknown>", *(word for _, word in kept))


def encode(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Return the number of each word, int64 (N, length): 1 where it is unknown, 0 behind the sentence.

    Raises:
        ValueError: a sentence is longer than `length`.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    ids = np.full((len(sentences), length), PADDING, dtype=np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        if len(sentence) > length:
            raise ValueError(f"a sentence has {len(sentence)} words, more than {length}; pass a larger length")
        row[: len(sentence)] = [numbers.get(word, UNKNOWN) for word in sentence]
    return ids


def trec(part: str, data: Folder = None) -> Raw:
    """TREC: questions, and which of six kinds of answer each asks for. Training questions of the test are dropped."""
    x, y = _trec_lines(_trec_file(part, data))
    if part == "train":
        asked = set(_trec_lines(_trec_file("test", data))[0])
        fresh = np.array([sentence not in asked for sentence in x])
        x, y = x[fresh], y[fresh]
    return Raw(x, y, class_names=tuple(TREC_CLASSES.values()))


def rt_polarity(part: str, data: Folder = None) -> Raw:
    """Sentences of film reviews, 5,331 that like the film and as many that do not. The release has no test part."""
    names = ("rt-polarity.neg", "rt-polarity.pos")
    layout = Layout("text", tuple(known_file(f"text/{name}", f"{CNN_SENTENCE}/{name}") for name in names))
    found = locate((layout,), data, "the film reviews (rt-polarity) are needed")
    return Raw(*_review_lines(found.paths), class_names=("negative", "positive"))


def _trec_file(part: str, data: Folder) -> Path:
    copy, published = {
        "train": ("trec_train_5500.label", "train_5500.label"),
        "test": ("trec_test_10.label", "TREC_10.label"),
    }[part]
    layouts = (
        Layout("copy", (known_file(f"text/{copy}"),)),
        Layout("published", (known_file(f"text/{published}", f"{COGCOMP}/{published}"),)),
    )
    return locate(layouts, data, f"TREC's {published} is needed").paths[0]


@cache
def _trec_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    lines = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()]  # HUM:ind Who was ...
    kinds = list(TREC_CLASSES)
    return _sentences(text for _, text in lines), frozen(np.array([kinds.index(k.split(":")[0]) for k, _ in lines]))


@cache
def _review_lines(paths: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray]:
    # The text holds signs that splitlines takes for ends of lines.
    parts = [path.read_bytes().decode("cp1252").split("\n")[:-1] for path in paths]
    y = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return _sentences(text for part in parts for text in part), frozen(y)


def _sentences(texts: Iterable[str]) -> np.ndarray:
    """Return tuples of words, (N,) objects."""
    sentences = [words_of(text) for text in texts]
    x = np.empty(len(sentences), dtype=object)
    x[:] = sentences
    return frozen(x)
