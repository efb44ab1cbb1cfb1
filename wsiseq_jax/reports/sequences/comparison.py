"""Trained features beside untrained ones and mean colour, on known tissue.

Slides that were drawn carry their tissue types, which differ by structure while
their mean colours overlap. On them a page can say whether training gave
features that see structure: the same two measures of the trained network, of
the same network before training, and of the mean colour of each sequence.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from data_prep import records
from data_prep.synthetic import slides
from wsiseq_jax import embed
from wsiseq_jax.data.source import Records
from wsiseq_jax.evaluate import Loaded
from wsiseq_jax.probe import separability
from wsiseq_jax.search import clustering
from wsiseq_jax.tasks import base

_CLUSTERS = 16
# Sequences compared at most, spread over all: more make the page wait.
_MOST = 1000


@dataclasses.dataclass(frozen=True)
class FeatureComparison:
  """What kinds of features know of the tissue types."""

  # (features, mutual information, balanced accuracy): trained, untrained, mean
  # colour
  rows: Sequence[tuple[str, float, float]]
  known: int  # sequences compared, each of one known type
  patients: int  # patients they come from
  types: int  # tissue types among them

  @property
  def verdict(self) -> str:
    """One sentence: is training above both others, by both measures?"""
    (_, *trained), *others = self.rows
    below = [
      name
      for name, *values in others
      if not all(t > v for t, v in zip(trained, values, strict=True))
    ]
    if below:
      return f"Training did not bring features above {' and '.join(below)}."
    return "Training brought features above untrained weights and mean colour."


def compare(
  run: Loaded,
  opened: Sequence[tuple[Records, int]],
  arrays: Mapping[str, np.ndarray],
) -> FeatureComparison | None:
  """Measures all three kinds; on several processes each takes part.

  Args:
    run: the trained model; `config.report.truth` is the folder of the types.
    opened: where each embedded record lies.
    arrays: embeddings of all splits, in that order.

  Returns:
    None if no truth is known.

  Raises:
    ValueError: the truth is not that of these slides, or of too few patients.
  """
  truth = run.config.report.truth
  if not truth:
    return None
  try:
    types = slides.sequence_types(
      truth, arrays["slide_id"], arrays["frame_level0_xy"]
    )
  except FileNotFoundError as error:
    raise ValueError(
      f"config.report.truth = {truth!r}: knows nothing of slide "
      f"{pathlib.Path(error.filename).stem!r}"
    ) from error
  known = np.flatnonzero(types >= 0)
  if len(known) > _MOST:
    known = known[np.linspace(0, len(known) - 1, _MOST).round().astype(int)]
  patients = arrays["patient_id"][known]
  if len(np.unique(patients)) < 2:
    raise ValueError(
      f"config.report.truth = {truth!r}: {len(np.unique(patients))} patients "
      "with known tissue types; comparing features needs two"
    )
  rows = []
  for name, features in (
    ("trained", arrays["features"]),
    ("untrained", untrained_features(run, opened)),
    ("mean colour", _mean_colours(opened, known)),
  ):
    features = np.asarray(features[known], np.float32)
    count = min(_CLUSTERS, len(features))
    clusters = clustering.kmeans(features, count).assignment
    recall = separability.recalls(features, types[known], patients)
    information = clustering.mutual_information(clusters, types[known])
    rows.append((name, information, float(np.mean(list(recall.values())))))
  return FeatureComparison(
    rows, len(known), len(np.unique(patients)), len(recall)
  )


def untrained_features(
  run: Loaded, opened: Sequence[tuple[Records, int]]
) -> Float[np.ndarray, "n d"]:
  """Features of the run's own weights before its first step.

  Args:
    run: the trained model.
    opened: where each record lies.

  Returns:
    One row a record, in the order of `opened`.
  """
  init = jax.jit(
    run.task.init, out_shardings=jax.tree.map(lambda x: x.sharding, run.params)
  )
  key = base.stream(jax.random.key(run.config.seed), "init")
  fresh = dataclasses.replace(run, params=init(key))
  sources = dict.fromkeys(source for source, _ in opened)
  return np.concatenate(
    [embed.embed_split(fresh, source)["features"] for source in sources]
  )


def _mean_colours(
  opened: Sequence[tuple[Records, int]], wanted: np.ndarray
) -> Float[np.ndarray, "n 3"]:
  """Mean colour of what is stored of the rows wanted; 0 of others."""
  found = np.zeros((len(opened), 3))
  for row in wanted:
    source, local = opened[row]
    panels = records.decode_panels(source.record(local))
    found[row] = panels.reshape(-1, panels.shape[-1]).mean(axis=0)
  return found
