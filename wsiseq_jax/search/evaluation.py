"""The job `retrieval`: how well an index retrieves.

Every labelled row, or a sample of them, is a query; the whole of its patient is
left out of what it can find. Do hits have its label?

    precision   share of the k hits that have the query's label
    mMV         whether most of them have it (mMV@k of HERE and SISH); of labels
                that are as frequent, that of the nearest hit counts
    mAP         mean, over the places whose hit has it, of the precision up to
                there; 0 if there is none

Hits that are missing because fewer than k rows may be found have no label, and
are wrong. Scores are means over the queries of a class; `macro` is the mean
over classes, `all` that over queries. `chance` is the precision of random hits:
how frequent the query's label is in other patients. Intervals resample
patients. Search is exact, so that the score is the encoder's.

Deviations from SISH: there the order of hits depends on their labels, here on
the distance alone; its mAP divides by 5 whatever k is, and can pass 1; it
leaves out patients of TCGA alone.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int
from ml_collections import ConfigDict

from data_prep.files import tables
from wsiseq_jax import launch
from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.search import neighbours, settings
from wsiseq_jax.search.index import Index

MACRO, ALL = "macro", "all"
COLUMNS = (
  *("labels", "class", "score", "k", "value", "low", "high"),
  *("queries", "patients"),
)


def score_hits(
  hits: np.ndarray, labels: np.ndarray
) -> dict[str, Float[np.ndarray, " q"]]:
  """The scores of each query.

  Args:
    hits: labels of the k hits of each query, nearest first, [q, k]; '' where
      one is missing.
    labels: of the queries, [q].

  Example:
    >>> hits = np.array([["a", "b", "a"], ["b", "a", ""]])
    >>> found = score_hits(hits, np.array(["a", "a"]))
    >>> {name: values.round(3).tolist() for name, values in found.items()}
    {'precision': [0.667, 0.333], 'mMV': [1.0, 0.0], 'mAP': [0.833, 0.5]}
  """
  right = hits == labels[:, None]
  places = np.arange(1, hits.shape[1] + 1)
  so_far = np.cumsum(right, axis=1) / places
  most = np.array([_majority(row) for row in hits])
  return {
    "precision": right.mean(axis=1),
    "mMV": (most == labels).astype(np.float64),
    "mAP": (so_far * right).sum(axis=1) / np.maximum(right.sum(axis=1), 1),
  }


def _majority(row: np.ndarray) -> str:
  """The most frequent label; of equally frequent ones the first."""
  names, first, count = np.unique(row, return_index=True, return_counts=True)
  return str(names[np.lexsort((first, -count))[0]])


def per_query(
  vectors: Float32[np.ndarray, "n d"],
  labels: np.ndarray,
  patients: np.ndarray,
  ks: Sequence[int] = (1, 5, 10),
  sample: int = 0,
  seed: int = 0,
) -> pd.DataFrame:
  """Scores of queries among the rows of other patients.

  Args:
    vectors: of all rows, of any length above 0.
    labels: of the rows, [n]; '' = unknown: found, and never right, not asked.
    patients: of the rows, [n].
    ks: how many hits are looked at.
    sample: how many random rows are queries; 0 = all labelled ones.
    seed: of the sample.

  Returns:
    A row for each query: row, label, patient, `<score>@<k>` and chance.

  Raises:
    ValueError: no row has a label.
  """
  labels = np.asarray(labels).astype(str)
  patients = np.asarray(patients).astype(str)
  asked = np.flatnonzero(labels != "")
  if not len(asked):
    raise ValueError("no row has a label: there is nothing to score")
  if 0 < sample < len(asked):
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.choice(asked, sample, replace=False))
  _, person = np.unique(patients, return_inverse=True)
  found = neighbours.nearest(
    vectors[asked], vectors, max(ks), person[asked], person
  )
  hits = np.where(found.index >= 0, labels[np.maximum(found.index, 0)], "")
  columns = {"row": asked, "label": labels[asked], "patient": patients[asked]}
  for k in ks:
    for name, values in score_hits(hits[:, :k], labels[asked]).items():
      columns[f"{name}@{k}"] = values
  columns["chance"] = _chance(labels, person)[asked]
  return pd.DataFrame(columns)


def _chance(
  labels: np.ndarray, person: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
  """How frequent each row's label is among the rows of others."""
  _, kind = np.unique(labels, return_inverse=True)
  counts = np.zeros((person.max() + 1, kind.max() + 1))
  np.add.at(counts, (person, kind), 1)
  others = counts.sum(axis=0) - counts
  return (others / np.maximum(others.sum(axis=1, keepdims=True), 1))[
    person, kind
  ]


def summary(
  scores: pd.DataFrame, labels: str = "label", resamples: int = 1000
) -> list[dict[str, object]]:
  """Means by class with 95 % intervals, rows with the columns `COLUMNS`."""
  names = [n for n in scores if n not in ("row", "label", "patient")]
  values = scores[names].to_numpy(np.float64)
  classes = sorted(scores["label"].unique())
  member = np.stack([scores["label"] == name for name in classes], 1)

  def means(weights: Float[np.ndarray, "r n"]) -> Mapping[str, np.ndarray]:
    each = []
    for of_class in member.T.astype(np.float64):
      total = (weights * of_class).sum(axis=1, keepdims=True)
      with np.errstate(invalid="ignore", divide="ignore"):
        each.append((weights * of_class) @ values / total)
    every = weights @ values / weights.sum(axis=1, keepdims=True)
    # A class that a resample lacks is left out of its mean.
    seen = np.isfinite(np.stack(each)).sum(axis=0)
    macro = np.nansum(np.stack(each), axis=0) / np.maximum(seen, 1)
    table = {MACRO: macro, ALL: every, **dict(zip(classes, each, strict=True))}
    return {
      f"{name} {group}": found[:, i]  # names have no blanks
      for group, found in table.items()
      for i, name in enumerate(names)
    }

  patients = scores["patient"].to_numpy()
  point = means(np.ones((1, len(scores))))
  ends = bootstrap.intervals(means, patients, resamples)
  rows = []
  for key, value in point.items():
    name, group = key.split(" ", 1)
    inside = scores[scores["label"] == group] if group in classes else scores
    score, _, k = name.partition("@")
    rows.append(
      {
        "labels": labels,
        "class": group,
        "score": score,
        "k": k,
        "value": float(value[0]),
        "low": ends[key][0],
        "high": ends[key][1],
        "queries": len(inside),
        "patients": inside["patient"].nunique(),
      }
    )
  return rows


def run(config: ConfigDict) -> list[dict[str, object]]:
  """The job: writes `retrieval.csv` to the workdir; returns its rows.

  Args:
    config: see `configs/search.py`.

  Raises:
    ValueError: a bad config, no index, or an index without labels.
  """
  wanted = settings.read(config)
  if not launch.is_main():
    return []
  opened = Index.open(wanted.query.index or wanted.workdir)
  slides = opened.slides
  ids = np.concatenate(
    [np.arange(s.first, s.first + s.rows) for s in slides.itertuples()]
  )
  about, vectors = opened.rows(ids), opened.vectors(ids)
  rows = []
  for column in wanted.scores.labels:
    try:
      scores = per_query(
        vectors,
        about[column].to_numpy(object),
        about["patient_id"].to_numpy(object),
        wanted.scores.k,
        wanted.scores.sample,
        wanted.scores.seed,
      )
    except ValueError as error:
      raise ValueError(f"config.scores.labels = {column!r}: {error}") from error
    rows += summary(scores, column, wanted.scores.resamples)
  path = pathlib.Path(wanted.workdir) / "retrieval.csv"
  path.parent.mkdir(parents=True, exist_ok=True)
  tables.write(path, COLUMNS, rows)
  for row in rows:
    if row["class"] == MACRO:
      at = f"@{row['k']}" if row["k"] else ""
      launch.log(
        f"{row['labels']}: {row['score']}{at} {row['value']:.3f} "
        f"({row['low']:.3f} to {row['high']:.3f})"
      )
  launch.log(f"retrieval: wrote {path}")
  return rows
