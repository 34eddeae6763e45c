"""One address makes the badges of the README, its first cell on Colab, and the citation right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import run_all
from xuqlib.study.address import FIRST, MARKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path):
    for name in ("README.md", "CITATION.cff"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def links(readme: str) -> list[str]:
    return re.findall(r"\]\((https://[^)]+)\)\]\((https://[^)]+)\)", readme.split(MARKS[0])[1].split(MARKS[1])[0])


@pytest.mark.parametrize("address", ["https://github.com/some-one/xuq", "https://github.com/a/b.c.git"])
def test_badges_cell_and_citation_follow_from_one_address(project, address, capsys):
    owner = address.removeprefix("https://github.com/").removesuffix(".git")
    for before in ("https://github.com/old-owner/old-name", address):  # the second replaces the first
        assert run_all.main(["--project", str(project), "--address", before]) == 0
    readme = (project / "README.md").read_text()
    (binder, on_binder), (colab, on_colab) = links(readme)
    assert on_binder == f"https://mybinder.org/v2/gh/{owner}/HEAD?urlpath=lab/tree/{FIRST}"
    assert on_colab == f"https://colab.research.google.com/github/{owner}/blob/HEAD/{FIRST}"
    assert binder.endswith("badge_logo.svg") and colab.endswith("colab-badge.svg")
    assert f"git clone --depth 1 https://github.com/{owner} xuq" in readme and "old-owner" not in readme
    cited = yaml.safe_load((project / "CITATION.cff").read_text())
    own = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited == {**own, "repository-code": f"https://github.com/{owner}"}
    assert (ROOT / FIRST).is_file() and "commit them" in capsys.readouterr().out


def test_the_readme_is_unlike_itself_in_its_badges_and_its_cell_alone(project):
    run_all.main(["--project", str(project), "--address", "https://github.com/a/b"])
    before, after = ((folder / "README.md").read_text().splitlines() for folder in (ROOT, project))
    added = [line for line in after if line not in before]
    assert len(added) == 2 and added[0].startswith("[![Binder]") and "git clone" in added[1]


@pytest.mark.parametrize(
    "address", ["", "xuq", "http://github.com/a/b", "https://example.org/a/b", "https://github.com/a"]
)
def test_another_address_is_one_sentence_and_changes_nothing(project, address, capsys):
    with pytest.raises(SystemExit):
        run_all.main(["--project", str(project), "--address", address])
    assert "give https://github.com/OWNER/NAME" in capsys.readouterr().err
    assert (project / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


def test_a_readme_without_its_marks_is_named(project, capsys):
    (project / "README.md").write_text("# xuq")
    with pytest.raises(SystemExit):
        run_all.main(["--project", str(project), "--address", "https://github.com/a/b"])
    assert "lost its marks" in capsys.readouterr().err
