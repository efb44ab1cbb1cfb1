"""From predictions to scores, intervals, tables and a picture.

Two kinds of uncertainty are kept apart: the std over seeds says how much the
choice of labelled patients and the start of training matter; the interval says
how much the test patients do. For the interval, patients are resampled once for
all seeds, and a resample's value is the mean over seeds.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from data_prep.files import atomic
from data_prep.files import tables as csv_tables
from wsiseq_jax import charts
from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import ProbeTarget

TIDY = ("target", "probe", "fraction", "seed", "metric", "value")
SUMMARY = (
  *("target", "probe", "fraction", "metric", "mean", "std", "low", "high"),
  *("seeds", "test_sequences", "test_patients"),
)
# Name and colour of each probe.
_PROBES = {
  "linear": ("linear", "#1b6ca8"),
  "knn": ("k-NN", "#7a7a7a"),
  "attentive": ("attentive", "#e08214"),
  "pooling": ("pooling token", "#2a9d5c"),
  "fine_tune": ("fine-tuned", "#8e44ad"),
  "supervised": ("from scratch", "#c0392b"),
}
_METRICS = {
  "auroc": "AUROC",
  "auprc": "AUPRC",
  "accuracy": "accuracy",
  "balanced_accuracy": "balanced accuracy",
  "r2": "R²",
  "mae": "MAE",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeResult:
  """Test predictions of one row."""

  target: ProbeTarget  # what was predicted
  kind: str  # the probe
  fraction: float  # of the labels
  seed: int  # of the row
  # Class probabilities [n, y], or numbers [n].
  prediction: Float[np.ndarray, "n y"] | Float[np.ndarray, " n"]
  labels: np.ndarray  # the truth, [n]
  patients: np.ndarray  # patient of each sequence, [n]
  # What was chosen and how many labels there were, by name.
  notes: Mapping[str, float | int]

  def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The scores, the one that validation used first."""
    return samples.scores(self.target, self.labels, self.prediction, weights)


def tidy(results: Sequence[ProbeResult]) -> list[dict[str, Any]]:
  """One row a number, with the keys of `TIDY`."""
  return [
    dict(
      zip(TIDY, (r.target.name, r.kind, r.fraction, r.seed, *pair), strict=True)
    )
    for r in results
    for pair in (
      *((name, float(value[0])) for name, value in r.scores().items()),
      *r.notes.items(),
    )
  ]


def summarise(
  results: Sequence[ProbeResult], resamples: int
) -> list[dict[str, Any]]:
  """Mean and std (NaN of one seed) over seeds, interval over patients."""
  groups: dict[tuple, list[ProbeResult]] = {}
  for one in results:
    groups.setdefault((one.target, one.kind, one.fraction), []).append(one)
  rows = []
  for (target, kind, fraction), group in groups.items():

    def mean_over_seeds(weights, group=group):
      each = [one.scores(weights) for one in group]
      return {
        name: np.mean([e[name] for e in each], axis=0) for name in each[0]
      }

    patients = group[0].patients
    ends = bootstrap.intervals(mean_over_seeds, patients, resamples)
    scores = [one.scores() for one in group]
    for metric in scores[0]:
      values = np.array([one[metric][0] for one in scores])
      rows.append(
        {
          "target": target.name,
          "probe": kind,
          "fraction": fraction,
          "metric": metric,
          "mean": float(values.mean()),
          "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
          "low": ends[metric][0],
          "high": ends[metric][1],
          "seeds": len(group),
          "test_sequences": len(patients),
          "test_patients": len(np.unique(patients)),
        }
      )
  return rows


def write(
  workdir: pathlib.Path, results: Sequence[ProbeResult], resamples: int
) -> list[dict[str, Any]]:
  """Writes probe.csv, .md, .png and probe_summary.csv; returns the last."""
  csv_tables.write(workdir / "probe.csv", TIDY, tidy(results))
  summary = summarise(results, resamples)
  csv_tables.write(workdir / "probe_summary.csv", SUMMARY, summary)
  atomic.write_atomic(workdir / "probe.md", markdown(summary))
  draw(workdir / "probe.png", summary)
  return summary


def markdown(summary: Sequence[Mapping[str, Any]]) -> str:
  """The summary as tables, one a target."""
  lines = [
    "# Probes",
    "",
    "Mean ± std over seeds, then the 95 % interval from resampling the patients"
    " of the test split. Rows without a std have nothing random and ran once.",
  ]
  for target, mine in pd.DataFrame(summary).groupby("target", sort=False):
    first = mine.iloc[0]
    metrics = mine["metric"].unique()
    lines += [
      "",
      f"## {target}",
      "",
      f"{first.test_sequences} test sequences of {first.test_patients} "
      "patients.",
      "",
      f"| probe | labels | {' | '.join(_METRICS[m] for m in metrics)} |",
      "|---|---:|" + "---:|" * len(metrics),
    ]
    rows = mine.groupby(["probe", "fraction"], sort=False)
    for (probe, fraction), group in rows:
      cells = [_PROBES[probe][0], _percent(fraction)]
      cells += [_cell(row) for row in group.itertuples()]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.3g} %"


def _cell(row) -> str:
  spread = "" if row.seeds == 1 else f" ± {row.std:.3f}"
  return f"{row.mean:.3f}{spread} [{row.low:.3f}, {row.high:.3f}]"


def draw(path: pathlib.Path, summary: Sequence[Mapping[str, Any]]) -> None:
  """Draws the first metric of each target over the fraction of labels."""
  groups = list(pd.DataFrame(summary).groupby("target", sort=False))
  titles = [str(target) for target, _ in groups]
  figure, panels = charts.grid(len(groups), titles, size=(4.2, 3.8))
  handles = {}
  for axes, (_, mine) in zip(panels, groups, strict=True):
    first = mine["metric"].iloc[0]
    _panel(axes, mine[mine["metric"] == first], handles)
    axes.set(xlabel="labels used", ylabel=_METRICS[first])
  figure.legend(
    handles.values(),
    [_PROBES[name][0] for name in handles],
    loc="outside upper center",
    ncols=len(handles),
    frameon=False,
  )
  charts.to_png(
    figure,
    path,
    "Mean over seeds; bars: 95 % interval over the patients of the test split; "
    "dotted: chance",
  )


def _panel(axes, rows: pd.DataFrame, handles: dict[str, Any]) -> None:
  fractions = sorted(rows["fraction"].unique())
  probes = rows["probe"].unique()
  chance = 0.5 if rows["metric"].iloc[0] == "auroc" else 0.0
  axes.axhline(chance, color=charts.SOFT, linewidth=0.8, linestyle=":")
  for number, probe in enumerate(probes):
    mine = rows[rows["probe"] == probe].sort_values("fraction")
    # Side by side, so that bars do not cover one another.
    shift = 0.09 * (number - (len(probes) - 1) / 2)
    ends = [mine["mean"] - mine["low"], mine["high"] - mine["mean"]]
    handles[probe] = axes.errorbar(
      [fractions.index(f) + shift for f in mine["fraction"]],
      mine["mean"],
      yerr=np.abs(np.nan_to_num(ends)),
      color=_PROBES[probe][1],
      marker="o",
      markersize=4.5,
      linewidth=1.4,
      elinewidth=1.0,
      capsize=2.0,
    )
  axes.set_xticks(range(len(fractions)), [_percent(f) for f in fractions])
  axes.set_xlim(-0.5, len(fractions) - 0.5)
  # A probe far below chance would press everything else into a line.
  lowest = min(chance - 0.5, rows["mean"].min())
  low = max(min(chance, rows["low"].min()), lowest)
  axes.set_ylim(low - 0.03, 1.02)
