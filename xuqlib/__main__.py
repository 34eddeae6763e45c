"""`xuq`, or `python -m xuqlib`: see what is here, report about a network of your own, or ask people about maps."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xuqlib.study.report import OUTPUTS, POSTERIORS


def parser() -> argparse.ArgumentParser:
    """What the command line may say; the options of `report` are those of the function."""

    def numbers(text: str) -> list[float]:
        return [float(word) for word in text.split(",")]

    def counts(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    def words(text: str) -> list[str]:
        return text.split(",")

    whole = argparse.ArgumentParser(prog="xuq", description=(__doc__ or "").strip())
    commands = whole.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="versions, device, data, checkpoints, last runs")
    one = commands.add_parser("report", help="a page about a network of your own, and its numbers")
    one.add_argument("--network", required=True, metavar="MODULE:FACTORY", help="a function without arguments")
    one.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="for the network; nothing is unpickled")
    one.add_argument("--data", required=True, metavar="FOLDER|FILE.csv", help="that it was not trained on")
    one.add_argument("--train", metavar="FOLDER|FILE.csv", help="that it was trained on: Laplace is fitted on it")
    one.add_argument("--out", default="report.html", metavar="REPORT.html")
    one.add_argument("--classes", type=words, metavar="A,B", help="in the order of the outputs; alphabetical")
    one.add_argument("--image-size", type=int, metavar="SIDE", help="images are cut to squares")
    one.add_argument("--channels", type=int, default=3, choices=[1, 3], help="of images")
    one.add_argument("--mean", type=numbers, metavar="R,G,B", help="of the transforms.Normalize of its training")
    one.add_argument("--std", type=numbers, metavar="R,G,B")
    one.add_argument("--shape", type=counts, metavar="CHANNELS,TIME", help="of signals in the rows of a table")
    one.add_argument("--tokens", action="store_true", help="the rows of the table are token ids")
    one.add_argument("--output", choices=OUTPUTS, help="what the network answers")
    one.add_argument("--posterior", choices=POSTERIORS, help="where draws come from; chosen, and said why")
    one.add_argument("--explainer", default="gradient_x_input")
    one.add_argument("--num-examples", type=int, default=200)
    one.add_argument("--num-draws", type=int, default=20)
    one.add_argument("--seed", type=int, default=0)
    asked = commands.add_parser("study-page", help="the raters' page of notebook 16 alone, for a browser here")
    asked.add_argument("store", type=Path, metavar="FILE.db", help="the study that notebook 16 began")
    asked.add_argument("--port", type=int, default=0, help="of this machine; a free one")
    asked.add_argument("--repeats", type=float, default=0.1, help="share of pairs that come twice, as in the notebook")
    return whole


def study_page(store: Path, port: int, repeats: float) -> int:
    """Give out the page of a study until it is stopped. Returns the exit code, 2 where it cannot begin."""
    from xuqlib.study.human_study.pairs import PairStudy
    from xuqlib.study.human_study.serving import ADDRESS, StudyServer

    try:
        if not store.is_file():
            begin = f"run_all.py --only 16 -p store={store.resolve()}"
            raise ValueError(f"there is no study {store}; notebook 16 begins one: {begin}")
        if not 0 <= port < 2**16:
            raise ValueError(f"--port is {port}; give 0 to {2**16 - 1}")
        server = StudyServer(PairStudy(store, repeats=repeats), port)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"port {port} cannot be used ({error.strerror}); give another one, or none\n")
        return 2
    with server:
        sys.stdout.write(f"open http://{ADDRESS}:{server.server_port}/ in a browser of this machine; Ctrl-C ends it\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: that of check counts damaged things, up to 100; others give 0 or 2."""
    options = vars(parser().parse_args(argv))
    command = options.pop("command")
    if command == "study-page":
        return study_page(**options)
    if command == "check":
        from xuqlib.study.check import check

        text, damaged = check()
        sys.stdout.write(text)
        return min(damaged, 100)
    from xuqlib.study.report.making import report
    from xuqlib.study.report.reading import ReportError, load_weights, network_of

    sys.path.insert(0, os.getcwd())
    try:
        factory, weights = options.pop("network"), options.pop("weights")
        network, name = network_of(factory), factory
        if weights is not None:
            load_weights(network, weights)
            name += f" ({weights.name})"
        report(network, options.pop("data"), name=name, **options)
    except ReportError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"open {options['out']} in a browser\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
