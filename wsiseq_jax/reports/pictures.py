"""roc.png and calibration.png, with the spread over seeds."""

import pathlib
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from jaxtyping import Float

from data_prep.files import atomic
from wsiseq_jax.metrics import calibration

_GRID = np.linspace(0.0, 1.0, 201)
_COLOUR, _GREY = "#1b6ca8", "#999999"


def questions(
  cohort, whole
) -> list[tuple[str, Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
  """What was asked, with yes or no: name, truth and probability.

  The positive class of two; each of several classes against the rest; each
  label, where it is known. Nothing for numbers.
  """
  labels, values = cohort.labels[whole.rows], whole.values
  if cohort.target_type == "binary":
    return [(cohort.classes[-1], labels[:, 0], values[:, -1])]
  if cohort.target_type == "multiclass":
    return [
      (name, (labels[:, 0] == j).astype(float), values[:, j])
      for j, name in enumerate(cohort.classes)
    ]
  if cohort.target_type == "multilabel":
    known = np.isfinite(labels)
    return [
      (name, labels[known[:, j], j], values[known[:, j], j])
      for j, name in enumerate(cohort.classes)
    ]
  return []


def roc(
  labels: Float[np.ndarray, " n"], score: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
  """False and true positive rates, from no positives to all.

  Example:
    >>> x, y = roc(np.array([0., 1., 1.]), np.array([0.2, 0.2, 0.9]))
    >>> x.tolist(), y.tolist()
    ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0])
  """
  order = np.argsort(-score, kind="stable")
  last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
  hits = np.concatenate([[0.0], np.cumsum(labels[order])[last]])
  misses = np.concatenate([[0.0], np.cumsum(1 - labels[order])[last]])
  return misses / max(misses[-1], 1.0), hits / max(hits[-1], 1.0)


def draw(
  workdir: pathlib.Path, cohort, wholes: Sequence, together, bins: int
) -> None:
  """Writes both pictures; none for regression and survival.

  Args:
    workdir: where to.
    cohort: the slides.
    wholes: predictions whose spread is the band, `tables.Whole`.
    together: the ensemble's.
    bins: of the calibration.
  """
  asked = questions(cohort, together)
  if not asked:
    return
  each = [questions(cohort, whole) for whole in wholes]
  panels = [
    (name, truth, score, [(one[i][1], one[i][2]) for one in each])
    for i, (name, truth, score) in enumerate(asked)
  ]
  _save(workdir / "roc.png", panels, _roc_panel, "roc")
  _save(
    workdir / "calibration.png",
    panels,
    lambda axes, panel: _calibration_panel(axes, panel, bins),
    "calibration",
  )


def _save(path: pathlib.Path, panels, panel_of, kind: str) -> None:
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(4.3 * columns, 4.2 * rows + 0.4), layout="constrained"
  )
  all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in all_axes[len(panels) :]:
    axes.set_axis_off()
  for axes, panel in zip(all_axes, panels, strict=False):
    panel_of(axes, panel)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_title(panel[0], fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    place = "lower right" if kind == "roc" else "upper left"
    axes.legend(loc=place, frameon=False, fontsize=8)
  note = "Band: mean ± deviation over predictions (seeds, repeats)"
  if kind == "calibration":
    note += "\nDots: ensemble, area by number of slides"
  figure.supxlabel(note, fontsize=8, color="#555555")
  with atomic.replacing(path) as draft:
    figure.savefig(draft, dpi=150, format="png")


def _roc_panel(axes, panel) -> None:
  _, truth, score, each = panel
  curves = []
  for labels, scores in each:
    x, y = roc(labels, scores)
    # Of several rates at one x the highest: the curve's vertical steps.
    curves.append(np.interp(_GRID, x + 1e-12 * np.arange(len(x)), y))
    curves[-1][0] = 0.0
  mean, spread = np.mean(curves, axis=0), np.std(curves, axis=0)
  axes.fill_between(
    _GRID,
    np.clip(mean - spread, 0, 1),
    np.clip(mean + spread, 0, 1),
    color=_COLOUR,
    alpha=0.2,
    linewidth=0,
  )
  axes.plot(_GRID, mean, color=_COLOUR, label="mean of models")
  axes.plot(*roc(truth, score), color="#222222", linewidth=1, label="ensemble")
  axes.set_xlabel("1 − specificity")
  axes.set_ylabel("sensitivity")


def _calibration_panel(axes, panel, bins: int) -> None:
  _, truth, score, each = panel
  centres = (np.arange(bins) + 0.5) / bins
  observed = np.full((len(each), bins), np.nan)
  for row, (labels, scores) in zip(observed, each, strict=True):
    number = calibration.assign(scores, bins)
    for b in np.unique(number):
      row[b] = labels[number == b].mean()
  some = np.isfinite(observed).any(axis=0)
  mean = np.nanmean(observed[:, some], axis=0)
  spread = np.nanstd(observed[:, some], axis=0)
  axes.fill_between(
    centres[some],
    np.clip(mean - spread, 0, 1),
    np.clip(mean + spread, 0, 1),
    color=_COLOUR,
    alpha=0.2,
    linewidth=0,
  )
  axes.plot(centres[some], mean, color=_COLOUR, label="mean of models")
  table = calibration.reliability(truth, score, bins)
  error = calibration.ece(truth, score, bins)[0]
  axes.scatter(
    table.predicted,
    table.observed,
    s=8 + 160 * table.count / table.count.sum(),
    color="#222222",
    alpha=0.8,
    linewidth=0,
    zorder=3,
    label=f"ensemble, ECE {error:.3f}",
  )
  axes.set_xlabel("predicted probability")
  axes.set_ylabel("share that came true")
