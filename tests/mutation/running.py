"""Run mutants: each meets the tests that reach its slip, until one of them fails.

`python tests/mutation/running.py` goes on with the sample where it was left, and prints the score; `test_mutation.py`
says what is asked of it. Results are in build/mutation: lines.db and noted.json, which tests reach what, and
results.jsonl, what became of each mutant. A result counts as long as its module stays as it was, and that a mutant
survived as long as the tests do.

All tests are collected once. Each mutant has a process of its own, a fork: where its slip is inside a function, that
function is given the changed code there; where it is in what runs on import, the project is imported anew.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from ast import Module, parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
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
PLAIN += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={BUILD / 'files'}"]
MOST_SECONDS = 20  # of a processor, in the tests for one mutant, as long as they took without it
# What the method imports when it is first needed, once for all mutants.
LATE = ("laplace", "captum.attr", "skimage.segmentation", "pandas", "xarray", "torch.distributions", "sklearn.metrics")
SLOW = 10  # seconds; a test that takes longer is left out
MOST_WAITING = 1800  # seconds for all tests of one mutant, of which it may sleep some
MOST_MEMORY = 24 * 2**30  # bytes of addresses, most of which torch asks for and never uses


def tests_of_the_method() -> list[Path]:
    inside = [path for folder in FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [*inside, *(path for path in files if path.stem not in NOT_OF_THE_METHOD)]


# Which tests reach which line


class Noting:
    """A plugin of pytest that tells coverage which test is running, and notes how long each that passed took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        import coverage

        measuring = coverage.Coverage.current()
        assert measuring is not None
        modules = [vars(module) for name, module in sys.modules.items() if name.startswith("xuqlib.")]
        for each in (each for module in modules for each in module.values() if hasattr(each, "cache_clear")):
            each.cache_clear()  # or what is kept from an earlier test would hide lines from this one
        measuring.switch_context(item.nodeid)
        start = sum(os.times()[:4])  # of a processor: whatever else the machine does
        result = yield
        measuring.switch_context("")
        if item.nodeid in self.passed:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)


def note(noted: Path, files: Sequence[str]) -> None:
    """Run test files, under coverage, and write how long each test that passed took."""
    noting = Noting()
    pytest.main([*PLAIN, *files], plugins=[noting])
    noted.write_text(json.dumps(noting.seconds))


class Reach:
    """Which tests reach which line, as they were noted: all if the method has changed, else those of changed files."""

    def __init__(self) -> None:
        import coverage

        data, noted, last = BUILD / "lines.db", BUILD / "noted.json", BUILD / "last.json"
        BUILD.mkdir(parents=True, exist_ok=True)
        now = {str(path.relative_to(ROOT)): digest(path) for path in tests_of_the_method()}
        known = json.loads(noted.read_text()) if noted.exists() else {}
        if known.get("method") != digest(*method()):
            known = {"method": digest(*method()), "files": {}, "seconds": {}}
        files = [name for name in now if known["files"].get(name) != now[name]]
        if files:
            command = [sys.executable, "-m", "coverage", "run", f"--data-file={data}", "--source=xuqlib"]
            command += ["--omit=*/study/*", *(["--append"] if known["files"] else [])]
            command += [str(HERE / "running.py"), "--note", str(last), *files]
            subprocess.run(command, cwd=ROOT, env=environment(), check=True)
            kept = {test: seconds for test, seconds in known["seconds"].items() if test.partition("::")[0] not in files}
            known |= {"files": now, "seconds": kept | json.loads(last.read_text())}
            noted.write_text(json.dumps(known))
        self.seconds: dict[str, float] = known["seconds"]
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

        The first are quick ones most of whose lines are in this module; no more than take `MOST_SECONDS`.
        """
        lines, own = self.lines.get(mutant.path, {}), self.sizes.get(mutant.path, {})
        first, last = mutant.around
        inside = {test for line in range(first + 1, last + 1) for test in lines.get(line, ())}
        found = self._usable(lines.get(mutant.line, ())) or self._usable(inside) or self._usable(own)
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda test: (-own[test] / self.size[test] / (self.seconds[test] + 0.02), test)):
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


def functions_changed(
    text: str, tree: Module, path: str, alive: list[FunctionType]
) -> list[tuple[FunctionType, CodeType]] | None:
    """Functions of a module, among those of this process, that a mutant has otherwise, and their code there.

    Returns:
        None where what runs on import is changed, or a function cannot be given its new code.
    """
    pairs = list(_changed(compile(text, path, "exec"), compile(tree, path, "exec")))
    if not all(old.co_flags & CO_OPTIMIZED and old.co_freevars == new.co_freevars for old, new in pairs):
        return None
    name = path.removesuffix(".py").replace("/", ".")
    found = [(each, new) for old, new in pairs for each in alive if each.__module__ == name and each.__code__ == old]
    return found if found or not pairs else None


def _changed(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Yield the parts of a module that differ between two versions of it, those inside of functions as well."""
    before, after = ([part for part in code.co_consts if isinstance(part, CodeType)] for code in (old, new))
    numbers = ([part for part in code.co_consts if not isinstance(part, CodeType)] for code in (old, new))
    is_same = old.co_code == new.co_code and [*map(repr, next(numbers))] == [*map(repr, next(numbers))]
    if old.co_flags & CO_OPTIMIZED:
        is_same = old == new
    if not is_same or old.co_names != new.co_names:
        yield old, new
    if len(before) == len(after):
        for pair in zip(before, after, strict=True):
            yield from _changed(*pair)


def forget_the_project() -> None:
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and path.startswith(f"{ROOT}{os.sep}") and ".venv" not in path and name not in ("mutants", "__main__"):
            del sys.modules[name]


class Telling:
    """A plugin of pytest that writes into a file which test begins, and which failed; it ends one that takes too long.

    That is ten times as long as without a mutant, and more, of a processor, so that other work on the machine is no
    matter.
    """

    def __init__(self, told: Path, seconds: dict[str, float]) -> None:
        self.told, self.seconds, self.failed = told, seconds, False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.told.write_text(nodeid)
        most = int(time.process_time() + 10 + 10 * self.seconds.get(nodeid, 1))
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = True
            self.told.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


class Meeting:
    """A plugin of pytest that, in the place of running all tests, lets mutants meet some of them."""

    def __init__(self, work: Callable[[Meeting], None]) -> None:
        self.work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        for name in ("torch._dynamo", "torch.func", "sympy", *LATE):
            importlib.import_module(name)
        functions = [each for each in gc.get_objects() if type(each) is FunctionType]
        self.functions = [each for each in functions if str(each.__module__).startswith("xuqlib.")]
        self.work(self)
        return True

    def run(self, mutant: Mutant, tree: Module, tests: list[str], seconds: dict[str, float]) -> tuple[str, str]:
        """Let a mutant meet tests in a process of its own.

        Returns:
            "killed", "survived", or "hung" where a test took ten times as long and more; and the test that failed.
        """
        log, told = BUILD / "last.log", BUILD / "last.txt"
        told.write_text("")
        child = os.fork()
        if not child:
            code = _BROKEN
            try:
                os.setsid()  # so that all that it starts can be ended with it
                resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
                with log.open("w") as file:
                    os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
                code = self._run_here(mutant, tree, tests, Telling(told, seconds))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        status, end = None, time.monotonic() + MOST_WAITING
        while status is None and time.monotonic() < end:
            time.sleep(0.01)
            ended, found = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if ended else None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
        if status == _BROKEN:
            raise RuntimeError(f"no test was run: {log.read_text(errors='replace')}")
        if status == 0:
            return "survived", ""
        return "hung" if status in (None, -signal.SIGXCPU) else "killed", told.read_text()

    def _run_here(self, mutant: Mutant, tree: Module, tests: list[str], telling: Telling) -> int:
        changed = functions_changed((ROOT / mutant.path).read_text(encoding="utf-8"), tree, mutant.path, self.functions)
        sys.meta_path.insert(0, _Finder(mutant, tree))  # type: ignore[arg-type]
        if changed is None:
            forget_the_project()
            return int(pytest.main([*PLAIN, "-x", *tests], plugins=[telling]))
        for function, code in changed:
            function.__code__ = code
        items = [self.items[test] for test in tests]
        hooks = items[0].config.pluginmanager
        hooks.register(telling)
        for item, following in zip(items, [*items[1:], None], strict=True):
            hooks.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if telling.failed:
                return 1
        return 0


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
    known = dict.fromkeys(equivalent(), "survived")  # as those who listed them saw
    for line in results.read_text().splitlines() if results.exists() else ():
        row = json.loads(line)
        if row["module"] == digest(ROOT / row["path"]) and (row["result"] != "survived" or row["tests"] == tests_now):
            known[row["mutant"]] = row["result"]

    def work(meeting: Meeting) -> None:
        first, *_ = sample
        text = (ROOT / first.path).read_text(encoding="utf-8")
        if meeting.run(first, parse(text), reach.tests(first), reach.seconds)[0] != "survived":
            raise RuntimeError(f"the tests of {first.path} fail without a mutant: {(BUILD / 'last.log').read_text()}")
        killers: dict[str, Counter[str]] = {}
        sound: set[str] = set()  # tests that pass without a mutant, in a process of that kind
        for number, mutant in enumerate(sample, 1):
            if mutant.name in known:
                continue
            kills = killers.setdefault(mutant.path + mutant.place.partition(" ")[0], Counter())
            start, tests = time.monotonic(), [test for test in reach.tests(mutant) if test in meeting.items]
            tests.sort(key=lambda test: -kills[test])
            result, by = "survived", "no test reaches it"
            while tests:
                result, by = meeting.run(mutant, made[mutant](), tests, reach.seconds)
                if result == "survived" or by not in tests or by in sound:
                    break
                whole = parse((ROOT / mutant.path).read_text(encoding="utf-8"))
                if meeting.run(mutant, whole, [by], reach.seconds)[0] == "survived":
                    sound.add(by)
                    break
                print(f"{by} fails without a mutant, and is left out", flush=True)
                tests.remove(by)
                result, by = "survived", "no other test reaches it"
            kills[by] += 1
            known[mutant.name] = result
            row = {"mutant": mutant.name, "result": result, "by": by, "seconds": round(time.monotonic() - start, 1)}
            row |= {"path": mutant.path, "line": mutant.line, "module": digest(ROOT / mutant.path), "tests": tests_now}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number} of {len(sample)}: {result}: {mutant.name} ({row['seconds']} s, {by})", flush=True)

    if any(mutant.name not in known for mutant in sample):
        reach = Reach()
        code = pytest.main([*PLAIN, "-s", *map(str, tests_of_the_method())], plugins=[Meeting(work)])
        if code != pytest.ExitCode.OK:
            raise RuntimeError(f"the mutants did not meet the tests: {code!r}")
    return {mutant.name: known[mutant.name] for mutant in sample}


def score(results: dict[str, str]) -> tuple[float, list[str]]:
    """Share of the mutants that are not equivalent that a test noticed, and those that none did."""
    same = equivalent()
    survived = [name for name, result in results.items() if result == "survived" and name not in same]
    killed = sum(result != "survived" for result in results.values())
    return killed / max(killed + len(survived), 1), survived


if __name__ == "__main__":
    if sys.argv[1:2] == ["--note"]:
        note(Path(sys.argv[2]), sys.argv[3:])
    else:
        number, first = (
            int(os.environ.get(name, default)) for name, default in (("XUQ_MUTANTS", 150), ("XUQ_SEED", 0))
        )
        found, missed = score(go_on(number, first, *sys.argv[1:2]))
        print(f"{found:.1%} of {number} mutants are noticed; missed:", *missed, sep="\n")
