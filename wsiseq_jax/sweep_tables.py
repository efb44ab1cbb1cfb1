"""Tables and a picture of the runs of a sweep."""

import collections
import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from data_prep.files import atomic
from data_prep.files import tables as files_tables
from wsiseq_jax import sweep_plan

SEED = "seed"  # the setting over which results are averaged
Row = Mapping[str, Any]


def probe_values(folder: pathlib.Path) -> dict[str, float]:
  """Means of a run's probe, by 'target/probe/fraction/score'."""
  path = folder / "probe_summary.csv"
  if not path.exists():
    return {}
  with path.open() as file:
    return {
      f"{r['target']}/{r['probe']}/{r['fraction']}/{r['metric']}": float(
        r["mean"]
      )
      for r in csv.DictReader(file)
      if r["mean"]
    }


def write(
  out: pathlib.Path,
  rows: Sequence[Row],
  varied: Sequence[str],
  metric: str,
  goal: str,
) -> None:
  """Writes sweep.csv, sweep.md and sweep.png.

  Args:
    out: where to.
    rows: a row a run.
    varied: the settings that differ.
    metric: what counts.
    goal: 'min' or 'max'.
  """
  names = list(dict.fromkeys(key for row in rows for key in row))
  files_tables.write(out / "sweep.csv", names, rows)
  text = markdown(rows, varied, metric, goal)
  # Several processes of one sweep may end at the same time.
  with atomic.replacing(out / "sweep.md") as draft:
    draft.write_text(text)
  with atomic.replacing(out / "sweep.png") as draft:
    draw(draft, rows, varied, metric)


def ranked(rows: Sequence[Row], metric: str, goal: str) -> list[Row]:
  """Rows with the metric, best first, and then those without.

  Example:
    >>> [r["m"] for r in ranked([{"m": 2}, {"m": 1}], "m", "min")]
    [1, 2]
  """
  sign = 1 if goal == "min" else -1

  def place(row):
    value = row.get(metric, math.nan)
    return (1, 0.0) if math.isnan(value) else (0, sign * value)

  return sorted(rows, key=place)


def over_seeds(
  rows: Sequence[Row], varied: Sequence[str], metric: str
) -> list[dict[str, Any]]:
  """Mean and deviation of the metric for each setting but the seed.

  Returns:
    The settings, and mean, std (NaN for one seed), seeds.
  """
  settings = [key for key in varied if key != SEED]
  groups = collections.defaultdict(list)
  for row in rows:
    if math.isfinite(row.get(metric, math.nan)):
      key = tuple(sweep_plan.text_of(row.get(name, "")) for name in settings)
      groups[key].append(row[metric])
  return [
    {
      **dict(zip(settings, key, strict=True)),
      metric: float(np.mean(values)),
      "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
      "seeds": len(values),
    }
    for key, values in groups.items()
  ]


def markdown(
  rows: Sequence[Row], varied: Sequence[str], metric: str, goal: str
) -> str:
  """The runs, best first; before them the means over seeds, if there are."""
  states = collections.Counter(row["state"] for row in rows)
  told = ", ".join(f"{count} {state}" for state, count in states.items())
  best = "least" if goal == "min" else "greatest"
  lines = ["# Sweep", "", f"{len(rows)} runs: {told}. Best: {best} `{metric}`."]
  if not any(metric in row for row in rows):
    known = {
      key
      for row in rows
      for key, value in row.items()
      if isinstance(value, float) and "/" in key
    }
    lines += [
      "",
      f"No run has `{metric}` (config.metric); there are: "
      + (", ".join(f"`{name}`" for name in sorted(known)) or "none yet")
      + ".",
    ]
  if SEED in varied:
    means = ranked(over_seeds(rows, varied, metric), metric, goal)
    settings = [key for key in varied if key != SEED]
    table = [
      [
        *(row[key] for key in settings),
        f"{row[metric]:.4g}"
        + ("" if math.isnan(row["std"]) else f" ± {row['std']:.2g}"),
        row["seeds"],
      ]
      for row in means
    ]
    lines += ["", "## Mean ± deviation over seeds", ""]
    lines += _table([*settings, metric, "seeds"], table)
  table = []
  for row in ranked(rows, metric, goal):
    value = row.get(metric)
    table.append(
      [
        *(sweep_plan.text_of(row.get(key, "")) for key in varied),
        "" if value is None else f"{value:.4g}",
        row.get("step", ""),
        f"{row['seconds']:.0f}",
        row["state"] + (f": {row['error']}" if row["error"] else ""),
      ]
    )
  lines += ["", "## Runs", ""]
  lines += _table([*varied, metric, "step", "seconds", "state"], table)
  return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
  def line(cells):
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

  return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def draw(
  path: pathlib.Path, rows: Sequence[Row], varied: Sequence[str], metric: str
) -> None:
  """Draws the metric over each setting: points for runs, a line for means."""
  settings = [key for key in varied if key != SEED] or [*varied] or ["run"]
  known = [row for row in rows if math.isfinite(row.get(metric, math.nan))]
  columns = min(3, len(settings))
  height = -(-len(settings) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(4.8 * columns, 3.6 * height + 0.3), layout="constrained"
  )
  panels = figure.subplots(height, columns, squeeze=False).ravel()
  for axes in panels[len(settings) :]:
    axes.set_axis_off()
  for axes, key in zip(panels, settings, strict=False):
    _panel(axes, known, key, metric)
    axes.set_ylabel(metric)
    axes.set_title(key, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
  figure.supxlabel(
    "Points: runs; red: mean of the runs with that value",
    fontsize=9,
    color="#555555",
  )
  figure.savefig(path, dpi=150, format="png")


def _panel(axes, rows: Sequence[Row], key: str, metric: str) -> None:
  if not rows:
    axes.text(0.5, 0.5, "no values yet", ha="center", va="center")
    return
  values = [row.get(key, "") for row in rows]
  results = np.array([row[metric] for row in rows])
  is_number = all(
    isinstance(v, int | float) and not isinstance(v, bool) for v in values
  )
  if is_number:
    x = np.array(values, float)
    if x.min() > 0 and x.max() >= 8 * x.min():
      axes.set_xscale("log")
    if len(set(values)) <= 6:
      axes.set_xticks(sorted(set(values)), minor=False)
      axes.set_xticks([], minor=True)
      axes.xaxis.set_major_formatter("{x:.4g}")
  else:
    names = list(dict.fromkeys(sweep_plan.text_of(v) for v in values))
    x = np.array([names.index(sweep_plan.text_of(v)) for v in values])
    short = [n.rpartition("/")[2].replace(".py:", ": ") for n in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_xlim(-0.5, len(names) - 0.5)
  axes.plot(x, results, "o", color="#1b6ca8", alpha=0.55, markersize=5)
  places = np.unique(x)
  means = [results[x == place].mean() for place in places]
  # Between words there is nothing.
  style = "-" if is_number else "_"
  size = {} if is_number else {"markersize": 22, "markeredgewidth": 2}
  if len(places) < len(x) or is_number:
    axes.plot(places, means, style, color="#c0392b", linewidth=1.2, **size)
