"""`python -m xuqlib check`: what is here, what is missing, what is damaged, and what to do about it."""

from __future__ import annotations

import argparse
import sys

from xuqlib.study.check import check


def main(argv: list[str] | None = None) -> int:
    """Run `check` from the command line. Returns the exit code: the number of damaged things, 100 at most."""
    parser = argparse.ArgumentParser(prog="python -m xuqlib", description=(__doc__ or "").strip())
    parser.add_argument("command", choices=["check"], help="check: versions, device, data, checkpoints, last runs")
    parser.parse_args(argv)
    text, damaged = check()
    sys.stdout.write(text)
    return min(damaged, 100)


if __name__ == "__main__":
    sys.exit(main())
