"""Charts on Matplotlib: PNG files, and SVG text for pages.

Functions draw on axes that `grid` has made. SVG has no background and black
ink; the style sheet of the pages turns it light where the page is dark.
"""

import io
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.files import atomic

ACCENT, INK, SOFT = "#7b3fa0", "#1c1b22", "#808080"


def grid(
  count: int,
  titles: Sequence[str] = (),
  columns: int = 3,
  size: tuple[float, float] = (4.3, 4.0),
) -> tuple[Figure, list[Axes]]:
  """A figure of `count` panels of `size` inches."""
  columns = min(columns, count)
  rows = -(-count // columns)
  figure = Figure(
    figsize=(size[0] * columns, size[1] * rows), layout="constrained"
  )
  panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  for axes in panels[count:]:
    axes.set_axis_off()
  for axes in panels:
    axes.grid(alpha=0.25, color=SOFT)
    axes.spines[["top", "right"]].set_visible(False)
  for axes, title in zip(panels, titles, strict=False):
    axes.set_title(title, fontsize=11, parse_math=False)
  return figure, panels[:count]


def to_png(figure: Figure, path: pathlib.Path, note: str = "") -> None:
  """Writes a figure, a note below it, whole or not at all."""
  if note:
    figure.supxlabel(note, fontsize=8, color=SOFT)
  with atomic.replacing(path) as draft:
    figure.savefig(draft, dpi=150, format="png")


def to_svg(figure: Figure) -> str:
  """A figure as an `<svg>` element with text as text, the same every time."""
  text = io.StringIO()
  style = {"svg.fonttype": "none", "svg.hashsalt": "chart"}
  nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  with matplotlib.rc_context(style):
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
  svg = text.getvalue()
  # A page has no room for the XML declaration.
  return svg[svg.index("<svg") :]


def scatter(
  axes: Axes,
  x: Float[np.ndarray, " n"],
  y: Float[np.ndarray, " n"],
  links: Sequence[str] = (),
) -> None:
  """Dots around the diagonal; `links` are addresses they lead to."""
  both = np.concatenate([x, y])
  ends = [both.min(), both.max()]
  axes.plot(ends, ends, color=SOFT, linewidth=1.2, linestyle=":")
  dots = axes.scatter(x, y, s=40, color=ACCENT, alpha=0.6, linewidth=0)
  dots.set_urls(list(links))


def dots_by_group(
  axes: Axes,
  groups: Mapping[str, Sequence[tuple[float, str]]],
  cut: float | None = None,
) -> None:
  """A row of dots a group, (value in [0, 1], address) each; a dashed line."""
  names = [f"{name} ({len(dots)})" for name, dots in groups.items()]
  for row, dots in enumerate(groups.values()):
    dots = sorted(dots)
    # Steps of the golden ratio keep neighbours apart, however many there are.
    lane = (0.5 + 0.618 * np.arange(len(dots))) % 1 - 0.5
    made = axes.scatter(
      [value for value, _ in dots],
      row + 0.7 * lane,
      s=44 if len(dots) < 200 else 12,
      color=ACCENT,
      alpha=0.6,
      linewidth=0,
      clip_on=False,
    )
    made.set_urls([link for _, link in dots])
  if cut is not None:
    axes.axvline(cut, color=INK, linewidth=1.2, linestyle="--")
  axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
  axes.set_yticks(range(len(names)), names, parse_math=False)


def lines(
  axes: Axes,
  series: Mapping[str, tuple[np.ndarray, np.ndarray]],
  faint: Sequence[str] = (),
) -> None:
  """Lines with a legend.

  The y axis is logarithmic where positive values spread over more than a
  factor of 20, as a loss does that starts from random weights. Names in `faint`
  are drawn thin and left out of the legend.
  """
  number = 0
  for name, (x, y) in series.items():
    thin = name in faint
    axes.plot(
      x,
      y,
      color=f"C{number}",
      label=None if thin else name,
      linewidth=0.7 if thin else 1.8,
      alpha=0.4 if thin else 1,
      marker="o" if len(x) <= 40 else None,
      markersize=4,
    )
    number += not thin
  values = np.concatenate([np.asarray(y) for _, y in series.values()])
  if values.min() > 0 and values.max() > 20 * values.min():
    axes.set_yscale("log")
  axes.legend(frameon=False)
