"""HTML pages in one file that load nothing: their style for screens, dark screens and paper, and a script for charts.

The content security policy names each script by its hash, so that no other one can run. Without them, charts are
still drawn, and a browser shows their marks' titles.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comp.runtime import escape

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --bg: #fff; --panel: #f6f8fa; --ink: #1b1f24;
--soft: #57606a; --edge: #d0d7de; --link: #0969da; --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7;
--s4: #e69f00; --s5: #56b4e9; --s6: var(--ink); --wrong: #d55e00; }
@media screen and (prefers-color-scheme: dark) { :root { --bg: #0f1317; --panel: #181d23; --ink: #e6e9ed;
--soft: #a2abb5; --edge: #343c45; --link: #6cb6ff; --s0: #3f9fe0; --s1: #f0803c; --s2: #2fc298; --wrong: #b84f00; } }
* { box-sizing: border-box; } body { margin: 0; color: var(--ink); background: var(--bg); }
.page { max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; } h3 { font-size: 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--edge); }
a { color: var(--link); } nav { margin-bottom: 1rem; } nav ul { list-style: none; margin: 0; padding: 0;
display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; } nav a { text-decoration: none; }
.note { color: var(--soft); font-size: .9rem; white-space: pre-line; }
@media screen and (min-width: 68rem) { .page.listed { display: grid; grid-template-columns: 11rem minmax(0, 1fr);
gap: 2rem; } nav { position: sticky; top: 1rem; align-self: start; } nav ul { flex-direction: column; } }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .3rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--edge); text-align: right; vertical-align: top;
font-variant-numeric: tabular-nums; } th { color: var(--soft); font-weight: 600; } td:first-child, th:first-child,
td.text, th.text { text-align: left; } td.text { overflow-wrap: anywhere; min-width: 7.1rem; }
.whole, .name { white-space: nowrap; } .name { display: inline-block;
max-width: min(22rem, 60vw); overflow: hidden; text-overflow: ellipsis; vertical-align: top; }
@media screen and (max-width: 40rem) { th, td { padding: .25rem .35rem; } .name { white-space: normal;
overflow-wrap: anywhere; max-width: 8rem; } }
@media screen and (min-width: 68rem) { td.text { min-width: 9rem; } }
tr.best td { background: var(--panel); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.4rem, 1fr)); gap: .6rem; }
.card { background: var(--panel); border: 1px solid var(--edge); border-radius: .5rem; padding: .5rem .7rem;
max-width: 16rem; } .card b { display: block; font-size: 1.35rem; line-height: 1.3; }
.card span, .card small { display: block; font-size: .8rem; color: var(--soft); } .card .title { color: var(--ink); }
.state { position: sticky; bottom: 0; margin: 0; padding: .3rem 1rem; background: var(--bg);
border-top: 1px solid var(--edge); } progress { accent-color: var(--s0); width: 7rem; }
.winner { font-size: 1.05rem; } .grid { display: grid; gap: 1rem 1.5rem; align-items: start;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); } .grid > * { min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: .4rem 0;
overflow-wrap: anywhere; }
.looks { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); gap: .8rem; }
.looks figure { margin: 0; font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere; }
.looks .pair { display: flex; gap: 2px; } .looks img { flex: 1 1 0; min-width: 0; max-width: 50%; width: 100%;
image-rendering: pixelated; border-radius: 3px; } img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; } summary { cursor: pointer; padding: .3rem 0; }
svg.chart { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .title { font-weight: 600; font-size: 13px; } svg .axis { fill: var(--soft); }
svg .rule { stroke: var(--edge); stroke-width: .7; } svg .guide { stroke: var(--soft);
stroke-dasharray: 4 3; } .line path, .frame { fill: none; } .line path { stroke-width: 2; stroke-linejoin: round; }
.line.dim { opacity: .12; } .frame { stroke: var(--edge); } .whisker { stroke-width: 2; }
.bar { fill: var(--s0); fill-opacity: .75; } .hollow { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.strip { fill: transparent; } .strip.on { fill: var(--soft); fill-opacity: .16; }
.on:not(.strip) { stroke: var(--ink); stroke-width: 2; } .right { fill: #0072b2; } .wrong { fill: var(--wrong); }
text.strong { fill: #fff; } .swatch { vertical-align: middle;
flex: none; } .legend span { cursor: default; } .tip { position: fixed; z-index: 9; max-width: min(24rem, 92vw);
padding: .3rem .55rem; border-radius: .35rem; font: 13px/1.4 system-ui, sans-serif; white-space: pre-line;
overflow-wrap: anywhere; background: var(--ink); color: var(--bg); pointer-events: none; }
@media print { .page { max-width: none; padding: 0; } nav { display: none; } h2, h3, .note { break-after: avoid; }
figure, tr, .card, .grid > *, svg.chart { break-inside: avoid; } .scroll { overflow: visible; }
svg.chart { min-width: 0 !important; } table { font-size: .7rem; } .grid { grid-template-columns: 1fr 1fr; }
* { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""

# A mark's <title> becomes the text of a box, shown at once by pointer, finger, or arrow keys on a focused chart.
_SCRIPT = """
(() => {
  const tip = document.createElement('div');
  tip.className = 'tip'; tip.hidden = true; document.body.append(tip);
  const prepare = () => document.querySelectorAll('svg.chart title').forEach(
    t => { t.parentNode.dataset.tip = t.textContent; t.remove(); });
  let on = null;
  const hide = () => { if (on) on.classList.remove('on'); on = null; tip.hidden = true; };
  const show = mark => {
    hide();
    if (!mark) return;
    on = mark; mark.classList.add('on'); tip.textContent = mark.dataset.tip; tip.hidden = false;
    const at = mark.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
    const top = at.top - height - 6 < 4 ? Math.min(at.bottom + 6, innerHeight - height - 4) : at.top - height - 6;
    tip.style.left = Math.max(4, Math.min(innerWidth - width - 4, (at.left + at.right - width) / 2)) + 'px';
    tip.style.top = Math.max(4, top) + 'px';
  };
  const dim = style => document.querySelectorAll('.line').forEach(
    line => line.classList.toggle('dim', style !== undefined && line.dataset.line !== style));
  const over = event => {
    show(event.target.closest('[data-tip]'));
    const swatch = event.target.closest('.legend span, tr')?.querySelector('[data-style]');
    dim(swatch?.dataset.style);
  };
  prepare();
  document.addEventListener('refreshed', () => { hide(); prepare(); });
  document.addEventListener('pointerover', over);
  document.addEventListener('click', over);
  document.addEventListener('focusin', event =>
    event.target.matches('svg.chart:focus-visible') && show(event.target.querySelector('[data-tip]')));
  document.addEventListener('focusout', hide);
  document.addEventListener('scroll', hide, true);
  document.addEventListener('keydown', event => {
    const chart = event.target.closest('svg.chart'), step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === 'Escape') hide();
    if (!chart || !step) return;
    event.preventDefault();
    const marks = [...chart.querySelectorAll('[data-tip]')];
    show(marks[Math.max(0, Math.min(marks.length - 1, marks.indexOf(on) + step))]);
  });
  addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(part => { part.open = true; }));
})();
"""

# Asks the page's own address for its newest state, and keeps what the reader has opened and scrolled to. A page waits
# while a value is shown under the pointer.
_REFRESH = """
(() => {
  const line = document.createElement('p');
  line.className = 'note state'; document.body.append(line);
  const say = text => { line.textContent = text; };
  say('refreshes itself');
  let shown = '';
  const replace = fresh => {
    const old = document.querySelector('.page');
    const left = [...old.querySelectorAll('.scroll')].map(part => part.scrollLeft);
    const open = new Set([...old.querySelectorAll('details[open] > summary')].map(part => part.textContent));
    fresh.querySelectorAll('summary').forEach(part => { part.parentNode.open = open.has(part.textContent); });
    old.replaceWith(fresh);
    fresh.querySelectorAll('.scroll').forEach((part, place) => { part.scrollLeft = left[place] ?? 0; });
    document.dispatchEvent(new Event('refreshed'));
  };
  const refresh = async () => {
    if (document.hidden || document.querySelector('.tip:not([hidden])')) return;
    const text = await (await fetch(location.href.split('#')[0], {cache: 'no-cache'})).text();
    if (text !== shown) replace(new DOMParser().parseFromString(text, 'text/html').querySelector('.page'));
    shown = text;
    say('refreshes itself');
  };
  const again = () => refresh().catch(() => say('no answer from comp watch: this is the last state that it sent'))
    .finally(() => setTimeout(again, 2000));
  setTimeout(again, 2000);
})();
"""


@dataclass(frozen=True)
class Section:
    """A part of a page; without a title it is not in the list of contents.

    Attributes:
        title: text.
        body: HTML; a section with an empty one is left out.
    """

    title: str
    body: str


def render(title: str, sections: Iterable[Section], *, live: bool = False) -> str:
    """Return a page: its title, a list of contents if there are several, and its sections.

    Args:
        title: of the page.
        sections: in their order.
        live: whether the page asks the server that it came from for its newest state, every two seconds.
    """
    shown = [section for section in sections if section.body]
    titled = [section.title for section in shown if section.title]
    links = "".join(f'<li><a href="#{_anchor(name)}">{text(name)}</a></li>' for name in titled)
    contents = f'<nav aria-label="contents"><ul>{links}</ul></nav>' if len(titled) > 2 else ""
    body = "\n".join(
        f'<section id="{_anchor(part.title)}"><h2>{text(part.title)}</h2>{part.body}</section>'
        if part.title
        else part.body
        for part in shown
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'" + "; connect-src 'self'" * live
    scripts = [_SCRIPT] * (live or 'class="chart"' in body) + [_REFRESH] * live
    if scripts:
        policy += f"; script-src {' '.join(map(_digest, scripts))}"
    script = "".join(f"<script>{part}</script>" for part in scripts)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<meta name="generator" content="comp"><title>{text(title)}</title><style>{_STYLE}</style></head>
<body><div class="page{" listed" if contents else ""}">{contents}<main>
<h1>{text(title)}</h1>
{body}
</main></div>{script}</body></html>
"""


def render_pictures(title: str, head: Sequence[str], pictures: Sequence[bytes], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML page with a table of PNG pictures, each with cells of text beside it under the headings."""
    cells = [[image(png, row[0]), *map(text, row)] for png, row in zip(pictures, rows, strict=True)]
    return render(title, [Section("", table(("picture", *head), cells))])


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, best: Sequence[int] = ()) -> str:
    """Return an HTML table; cells are HTML, headings are text, and rows of the numbers `best` stand out."""
    cells = [[cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row] for row in rows]
    kinds = [' class="text"' if cell.startswith('<td class="text"') else "" for cell in (cells[0] if cells else head)]
    top = "".join(f"<th{kind}>{text(title)}</th>" for kind, title in zip(kinds, head, strict=True))
    mark = ' class="best"'
    body = "".join(f"<tr{mark if number in best else ''}>{''.join(row)}</tr>" for number, row in enumerate(cells))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(items: Iterable[str]) -> str:
    """Return cards side by side."""
    return f'<div class="cards">{"".join(items)}</div>'


def card(title: str, value: str, lines: Iterable[str] = ()) -> str:
    """Return a card: a number, which is HTML, under its title, and lines of small text."""
    small = "".join(f"<small>{text(line)}</small>" for line in lines)
    return f'<div class="card"><span class="title">{text(title)}</span>{value}{small}</div>'


def grid(parts: Iterable[str]) -> str:
    """Return parts side by side where there is room, else stacked."""
    shown = [f"<div>{part}</div>" for part in parts if part]
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def note(line: str) -> str:
    """Return small text, of one line or several."""
    return f'<p class="note">{text(line)}</p>'


def image(content: bytes, alt: str) -> str:
    """Return a picture, PNG or JPEG, as part of the page."""
    kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def text(value: object) -> str:
    """Return a value's text for HTML, also within a quoted attribute."""
    return escape.for_html(value)


def text_cell(value: object) -> str:
    """Return a table's cell of text, which wraps."""
    return f'<td class="text">{text(value)}</td>'


def key_cell(key: str) -> str:
    """Return a table's cell of a config's key, which wraps between its words."""
    return text_cell(key).replace(".", ".<wbr>").replace("_", "_<wbr>")


def code_cell(value: object) -> str:
    """Return a table's cell of a config's value."""
    return f'<td class="text"><code>{text(json.dumps(value, ensure_ascii=False))}</code></td>'


def number(value: float | None) -> str:
    """Return a number with four places; all its digits are in `data-value`."""
    return "-" if value is None else f"<span{data(value)}>{value:.4f}</span>"


def data(value: float) -> str:
    """Return the attribute that holds all digits of a number."""
    return f' data-value="{float(value)!r}"'
