"""FROC against an example on paper, and against its definition in loops."""

import numpy as np
import pytest

from wsiseq_jax.metrics import bootstrap, froc, lesions

# At level 5 a pixel is 7.776 um: reach 4.82 px, isolated below 35.36 px.
PX = 32


# Pixels of 38.4 um: no other is nearer than 37.5 um.
COARSE = 1.2


def mask(*boxes, shape=(100, 120)):
  drawn = np.zeros(shape, bool)
  for top, left, height, width in boxes:
    drawn[top : top + height, left : left + width] = True
  return drawn


def points(*at):
  """Level-0 positions in the middle of mask pixels (row, column)."""
  return np.array([[(c + 0.5) * PX, (r + 0.5) * PX] for r, c in at])


def slide(name, wrong, right, isolated=0, patient=None):
  return froc.SlideHits(
    name,
    patient or name,
    np.array(wrong, np.float64),
    np.array(right, np.float64),
    isolated,
  )


@pytest.fixture(scope="module")
def tumour_slide():
  """Two lesions, 40x10 and 10x40 px, and one pixel of isolated cells."""
  return lesions.find_lesions(
    mask((10, 10, 40, 10), (80, 40, 10, 40), (20, 90, 1, 1))
  )


def test_a_pixel_becomes_a_disc_of_isolated_cells():
  found = lesions.find_lesions(mask((20, 20, 1, 1)))
  # Grid points nearer than 4.82 to the origin, i.e. x² + y² ≤ 23.
  assert (found.labels > 0).sum() == 69
  assert found.isolated.tolist() == [True]


@pytest.mark.parametrize("length, isolated", [(6, True), (7, False)])
def test_isolated_cells_end_at_a_major_axis_of_275_um(length, isolated):
  # A line of n points has variance (n² - 1) / 12: 4 √4 = 8 px of 38 um for 7.
  found = lesions.find_lesions(mask((5, 5, length, 1)), level0_mpp=COARSE)
  assert found.isolated.tolist() == [isolated]
  axis = lesions.major_axis_px(found.labels > 0)
  assert axis == pytest.approx(4 * np.sqrt((length**2 - 1) / 12))


def test_major_axis_of_an_ellipse_is_its_length():
  y, x = np.mgrid[-60:61, -60:61]
  turned = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
  ellipse = (turned[0] / 50) ** 2 + (turned[1] / 20) ** 2 <= 1
  assert lesions.major_axis_px(ellipse) == pytest.approx(100, rel=0.005)
  assert lesions.major_axis_px(np.ones((1, 1), bool)) == 0


@pytest.mark.parametrize("apart, count", [(9, 1), (10, 2)])
def test_near_lesions_are_one(apart, count):
  # Discs reach 4 px: those 9 apart touch, between those 10 apart lies a pixel.
  found = lesions.find_lesions(mask((20, 20, 1, 1), (20, 20 + apart, 1, 1)))
  assert len(found.isolated) == count


def test_holes_are_filled_and_corners_connect():
  ring = mask((10, 10, 30, 30)) & ~mask((12, 12, 26, 26))
  found = lesions.find_lesions(ring, level0_mpp=COARSE)
  assert (found.labels[10:40, 10:40] == 1).all() and found.labels.sum() == 900
  diagonal = lesions.find_lesions(
    mask((5, 5, 1, 1), (6, 6, 1, 1)), level0_mpp=COARSE
  )
  assert len(diagonal.isolated) == 1


def test_lesions_at_the_border_and_none():
  # A window of the mask is worked on; it must not change what lies at a border.
  found = lesions.find_lesions(mask((0, 0, 40, 3), (97, 117, 3, 3)))
  assert found.isolated.tolist() == [False, True]
  assert found.labels[0, 6] == 1 and found.labels[0, 7] == 0
  assert found.labels[43, 0] == 1 and found.labels[44, 0] == 0
  none = lesions.find_lesions(mask())
  assert len(none.isolated) == 0 and not none.labels.any()
  with pytest.raises(ValueError, match="downsample=0"):
    lesions.find_lesions(mask(), downsample=0)


def test_hits(tumour_slide):
  assert tumour_slide.isolated.tolist() == [False, True, False]
  at = points((30, 15), (12, 12), (20, 92), (60, 60), (47, 6), (30, 23))
  found = froc.hits(
    "a", "p", np.array([0.8, 0.9, 0.7, 0.6, 0.3, 0.2]), at, tumour_slide
  )
  # Best of four hits, two of them on the rim of 37.5 um; one lesion is missed;
  # the isolated cells are no false positive.
  assert found.lesions.tolist() == [0.9, 0.0]
  assert found.false_positives.tolist() == [0.6]
  assert found.isolated == 1
  # All is false on a normal slide, wherever it is.
  normal = froc.hits("n", "p", np.array([0.1]), points((-5, 900)), None)
  assert normal.false_positives.tolist() == [0.1] and not len(normal.lesions)
  silent = froc.hits("s", "p", np.zeros(0), np.zeros((0, 2)), tumour_slide)
  assert silent.lesions.tolist() == [0, 0] and not len(silent.false_positives)


def test_pixels_are_found_by_whole_division(tumour_slide):
  # Column 23 is the last of the rim of columns 10..19: level-0 x up to 767.
  xy = np.array([[767, 30 * PX], [768, 30 * PX]])
  found = froc.hits("a", "p", np.array([0.5, 0.4]), xy, tumour_slide)
  assert found.lesions.tolist() == [0.5, 0]
  assert found.false_positives.tolist() == [0.4]
  # In the incomplete pixel at the right edge, which masks drop.
  edge = np.array([[120 * PX + 3, 50]])
  assert len(
    froc.hits("a", "p", np.array([0.5]), edge, tumour_slide).false_positives
  )


@pytest.mark.parametrize(
  "probability, xy, message",
  [
    (1.5, (0, 0), "probability 1.5"),
    (np.nan, (0, 0), "probability nan"),
    (0.5, (122 * PX, 0), "lies outside its mask of 120x100 px"),
    (0.5, (-1, 0), "lies outside"),
  ],
)
def test_odd_detections_are_refused(tumour_slide, probability, xy, message):
  with pytest.raises(ValueError, match=f"slide 'a': .*{message}"):
    froc.hits("a", "p", np.array([probability]), np.array([xy]), tumour_slide)


def test_example_on_paper(tumour_slide):
  """Four slides, worked out by hand.

  A: 0.9 and 0.8 on the first lesion, 0.7 on isolated cells, 0.6 beside; the
  second lesion is missed. B: 0.5 on its lesion. C is normal: 0.75, 0.4. D is
  normal, without detections. Thresholds 0.9 0.75 0.6 0.5 0.4 (0 is the lowest):
  false positives 0 1 2 2 3 of 4 slides, lesions 1 1 1 2 2 of 3.
  """
  a = froc.hits(
    "A", "1", np.array([0.8, 0.9, 0.7, 0.6]),
    points((30, 15), (12, 12), (20, 92), (60, 60)), tumour_slide,
  )  # fmt: skip
  b = froc.hits(
    "B", "1", np.array([0.5]), points((30, 15)),
    lesions.find_lesions(mask((10, 10, 40, 10))),
  )  # fmt: skip
  c = froc.hits("C", "2", np.array([0.75, 0.4]), points((1, 1), (2, 2)), None)
  d = froc.hits("D", "3", np.zeros(0), np.zeros((0, 2)), None)
  found = froc.froc([a, b, c, d])
  third = 1 / 3
  np.testing.assert_allclose(
    found.curve_false_positives, [0, 0, 0.25, 0.5, 0.5, 0.75]
  )
  np.testing.assert_allclose(
    found.curve_sensitivity, [0, third, third, third, 2 * third, 2 * third]
  )
  assert found.curve_threshold.tolist() == [np.inf, 0.9, 0.75, 0.6, 0.5, 0.4]
  # At 1/4: 1/3. At 1/2 the higher of two points. Beyond 3/4 the last one holds.
  np.testing.assert_allclose(found.sensitivities, [third] + [2 * third] * 5)
  assert found.score == pytest.approx(11 / 18)
  assert found.extrapolated == (1, 2, 4, 8)
  assert (found.slides, found.lesions, found.isolated) == (4, 3, 1)
  assert found.lost == 0
  assert "ends at 0.75 false positives" in found.note()
  # A slide without detections counts: without it all is shifted.
  assert froc.froc([a, b, c]).curve_false_positives[-1] == 1


def test_between_points_the_curve_is_straight():
  # 0.5 is a lesion and a false positive at once: (0, 1/2) to (1/2, 1).
  found = froc.froc([slide("a", [0.5, 0.1], [0.9, 0.5]), slide("b", [], [])])
  assert found.sensitivities[0] == pytest.approx(0.75)
  assert found.score == pytest.approx((0.75 + 5) / 6)


def test_the_lowest_value_is_no_threshold():
  """What the official script takes away, and how it is said."""
  perfect = [slide("a", [], [0.9, 0.8])]
  found = froc.froc(perfect)
  assert found.score == 0.5 and found.lost == 1
  assert "1 found lesions are lost" in found.note()
  # A missed lesion, or isolated cells, are 0: then nothing is lost.
  assert froc.froc([slide("a", [], [0.9, 0.8, 0])]).score == pytest.approx(
    2 / 3
  )
  assert froc.froc([slide("a", [], [0.9, 0.8], isolated=1)]).score == 1


def by_definition(slides, at):
  """The official script's loops, over lists."""
  wrong = [p for s in slides for p in s.false_positives.tolist()]
  right = [p for s in slides for p in s.lesions.tolist()]
  isolated = [0.0] * sum(s.isolated for s in slides)
  curve = [(0.0, 0.0)]
  for t in sorted({*wrong, *right, *isolated}, reverse=True)[:-1]:
    x = sum(p >= t for p in wrong) / len(slides)
    curve.append((x, sum(p >= t for p in right) / len(right)))
  return float(np.interp(at, *zip(*curve, strict=True)).mean())


def cohort(seed):
  rng = np.random.default_rng(seed)
  slides = []
  for number in range(12):
    count = rng.integers(0, 4) if number % 2 else 0
    scores = rng.integers(0, 20, count) / 20
    wrong = rng.integers(0, 20, rng.integers(0, 25)) / 25
    slides.append(
      slide(f"s{number}", wrong, scores, number % 3, f"p{number // 2}")
    )
  return slides


@pytest.mark.parametrize("seed", range(4))
def test_as_the_definition_says(seed):
  slides = cohort(seed)
  wanted = by_definition(slides, froc.FALSE_POSITIVES)
  assert 0.05 < wanted < 0.95
  assert froc.froc(slides).score == pytest.approx(wanted, abs=1e-12)


def test_interval_resamples_patients():
  """A drawn patient counts as often as drawn, with all slides."""
  slides = cohort(0)
  weights = bootstrap.patient_weights(
    np.array([s.patient for s in slides]), 50, seed=3
  )
  scores = []
  for row in weights.astype(int):
    drawn = [s for s, n in zip(slides, row, strict=True) for _ in range(n)]
    if sum(len(s.lesions) for s in drawn):
      scores.append(by_definition(drawn, froc.FALSE_POSITIVES))
  low, high = froc.interval(slides, resamples=50, seed=3)
  assert (low, high) == pytest.approx(
    tuple(np.quantile(scores, [0.025, 0.975]))
  )
  assert low < froc.froc(slides).score < high


def test_interval_by_hand():
  # Isolated cells are 0, which gives no threshold: nothing else is lost.
  found = slide("a", [], [0.9], isolated=1)
  missed = slide("b", [], [0.0], isolated=1)
  # Both, either or neither is drawn: 0, 1/2, 1.
  assert froc.interval([found, missed]) == (0, 1)
  one = [slide("a", [], [0.9], patient="p"), slide("b", [], [0], patient="p")]
  # Slides of one patient say nothing of others.
  assert np.isnan(froc.interval(one)).all()


def test_no_lesion_no_score():
  normal = [slide("a", [0.5], []), slide("b", [], [], isolated=2)]
  with pytest.raises(ValueError, match="none of 2 slides .*2 are isolated"):
    froc.froc(normal)
  with pytest.raises(ValueError, match="none of 0 slides"):
    froc.interval([])
  twice = [slide("a", [], [1.0]), slide("a", [], [1.0])]
  with pytest.raises(ValueError, match=r"slides \['a'\] are there more than"):
    froc.froc(twice)
