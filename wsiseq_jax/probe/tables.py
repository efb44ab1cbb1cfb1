"""From predictions to scores, intervals, tables and a picture.

Two kinds of uncertainty are kept apart: the deviation over seeds says how much
the choice of labelled patients and the start of training matter; the interval
says how much the test patients do. For the interval, patients are resampled
once for all seeds, and a resample's value is the mean over seeds.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from jaxtyping import Float

from data_prep.files import atomic
from data_prep.files import tables as files_tables
from wsiseq_jax.metrics import bootstrap, classification, regression
from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import Target

TIDY = ("target", "probe", "fraction", "seed", "metric", "value")
SUMMARY = (
  "target", "probe", "fraction", "metric", "mean", "std", "low", "high",
  "seeds", "test_sequences", "test_patients",
)  # fmt: skip
# Also in pictures: what each probe is drawn in.
_COLOURS = {
  "linear": "#1b6ca8",
  "knn": "#7a7a7a",
  "attentive": "#e08214",
  "pooling": "#2a9d5c",
  "fine_tune": "#8e44ad",
  "supervised": "#c0392b",
}
_PROBE_NAMES = {
  "linear": "linear",
  "knn": "k-NN",
  "attentive": "attentive",
  "pooling": "pooling token",
  "fine_tune": "fine-tuned",
  "supervised": "from scratch",
}
_METRIC_NAMES = {
  "auroc": "AUROC",
  "auprc": "AUPRC",
  "accuracy": "accuracy",
  "balanced_accuracy": "balanced accuracy",
  "r2": "R²",
  "mae": "MAE",
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Test predictions of one row.

  Attributes:
    target: what was predicted.
    kind: the probe.
    fraction: of the labels.
    seed: of the row.
    prediction: class probabilities [n, y], or numbers [n].
    labels: the truth, [n].
    patients: patient of each sequence, [n].
    notes: what was chosen and how many labels there were, by name.
  """

  target: Target
  kind: str
  fraction: float
  seed: int
  prediction: Float[np.ndarray, "n y"] | Float[np.ndarray, " n"]
  labels: np.ndarray
  patients: np.ndarray
  notes: Mapping[str, float | int]


def metric_names(target: Target) -> tuple[str, ...]:
  """The scores of a target, the one that validation used first."""
  return classification.NAMES if target.classes else regression.NAMES


def tidy(results: Iterable[Result]) -> list[dict[str, Any]]:
  """One row a number, with the keys of `TIDY`."""
  rows = []
  for result in results:
    numbers = {name: float(v[0]) for name, v in _scores(result).items()}
    for metric, value in {**numbers, **result.notes}.items():
      rows.append(
        {
          "target": result.target.name,
          "probe": result.kind,
          "fraction": result.fraction,
          "seed": result.seed,
          "metric": metric,
          "value": value,
        }
      )
  return rows


def summarise(
  results: Iterable[Result], resamples: int
) -> list[dict[str, Any]]:
  """Mean and deviation over seeds, and the interval over patients.

  Args:
    results: rows, in any order.
    resamples: for the interval.

  Returns:
    Rows with the keys of `SUMMARY`; the deviation of one seed is NaN.
  """
  groups = collections.defaultdict(list)
  for result in results:
    groups[result.target, result.kind, result.fraction].append(result)
  rows = []
  for (target, kind, fraction), group in groups.items():
    first = group[0]

    def mean_over_seeds(weights, group=group):
      each = [_scores(result, weights) for result in group]
      return {n: np.mean([one[n] for one in each], axis=0) for n in each[0]}

    ends = bootstrap.intervals(mean_over_seeds, first.patients, resamples)
    for metric in metric_names(target):
      values = np.array([_scores(r)[metric][0] for r in group])
      low, high = ends[metric]
      several = len(values) > 1
      rows.append(
        {
          "target": target.name,
          "probe": kind,
          "fraction": fraction,
          "metric": metric,
          "mean": float(values.mean()),
          "std": float(values.std(ddof=1)) if several else float("nan"),
          "low": low,
          "high": high,
          "seeds": len(values),
          "test_sequences": len(first.labels),
          "test_patients": len(np.unique(first.patients)),
        }
      )
  return rows


def _scores(result: Result, weights=None) -> dict[str, np.ndarray]:
  return samples.scores(
    result.target, result.labels, result.prediction, weights
  )


def write(
  workdir: pathlib.Path, results: Sequence[Result], resamples: int
) -> list[dict[str, Any]]:
  """Writes probe.csv, probe_summary.csv, probe.md and probe.png.

  Args:
    workdir: where to.
    results: all rows.
    resamples: for the intervals.

  Returns:
    The rows of the summary.
  """
  files_tables.write(workdir / "probe.csv", TIDY, tidy(results))
  summary = summarise(results, resamples)
  files_tables.write(workdir / "probe_summary.csv", SUMMARY, summary)
  (workdir / "probe.md").write_text(markdown(summary))
  draw(workdir / "probe.png", summary)
  return summary


def markdown(summary: Sequence[Mapping[str, Any]]) -> str:
  """The summary as tables, one a target."""
  lines = [
    "# Probes",
    "",
    "Mean ± deviation over seeds, then the 95 % interval from resampling the "
    "patients of the test split. Rows without a deviation have nothing random "
    "and ran once.",
  ]
  for target in dict.fromkeys(row["target"] for row in summary):
    mine = [row for row in summary if row["target"] == target]
    metrics = list(dict.fromkeys(row["metric"] for row in mine))
    head = [_METRIC_NAMES[m] for m in metrics]
    lines += [
      "",
      f"## {target}",
      "",
      f"{mine[0]['test_sequences']} test sequences of "
      f"{mine[0]['test_patients']} patients.",
      "",
      "| probe | labels | " + " | ".join(head) + " |",
      "|---|---:|" + "---:|" * len(head),
    ]
    table = {(r["probe"], r["fraction"], r["metric"]): r for r in mine}
    for probe, fraction in dict.fromkeys((k[0], k[1]) for k in table):
      cells = [_cell(table[probe, fraction, metric]) for metric in metrics]
      name = _PROBE_NAMES[probe]
      lines.append(f"| {name} | {_percent(fraction)} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.3g} %"


def _cell(row: Mapping[str, Any]) -> str:
  spread = "" if row["seeds"] == 1 else f" ± {row['std']:.3f}"
  return f"{row['mean']:.3f}{spread} [{row['low']:.3f}, {row['high']:.3f}]"


def draw(path: pathlib.Path, summary: Sequence[Mapping[str, Any]]) -> None:
  """Draws the first metric of each target over the fraction of labels."""
  targets = list(dict.fromkeys(row["target"] for row in summary))
  columns = min(3, len(targets))
  height = -(-len(targets) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(4.2 * columns, 3.5 * height + 0.5), layout="constrained"
  )
  panels = figure.subplots(height, columns, squeeze=False).ravel()
  for axes in panels[len(targets) :]:
    axes.set_axis_off()
  handles = {}
  for axes, target in zip(panels, targets, strict=False):
    mine = [r for r in summary if r["target"] == target]
    metric = mine[0]["metric"]
    mine = [r for r in mine if r["metric"] == metric]
    _panel(axes, mine, handles)
    axes.set_title(target, fontsize=11)
    axes.set_ylabel(_METRIC_NAMES[metric])
  figure.legend(
    handles.values(),
    [_PROBE_NAMES[name] for name in handles],
    loc="outside upper center",
    ncols=len(handles),
    frameon=False,
  )
  figure.supxlabel(
    "Mean over seeds; bars: 95 % interval over the patients of the test split; "
    "dotted: chance",
    fontsize=9,
    color="#555555",
  )
  with atomic.replacing(path) as draft:
    figure.savefig(draft, dpi=150, format="png")


def _panel(axes, rows, handles) -> None:
  fractions = sorted({r["fraction"] for r in rows})
  probes = list(dict.fromkeys(r["probe"] for r in rows))
  place = {fraction: i for i, fraction in enumerate(fractions)}
  chance = 0.5 if rows[0]["metric"] == "auroc" else 0.0
  axes.axhline(chance, color="#999999", linewidth=0.8, linestyle=":")
  for number, probe in enumerate(probes):
    mine = sorted(
      (r for r in rows if r["probe"] == probe), key=lambda r: r["fraction"]
    )
    # Side by side, so that bars do not cover one another.
    shift = 0.09 * (number - (len(probes) - 1) / 2)
    x = np.array([place[r["fraction"]] for r in mine]) + shift
    mean = np.array([r["mean"] for r in mine])
    ends = np.array([[r["low"], r["high"]] for r in mine])
    bars = np.abs(np.nan_to_num(ends - mean[:, None])).T
    handles[probe] = axes.errorbar(
      x,
      mean,
      yerr=bars,
      color=_COLOURS[probe],
      marker="o",
      markersize=4.5,
      linewidth=1.4,
      elinewidth=1.0,
      capsize=2.0,
    )
  axes.set_xticks(range(len(fractions)), [_percent(f) for f in fractions])
  axes.set_xlim(-0.5, len(fractions) - 0.5)
  axes.set_xlabel("labels used")
  # A probe far below chance would press everything else into a line.
  means = [r["mean"] for r in rows]
  low = max(min([chance, *(r["low"] for r in rows)]), min(chance - 0.5, *means))
  axes.set_ylim(bottom=low - 0.03, top=1.02)
  axes.grid(axis="y", alpha=0.25)
  axes.spines[["top", "right"]].set_visible(False)
