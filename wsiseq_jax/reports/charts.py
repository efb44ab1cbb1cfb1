"""Charts of the cohort page, as SVG text that the page colours.

Drawn for a phone: one chart is 360 px wide there, and its letters still 11 px.
Ink is `currentColor`, the curve the page's accent.
"""

import html
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from wsiseq_jax.metrics import bootstrap, calibration
from wsiseq_jax.reports import pictures

_WIDTH, _HEIGHT = 400, 372
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 10, 12, 44
_GRID = np.linspace(0.0, 1.0, 101)
_ACCENT = "var(--accent)"
Point = tuple[float | int, float | int]


class _Axes:
  """A square plot, both axes from `low` to `high`; grows by SVG elements."""

  def __init__(self, title: str, x_label: str, y_label: str, low=0.0, high=1.0):
    self.title, self.low, self.span, self.parts = title, low, high - low, []
    for value in np.linspace(low, high, 5).tolist():
      x, y = self.at((value, low))[0], self.at((low, value))[1]
      faint = "opacity='.2'"
      self.line([(value, low), (value, high)], "currentColor", 0.6, faint)
      self.line([(low, value), (high, value)], "currentColor", 0.6, faint)
      self.text(x, _HEIGHT - _BOTTOM + 16, f"{value:.3g}", "middle")
      self.text(_LEFT - 7, y + 4, f"{value:.3g}", "end")
    self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    self.parts.append(
      f'<text transform="translate(12 {middle:g}) rotate(-90)" '
      f'text-anchor="middle">{html.escape(y_label)}</text>'
    )
    ends = [(low, low), (high, high)]
    self.line(ends, "currentColor", 1, "stroke-dasharray='2 4'")

  def at(self, point: Point) -> tuple[float, float]:
    x, y = ((float(v) - self.low) / self.span for v in point)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _LEFT + x * wide, _TOP + (1 - y) * high

  def text(self, x, y, text, anchor="start") -> None:
    self.parts.append(
      f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
      f"{html.escape(text)}</text>"
    )

  def _points(self, points: Sequence[Point]) -> str:
    placed = (self.at(point) for point in points)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)

  def line(self, points, colour, width, more: str = "") -> None:
    self.parts.append(
      f'<polyline points="{self._points(points)}" fill="none" '
      f'stroke="{colour}" stroke-width="{width}" {more}/>'
    )

  def area(self, points) -> None:
    self.parts.append(
      f'<polygon points="{self._points(points)}" fill="{_ACCENT}" '
      'opacity=".18"/>'
    )

  def dot(self, point, radius, title: str) -> None:
    x, y = self.at(point)
    self.parts.append(
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
      f'fill="{_ACCENT}"><title>{html.escape(title)}</title></circle>'
    )

  def svg(self) -> str:
    return _svg(self.title, _HEIGHT, self.parts)


def _svg(title: str, height: float | int, parts: Sequence[str]) -> str:
  return (
    f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" font-size="12" '
    f'fill="currentColor" aria-label="{html.escape(title)}">'
    f"{''.join(parts)}</svg>"
  )


def roc_band(
  labels: Float[np.ndarray, " n"],
  score: Float[np.ndarray, " n"],
  cases: np.ndarray,
  resamples: int,
  level: float = 0.95,
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
  """Between which sensitivities most resamples lie, at each specificity.

  Cases are drawn with replacement, each with all its slides; the curve of each
  resample is read at 101 false positive rates, at the upper end of its steps.

  Args:
    labels: 0 or 1.
    score: of 1.
    cases: of each slide.
    resamples: how many.
    level: share of resamples between the ends, at each rate by itself.

  Returns:
    Lower and upper ends; NaN where no resample has both classes.
  """
  order = np.argsort(-score, kind="stable")
  last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
  weights = bootstrap.patient_weights(cases, resamples, 0)[:, order]
  hits = np.cumsum(weights * labels[order], axis=1)[:, last]
  misses = np.cumsum(weights * (1 - labels[order]), axis=1)[:, last]
  curves = []
  for hit, miss in zip(hits, misses, strict=True):
    if hit[-1] and miss[-1]:
      curves.append(_at_rates(miss / miss[-1], hit / hit[-1]))
  if not curves:
    return (np.full(len(_GRID), np.nan),) * 2
  tail = (1 - level) / 2
  low, high = np.quantile(curves, [tail, 1 - tail], axis=0)
  return low, high


def _at_rates(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """A curve from (0, 0) at the rates of the grid, its steps' upper ends."""
  x, y = np.append(0.0, x), np.append(0.0, y)
  # Interpolation needs rising x: the last of equal ones is the highest.
  kept = np.append(np.diff(x) > 0, True)
  return np.interp(_GRID, x[kept], y[kept])


def roc_chart(
  name: str,
  labels: Float[np.ndarray, " n"],
  score: Float[np.ndarray, " n"],
  cases: np.ndarray,
  others: Sequence[tuple[np.ndarray, np.ndarray]],
  resamples: int,
  point: Point | None = None,
) -> str:
  """The ROC of the ensemble in its 95 % band, over those of single predictions.

  Args:
    name: the class that is asked for.
    labels: 0 or 1, whether a slide is of it.
    score: probability of it.
    cases: of each slide.
    others: labels and scores of single predictions, drawn thin.
    resamples: for the band.
    point: 1 − specificity and sensitivity at the decision threshold.

  Returns:
    An `<svg>`.
  """
  axes = _Axes(f"ROC curve of {name}", "1 − specificity", "sensitivity")
  low, high = roc_band(labels, score, cases, resamples)
  if np.isfinite(low).all():
    upper = list(zip(_GRID, high, strict=True))
    lower = list(zip(_GRID, low, strict=True))
    axes.area(upper + lower[::-1])
  for other in others:
    curve = list(zip(*pictures.roc(*other), strict=True))
    axes.line(curve, _ACCENT, 0.7, "opacity='.45'")
  curve = list(zip(*pictures.roc(labels, score), strict=True))
  axes.line(curve, _ACCENT, 2.4, "stroke-linejoin='round'")
  if point:
    axes.dot(point, 5, "at the decision threshold")
  return axes.svg()


def wilson(
  share: float | int, count: int, z: float = 1.96
) -> tuple[float, float]:
  """Wilson's 95 % interval of a share of few.

  Unlike a resampled one it is never of no length: three of three is no proof.

  Args:
    share: observed.
    count: of how many independent ones.
    z: quantile of the normal distribution.

  Returns:
    The lower and the upper end.

  Example:
    >>> [round(end, 3) for end in wilson(1.0, 3)]
    [0.438, 1.0]
  """
  middle = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = share * (1 - share) / count + (z / (2 * count)) ** 2
  half = z * half**0.5 / (1 + z * z / count)
  return max(middle - half, 0.0), min(middle + half, 1.0)


def reliability_chart(
  name: str,
  labels: Float[np.ndarray, " n"],
  probability: Float[np.ndarray, " n"],
  cases: np.ndarray,
  bins: int,
) -> tuple[str, list[tuple[int, int, float, float, float, float]]]:
  """Predicted probability against what came true, with 95 % intervals.

  Args:
    name: the class that is asked for.
    labels: 0 or 1, whether a slide is of it.
    probability: of it.
    cases: of each slide; intervals count these, not slides.
    bins: equally wide.

  Returns:
    An `<svg>`; and its numbers: slides, cases, predicted, observed, low, high
    of each bin that holds any.
  """
  number = calibration.assign(probability, bins)
  found = calibration.reliability(labels, probability, bins)
  axes = _Axes(
    f"Calibration of {name}", "predicted probability", "share that came true"
  )
  rows = []
  for b, count, predicted, observed in zip(
    np.unique(number).tolist(), found.count.tolist(), found.predicted.tolist(),
    found.observed.tolist(), strict=True,
  ):  # fmt: skip
    of = len(np.unique(cases[number == b]))
    low, high = wilson(observed, of)
    rows.append((count, of, predicted, observed, low, high))
    axes.line([(predicted, low), (predicted, high)], _ACCENT, 1.6)
    title = f"{count} slides: predicted {predicted:.2f}, true {observed:.2f}"
    share = count / len(labels)
    axes.dot((predicted, observed), 3.5 + 7 * share**0.5, title)
  return axes.svg(), rows


def dots_chart(
  title: str,
  groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]],
  x_label: str,
  cut: float | None = None,
) -> str:
  """Slides as dots along their probability, a row for each label.

  Args:
    title: for those who cannot see it.
    groups: name of a row, and its slides: id, probability, address of its page.
    x_label: what runs to the right.
    cut: the decision threshold, a line.

  Returns:
    An `<svg>`.
  """
  row, top, left = 62.0, 8.0, 12.0
  height = top + row * len(groups) + 40
  wide = _WIDTH - left - _RIGHT
  bottom = top + row * len(groups)
  parts = []
  for value in (0, 0.25, 0.5, 0.75, 1):
    x = left + value * wide
    parts.append(
      f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" '
      'stroke="currentColor" stroke-width=".6" opacity=".2"/>'
      f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}'
      "</text>"
    )
  parts.append(
    f'<text x="{left + wide / 2:.1f}" y="{bottom + 33}" text-anchor="middle">'
    f"{html.escape(x_label)}</text>"
  )
  for number, (name, slides) in enumerate(groups):
    base = top + row * number
    parts.append(
      f'<text x="{left + 3}" y="{base + 14:.1f}" font-weight="600">'
      f"{html.escape(name)} ({len(slides)})</text>"
    )
    for x, y, (slide, value, link) in _spread(slides, left, wide, base, row):
      parts.append(
        f'<a href="{html.escape(link)}"><circle cx="{x:.1f}" cy="{y:.1f}" '
        f'r="4.2" fill="{_ACCENT}" fill-opacity=".65"><title>'
        f"{html.escape(slide)}: {value:.3f}</title></circle></a>"
      )
  if cut is not None:
    x = left + cut * wide
    parts.append(
      f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" '
      'stroke="currentColor" stroke-width="1.4" stroke-dasharray="5 3"/>'
    )
  return _svg(title, height, parts)


def _spread(slides, left, wide, base, row):
  """Places dots of one row so that near ones lie above each other."""
  lanes = 4
  free = [-np.inf] * lanes
  for slide in sorted(slides, key=lambda one: one[1]):
    x = left + slide[1] * wide
    lane = next((i for i in range(lanes) if x - free[i] > 9), None)
    lane = int(np.argmin(free)) if lane is None else lane
    free[lane] = x
    yield x, base + 24 + lane * (row - 30) / (lanes - 1), slide


def scatter_chart(
  labels: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]
) -> str:
  """True against predicted numbers, from the least to the greatest of both."""
  both = np.concatenate([labels, predicted])
  low, high = float(both.min()), float(both.max())
  high = high if high > low else low + 1.0
  axes = _Axes("True and predicted numbers", "true", "predicted", low, high)
  for x, y in zip(labels.tolist(), predicted.tolist(), strict=True):
    axes.dot((x, y), 4, f"true {x:.4g}, predicted {y:.4g}")
  return axes.svg()
