"""The look of the static site, light and dark, and the script that switches between the pictures of a chooser."""

from __future__ import annotations

STYLE = """
:root { --text: #1c1c1c; --back: #fff; --soft: #f3f3f0; --line: #d6d6d0; --link: #0b5cad;
  --holds: #cdebdd; --fails: #fbd9c8; --undecided: #e4e4e4; --mixed: #fbeecb;
  --word: #00589c; --string: #9a3a12; --comment: #5f6b5f; --number: #7a3e9d; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e0; --back: #16181b; --soft: #22262a; --line: #3c4146; --link: #7db8ff;
    --holds: #14543c; --fails: #6d3216; --undecided: #44484c; --mixed: #5a4a12;
    --word: #8cc4ff; --string: #f0a67d; --comment: #9aa79a; --number: #d3a6f0; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--back); font: 17px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 0 1.2rem 4rem; }
a { color: var(--link); }
a.anchor-link { visibility: hidden; text-decoration: none; margin-left: .3em; }
h1:hover a.anchor-link, h2:hover a.anchor-link, h3:hover a.anchor-link { visibility: visible; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.2em; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
@media (prefers-color-scheme: dark) { img { filter: brightness(.92); padding: 6px; } }
nav.top { display: flex; gap: 1.4rem; padding: .7rem 1.2rem; background: var(--soft); }
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
.claims td:nth-child(2) { min-width: 16rem; }
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
.passed { background: var(--holds); }
.failed { background: var(--fails); }
.unclear { background: var(--mixed); }
.asked { background: var(--undecided); }
.light { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; white-space: nowrap; font-weight: 600; }
.numbers td { text-align: right; }
.report h3 { margin: 2rem 0 .3rem; overflow-wrap: anywhere; }
.maps { display: grid; grid-template-columns: repeat(7, minmax(0, 1fr)); gap: .5rem; margin: .5rem 0 1rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; padding: 0; border-radius: 2px; image-rendering: pixelated; }
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
"""
