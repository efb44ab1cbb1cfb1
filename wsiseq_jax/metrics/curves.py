"""ROC with its band and calibration with intervals, drawn on `charts`."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from sklearn import metrics

from wsiseq_jax import charts
from wsiseq_jax.metrics import bootstrap, calibration

GRID = np.linspace(0.0, 1.0, 101)
# Single predictions whose ROC is drawn thin; more are a grey mass.
_CURVES = 30
Score = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def _square(axes: Axes, x_label: str, y_label: str) -> None:
  axes.plot([0, 1], [0, 1], color=charts.SOFT, linewidth=1.2, linestyle=":")
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
    axes.fill_between(
      GRID, low, high, color=charts.ACCENT, alpha=0.18, linewidth=0
    )
  for other in others[:_CURVES]:
    x, y, _ = metrics.roc_curve(*other)
    axes.plot(
      GRID, _on_grid(x, y), color=charts.ACCENT, linewidth=0.7, alpha=0.45
    )
  x, y, _ = metrics.roc_curve(labels, score)
  axes.plot(x, y, color=charts.ACCENT, linewidth=2.2)
  if point:
    axes.plot(*point, "o", color=charts.ACCENT, markersize=7, clip_on=False)
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
  share: Float[np.ndarray, " k"], count: Int[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
  """Wilson's 95 % interval of a share.

  Unlike a resampled one it is never of no length: three of three is no proof.

  Example:
    >>> [end.round(3).tolist() for end in wilson(np.ones(1), np.array([3]))]
    [[0.438], [1.0]]
  """
  z = 1.96
  middle = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = share * (1 - share) / count + (z / (2 * count)) ** 2
  half = z * half**0.5 / (1 + z * z / count)
  return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def calibration_curve(axes: Axes, bins: Bins) -> None:
  """Dots with intervals; a larger dot has more slides."""
  x, y = bins.predicted, bins.observed
  axes.vlines(x, bins.low, bins.high, color=charts.ACCENT, linewidth=1.4)
  area = 20 + 220 * bins.slides / bins.slides.sum()
  axes.scatter(
    x, y, s=area, color=charts.ACCENT, linewidth=0, zorder=3, clip_on=False
  )
  _square(axes, "predicted probability", "share that came true")
