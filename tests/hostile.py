"""Names that data could bring and nobody wants to meet: markup, formulas, paths, signs that are not seen."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import nbformat
import pandas as pd
import yaml

from xuqlib.study import runs
from xuqlib.study.figures import choosers
from xuqlib.study.figures.charts import Picture
from xuqlib.study.files import update_index
from xuqlib.study.record import CLAIM_COLUMNS
from xuqlib.study.site import pages

CALL = "alert(1)"  # a page that runs it has been broken into
PIECES = {
    "element": f"<img src=x onerror={CALL}>",
    "element without blanks": f"<img/src=x/onerror={CALL}>",
    "script": f"<script>{CALL}</script>",
    "end of a script": f"</script><script>{CALL}</script>",
    "comment in a script": f"<!--<script>{CALL}",
    "attribute, double quotes": f'" onmouseover="{CALL}" x="',
    "attribute, single quotes": f"' onmouseover='{CALL}' x='",
    "entity": f"&lt;img src=x onerror={CALL}&gt;",
    "link": f"[x](javascript:{CALL})",
    "formula": "$x$",
    "formula that is none": "a$b_{$c",
    "formula with an element": rf"$\text{{<img/src=x/onerror={CALL}>}}$",
    "formula with an address": rf"$\href{{javascript:{CALL}}}{{x}}$",
    "path up": "../../outside",
    "path from the root": "/root of all/outside",
    "path of Windows": r"..\..\outside",
    "dots": "..",
    "empty": "",
    "nul": "a\0b",
    "newline": "a\nb\r\nc",
    "many newlines": "\n" * 300,
    "right to left": "\u202eabc\u2066def",
    "escape sequence": "\x1b[2Jgone",
    "lone surrogate": "\udc80",
    "very long": "a very long name " * 300,
    "table": "a | b | c",
    "format": "{0} {x!r} %s %(x)s",
}


def hostile_names(number: int = 12, seed: int = 0) -> dict[str, str]:
    """Every piece on its own, and so many chains of three of them."""
    generator = random.Random(seed)
    chains = [generator.sample(sorted(PIECES), 3) for _ in range(number)]
    return PIECES | {" + ".join(chain): "".join(PIECES[name] for name in chain) for chain in chains}


NAMES = hostile_names()
WRITABLE = {key: name for key, name in NAMES.items() if "\udc80" not in name}  # as UTF-8


def hostile_site(folder: Path) -> Path:
    """The site of a project all of whose names and texts are hostile; returns its folder."""
    names = [name for name in PIECES.values() if name in WRITABLE.values()]
    everything = " ".join(names)
    frame = pd.DataFrame({"kind": names[:6], "value": range(6)})

    def draw(rows: pd.DataFrame, chosen: object) -> tuple[Picture, str]:
        return Picture(figsize=(0.2, 0.2)), f"{names[0]} {everything}"

    table = pd.DataFrame({name: [name] for name in names}).to_html(escape=False)
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": table}),
        nbformat.v4.new_output("display_data", {"text/markdown": everything}),
        nbformat.v4.new_output("display_data", {"image/svg+xml": f"<svg onload={CALL}></svg>"}),
        nbformat.v4.new_output("display_data", {"application/javascript": CALL}),
        nbformat.v4.new_output("display_data", {"image/png": f'x"><img src=x onerror={CALL}>'}),
        nbformat.v4.new_output("stream", name="stdout", text=everything),
        nbformat.v4.new_output("error", ename=names[0], evalue=names[0], traceback=names),
    ]
    widget = [nbformat.v4.new_output("display_data", {"text/plain": runs.PLACEHOLDER})]
    stills = [nbformat.v4.new_output("display_data", {"text/html": choosers.stills(frame, ["kind"], draw)})]
    for part, shown in (("notebooks", widget), ("copies", stills)):
        cells = [nbformat.v4.new_markdown_cell(f"# {name}\n\n## {name}\n\n{name}\n\n- {name}") for name in names]
        cells += [nbformat.v4.new_code_cell(everything, outputs=outputs), nbformat.v4.new_code_cell("1", outputs=shown)]
        (folder / part).mkdir()
        for stem in (f"50_{PIECES['element without blanks'].replace('/', ' ')}", f"51_{PIECES['formula']}\"'&"):
            nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / part / f"{stem}.ipynb")
    claim = {"source": "", "notebook": "50", "row": "C1", "smallest": 1}
    chosen = {f"C1 {n}": {**claim, "says": n, "datasets": ["C1", n], "measure": n, "unit": n} for n in names}
    terms = {f"{k} {n}": {"says": n, "notebook": "50", "also": [n] if n else []} for k, n in enumerate(names)}
    for part, content in (("claims", chosen), ("glossary", terms)):
        (folder / "notebooks" / f"{part}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "README.md").write_text(f"# {everything}\n\n" + "\n\n".join(names), encoding="utf-8")
    full = folder / "figures" / "full"
    full.mkdir(parents=True)
    rows = [(n, n, n, 0.5, 0.25, 0.75, n, 20, 1, "holds", *[n] * 6) for n in ["C1", *names]]
    pd.DataFrame(rows, columns=list(CLAIM_COLUMNS)).to_csv(full / "50_claims.csv", index=False)
    files = {"50_claims.csv": hashlib.sha256((full / "50_claims.csv").read_bytes()).hexdigest(), everything: everything}
    recipe = {"notebook": "50", "dataset": everything, "files": files, everything: everything}
    update_index(full, {"50_claims": recipe})
    return pages.build(folder, folder / "site", folder / "copies").parent
