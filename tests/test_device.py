"""What holds on the CPU holds on a device: shown on a pretended one, in a process that has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FILES = ("on_device.py", "test_explain.py")
STATISTICS = "both_variances or noise_alone or own_noise"  # of many draws, which a device does not change


@pytest.mark.slow
def test_all_that_is_promised_of_a_device_holds_on_a_pretended_one():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-k",
        f"not ({STATISTICS})",
        *FILES,
    ]
    environment = {**os.environ, "XUQ_DEVICE": "pretend"}
    ran = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
