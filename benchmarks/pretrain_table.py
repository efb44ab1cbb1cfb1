"""Tables of runs with seeds: means with intervals, and paired differences."""

import itertools
import json

import harness
import numpy as np
from scipy import stats

# What is measured.
SCORES = (
  "val_loss",
  "relative_loss",
  "nmi",
  "linear",
  "nmi_unseen",
  "linear_unseen",
  "organ_by_slide",
  "organ_by_case",
)


def over_seeds(values):
  """Mean, deviation and the 95 % interval of a mean, by Student's t."""
  values = np.asarray(values, float)
  found = {"n": len(values), **harness.mean_std(values.tolist(), 4)}
  if len(values) > 1:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = values.mean()
    found["interval"] = [round(mean - half, 4), round(mean + half, 4)]
  return found


def differences(rows, axes, axis):
  """Paired differences between values of an axis, all else the same."""
  groups = {}
  for row in rows:
    if row["features"] == "trained":
      same = [row[a] for a in (*axes, "settings", "seed") if a != axis]
      groups.setdefault(json.dumps(same), {})[row[axis]] = row
  found = {}
  for key, pair in groups.items():
    *rest, shared, _ = json.loads(key)
    for a, b in itertools.combinations(sorted(pair, key=str), 2):
      name = (f"{a} - {b}", *rest, json.dumps(shared, sort_keys=True))
      found.setdefault(name, []).append((pair[a], pair[b]))
  return found


def against_untrained(rows, axes):
  """Pairs of trained and untrained networks of one seed."""
  first, found = {}, {}
  for row in rows:
    if row["features"] != "mean colour":
      key = (row["positions"], _text(row["settings"]), row["seed"])
      if row["features"] == "untrained":
        first[key] = row
  for row in rows:
    if row["features"] == "trained":
      key = (row["positions"], _text(row["settings"]), row["seed"])
      if key in first:
        name = (
          "trained - untrained",
          *(row[axis] for axis in axes),
          _text(row["settings"]),
        )
        found.setdefault(name, []).append((row, first[key]))
  return found


def _text(shared):
  return json.dumps(shared, sort_keys=True)


def table(rows, axes, pair):
  """Prints what runs say, and returns it.

  Args:
    rows: lines of `runs.jsonl`.
    axes: keys of the rows that tell configurations apart, `positions` first.
    pair: the axis whose values are compared at the same seed.
  """
  groups = {}
  for row in rows:
    # Untrained networks differ by positions alone.
    named = axes[:1] if row["features"] == "untrained" else axes
    key = (row["features"], *(row.get(axis, "") for axis in named))
    groups.setdefault((*key, _text(row["settings"])), []).append(row)
  result = {"configurations": [], "differences": []}
  shared = sorted({name[-1] for name in groups})
  for name, mine in groups.items():
    *head, text = name
    scores = {
      score: over_seeds([row[score] for row in mine])
      for score in SCORES
      if score in mine[0]
    }
    constant = {
      k: mine[0][k] for k in ("colour_loss", "interpolation") if k in mine[0]
    }
    result["configurations"].append(
      {"of": head, "settings": json.loads(text)} | constant | scores
    )
    show([*head, f"settings {shared.index(text)}"], scores)
  pairs = against_untrained(rows, axes) | differences(rows, axes, pair)
  for name, mine in pairs.items():
    *head, text = name
    scores = {
      score: over_seeds([a[score] - b[score] for a, b in mine])
      for score in SCORES
      if score in mine[0][0] and score in mine[0][1]
    }
    result["differences"].append(
      {"of": head, "settings": json.loads(text)} | scores
    )
    show([*head, f"settings {shared.index(text)}"], scores, sign="+")
  result["runs"] = rows
  for number, text in enumerate(shared):
    print(f"settings {number}: {text}")
  return result


def show(head, scores, sign=""):
  """Prints a configuration: a line a score."""
  print(" ".join(str(part) for part in head if part != ""))
  for name, found in scores.items():
    text = f"  {name:<15}{found['mean']:{sign}8.4f}"
    if "interval" in found:
      low, high = found["interval"]
      text += f" ± {found['std']:.4f}  [{low:{sign}.4f}, {high:{sign}.4f}]"
    print(f"{text}  n={found['n']}")
