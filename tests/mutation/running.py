"""Run mutants: each meets the tests that reach its slip, until one of them fails.

`python tests/mutation/running.py` goes on with the sample where it was left, and prints the score; `test_mutation.py`
says what is asked of it. Results are in build/mutation: lines.db and seconds.json, which tests reach what, and
results.jsonl, what became of each mutant. A result counts as long as its module stays as it was, and that a mutant
survived as long as the tests do.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from ast import Module, parse
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from mutants import ROOT, Mutant, drawn, method, mutants_of

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "mutation"
EQUIVALENT = HERE / "equivalent.csv"
# Those of the matrix, the study and the notebooks reach the method too, but would take minutes for each mutant.
FOLDERS = ("explainers", "fast", "metrics", "posteriors")
NOT_OF_THE_METHOD = {"test_guards", "test_packaging", "test_readme", "test_style"}
PLAIN = ["-q", "--tb=no", "-o", "addopts=", "-m", "not nightly", *("-p", "no:cacheprovider"), *("-p", "no:xdist")]
PLAIN += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported before the fork
MOST_SECONDS = 20  # of tests for one mutant, as long as they took without it
SLOW = 10  # seconds; a test that takes longer is left out


def tests_of_the_method() -> list[str]:
    files = sorted((ROOT / "tests").glob("test_*.py"))
    names = [*FOLDERS, *(path.name for path in files if path.stem not in NOT_OF_THE_METHOD)]
    return [f"tests/{name}" for name in names]


# Which tests reach which line


class Noting:
    """A plugin of pytest that tells coverage which test is running, and notes how long each that passed took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        import coverage

        measuring = coverage.Coverage.current()
        assert measuring is not None
        measuring.switch_context(item.nodeid)
        result = yield
        measuring.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = report.duration


def note(seconds: Path) -> None:
    """Run the tests of the method, under coverage, and write how long each that passed took."""
    noting = Noting()
    pytest.main([*PLAIN, *tests_of_the_method()], plugins=[noting])
    seconds.write_text(json.dumps(noting.seconds))


class Reach:
    """Which tests reach which line, as they were noted."""

    def __init__(self) -> None:
        import coverage

        data, seconds = BUILD / "lines.db", BUILD / "seconds.json"
        if not seconds.exists():
            BUILD.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "coverage", "run", f"--data-file={data}", "--source=xuqlib"]
            subprocess.run(
                [*command, "--omit=*/study/*", str(HERE / "running.py"), "--note", str(seconds)],
                cwd=ROOT,
                env=environment(),
                check=True,
            )
        self.seconds: dict[str, float] = json.loads(seconds.read_text())
        read = coverage.CoverageData(basename=str(data))
        read.read()
        self.lines: dict[str, dict[int, list[str]]] = {}
        for path in read.measured_files():
            self.lines[str(Path(path).relative_to(ROOT))] = read.contexts_by_lineno(path)
        self.sizes = {path: _counts(lines) for path, lines in self.lines.items()}
        self.size: dict[str, int] = {}
        for counts in self.sizes.values():
            for test, count in counts.items():
                self.size[test] = self.size.get(test, 0) + count

    def tests(self, mutant: Mutant) -> list[str]:
        """Tests that reach a mutant's line, or, if that runs on import alone, its function, or its module.

        The first are those most of whose lines are in this module; no more than take `MOST_SECONDS`.
        """
        lines, own = self.lines.get(mutant.path, {}), self.sizes.get(mutant.path, {})
        first, last = mutant.around
        inside = {test for line in range(first + 1, last + 1) for test in lines.get(line, ())}
        found = self._usable(lines.get(mutant.line, ())) or self._usable(inside) or self._usable(own)
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda test: (-own[test] / self.size[test], self.seconds[test], test)):
            if total + self.seconds[test] <= MOST_SECONDS:
                chosen.append(test)
                total += self.seconds[test]
        return chosen

    def _usable(self, tests: Any) -> set[str]:
        return {test for test in tests if self.seconds.get(test, SLOW) < SLOW}


def _counts(lines: dict[int, list[str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tests in lines.values():
        for test in tests:
            counts[test] = counts.get(test, 0) + 1
    return counts


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "notebooks"), str(ROOT / "tests"), str(HERE)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)}


# One mutant

_BROKEN = 70  # exit code of a process in which the tests could not be started


class _Loader(SourceFileLoader):
    """Loads a mutated tree in the place of a module's source."""

    def __init__(self, name: str, path: str, tree: Module) -> None:
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.tree, self.path, "exec")


class _Finder:
    def __init__(self, mutant: Mutant, tree: Module) -> None:
        self.name, self.path = mutant.path.removesuffix(".py").replace("/", "."), str(ROOT / mutant.path)
        self.tree = tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        return spec_from_file_location(name, self.path, loader=_Loader(name, self.path, self.tree))


def load_others() -> None:
    """Import what the tests import, once for all mutants, and forget this project again."""
    pytest.main([*PLAIN, "--collect-only", "-qq", *tests_of_the_method()])
    for name in ("torch._dynamo", "torch.func", "sympy", "captum.attr", "skimage.segmentation", "xarray"):
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and path.startswith(f"{ROOT}{os.sep}") and ".venv" not in path and name not in ("mutants", "__main__"):
            del sys.modules[name]


def run(mutant: Mutant, tree: Module, tests: list[str], seconds: float) -> tuple[str, str]:
    """Let a mutant meet tests in a process of its own, which has torch loaded already, and this project not.

    Returns:
        "killed", "survived", or "hung" after `seconds`; and the test that failed.
    """
    log = BUILD / "last.log"
    child = os.fork()
    if not child:
        code = _BROKEN
        try:
            os.setsid()  # so that all that it starts can be ended with it
            with log.open("w") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.meta_path.insert(0, _Finder(mutant, tree))  # type: ignore[arg-type]
            code = int(pytest.main([*PLAIN, "-x", "-rfE", *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    status, end = None, time.monotonic() + seconds
    while status is None and time.monotonic() < end:
        time.sleep(0.05)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
        return "hung", ""
    if status == 0:
        return "survived", ""
    if os.waitstatus_to_exitcode(status) == _BROKEN:
        raise RuntimeError(f"no test was run: {log.read_text(errors='replace')}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return "killed", failed[1] if failed else f"status {status}"


# The sample


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def equivalent() -> dict[str, str]:
    """Mutants that compute the same, by name, and why."""
    with EQUIVALENT.open(newline="", encoding="utf-8") as file:
        return {row["mutant"]: row["reason"] for row in csv.DictReader(file)}


def all_mutants() -> dict[Mutant, Callable[[], Module]]:
    found: dict[Mutant, Callable[[], Module]] = {}
    for path in method():
        found |= mutants_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    return found


def go_on(count: int, seed: int, only: str = "") -> dict[str, str]:
    """Run the first `count` mutants of a sample, but those whose result is known; return what became of each."""
    made = all_mutants()
    sample = [mutant for mutant in drawn(made, seed)[:count] if only in mutant.name]
    results, tests_now = BUILD / "results.jsonl", digest(*sorted((ROOT / "tests").rglob("*.py")))
    known: dict[str, str] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        row = json.loads(line)
        if row["module"] == digest(ROOT / row["path"]) and (row["result"] != "survived" or row["tests"] == tests_now):
            known[row["mutant"]] = row["result"]
    if any(mutant.name not in known for mutant in sample):
        reach = Reach()
        load_others()
        first, *_ = sample
        if run(first, parse((ROOT / first.path).read_text(encoding="utf-8")), reach.tests(first), 600)[0] != "survived":
            raise RuntimeError(f"the tests of {first.path} fail without a mutant: {(BUILD / 'last.log').read_text()}")
        for number, mutant in enumerate(sample, 1):
            if mutant.name in known:
                continue
            start, tests = time.monotonic(), reach.tests(mutant)
            limit = 60 + 5 * sum(reach.seconds[test] for test in tests)
            result, by = run(mutant, made[mutant](), tests, limit) if tests else ("survived", "no test reaches it")
            known[mutant.name] = result
            row = {"mutant": mutant.name, "result": result, "by": by, "seconds": round(time.monotonic() - start, 1)}
            row |= {"path": mutant.path, "line": mutant.line, "module": digest(ROOT / mutant.path), "tests": tests_now}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number} of {len(sample)}: {result}: {mutant.name} ({row['seconds']} s, {by})", flush=True)
    return {mutant.name: known[mutant.name] for mutant in sample}


def score(results: dict[str, str]) -> tuple[float, list[str]]:
    """Share of the mutants that are not equivalent that a test noticed, and those that none did."""
    same = equivalent()
    survived = [name for name, result in results.items() if result == "survived" and name not in same]
    killed = sum(result != "survived" for result in results.values())
    return killed / max(killed + len(survived), 1), survived


if __name__ == "__main__":
    if sys.argv[1:2] == ["--note"]:
        note(Path(sys.argv[2]))
    else:
        number, first = (
            int(os.environ.get(name, default)) for name, default in (("XUQ_MUTANTS", 150), ("XUQ_SEED", 0))
        )
        found, missed = score(go_on(number, first, *sys.argv[1:2]))
        print(f"{found:.1%} of {number} mutants are noticed; missed:", *missed, sep="\n")
