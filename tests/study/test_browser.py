"""What a reader sees: the static site from a folder, and notebooks 00 and 05 in JupyterLab, in a real browser.

Chromium is looked for, then installed where that is possible. Without one these tests are skipped, and fail under CI.
Pictures of what was seen are in build/screenshots.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import torch
from hostile import hostile_site
from test_human_study import build as human_pairs
from test_site import check_links, make_project
from torch import nn

from xuqlib import report
from xuqlib.study import runs
from xuqlib.study.figures import choosers as widgets
from xuqlib.study.human_study.pairs import PairStudy
from xuqlib.study.human_study.serving import StudyServer
from xuqlib.study.site import pages
from xuqlib.study.site.ready import make_ready

playwright = pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else None
if playwright is None:
    from playwright import sync_api as playwright  # missing under CI: an error

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
}
# What is tried here are cells and controls; that the numbers are right is nbval's part.
SMALL = {
    "00": {},
    "05": {"per_class": 8, "per_class_lime": 4, "num_answers": 4, "num_answers_lime": 4, "num_draws": 4, "num_few": 2},
}
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
WHOLE = "() => [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell')].every("
# A folded solution shows a placeholder instead of its prompt.
WHOLE += "cell => cell.querySelector('.jp-Placeholder') || "
WHOLE += r"/\[\d+\]/.test(cell.querySelector('.jp-InputPrompt').textContent))"


def find_chromium() -> str | None:
    return os.environ.get("XUQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def install_chromium() -> str | None:
    """Debian's package where we may install it, else playwright's own download."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        commands = [
            ["apt-get", "update"],
            ["apt-get", "install", "-y", "--no-install-recommends", "chromium"],
            *commands,
        ]
    for command in commands:
        subprocess.run(command, capture_output=True, check=False, timeout=300)
        if found := find_chromium():
            return found
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = find_chromium() or install_chromium()
    with playwright.sync_playwright() as tool:
        own = Path(tool.chromium.executable_path)
        if path is None and not own.exists():
            reason = "no Chromium: install it, or set XUQ_CHROMIUM to a Chrome"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        started = tool.chromium.launch(executable_path=path or str(own), args=FLAGS)
        yield started
        started.close()


class Visit:
    """A page of its own, and every address outside this machine that it asked for."""

    def __init__(self, browser, scheme: str = "light") -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._listen)

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")):
            self.outside.append(url)

    def _listen(self, message) -> None:
        if "Content Security Policy" in message.text:
            self.errors.append(message.text)

    def shoot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of this project, with choosers of made-up results in notebooks 00 and 05: no kernel is run for it."""
    from test_site import FRAME, cell, draw, stills

    folder = tmp_path_factory.mktemp("site")
    (folder / "copies").mkdir()
    slider = widgets.stills(FRAME, ["posterior", "value"], draw, sliders=["value"])
    for number, chooser in (("00", slider), ("05", stills())):
        source = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
        copy = nbformat.read(source, 4)
        for each in copy.cells:
            if runs.PLACEHOLDER in json.dumps(each.get("outputs", [])):
                each.outputs = cell("", chooser).outputs
        nbformat.write(copy, folder / "copies" / source.name)
    make_ready(folder / "ready", "this run's")
    pages.build(ROOT, folder / "site", folder / "copies", folder / "ready")
    return folder / "site"


def test_the_site_of_this_project_is_whole_and_small(site):
    check_links(site)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 40e6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_works_from_a_folder_in_light_and_dark(browser, site, scheme):
    visit = Visit(browser, scheme)
    page = visit.page
    page.goto((site / "index.html").as_uri())
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    text = page.evaluate("getComputedStyle(document.body).color")
    shade = [sum(map(int, colour[4:-1].split(", "))) for colour in (back, text)]
    assert shade[0] > 600 > shade[1] if scheme == "light" else shade[0] < 200 < shade[1]
    assert page.locator("table.verdicts tr").count() > 5
    assert page.locator("table.verdicts .holds").first.is_visible()
    visit.shoot(f"site_{scheme}")
    page.locator("a.card").first.click()
    assert page.locator("nav.turn a").count() >= 1
    page.goto(next(site.glob("09_*.html")).as_uri())
    formula = page.locator("math").first
    box = formula.bounding_box()
    assert box["width"] > 5 and box["height"] > 5
    fraction = page.locator("mfrac").first
    assert fraction.count() == 0 or fraction.bounding_box()["height"] > 10  # drawn as one, not as a line of text
    formula.scroll_into_view_if_needed()
    visit.shoot(f"formulas_{scheme}")
    page.goto((site / "gallery.html").as_uri())
    first = page.locator("figure img").first
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=first.element_handle())
    visit.shoot(f"gallery_{scheme}")
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_a_laptop_and_fetches_nothing(browser, scheme, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3))
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "report.html"
    report(network, images, labels=torch.arange(12) % 3, out=out, num_draws=4, progress=False)
    visit = Visit(browser, scheme)
    page = visit.page
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 1366
    assert page.locator("h2").first.bounding_box()["y"] < 768
    assert page.locator(".light").count() > 9
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    row = page.locator(".maps").first
    tops = row.locator("img").evaluate_all("images => images.map(image => image.getBoundingClientRect().top)")
    assert len(tops) == 7 and len(set(tops)) == 1  # side by side
    row.scroll_into_view_if_needed()
    visit.shoot(f"report_{scheme}")
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


RULES = (ROOT / "tests" / "accessibility.js").read_text(encoding="utf-8")
KINDS = ("index", "04_*", "gallery", "verdicts", "search", "glossary", "cheat_sheet", "slides", "promises", "report")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_can_be_read_and_worked_by_everyone(browser, site, kind):
    """At the widths of a phone, a tablet and a laptop, light and dark: names, contrast, keys, no overflow."""
    (path,) = site.glob(f"{kind}.html")
    visit = Visit(browser)
    page = visit.page
    page.goto(path.as_uri())
    problems = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in ((390, 844), (820, 1180), (1366, 768)):
            page.set_viewport_size({"width": width, "height": height})
            if found := page.evaluate(RULES):
                problems[scheme, width] = found[:8]
            visit.shoot(f"page_{path.stem}_{scheme}_{width}")
    assert (problems, visit.outside, visit.errors) == ({}, [], [])
    visit.context.close()


FAULTS = {
    "contrast of": '<p style="color: #999; background: #fff">pale</p>',
    "image without alt": '<img src="data:,">',
    "field without a label": "<input>",
    "link or button without a name": '<a href="#x"></a>',
    "is followed by": "<h4>too deep</h4>",
    "scrolls, and no key reaches it": '<div style="overflow: auto; width: 50px; white-space: nowrap">a long line</div>',
    "page of": '<div style="width: 3000px">wide</div>',
    "2 of h1": "<h1>again</h1>",
    "navigation without a name": "<nav>here</nav>",
    "twice": '<i id="to-main"></i>',
    "target below 24 px": '<button style="padding: 0; border: 0; font-size: 8px; line-height: 1">go</button>',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rules_find_each_fault(browser, fault, tmp_path):
    text = pages.page("fine", "<h1>One</h1><p>text</p>")  # without its policy, which lets no style in
    (tmp_path / "page.html").write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    visit = Visit(browser)
    visit.page.goto((tmp_path / "page.html").as_uri())
    assert visit.page.evaluate(RULES) == []
    visit.page.evaluate(
        "text => { document.querySelector('main').insertAdjacentHTML('beforeend', text) }", FAULTS[fault]
    )
    assert any(fault in found for found in visit.page.evaluate(RULES))
    visit.context.close()


def test_the_first_page_has_a_report_sliders_and_findings_that_lead_to_their_figures(browser, site):
    visit = Visit(browser)
    page = visit.page
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto((site / "index.html").as_uri())
    choosers = page.locator(".sliders .chooser")
    assert choosers.count() == 3
    for chooser in choosers.all():
        line, picture, slider = (chooser.locator(name) for name in ("[aria-live]", "img", "input[type=range]"))
        assert picture.get_attribute("alt").startswith("Left ")
        ends = [
            each.bounding_box()["x"] + each.bounding_box()["width"] for each in (chooser.locator("output"), chooser)
        ]
        assert ends[0] < ends[1]
        before = [(line.inner_text(), picture.get_attribute("src"))]
        slider.focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
            before.append((line.inner_text(), picture.get_attribute("src")))
        assert len(set(before)) == 3
        assert slider.get_attribute("aria-valuetext") == chooser.locator("output").inner_text()
        page.keyboard.press("End")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    choosers.first.scroll_into_view_if_needed()
    visit.shoot("site_sliders")
    found = page.locator(".found li")
    assert found.count() == 10
    assert found.locator("a").evaluate_all("links => links.every(link => /#full-/.test(link.href))")
    found.first.locator("a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/gallery.html#full-*")
    assert page.locator("figure:target img").count() == 1
    page.goto((site / "index.html").as_uri())
    page.locator(".way", has_text="An engineer").get_by_role("link", name="A ready report").click()
    page.wait_for_url("**/report.html")
    assert page.locator(".light").count() > 9
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


def test_the_page_to_print_is_one_sheet_and_slides_go_on_by_key(browser, site):
    visit = Visit(browser)
    page = visit.page
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto((site / "cheat_sheet.html").as_uri())
    visit.shoot("cheat_sheet")
    paper = page.pdf(path=str(SCREENSHOTS / "cheat_sheet.pdf"), format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) == 1
    page.goto((site / "slides.html").as_uri())
    heights = page.locator(".slide").evaluate_all("slides => slides.map(each => each.getBoundingClientRect().height)")
    assert len(heights) > 15 and all(767 <= height <= 850 for height in heights)
    top = "() => [...document.querySelectorAll('.slide')]"
    top += ".findIndex(slide => Math.abs(slide.getBoundingClientRect().top) < 30)"
    for place, key in ((1, "ArrowRight"), (2, "PageDown"), (1, "ArrowLeft"), (2, "ArrowRight"), (3, "ArrowRight")):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert page.evaluate(top) == place
    visit.shoot("slides")
    page.locator(".slide").nth(3).get_by_role("link", name="next").click()
    page.wait_for_timeout(100)
    assert page.evaluate(top) == 4
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


def test_a_chooser_of_the_site_is_operated_by_keyboard_without_a_kernel(browser, site):
    visit = Visit(browser)
    page = visit.page
    page.goto(next(site.glob("05_*.html")).as_uri())
    chooser = page.locator(".chooser")
    line, picture = chooser.locator("[aria-live]"), chooser.locator("img")
    assert line.inner_text() == "a: 1"
    before = picture.get_attribute("src")
    chooser.locator("fieldset").nth(1).locator("input").first.focus()
    page.keyboard.press("ArrowRight")
    assert line.inner_text() == "a: 2"
    assert picture.get_attribute("src") != before
    page.keyboard.press("Shift+Tab")  # to the other group
    page.keyboard.press("ArrowRight")
    assert "No such result" in line.inner_text()
    chooser.scroll_into_view_if_needed()
    visit.shoot("site_chooser")
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


def test_a_slider_of_the_site_is_operated_by_keyboard_without_a_kernel(browser, site):
    visit = Visit(browser)
    page = visit.page
    page.goto(next(site.glob("00_*.html")).as_uri())
    chooser = page.locator(".chooser")
    line, picture, slider = (chooser.locator(name) for name in ("[aria-live]", "img", "input[type=range]"))
    before = picture.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert line.inner_text() == "a: 2"
    assert chooser.locator("output").inner_text() == slider.get_attribute("aria-valuetext") == "2"
    assert picture.get_attribute("src") != before
    page.keyboard.press("End")
    assert "No such result" in line.inner_text()  # 3 is a result of b
    chooser.locator("input[type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    assert line.inner_text() == "b: 3"
    chooser.scroll_into_view_if_needed()
    visit.shoot("site_slider")
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


def test_thousands_of_claims_and_the_gallery_are_filtered_and_sorted_by_keyboard(browser, tmp_path):
    folder = pages.build(make_project(tmp_path, rows=3000), tmp_path / "site").parent
    visit = Visit(browser)
    page = visit.page
    page.goto((folder / "verdicts.html").as_uri())
    count, rows = page.locator(".controls output"), page.locator("#every tbody tr:visible")
    assert count.inner_text() == "3000 of 3000 claims"
    first = "() => document.querySelector('#every tbody tr:not([hidden])').id"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.locator("#every th button", has_text="value").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(first) == "50-3000"  # as numbers: -9 is no less than -2999
    assert page.locator("#every th[aria-sort=ascending]").inner_text().startswith("value")
    page.keyboard.press("Enter")
    assert page.evaluate(first) == "50-1"
    assert page.locator("#every th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.locator(".controls input").focus()
    page.keyboard.type("MOVES 2999")
    page.locator(".controls select").first.select_option("fails")
    assert count.inner_text() == "1 of 3000 claims" and rows.count() == 1  # 50-2999 holds
    visit.shoot("site_filtered")
    page.evaluate("location.hash = '50-7'")  # a link to a row that is filtered away brings all rows back
    page.locator("tr:target").wait_for(state="visible")
    assert count.inner_text() == "3000 of 3000 claims"
    page.goto((folder / "gallery.html").as_uri())
    page.locator(".controls select").select_option("quick")
    assert count.inner_text() == "0 of 2 figures" and not page.locator("section:visible").count()
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()
    bare = browser.new_context(java_script_enabled=False).new_page()
    bare.goto((folder / "verdicts.html").as_uri())
    assert bare.locator("#every tbody tr:visible").count() == 3000 and not bare.locator(".controls:visible").count()
    bare.context.close()


def test_a_search_finds_headings_and_paragraphs_and_code_is_scrolled_by_keyboard(browser, tmp_path):
    project = make_project(tmp_path)
    terms = "mean: {says: What lies in the middle., notebook: '50'}"
    (project / "notebooks" / "glossary.yaml").write_text(terms, encoding="utf-8")
    path = next((project / "notebooks").glob("50_*"))
    content = nbformat.read(path, 4)
    content.cells[1].source = f"number = '{'1' * 400}'"
    nbformat.write(content, path)
    folder = pages.build(project, tmp_path / "site").parent
    visit = Visit(browser)
    page = visit.page
    page.goto((folder / "search.html").as_uri())
    page.locator("#query").focus()
    page.keyboard.type("MORE")
    assert page.locator("#found a").all_inner_texts() == ["50 Why & how?: More", "51 And then?: More"]
    assert page.locator(".controls output").inner_text() == "2 found"
    page.locator("#query").fill("mean nowhere")
    assert page.locator("#found li").count() == 0
    page.locator("#query").fill("mean")
    assert "Its mean is" in page.locator("#found li").first.inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/50_first.html#*")
    assert page.locator(":target").inner_text().startswith("Why & how?")
    code = page.locator(".highlight pre").first
    code.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("code => code.scrollLeft > 0", arg=code.element_handle())
    term = page.locator("a.term")
    assert term.get_attribute("title") == "What lies in the middle."
    page.emulate_media(media="print")
    assert not page.locator("nav:visible, .skip:visible").count()
    page.emulate_media(media="screen")
    term.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#mean")
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


def test_a_rater_works_the_page_alone_by_keyboard_and_every_answer_is_in_the_file(browser, tmp_path):
    study = PairStudy(tmp_path / "study.db", human_pairs(), repeats=0.5)
    with StudyServer(study, shortest=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        visit = Visit(browser)
        page = visit.page
        page.set_viewport_size({"width": 1366, "height": 768})
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        assert page.evaluate("document.activeElement.name") == "rater"
        page.keyboard.type("Ann")
        page.keyboard.press("Enter")
        page.locator(".pair").wait_for()
        assert not re.search(r"\b(up|down|flat)\b|<code|<pre", page.content())
        for size in ({"width": 1366, "height": 768}, {"width": 390, "height": 844}):
            page.set_viewport_size(size)
            for side in ("left", "right"):
                button = page.get_by_role("button", name=side).bounding_box()
                picture = page.get_by_alt_text(f"{side} map").bounding_box()
                assert 0 <= button["y"] - picture["y"] - picture["height"] < 20  # under its map, and as wide
                assert abs(button["x"] - picture["x"]) < 2 and abs(button["width"] - picture["width"]) < 2
                assert button["y"] + button["height"] < size["height"] and button["height"] >= 24
            left, right = (page.get_by_alt_text(f"{side} map").bounding_box() for side in ("left", "right"))
            assert left["x"] < right["x"] and left["y"] == right["y"]
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            visit.shoot(f"rater_{size['width']}")
        keys = {"ArrowRight": "right", "ArrowLeft": "left", "ArrowDown": "cannot say"}
        for number, (key, choice) in enumerate(keys.items(), 1):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.value") == choice and len(study.answers()) == number - 1
            page.keyboard.press("Enter")
            page.get_by_text(f"Ann: {number} of").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.value") == "left"  # the first that Tab meets
        for value in ("right", "cannot say", "undo"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.value") == value
        page.keyboard.press("Space")
        page.get_by_text("Ann: 2 of").wait_for()
        assert list(PairStudy(study.path, repeats=0.5).answers()["choice"]) == ["right", "left"]
        assert (visit.outside, visit.errors) == ([], [])
        other = Visit(browser)  # a page of another origin sends the same form
        other.page.goto("data:text/html,<title>foreign</title>")
        form = f"<form method=post action='http://127.0.0.1:{server.server_port}/'><input name=rater value=Ann></form>"
        other.page.evaluate("form => { document.body.innerHTML = form; document.forms[0].submit(); }", form)
        other.page.get_by_text("403").first.wait_for()
        for one in (visit, other):
            one.context.close()
        server.shutdown()
        thread.join()


ATTACKS = (
    "<script>document.title = 'hit'</script>",
    "<img src=x onerror=\"document.title = 'hit'\">",
    "<svg onload=\"document.title = 'hit'\"></svg>",
    "<details open ontoggle=\"document.title = 'hit'\"><summary>x</summary>y</details>",
    "<iframe srcdoc=\"<script>parent.document.title = 'hit'</script>\"></iframe>",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_script_that_gets_into_a_page_does_not_run(browser, attack, tmp_path):
    """Nothing should get in; this is the second lock. Without the page's policy each of these scripts runs."""
    text = pages.page("safe", f"<p>before</p>{attack}")
    (policy,) = re.findall('<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    (tmp_path / "open.html").write_text(text.replace(policy, ""))
    (tmp_path / "closed.html").write_text(text)
    titles = []
    for name in ("open", "closed"):
        visit = Visit(browser)
        visit.page.goto((tmp_path / f"{name}.html").as_uri(), wait_until="load")
        visit.page.wait_for_timeout(150)  # a picture that is not there, and a fold that opens, tell so a little later
        titles.append(visit.page.title())
        assert visit.page.locator("nav.top a").count() == len(pages.NAVIGATION)
        visit.context.close()
    assert titles == ["hit", "safe"]


def test_hostile_names_are_read_and_not_run_on_every_page_of_a_site(browser, tmp_path):
    folder = hostile_site(tmp_path)
    visit = Visit(browser)
    page = visit.page
    page.add_init_script("window.alert = () => { document.documentElement.dataset.hit = 'yes' }")
    for path in sorted(folder.glob("*.html")):
        page.goto((folder / path.name).as_uri(), wait_until="load")
        for chooser in page.locator(".chooser").all():
            for control in chooser.locator("input[type=radio]:visible").all():
                control.check()
            assert "alert(1)" in chooser.locator("[aria-live]").inner_text()
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.dataset.hit") is None
        assert page.locator("img[onerror], svg, main script:not([type='application/json'])").count() == 0
        assert page.locator("a[href^='javascript:']").count() == 0
    assert page.locator("body").inner_text().count("alert(1)") > 0  # the last of them, the verdicts
    assert (visit.outside, visit.errors) == ([], [])
    visit.context.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab over copies of notebooks 00 and 05 without their outputs."""
    home = tmp_path_factory.mktemp("lab")
    for path in [*(ROOT / "notebooks").glob("00_*.ipynb"), *(ROOT / "notebooks").glob("05_*.ipynb")]:
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(f"\n{name} = {value}" for name, value in SMALL[path.stem[:2]].items())
        nbformat.write(notebook, home / f"{path.stem[:2]}.ipynb")
    shutil.copytree(ROOT / "notebooks" / "helpers", home / "helpers")
    for name, content in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, **{name: str(home / folder) for name, folder in places.items()}}
    environment["XUQ_FIGURES"] = str(home / "figures")  # the project's are published
    environment.pop("MPLBACKEND", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={home}"]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api", server, home / "server.log")
        yield f"http://127.0.0.1:{port}/lab/tree"
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.3)


def run_all_cells(browser, lab: str, number: str) -> Visit:
    """Open a notebook and choose Run > Run All Cells."""
    visit = Visit(browser)
    page = visit.page
    page.set_default_timeout(90_000)
    page.goto(f"{lab}/{number}.ipynb?reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(state="attached")
    page.get_by_text("| Idle").wait_for()  # earlier, a dialog would ask which kernel to take
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    return visit


def wait_until_whole(visit: Visit) -> None:
    ended = f'() => document.querySelector("{ERROR}") || ({WHOLE})()'  # after an error the other cells never run
    visit.page.wait_for_function(ended, timeout=600_000)
    assert visit.page.locator(ERROR).all_inner_texts() == []


def test_notebook_00_runs_in_jupyterlab_ends_in_its_claims_and_its_slider_answers_the_keyboard(browser, lab):
    visit = run_all_cells(browser, lab, "00")
    wait_until_whole(visit)
    assert visit.page.locator(".jp-OutputArea-output img").count() >= 3
    tables = visit.page.locator(".jp-OutputArea-output table")
    (claims,) = [table for table in tables.all() if "verdict" in (table.text_content() or "")]
    claims.scroll_into_view_if_needed()
    visit.shoot("jupyterlab_00")
    move_the_slider(visit)
    visit.shoot("jupyterlab_00_slider")
    assert visit.outside == []
    visit.context.close()


def test_every_control_of_notebook_05_answers_the_keyboard_in_jupyterlab(browser, lab):
    visit = run_all_cells(browser, lab, "05")
    wait_until_whole(visit)
    move_every_control(visit)
    visit.shoot("jupyterlab_05")
    assert visit.outside == []
    visit.context.close()


def move_the_slider(visit: Visit) -> None:
    """Press the right arrow key on the slider: the next draw and its sentence must appear."""
    page = visit.page
    slider, line = page.locator(".widget-slider"), page.locator(".widget-html-content").last
    slider.scroll_into_view_if_needed()
    assert slider.locator(".widget-label").inner_text() == "draw"
    picture = page.locator("img.widget-image").last
    for number in (1, 2):
        page.wait_for_function(
            "([line, start]) => line.innerText.startsWith(start)", arg=[line.element_handle(), f"Draw {number};"]
        )
        before = picture.get_attribute("src")
        slider.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("([image, old]) => image.src !== old", arg=[picture.element_handle(), before])
    assert slider.locator(".widget-readout").inner_text() == "3"


def move_every_control(visit: Visit) -> None:
    """Press the second button of each row with Tab and Enter: the sentence or the picture must change."""
    page = visit.page
    rows = page.locator(".widget-toggle-buttons")
    rows.first.scroll_into_view_if_needed()
    line, picture = page.locator(".widget-html-content").last, page.locator("img.widget-image").last
    labels = rows.locator(".widget-label").all_inner_texts()
    assert labels == ["posterior", "explainer", "statistic", "class"]
    for place in range(len(labels)):
        before = line.inner_text(), picture.get_attribute("src")
        rows.nth(place).locator("button").first.focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "([line, picture, text, address]) => line.innerText !== text || picture.src !== address",
            arg=[line.element_handle(), picture.element_handle(), *before],
        )
