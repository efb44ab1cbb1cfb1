"""The HTML of the report: a few helpers, one style sheet, no scripts.

The page is one file that works from a disk, in a mail, and on a phone, so that
it still opens in ten years. All text passes through `escape`.
"""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from wsiseq_jax.reports import figures

escape = html.escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1b22; --soft: #5d5b69;
  --paper: #ffffff; --panel: #f4f3f7; --line: #d9d7e0; --accent: #6a2c8f;
  --warn: #8a3b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ecebf1;
  --soft: #a9a7b5; --paper: #16151b; --panel: #211f29; --line: #3a3845;
  --accent: #cfa5ea; --warn: #ffb27a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1180px; padding: 16px; color: var(--ink);
  background: var(--paper); line-height: 1.5; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-top: 12px;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 24px 0 6px; }
p, li { max-width: 46rem; } p { margin: 6px 0 12px; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0;
  font-size: .95rem; }
nav a { padding: 6px 0; }
.limit, figcaption, .soft { color: var(--soft); font-size: .9rem; }
.limit { border-left: 3px solid var(--accent); padding: 2px 0 2px 12px; }
.warn { color: var(--warn); }
.facts { display: grid; gap: 8px; margin: 12px 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.facts div { background: var(--panel); border-radius: 8px; padding: 8px 12px; }
.facts dt { font-size: .8rem; color: var(--soft); }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 16px; } figcaption { margin-top: 6px; max-width: 46rem; }
img, svg { max-width: 100%; height: auto; display: block; }
.slides { display: grid; gap: 20px 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.slides img { width: 100%; border-radius: 4px; }
.charts { display: grid; gap: 8px 32px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.charts h3 { margin-top: 0; }
.chart { max-width: 640px; }
.chart svg { width: 100%; }
.chart text { font-family: inherit; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch;
  padding-bottom: 6px; }
.scroll .wide { min-width: var(--wide, 760px); }
.wide .row { margin-bottom: 6px; } .wide img { width: 100%; }
.label { font-size: .8rem; color: var(--soft); position: sticky; left: 0;
  display: inline-block; max-width: min(88vw, 1100px); }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; min-width: 4.5em; }
td.num { font-variant-numeric: tabular-nums; white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: 8px; margin: 8px 0;
  padding: 0 12px; }
details[open] { padding-bottom: 12px; }
summary { cursor: pointer; padding: 10px 0; }
summary .preview { display: block; margin-top: 6px; max-width: 420px; }
details[open] summary .preview { display: none; }
.swatch { display: inline-block; width: .95em; height: .95em; margin-right: 6px;
  border-radius: 3px; border: 1px solid var(--line); vertical-align: -.1em; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 0;
  margin: 8px 0 14px; list-style: none; font-size: .88rem; }
.recon { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); }
.recon img { width: 100%; max-width: 420px; }
.heads { display: grid; grid-template-columns: repeat(3, 1fr);
  max-width: 420px; font-size: .78rem; color: var(--soft); }
pre { white-space: pre-wrap; background: var(--panel); padding: 12px;
  border-radius: 8px; font-size: .8rem; }
@media (max-width: 640px) { .stack thead { display: none; }
  .stack tr, .stack td { display: block; border: 0; white-space: normal; }
  .stack tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  .stack td { padding: 1px 0; } .stack .none { display: none; }
  .stack td:first-child { font-weight: 600; }
  .stack td:not(:first-child)::before { content: attr(data-name) ": ";
    color: var(--soft); } }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
"""


def image(picture: np.ndarray, alt: str, quality: int = 80) -> str:
  """An `<img>` that carries its picture and says its size."""
  height, width = picture.shape[:2]
  return (
    f'<img src="{figures.data_uri(picture, quality)}" alt="{escape(alt)}" '
    f'width="{width}" height="{height}">'
  )


def figure(content: str, caption: str, css: str = "") -> str:
  """A `<figure>` with its caption (HTML text, escaped by the caller)."""
  css = f' class="{css}"' if css else ""
  return f"<figure{css}>{content}<figcaption>{caption}</figcaption></figure>"


def scroll(content: str, wide_px: int = 760) -> str:
  """Content that keeps a least width and scrolls sideways on a phone."""
  return (
    '<div class="scroll" tabindex="0" role="group" '
    'aria-label="scrolls sideways">'
    f'<div class="wide" style="--wide:{wide_px}px">{content}</div></div>'
  )


def table(
  header: Sequence[str],
  rows: Iterable[Sequence[object]],
  stack: bool = False,
) -> str:
  """A table.

  Args:
    header: names of the columns.
    rows: the cells.
    stack: on a narrow screen write a row's cells below each other, for long
      text; otherwise the table scrolls sideways.

  Returns:
    The HTML.
  """
  head = "".join(f"<th>{escape(str(v))}</th>" for v in header)
  body = []
  for row in rows:
    cells = []
    for name, value in zip(header, map(str, row), strict=True):
      short = value[:1].isdigit() and len(value) < 16
      css = ' class="num"' if short else ' class="none"' if not value else ""
      cells.append(f'<td{css} data-name="{escape(name)}">{escape(value)}</td>')
    body.append(f"<tr>{''.join(cells)}</tr>")
  css = ' class="stack"' if stack else ""
  return (
    f'<div class="scroll"><table{css}><thead><tr>{head}</tr></thead>'
    f"<tbody>{''.join(body)}</tbody></table></div>"
  )


def facts(items: Iterable[tuple[str, object]]) -> str:
  """Small boxes with a name and a value."""
  boxes = "".join(
    f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>"
    for k, v in items
  )
  return f'<dl class="facts">{boxes}</dl>'


def swatch(number: int) -> str:
  """A square in the colour of a cluster."""
  r, g, b = figures.colour(number)
  return f'<span class="swatch" style="background:rgb({r},{g},{b})"></span>'


def document(
  title: str, lead: str, sections: Sequence[tuple[str, str, str]]
) -> str:
  """The whole page.

  Args:
    title: heading and window title.
    lead: paragraph below the heading (HTML).
    sections: anchor, heading, content (HTML) of each section.

  Returns:
    A complete HTML document.
  """
  links = "".join(
    f'<a href="#{anchor}">{escape(heading)}</a>'
    for anchor, heading, _ in sections
  )
  body = "".join(
    f'<section id="{anchor}"><h2>{escape(heading)}</h2>{content}</section>'
    for anchor, heading, content in sections
  )
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
    f"<header><h1>{escape(title)}</h1>{lead}</header>"
    f"<nav>{links}</nav><main>{body}</main></body></html>\n"
  )
