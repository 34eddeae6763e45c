"""The page of a study for raters alone, given out by this machine to its own browser: no kernel, no code, no names.

It answers to 127.0.0.1 only, and to no page of another origin. What a rater sees and what is kept are those of
`PairStudy`: the file is that of notebook 16, and both may be open at once.
"""

from __future__ import annotations

import base64
import sqlite3
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from xuqlib.study.human_study.page import QUESTION, SHORTEST
from xuqlib.study.human_study.pairs import CHOICES, PairStudy, Showing, chance
from xuqlib.study.site.markup import escaped
from xuqlib.study.site.pages import page

ADDRESS = "127.0.0.1"
MOST_BYTES, LONGEST_NAME = 4096, 80
UNDO = "undo"
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of the policy stands in the page
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer" the browser would not say where a form comes from
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# An arrow key goes to the button on its side; it answers nothing.
KEYS = """
addEventListener("keydown", (event) => {
  const side = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "cannot say" }[event.key];
  const button = document.querySelector(`button[value="${side}"]`);
  if (button && event.target.tagName !== "INPUT") { button.focus(); event.preventDefault(); }
});
"""
KEPT = "We keep the name that you type, your choices and the time. Choose a name that is not your own."


class StudyServer(ThreadingHTTPServer):
    """Gives out the page of a study, to browsers of this machine.

    Args:
        study: where pairs come from and answers go.
        port: of this machine; 0 takes a free one.
        shortest: an answer that comes sooner after its pair, in seconds, is not taken.

    Raises:
        OSError: the port is in use, or may not be used.
    """

    daemon_threads = True

    def __init__(self, study: PairStudy, port: int = 0, *, shortest: float = SHORTEST) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.study, self.shortest = study, shortest
        self.since: dict[str, tuple[str, float]] = {}  # of each rater: the question that was last shown, and when

    @property
    def origins(self) -> dict[str, str]:
        """The names under which it may be asked, and the origin of each."""
        return {f"{name}:{self.server_port}": f"http://{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def told(self, rater: str, choice: str, token: str) -> str:
        """Keep what a rater chose, if that is about the question that comes next. Returns what went wrong, if it did.

        Args:
            rater: the name.
            choice: one of `CHOICES`, or "undo"; anything else only asks.
            token: of the question that the rater saw.
        """
        shown = self.study.next(rater)
        if token != token_of(rater, shown):  # sent twice, or answered elsewhere
            return ""
        known, when = self.since.get(rater, ("", 0.0))
        seconds = time.monotonic() - when if known == token else None
        try:
            if choice == UNDO:
                self.study.undo(rater)
            elif choice in CHOICES and shown and (seconds is None or seconds >= self.shortest):
                self.study.answer(rater, shown, choice, seconds)
        except (sqlite3.Error, ValueError) as error:
            return f"Not kept: {error}"
        return ""

    def asked(self, rater: str, problem: str = "") -> str:
        """The page for a rater: the next pair, or thanks."""
        shown, (done, total) = self.study.next(rater), self.study.progress(rater)
        token = token_of(rater, shown)
        if self.since.get(rater, ("", 0.0))[0] != token:
            self.since[rater] = token, time.monotonic()
        undo = f'<button name="choice" value="{UNDO}">undo last answer</button>' if done else ""
        body = _pair(shown) if shown else "<h1>That was all. Thank you!</h1>"
        hidden = {"rater": rater, "token": token}
        fields = "".join(
            f'<input type="hidden" name="{name}" value="{escaped(text)}">' for name, text in hidden.items()
        )
        end = f'<p role="status">{escaped(rater)}: {done} of {total} answered</p><p><a href="/">Another name</a></p>'
        told = f'<p role="alert"><b>{escaped(problem)}</b></p>' if problem else ""
        return _page(f'<form method="post" action="/">{fields}{told}{body}<p>{undo}</p></form>{end}')


def token_of(rater: str, shown: Showing | None) -> str:
    """What stands for a question in the page, whose own name would give away the names of its maps."""
    return chance(rater, shown.pair.id, shown.showing).hex()[:20] if shown else "end"


def _page(body: str) -> str:
    return page("Which map?", f'<div class="rater">{body}</div>', alone=True, script=KEYS, forms=True)


def _begin(problem: str = "") -> str:
    told = f'<p role="alert"><b>{escaped(problem)}</b></p>' if problem else ""
    return _page(
        "<h1>Which map explains it better?</h1><p>You will see pairs of maps. An arrow key chooses, Enter answers."
        f' {KEPT}</p>{told}<form method="post" action="/"><label>your name <input name="rater" '
        f'maxlength="{LONGEST_NAME}" autocomplete="off" required autofocus></label> '
        '<button name="choice" value="">begin</button></form>'
    )


def _pair(shown: Showing) -> str:
    pair = shown.pair
    maps = [pair.first_map, pair.second_map][:: -1 if shown.flipped else 1]
    columns = [] if pair.picture is None else [f"<figure>{_image(pair.picture, 'the picture')}</figure>"]
    for side, png in zip(CHOICES[:2], maps, strict=True):
        button = f'<button name="choice" value="{side}">{side}</button>'
        columns.append(f"<figure>{_image(png, f'{side} map')}{button}</figure>")
    return (
        f"<h1>{escaped(pair.caption)} {QUESTION}</h1>"
        f'<div class="pair">{"".join(columns)}</div><p><button name="choice" value="{CHOICES[2]}">{CHOICES[2]}</button>'
        "</p>"
    )


def _image(png: bytes, words: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{words}">'


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer
    timeout = 30

    def do_GET(self) -> None:
        if self._refused(self.headers.get("Origin")):
            return
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._send(_begin())

    def do_POST(self) -> None:
        if self._refused(self.headers.get("Origin", "")):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        fields = parse_qs(self.rfile.read(int(length)).decode(errors="replace"), keep_blank_values=True)
        rater, choice, token = (fields.get(name, [""])[0] for name in ("rater", "choice", "token"))
        rater = " ".join(rater.split())[:LONGEST_NAME]
        if not rater or rater.startswith("simulated"):
            self._send(_begin("Type a name that is a person's."))
            return
        try:
            problem = self.server.told(rater, choice, token) if token else ""
            text = self.server.asked(rater, problem)
        except sqlite3.Error as error:
            text = _begin(f"The file of the study cannot be read: {error}")
        self._send(text)

    def _refused(self, origin: str | None) -> bool:
        """Whether another page asks, or this one under a name that is not its own; then it is told so.

        Args:
            origin: as the request says; None where it need not say.
        """
        known = self.server.origins.get(self.headers.get("Host", ""))
        if known is not None and origin in (None, known):
            return False
        self.send_error(HTTPStatus.FORBIDDEN)
        return True

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _send(self, text: str) -> None:
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: who rates what is in the file alone."""
