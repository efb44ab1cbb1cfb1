"""Charts on Matplotlib: PNG files, and SVG text for pages.

Functions draw on axes that `grid` has made. SVG has no background and black
ink; the style sheet of the pages turns it light where the page is dark.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics

from data_prep.files import atomic
from wsiseq_jax.metrics import bootstrap, calibration

ACCENT, INK, SOFT = "#7b3fa0", "#1c1b22", "#808080"
GRID = np.linspace(0.0, 1.0, 101)
# Single predictions whose ROC is drawn thin; more are a grey mass.
_CURVES = 30
Score = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


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


def to_png(
  figure: Figure, path: pathlib.Path, note: str = "", dpi: int = 150
) -> None:
  """Writes a figure, a note below it, whole or not at all."""
  if note:
    figure.supxlabel(note, fontsize=8, color=SOFT)
  with atomic.replacing(path) as draft:
    figure.savefig(draft, dpi=dpi, format="png")


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


def _square(axes: Axes, x_label: str, y_label: str) -> None:
  axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2, linestyle=":")
  axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
  axes.set(xlabel=x_label, ylabel=y_label)


def roc_band(
  labels: Float[np.ndarray, " n"],
  score: Float[np.ndarray, " n"],
  patients: np.ndarray,
  resamples: int,
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
  """Pointwise 95 % interval of the ROC over resampled patients.

  The curve of each resample is read at the false positive rates of `GRID`, at
  the upper end of its steps.
  """
  order = np.argsort(-score, kind="stable")
  last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
  weights = bootstrap.patient_weights(patients, resamples, 0)[:, order]
  hits = np.cumsum(weights * labels[order], axis=1)[:, last]
  misses = np.cumsum(weights * (1 - labels[order]), axis=1)[:, last]
  curves = [
    _on_grid(miss / miss[-1], hit / hit[-1])
    for hit, miss in zip(hits, misses, strict=True)
    if hit[-1] and miss[-1]
  ]
  if not curves:
    return (np.full(len(GRID), np.nan),) * 2
  low, high = np.quantile(curves, [0.025, 0.975], axis=0)
  return low, high


def _on_grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """A ROC at the rates of the grid, its steps' upper ends."""
  x, y = np.append(0.0, x), np.append(0.0, y)
  # Interpolation needs rising x: the last of equal ones is the highest.
  kept = np.append(np.diff(x) > 0, True)
  return np.interp(GRID, x[kept], y[kept])


def roc(
  axes: Axes,
  labels: Float[np.ndarray, " n"],
  score: Float[np.ndarray, " n"],
  patients: np.ndarray,
  resamples: int,
  others: Sequence[Score] = (),
  point: tuple[float, float] | None = None,
) -> None:
  """The ROC of an ensemble in its 95 % band, over those of single predictions.

  Args:
    axes: where to.
    labels: 0 or 1; both are there.
    score: probability of 1.
    patients: of each slide.
    resamples: for the band.
    others: labels and scores of single predictions, drawn thin.
    point: 1 − specificity and sensitivity at the decision threshold.
  """
  low, high = roc_band(labels, score, patients, resamples)
  if np.isfinite(low).all():
    axes.fill_between(GRID, low, high, color=ACCENT, alpha=0.18, linewidth=0)
  for other in others[:_CURVES]:
    x, y, _ = metrics.roc_curve(*other)
    axes.plot(GRID, _on_grid(x, y), color=ACCENT, linewidth=0.7, alpha=0.45)
  x, y, _ = metrics.roc_curve(labels, score)
  axes.plot(x, y, color=ACCENT, linewidth=2.2)
  if point:
    axes.plot(*point, "o", color=ACCENT, markersize=7, clip_on=False)
  _square(axes, "1 − specificity", "sensitivity")


@dataclasses.dataclass(frozen=True)
class Bins:
  """Calibration in bins: what is drawn, and said in a table."""

  slides: Int[np.ndarray, " k"]  # in each bin that holds any
  patients: Int[np.ndarray, " k"]  # whose they are
  predicted: Float[np.ndarray, " k"]  # mean probability
  observed: Float[np.ndarray, " k"]  # share that came true
  # Lower end of Wilson's 95 % interval, which counts patients.
  low: Float[np.ndarray, " k"]
  high: Float[np.ndarray, " k"]  # upper end


def calibration_bins(
  labels: Float[np.ndarray, " n"],
  probability: Float[np.ndarray, " n"],
  patients: np.ndarray,
  bins: int,
) -> Bins:
  """Predicted probability against what came true, in equally wide bins."""
  number = calibration.assign(probability, bins)
  found = calibration.reliability(labels, probability, bins)
  of = np.array([len(set(patients[number == b])) for b in np.unique(number)])
  low, high = wilson(found.observed, of)
  return Bins(found.count, of, found.predicted, found.observed, low, high)


def wilson(
  share: Float[np.ndarray, " k"], count: Int[np.ndarray, " k"], z: float = 1.96
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
  """Wilson's 95 % interval of a share.

  Unlike a resampled one it is never of no length: three of three is no proof.

  Example:
    >>> [end.round(3).tolist() for end in wilson(np.ones(1), np.array([3]))]
    [[0.438], [1.0]]
  """
  middle = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = share * (1 - share) / count + (z / (2 * count)) ** 2
  half = z * half**0.5 / (1 + z * z / count)
  return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def calibration_curve(axes: Axes, bins: Bins) -> None:
  """Dots with intervals; a larger dot has more slides."""
  x, y = bins.predicted, bins.observed
  axes.vlines(x, bins.low, bins.high, color=ACCENT, linewidth=1.4)
  area = 20 + 220 * bins.slides / bins.slides.sum()
  axes.scatter(x, y, s=area, color=ACCENT, linewidth=0, zorder=3, clip_on=False)
  _square(axes, "predicted probability", "share that came true")


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
