"""Clusters of sequences, and whether they follow labels.

A region is cut into several sequences (one per heading) that show much the same
tissue. Left alone they would fill a cluster's ten nearest members eight times
over, so members are picked at most one per region.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from sklearn import cluster as sk_cluster
from sklearn import metrics


@dataclasses.dataclass(frozen=True)
class Clusters:
  """A clustering of N sequences; cluster 0 is the largest."""

  assignment: Int[np.ndarray, " n"]  # cluster of each sequence, [N]
  # Mean of each cluster's normalised features, [k, d].
  centroids: Float[np.ndarray, "k d"]
  # Euclidean distance of each sequence to its centroid, [N].
  distance: Float[np.ndarray, " n"]
  seed: int  # seed of the k-means

  @property
  def sizes(self) -> Int[np.ndarray, " k"]:
    """Members of each cluster."""
    return np.bincount(self.assignment, minlength=len(self.centroids))


def l2_normalise(features: Float[np.ndarray, "n d"]) -> np.ndarray:
  """Scales every row to length 1 (f32), so that distance means direction.

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
  """Seeded k-means on L2-normalised features, clusters ordered by size."""
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
  """The members nearest each centroid, nearest first."""
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
