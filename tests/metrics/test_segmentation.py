"""Scores of masks against values by hand, scikit-learn and slow loops."""

import numpy as np
import pytest
import sklearn.metrics

from wsiseq_jax.metrics import bootstrap, segmentation
from wsiseq_jax.metrics.segmentation import Matched


def masks(seed, classes=2, size=(20, 17)):
  rng = np.random.default_rng(seed)
  truth, found = rng.integers(0, classes + 1, (2, *size)).astype(np.uint8)
  truth[:3] = 255
  found[:, :2] = 255
  return truth, found


@pytest.mark.parametrize("classes", [1, 3])
def test_overlap_is_that_of_scikit_learn(classes):
  truth, found = masks(0, classes)
  counts = segmentation.confusion(truth, found, classes)
  known = truth != 255
  y, x = truth[known], np.where(found == 255, 0, found)[known]
  assert counts.sum() == known.sum()
  got = {k: v[0] for k, v in segmentation.overlap(counts[None]).items()}
  assert got["miou"] == pytest.approx(
    sklearn.metrics.jaccard_score(y, x, average="macro")
  )
  # A pixel of the foreground that has another class is no hit of its class,
  # but one of the foreground.
  y, x = y > 0, x > 0
  assert got["dice"] == pytest.approx(sklearn.metrics.f1_score(y, x))
  assert got["precision"] == pytest.approx(
    sklearn.metrics.precision_score(y, x)
  )
  assert got["recall"] == pytest.approx(sklearn.metrics.recall_score(y, x))


def test_a_class_that_nobody_has_is_left_out():
  # Background 3 of 4 right, class 1 is 1 of 2, class 2 nowhere.
  counts = np.array([[[3, 1, 0], [0, 1, 0], [0, 0, 0]]])
  got = segmentation.overlap(counts)
  assert got["miou"][0] == pytest.approx((3 / 4 + 1 / 2) / 2)
  assert np.isnan(segmentation.class_iou(counts)[0, 2])


def test_nothing_found_and_nothing_there():
  nothing = np.array([[[5, 0], [0, 0]]])
  got = {k: v[0] for k, v in segmentation.overlap(nothing).items()}
  assert got["miou"] == 1.0  # of the background alone
  assert all(np.isnan(got[k]) for k in ("dice", "precision", "recall"))


def square(top, left, side=4, size=12):
  mask = np.zeros((size, size), np.uint8)
  mask[top : top + side, left : left + side] = 1
  return mask


def test_boundaries_by_hand():
  truth, moved = square(2, 2), square(2, 3)
  # A square of 4 px has 12 boundary pixels; two sides of the moved one lie on
  # the old ones but for their last pixel each, its left side inside, ...
  exact = segmentation.boundary_counts(truth, moved, 0)
  assert exact.tolist() == [12, 6, 12, 6]
  assert segmentation.boundary_counts(truth, moved, 1).tolist() == [12] * 4
  assert segmentation.boundary_f1(exact[None])[0] == pytest.approx(0.5)


def test_the_edge_of_a_picture_or_of_what_is_known_is_no_boundary():
  whole = np.ones((8, 8), np.uint8)
  assert segmentation.boundary_counts(whole, whole, 1).tolist() == [0] * 4
  half = whole.copy()
  half[:, 4:] = 255
  found = whole.copy()
  found[:, 4:] = 0
  assert segmentation.boundary_counts(half, found, 1)[2] == 0


def test_boundary_of_nothing():
  empty, truth = np.zeros((12, 12), np.uint8), square(2, 2)
  missed = segmentation.boundary_counts(truth, empty, 2)
  assert segmentation.boundary_f1(missed[None])[0] == 0.0
  extra = segmentation.boundary_counts(empty, truth, 2)
  assert np.isnan(segmentation.boundary_f1(extra[None])[0])


def test_instances_are_given_one_true_one_each():
  truth = np.maximum(square(0, 0), 2 * square(6, 6))
  # 1 and 2 share the first square, 3 has the place of the second but another
  # class, 4 lies half outside of what is known.
  found = np.zeros((12, 12), int)
  found[:3, :4], found[3, :4] = 1, 2
  found[6:10, 6:10] = 3
  matched = segmentation.match_instances(
    truth, found, np.array([1, 1, 1]), np.array([0.5, 0.9, 0.7])
  )
  # 2 is the surest, but covers 4 of 16 px; 1 covers 12.
  assert matched.hits.tolist() == [True, False, False]
  assert matched.count == 2
  both = segmentation.match_instances(
    truth, found, np.array([1, 1, 2]), np.array([1, 2, 3])
  )
  assert both.hits.tolist() == [True, False, True]


def slow_average_precision(scores, hits, count):
  order = sorted(range(len(scores)), key=lambda i: -scores[i])
  points, true = [], 0
  for rank, i in enumerate(order, start=1):
    true += hits[i]
    points.append((true / count, true / rank))
  area = last = 0.0
  for recall, _ in points:
    best = max(p for r, p in points if r >= recall)
    area += (recall - last) * best
    last = recall
  return area


def test_average_precision_is_that_of_a_loop_and_weights_are_copies():
  rng = np.random.default_rng(1)
  pictures = [
    Matched(rng.random(n), rng.random(n) < 0.5, n + 1) for n in (4, 0, 7)
  ]
  weights = np.array([[1.0, 1, 1], [2, 0, 1]])
  got = segmentation.average_precision(pictures, weights)
  for row, copies in enumerate(([0, 1, 2], [0, 0, 2])):
    chosen = [pictures[i] for i in copies]
    scores = np.concatenate([p.scores for p in chosen])
    hits = np.concatenate([p.hits for p in chosen])
    count = sum(p.count for p in chosen)
    if row == 0:
      assert got[0] == pytest.approx(
        slow_average_precision(scores, hits, count)
      )
    # Copies have equal scores: only the end of each run of ties is a point.
    again = segmentation.average_precision(chosen, np.ones((1, 3)))
    assert got[row] == pytest.approx(again[0])
  none = [Matched(np.zeros(0), np.zeros(0, bool), 0)]
  assert np.isnan(segmentation.average_precision(none, np.ones((1, 1)))[0])


def test_statistics_of_weights_are_those_of_copies():
  pairs = [masks(seed, 1) for seed in range(3)]
  counts = np.stack([segmentation.confusion(*p, 1) for p in pairs])
  edges = np.stack([segmentation.boundary_counts(*p, 1) for p in pairs])

  def score(weights, rows=(0, 1, 2)):
    rows = list(rows)
    return segmentation.statistics(counts[rows], edges[rows], (), weights)

  weighted = score(np.array([[2.0, 0.0, 1.0]]))
  copied = score(np.ones((1, 3)), (0, 0, 2))
  assert set(weighted) == set(segmentation.NAMES)
  for name, value in weighted.items():
    assert value[0] == pytest.approx(copied[name][0])
  low, high = bootstrap.intervals(score, np.array(["a", "b", "b"]), 50)["miou"]
  assert low < score(np.ones((1, 3)))["miou"][0] < high or low < high
