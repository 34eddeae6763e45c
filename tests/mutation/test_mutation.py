"""Tests of the tests: a slip anywhere in the method turns one of them red."""

from __future__ import annotations

import os
import subprocess
import sys
from types import FunctionType, ModuleType

import pytest
from mutants import drawn, method, mutants_of
from running import HERE, ROOT, all_mutants, environment, equivalent, functions_changed, go_on, score

COUNT, SEED = int(os.environ.get("XUQ_MUTANTS", "150")), int(os.environ.get("XUQ_SEED", "0"))

SOURCE = '''
"""A docstring of 3 words."""
LIMIT = 0.5

def clipped(x: int = 2, *, of: "4" = True):
    """Not 5."""
    check(x)
    if x > LIMIT and not of:
        raise ValueError(f"x is {x + 6}")
    return -x.abs() if of else x + 1
'''


def test_the_slips_of_a_small_module_by_hand():
    found = [(mutant.place, mutant.slip) for mutant in mutants_of(SOURCE, "small.py")]
    assert found == [
        ("module", "0.5 -> 1.0"),
        ("clipped", "True -> False"),
        ("clipped", "2 -> 3"),
        ("clipped", "check(x) -> nothing"),
        ("clipped", "x > LIMIT and (not of) -> x > LIMIT or not of"),
        ("clipped", "x > LIMIT -> x >= LIMIT"),
        ("clipped", "x > LIMIT -> x <= LIMIT"),
        ("clipped", "not of -> of"),
        ("clipped", "-x.abs() if of else x + 1 -> -x.abs() if not of else x + 1"),
        ("clipped", "-x.abs() -> x.abs()"),
        ("clipped", "x.abs() -> x"),
        ("clipped", "x + 1 -> x - 1"),
        ("clipped", "1 -> 2"),
    ]


def test_a_mutant_runs_with_its_slip_and_no_other():
    made = {mutant.slip: make for mutant, make in mutants_of(SOURCE.replace("x.abs()", "abs(x)"), "small.py").items()}

    def answer(slip: str, x: float) -> float:
        names = {"check": lambda x: None}
        exec(compile(made[slip](), "small.py", "exec"), names)
        return names["clipped"](x)

    assert answer("x + 1 -> x - 1", 3) == answer("2 -> 3", 3) == -3
    assert answer("-abs(x) -> abs(x)", 3) == 3
    assert answer("True -> False", 0.5) == 1.5


DECORATED = """
import functools

def twice(function):
    @functools.wraps(function)
    def wrapped(x):
        return function(function(x))
    return wrapped

@twice
def more(x, by=5):
    return x + by - 1

class Number:
    limit = 7

    @property
    def next(self):
        return more(self.limit) + 2
"""


@pytest.mark.parametrize(
    ("slip", "answer"),
    [("x + by - 1 -> x + by + 1", 21), ("more(self.limit) + 2 -> more(self.limit) - 2", 13), ("2 -> 3", 18)],
)
def test_a_slip_inside_a_function_is_made_in_the_function_as_it_is_decorated_or_not(monkeypatch, slip, answer):
    module = ModuleType("small")
    monkeypatch.setitem(sys.modules, "small", module)
    exec(compile(DECORATED, "small.py", "exec"), vars(module))
    more, following = module.more.__wrapped__, module.Number.next.fget
    made = {mutant.slip: make for mutant, make in mutants_of(DECORATED, "small.py").items()}
    assert module.Number().next == 17
    changed = functions_changed(DECORATED, made[slip](), "small.py", [more, following, FunctionType(more.__code__, {})])
    for function, code in changed or []:
        function.__code__ = code
    assert module.Number().next == answer


@pytest.mark.parametrize("slip", ["5 -> 6", "7 -> 8"])
def test_a_slip_in_what_runs_on_import_is_in_no_function_that_is_there(slip):
    made = {mutant.slip: make for mutant, make in mutants_of(DECORATED, "small.py").items()}
    assert functions_changed(DECORATED, made[slip](), "small.py", []) is None


def test_every_beginning_of_a_sample_holds_the_same_share_of_each_module():
    paths = [path.relative_to(ROOT) for path in method()][:6]
    made = [mutant for path in paths for mutant in mutants_of((ROOT / path).read_text(encoding="utf-8"), str(path))]
    order = drawn(made, seed=1)
    assert sorted(order) == sorted(made) and order == drawn(made, seed=1) != drawn(made, seed=2)
    for path in map(str, paths):
        size = sum(mutant.path == path for mutant in made)
        for count in (len(made) // 3, len(made) // 2):
            inside = sum(mutant.path == path for mutant in order[:count])
            assert abs(inside - size * count / len(made)) <= 2


@pytest.mark.nightly
def test_of_the_slips_that_change_something_95_percent_are_noticed():
    subprocess.run([sys.executable, str(HERE / "running.py")], cwd=ROOT, env=environment(), check=True)
    noticed, missed = score(go_on(COUNT, SEED))
    assert noticed >= 0.95, missed


@pytest.mark.nightly
def test_every_mutant_that_is_said_to_change_nothing_is_one():
    assert set(equivalent()) <= {mutant.name for mutant in all_mutants()}
    assert all(equivalent().values())
