"""The look of the static site, light, dark and printed, and its script: choosers, filters, sorting and search."""

from __future__ import annotations

STYLE = """
:root { --text: #1c1c1c; --back: #fff; --soft: #f3f3f0; --line: #d6d6d0; --edge: #85857d; --link: #0b5cad;
  --holds: #cdebdd; --fails: #fbd9c8; --undecided: #e4e4e4; --mixed: #fbeecb;
  --word: #00589c; --string: #9a3a12; --comment: #5f6b5f; --number: #7a3e9d; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e0; --back: #16181b; --soft: #22262a; --line: #3c4146; --edge: #878d93; --link: #7db8ff;
    --holds: #14543c; --fails: #6d3216; --undecided: #44484c; --mixed: #5a4a12;
    --word: #8cc4ff; --string: #f0a67d; --comment: #9aa79a; --number: #d3a6f0; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--back); font: 17px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 0 1.2rem 4rem; }
a { color: var(--link); }
a.anchor-link { opacity: 0; text-decoration: none; margin-left: .3em; }
:is(h1, h2, h3):hover a.anchor-link, a.anchor-link:focus { opacity: 1; }
a.term { color: inherit; text-decoration: underline dotted; text-underline-offset: .2em; cursor: help; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .3rem .8rem; background: var(--back); }
:target { scroll-margin-top: 1rem; }
tr:target { outline: 2px solid var(--link); }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.2em; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
@media (prefers-color-scheme: dark) { img { filter: brightness(.92); padding: 6px; } }
nav.top { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: .7rem 1.2rem; background: var(--soft); }
nav.turn { display: flex; justify-content: space-between; gap: 2rem; margin: 1.5rem 0 1rem; }
.own { font-size: .9em; }
pre { margin: 0; overflow-x: auto; font: 14px/1.45 ui-monospace, monospace; }
code { font-family: ui-monospace, monospace; font-size: .88em; background: var(--soft); padding: 0 .2em; }
pre code { background: none; padding: 0; }
.highlight { background: var(--soft); padding: .6rem .8rem; border-left: 3px solid var(--link); border-radius: 4px; }
.highlight [class^="k"], .highlight .ow { color: var(--word); }
.highlight [class^="s"], .highlight [class^="s"] * { color: var(--string); }
.highlight [class^="c"] { color: var(--comment); font-style: italic; }
.highlight [class^="m"] { color: var(--number); }
.prompt { display: none; }
.output_area { margin: .6rem 0 1.2rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: .88em; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.output_area td, .output_area thead th { text-align: right; }
.wide { overflow-x: auto; }
.verdicts th { font-weight: 400; width: 38%; }
.verdicts div { display: inline-block; margin: 0 .4rem .3rem 0; padding: .1rem .5rem; border-radius: 4px; }
/* Rows out of sight are laid out when they are scrolled to: a table of thousands opens ten times as fast. */
.claims, .claims thead, .claims tbody { display: block; width: 70rem; }
.claims tr { display: grid; grid-template-columns: 5rem 18rem 10rem 7rem 11rem 6rem 10rem 6rem; }
.claims tr[hidden] { display: none; }
.claims tbody tr { content-visibility: auto; contain-intrinsic-size: auto 5rem; overflow-wrap: anywhere; }
.claims th button { font-weight: 600; background: none; border: 0; padding: 0; min-height: 1.6rem; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
.primary td:first-child { min-width: 18rem; }
.found b { padding: 0 .4rem; border-radius: 4px; }
.controls { position: sticky; top: 0; z-index: 1; padding: .6rem 0; background: var(--back);
  display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; }
.controls[hidden] { display: none; }
.controls input, .controls select { font: inherit; color: inherit; background: var(--soft); max-width: 18rem;
  border: 1px solid var(--line); border-radius: 4px; padding: .15rem .4rem; }
.path { margin: 0; padding-left: 1.4rem; }
.way { padding: .2rem .9rem .9rem; border: 1px solid var(--line); border-radius: 6px; }
.holds { background: var(--holds); }
.fails { background: var(--fails); }
.undecided { background: var(--undecided); }
.mixed { background: var(--mixed); }
math { font-size: 1.08em; }
math[display="block"] { margin: 1rem 0; overflow-x: auto; overflow-y: hidden; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem;
  align-items: start; }
.card, .cards figure { margin: 0; padding: .7rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--soft); min-width: 0; }
.card { color: inherit; text-decoration: none; display: flex; flex-direction: column; gap: .5rem; }
.card:hover, .card:focus { border-color: var(--link); }
.cards img { width: 100%; height: 11rem; object-fit: contain; }
figcaption { font-size: .85em; }
figcaption pre { font-size: 11px; max-height: 16rem; overflow: auto; }
details.solution { border-left: 3px solid var(--line); padding-left: .8rem; margin: .6rem 0 1.2rem; }
summary { cursor: pointer; }
.chooser { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; margin: 1rem 0; }
.chooser fieldset { border: 0; margin: 0 0 .3rem; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.chooser fieldset[hidden] { display: none; }
.chooser legend { float: left; min-width: 7rem; padding: 0; opacity: .75; }
.chooser input[type="range"] { width: 20rem; max-width: 60%; }
.chooser img { display: block; width: 640px; }
.chooser h3 { margin: 0; }
.sliders { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.sliders .chooser { margin: 0; }
.sliders .chooser fieldset { min-width: 0; flex-wrap: nowrap; gap: .7rem; align-items: center; }
.sliders .chooser legend { min-width: 0; float: none; }
.sliders .chooser input[type="range"] { flex: 1 1 4rem; width: auto; min-width: 0; max-width: none; }
.sliders .chooser output { min-width: 3ch; text-align: right; }
.sliders .chooser img { width: 100%; padding: 0; border-radius: 2px; }
button, .rater input { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--edge);
  border-radius: 4px; padding: .35rem .9rem; }
button { cursor: pointer; }
.rater h1 { font-size: 1.3em; font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1rem; max-width: 54rem; }
.pair figure { margin: 0; }
.pair img { display: block; width: 100%; padding: 0; border-radius: 2px; image-rendering: pixelated; }
.pair button { width: 100%; margin-top: .5rem; padding: .6rem; }
.passed { background: var(--holds); }
.failed { background: var(--fails); }
.unclear { background: var(--mixed); }
.asked { background: var(--undecided); }
.light { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; white-space: nowrap; font-weight: 600; }
.numbers td, .numbers th + th { text-align: right; }
.report h3 { margin: 2rem 0 .3rem; overflow-wrap: anywhere; }
.maps { display: grid; grid-template-columns: repeat(7, minmax(0, 1fr)); gap: .5rem; margin: .5rem 0 1rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; padding: 0; border-radius: 2px; image-rendering: pixelated; }
html:has(.slides) { scroll-snap-type: y proximity; }
.slide { min-height: 100vh; display: flex; flex-direction: column; gap: .6rem; scroll-snap-align: start;
  padding: 1rem 0; font-size: 1.25em; }
.slide h1, .slide h2 { margin: .5rem 0; border: 0; }
.slide img { max-height: 62vh; object-fit: contain; }
.slide p { margin: 0; }
.slide .turn { margin-top: auto; display: flex; justify-content: space-between; font-size: .8em; }
.sheet h2 { margin-top: 1.2em; }
.sheet pre { white-space: pre-wrap; }
@media (min-width: 50rem) { .sheet { columns: 2; column-gap: 2rem; } .sheet h1 { column-span: all; }
  .sheet > * { break-inside: avoid; } }
@page { margin: 12mm; }
@media print {
  .slide { break-after: page; min-height: 0; }
  .sheet { columns: 2; font-size: 8.5pt; line-height: 1.3; }
  .sheet h1 { column-span: all; font-size: 16pt; margin: 0; }
  .sheet h2 { margin: .8em 0 .2em; }
  .sheet pre { font-size: 6.5pt; }
  nav, .skip, .controls, a.anchor-link { display: none !important; }
  body { color: #000; background: #fff; font-size: 11pt; }
  a { color: inherit; text-decoration: none; }
  pre { white-space: pre-wrap; }
  .wide, .output_area, pre, figcaption pre { overflow: visible; max-height: none; }
  figure, tr, img { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
@media (max-width: 34rem) { .pair { grid-template-columns: 1fr 1fr; }
  .pair figure:nth-last-child(3) { grid-column: 1 / -1; max-width: 50%; } }
@media (max-width: 50rem) { .maps { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""

# Radio buttons of one group share a name, which must be this chooser's own. A slider's value is a place in its stops.
SCRIPT = """
document.querySelectorAll(".chooser").forEach((chooser, number) => {
  const shown = JSON.parse(chooser.querySelector("script").textContent);
  const groups = [...chooser.querySelectorAll("fieldset")];
  groups.forEach((group, place) => group.querySelectorAll("input").forEach((input, index) => {
    input.name = `chooser${number}-${place}`;
    if (input.type === "range") input.value = 0;
    else input.checked = index === 0;
  }));
  chooser.addEventListener("input", () => {
    const inputs = groups.map((group) => group.querySelector("input:checked, input[type=range]"));
    inputs.filter((input) => input.type === "range").forEach((input) => {
      const stop = JSON.parse(input.dataset.stops)[input.value];
      input.nextElementSibling.textContent = stop;
      input.setAttribute("aria-valuetext", stop);
    });
    const key = inputs.map((input) => input.value).join(" ");
    const [picture, sentence] = shown[key];
    if (picture) chooser.querySelector("img").src = picture;
    chooser.querySelector("[aria-live]").textContent = sentence;
  });
});

const wordsOf = (box) => box.value.toLowerCase().split(/\\s+/).filter(Boolean);
document.querySelectorAll(".controls[data-of]").forEach((form) => {
  const scope = document.getElementById(form.dataset.of);
  const items = [...scope.querySelectorAll("[data-notebook]")];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const box = form.querySelector("input");
  const selects = [...form.querySelectorAll("select")];
  const show = () => {
    const words = wordsOf(box);
    const wanted = selects.filter((select) => select.value);
    let count = 0;
    items.forEach((item, place) => {
      item.hidden = !words.every((word) => texts[place].includes(word))
        || !wanted.every((select) => item.dataset[select.dataset.name] === select.value);
      count += !item.hidden;
    });
    scope.querySelectorAll("section").forEach((part) => {
      part.hidden = words.length + wanted.length > 0 && !part.querySelector("[data-notebook]:not([hidden])");
    });
    form.querySelector("output").textContent = `${count} of ${items.length} ${form.dataset.items}`;
  };
  form.hidden = false;
  form.addEventListener("input", show);
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    [box, ...selects].forEach((field) => { field.value = ""; });
    show();
    target.scrollIntoView();
  });
  show();
});

if (document.querySelector(".slides")) {
  const slides = [...document.querySelectorAll(".slide")];
  addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 }[event.key];
    if (!step || event.target.closest("pre, .wide")) return;
    const tops = slides.map((slide) => Math.abs(slide.getBoundingClientRect().top));
    const next = slides[tops.indexOf(Math.min(...tops)) + step];
    if (next) next.scrollIntoView();
    event.preventDefault();
  });
}

const collator = new Intl.Collator("en", { numeric: true });
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => {
        const cell = row.cells[column];
        return { row, number: cell.dataset.order, text: cell.dataset.order ?? cell.textContent };
      });
      rows.sort((a, b) => (a.text === "") - (b.text === "")
        || sign * (a.number === undefined ? collator.compare(a.text, b.text) : a.number - b.number));
      table.tBodies[0].append(...rows.map((each) => each.row));
    });
  });
});

const index = document.getElementById("index");
if (index) {
  const { pages, texts } = JSON.parse(index.textContent);
  const box = document.getElementById("query");
  const list = document.getElementById("found");
  const low = texts.map(([, , heading, text]) => (text || heading).toLowerCase());
  const excerpt = (text, word) => {
    const start = Math.max(text.toLowerCase().indexOf(word) - 80, 0);
    return `${start ? "…" : ""}${text.slice(start, start + 240)}${start + 240 < text.length ? "…" : ""}`;
  };
  const find = () => {
    const words = wordsOf(box);
    const found = words.length ? texts.filter((_, place) => words.every((word) => low[place].includes(word))) : [];
    found.sort((a, b) => (a[3] !== "") - (b[3] !== ""));
    list.replaceChildren(...found.slice(0, 60).map(([page, anchor, heading, text]) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = `${pages[page][0]}#${encodeURIComponent(anchor)}`;
      link.textContent = `${pages[page][1]}: ${heading}`;
      item.append(link);
      if (text) item.append(document.createElement("br"), excerpt(text, words[0]));
      return item;
    }));
    const most = found.length > 60 ? ", the first 60 of them shown" : "";
    box.closest(".controls").querySelector("output").textContent = words.length ? `${found.length} found${most}` : "";
  };
  box.closest(".controls").hidden = false;
  box.addEventListener("input", find);
  find();
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
"""
