"""Are advisories known about the versions that are pinned? Asks the registry, so it is for the nightly run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
KNOWN = "requests==2.19.0"  # CVE-2018-18074: whoever does not find that finds nothing


def audit(requirements: Path) -> list[dict[str, object]]:
    """What pip-audit says of each requirement; skips where it cannot be had."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, which fetches pip-audit")
    command = [uv, "tool", "run", "pip-audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    try:
        return json.loads(ran.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"needs pip-audit, and a registry that it can ask: {(ran.stderr.strip() or 'no answer')[-300:]}")


@pytest.mark.nightly
def test_no_advisory_is_known_about_a_pinned_version(tmp_path):
    (tmp_path / "known.txt").write_text(KNOWN + "\n")
    (known,) = audit(tmp_path / "known.txt")
    if not known.get("vulns"):
        told = known.get("skip_reason", "it knows of no advisory")
        pytest.skip(f"needs PyPI's advisories, which are not to be had here: asked about {KNOWN}, {told}")
    found = audit(CONSTRAINTS)
    assert [entry["name"] for entry in found if "skip_reason" in entry] == []
    assert {entry["name"]: entry["vulns"] for entry in found if entry["vulns"]} == {}
