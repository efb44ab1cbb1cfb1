"""Clusters of sequences, and whether features follow labels.

A region is cut into several sequences (one per heading) that show much the same
tissue. Left alone they would fill a cluster's ten nearest members eight times
over, so members are picked at most one per region.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from sklearn import cluster as sk_cluster
from sklearn import (
  linear_model,
  metrics,
  model_selection,
  pipeline,
  preprocessing,
)


@dataclasses.dataclass(frozen=True)
class Clusters:
  """A clustering of N sequences; cluster 0 is the largest.

  Attributes:
    assignment: cluster of each sequence, [N].
    centroids: mean of each cluster's normalised features, [k, d].
    distance: Euclidean distance of each sequence to its centroid, [N].
    seed: seed of the k-means.
  """

  assignment: Int[np.ndarray, " n"]
  centroids: Float[np.ndarray, "k d"]
  distance: Float[np.ndarray, " n"]
  seed: int

  @property
  def sizes(self) -> Int[np.ndarray, " k"]:
    """Members of each cluster."""
    return np.bincount(self.assignment, minlength=len(self.centroids))


@dataclasses.dataclass(frozen=True)
class Separability:
  """How well a linear classifier names the labels of unseen patients.

  Attributes:
    balanced_accuracy: mean recall over the classes.
    accuracy: share of right answers.
    chance: balanced accuracy of guessing.
    recall: recall per class, in the order of `classes`.
    classes: the labels.
    folds: number of patient-grouped folds.
  """

  balanced_accuracy: float
  accuracy: float
  chance: float
  recall: tuple[float, ...]
  classes: tuple[int, ...]
  folds: int


def l2_normalise(features: Float[np.ndarray, "n d"]) -> np.ndarray:
  """Scales every row to length 1, so that distance means direction.

  Args:
    features: one row per sequence.

  Returns:
    Float32 rows of length 1.

  Raises:
    ValueError: if a row is zero or not finite.

  Example:
    >>> l2_normalise(np.array([[3.0, 4.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
  """
  features = np.asarray(features, np.float32)
  length = np.linalg.norm(features, axis=1, keepdims=True)
  bad = ~(np.isfinite(length[:, 0]) & (length[:, 0] > 0))
  if bad.any():
    raise ValueError(
      f"features: {int(bad.sum())} of {len(features)} rows are zero or not "
      f"finite, the first is row {int(np.flatnonzero(bad)[0])}; a direction "
      "needs a finite length above 0"
    )
  return features / length


def kmeans(
  features: Float[np.ndarray, "n d"], clusters: int = 16, seed: int = 0
) -> Clusters:
  """Seeded k-means on L2-normalised features, clusters ordered by size.

  Args:
    features: one row per sequence; normalised here.
    clusters: number of clusters (config key report.clusters).
    seed: seed of the initialisation.

  Returns:
    The clustering.

  Raises:
    ValueError: if there are fewer sequences than clusters.
  """
  if not 1 <= clusters <= len(features):
    raise ValueError(
      f"clusters={clusters} must lie in 1..{len(features)}, the number of "
      "sequences (config key report.clusters)"
    )
  unit = l2_normalise(features)
  model = sk_cluster.KMeans(clusters, n_init=10, random_state=seed).fit(unit)
  size = np.bincount(model.labels_, minlength=clusters)
  order = np.argsort(-size, kind="stable")
  rank = np.empty(clusters, np.int32)
  rank[order] = np.arange(clusters, dtype=np.int32)
  assignment = rank[model.labels_]
  centroids = model.cluster_centers_[order].astype(np.float32)
  distance = np.linalg.norm(unit - centroids[assignment], axis=1)
  return Clusters(assignment, centroids, distance.astype(np.float32), seed)


def region_groups(
  slide_id: np.ndarray,
  start_xy: Float[np.ndarray, "n 2"],
) -> Int[np.ndarray, " n"]:
  """Number of the region each sequence starts from.

  Sequences of one region share their first frame's centre: the headings of a
  drift all start there. A sequence without a position (an image series) is a
  region of its own.

  Args:
    slide_id: name of the slide, [n].
    start_xy: centre of the first frame in level-0 pixels, NaN = no slide.

  Returns:
    One number per sequence, equal for sequences of one region.

  Example:
    >>> xy = np.array([[8, 8], [8, 8], [8, 9], [np.nan, np.nan]], np.float32)
    >>> region_groups(np.array(["a", "a", "a", "b"]), xy).tolist()
    [0, 0, 1, 2]
  """
  numbers: dict[tuple, int] = {}
  groups = np.empty(len(slide_id), np.int64)
  for i, (slide, (x, y)) in enumerate(
    zip(slide_id, np.asarray(start_xy, np.float64).tolist(), strict=True)
  ):
    known = np.isfinite(x) and np.isfinite(y)
    key = (str(slide), round(x), round(y)) if known else ("alone", i)
    groups[i] = numbers.setdefault(key, len(numbers))
  return groups


def nearest_members(
  clusters: Clusters,
  count: int = 10,
  groups: Int[np.ndarray, " n"] | None = None,
) -> list[Int[np.ndarray, " m"]]:
  """The members nearest each centroid, nearest first.

  Args:
    clusters: the clustering.
    count: most members per cluster.
    groups: at most one member per group, from `region_groups`; None takes
      all members as they come.

  Returns:
    Row numbers per cluster; fewer than `count` where a cluster has fewer.
  """
  order = np.argsort(clusters.distance, kind="stable")
  members = []
  for number in range(len(clusters.centroids)):
    mine = order[clusters.assignment[order] == number]
    if groups is not None:
      _, first = np.unique(groups[mine], return_index=True)
      mine = mine[np.sort(first)]
    members.append(mine[:count])
  return members


def mutual_information(
  assignment: Int[np.ndarray, " n"], labels: np.ndarray
) -> float:
  """Normalised mutual information of clusters and labels, 0 to 1.

  0 = the clusters say nothing about the labels, 1 = they determine each other.
  Integer labels below 0 are unknown and left out.

  Args:
    assignment: cluster of each sequence.
    labels: a label of each sequence, numbers or names.

  Returns:
    The score (arithmetic mean of the two entropies as the norm).

  Raises:
    ValueError: if no label is known.

  Example:
    >>> mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 7, 7]))
    1.0
  """
  labels = np.asarray(labels)
  known = np.ones(len(labels), bool)
  if np.issubdtype(labels.dtype, np.number):
    known = labels >= 0
  if not known.any():
    raise ValueError("labels: none is known (all below 0)")
  score = metrics.normalized_mutual_info_score(
    labels[known], np.asarray(assignment)[known]
  )
  return float(score)


def majority_label(
  frame_labels: Int[np.ndarray, "n t"], least_share: float = 0.5
) -> Int[np.ndarray, " n"]:
  """The label most frames of a sequence carry.

  Args:
    frame_labels: label of each frame; below 0 = unknown.
    least_share: least share of all frames the label must hold.

  Returns:
    The label per sequence, −1 where none reaches the share.

  Example:
    >>> majority_label(np.array([[2, 2, 5], [1, 3, -1]])).tolist()
    [2, -1]
  """
  result = np.full(len(frame_labels), -1, np.int64)
  for i, row in enumerate(np.asarray(frame_labels)):
    values, counts = np.unique(row[row >= 0], return_counts=True)
    if len(values) and counts.max() >= least_share * len(row):
      result[i] = values[counts.argmax()]
  return result


def linear_separability(
  features: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  patients: np.ndarray,
  folds: int = 5,
) -> Separability:
  """Logistic regression on standardised features, tested on unseen patients.

  Sequences of one patient share stain and often the region: a random split
  would test on near copies of what was trained on. All answers are pooled over
  the folds before they are scored, because a fold may lack a class.

  Args:
    features: one row per sequence.
    labels: class of each sequence; below 0 = unknown, left out.
    patients: patient of each sequence.
    folds: most folds; with fewer patients each patient is a fold.

  Returns:
    The scores.

  Raises:
    ValueError: with fewer than two classes or two patients.
  """
  known = np.asarray(labels) >= 0
  x = np.asarray(features, np.float64)[known]
  y, groups = np.asarray(labels)[known], np.asarray(patients)[known]
  classes, count = np.unique(y), len(np.unique(groups))
  if len(classes) < 2 or count < 2:
    raise ValueError(
      f"{len(classes)} classes and {count} patients with known labels: linear "
      "separability needs at least two of each"
    )
  folds = min(folds, count)
  answers = np.empty_like(y)
  for train, test in model_selection.GroupKFold(folds).split(x, y, groups):
    present = np.unique(y[train])
    if len(present) == 1:
      answers[test] = present[0]
      continue
    model = pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(max_iter=2000, class_weight="balanced"),
    )
    answers[test] = model.fit(x[train], y[train]).predict(x[test])
  recall = [float((answers[y == c] == c).mean()) for c in classes]
  return Separability(
    balanced_accuracy=float(np.mean(recall)),
    accuracy=float((answers == y).mean()),
    chance=1 / len(classes),
    recall=tuple(recall),
    classes=tuple(int(c) for c in classes),
    folds=folds,
  )
