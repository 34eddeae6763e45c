"""pyproject.toml, environment.yml, constraints.txt, README and .ci/run say the same; nothing names a registry."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = PROJECT["project"]["dependencies"]
OPTIONAL = [line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
DEVELOPMENT = PROJECT["dependency-groups"]["dev"]
EXTRAS = ("captum", "cluster")  # that notebooks use


def pins() -> dict[str, str]:
    """Version of each package that constraints.txt pins for the Python that runs."""
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    found: dict[str, str] = {}
    for line in lines:
        if line.marker is None or line.marker.evaluate():
            (specifier,) = line.specifier
            assert specifier.operator == "==", f"{line} does not pin"
            assert canonicalize_name(line.name) not in found, f"{line.name} is pinned twice"
            found[canonicalize_name(line.name)] = specifier.version
    return found


def test_environment_yml_lists_exactly_what_pyproject_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["project"]["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *plain, pip = environment["dependencies"]
    extras = [line for extra in EXTRAS for line in PROJECT["project"]["optional-dependencies"][extra]]
    assert pip["pip"] == [*DIRECT, *extras, "-e ."]
    assert plain[1:] == ["pip"]
    name, _, python = plain[0].partition("=")
    assert name == "python"
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(f"{python}.0")


@pytest.mark.parametrize("line", sorted({*DIRECT, *OPTIONAL, *DEVELOPMENT}))
def test_every_direct_dependency_is_pinned_inside_its_range(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_tests_run_on_the_pinned_versions():
    """Build suffixes such as +cu132 or +cpu are the machine's choice."""
    names = [Requirement(line).name for line in {*DIRECT, *OPTIONAL, *DEVELOPMENT}]
    installed = {canonicalize_name(name): metadata.version(name).partition("+")[0] for name in names}
    assert installed == {name: pins()[name] for name in installed}


def test_constraints_hold_names_and_versions_and_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[\w.]+( ; [^:/@]+)?", line), line


def test_every_imported_package_is_a_direct_dependency():
    declared = {canonicalize_name(Requirement(line).name) for line in [*DIRECT, *OPTIONAL]}
    owners = metadata.packages_distributions()
    for path in [*(ROOT / "xuqlib").rglob("*.py"), ROOT / "run_all.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"xuqlib"}:
                assert {canonicalize_name(owner) for owner in owners[top]} & declared, f"{path.name} imports {top}"


def start_lines() -> list[str]:
    start = (ROOT / "README.md").read_text().split("\n## Start\n")[1].split("\n## ")[0]
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```$", start, re.DOTALL | re.MULTILINE)]


def test_the_readme_starts_with_two_lines_that_use_the_pins():
    run, tests = start_lines()
    for line in (run, tests):
        assert "\n" not in line
        assert "-c constraints.txt" in line
    assert run.endswith("run_all.py")
    assert f".[{','.join(EXTRAS)}]" in run
    assert tests.endswith("pytest")


def test_ci_runs_exactly_the_test_line_of_the_readme():
    shown = subprocess.run([ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.strip() == start_lines()[1]


def test_ci_fails_loudly_without_a_test_line(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("# xuq\n\n## Start\n\n```sh\nonly one\n```\n\n## More\n\n```sh\npytest\n```\n")
    ran = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "README.md has no test line" in ran.stderr


def test_the_typed_marker_and_the_licence_are_there():
    assert (ROOT / "xuqlib" / "py.typed").exists()
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["license"], citation["version"]) == (PROJECT["project"]["license"], PROJECT["project"]["version"])
