"""Lesion FROC by the definition of the Camelyon16 challenge.

A detection is a point with a probability. Points 1 and 2, what a lesion is and
when it is isolated tumour cells, are in `lesions`; then:

3. A detection outside all lesions is a false positive, on a normal slide as on
   any other. The score of a lesion is the best of its hits, 0 if there is none;
   more hits of one lesion cost nothing.
4. Thresholds are the different values of all false positives and all lesion
   scores (isolated tumour cells too: they are 0), without the lowest. At each,
   false positives are divided by *all* slides and found lesions by all lesions;
   (0, 0) ends the curve.
5. The score is the mean sensitivity at the six numbers of false positives, by
   linear interpolation; beyond the end of the curve its last value holds, and
   `Froc.extrapolated` says where that was so.

Point 4 takes the weakest finding away whatever it is: a perfect detector with
no false positive and no missed lesion loses the lesion it was least sure of
(all of them, if it was equally sure). `Froc.lost` counts such lesions.

Deviation: the official script stores lesion scores in 32 bits; here they have
64, so that equal probabilities stay equal. It forgets slides without a file of
detections; here every slide counts.

References:
  Ehteshami Bejnordi et al., JAMA 2017, https://doi.org/10.1001/jama.2017.14585.
  MONAI, `compute_froc_score`: the interpolation of point 5.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.metrics.lesions import Lesions

# False positives a slide at which sensitivity is read.
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True, eq=False)
class SlideHits:
  """What the detections of one slide hit."""

  slide_id: str  # the slide
  patient: str  # its patient
  # Probabilities of the detections that hit no lesion.
  false_positives: Float[np.ndarray, " f"]
  # Best probability for each counted lesion, 0 = missed.
  lesions: Float[np.ndarray, " l"]
  isolated: int  # number of lesions that are isolated tumour cells


@dataclasses.dataclass(frozen=True, eq=False)
class Froc:
  """A FROC curve and its score."""

  score: float  # mean of `sensitivities`
  # Share of lesions found at each of `false_positives`.
  sensitivities: tuple[float, ...]
  false_positives: tuple[float, ...]  # false positives a slide, as asked for
  # Those of them that lie beyond the end of the curve, where its last
  # sensitivity is held.
  extrapolated: tuple[float, ...]
  # False positives a slide along the curve, ascending.
  curve_false_positives: Float[np.ndarray, " p"]
  curve_sensitivity: Float[np.ndarray, " p"]  # share of lesions found there
  # The probability from which on detections count; +inf first.
  curve_threshold: Float[np.ndarray, " p"]
  slides: int  # number of slides, those without detections and lesions included
  lesions: int  # number of lesions that count
  isolated: int  # number of lesions that do not
  lost: int  # lesions found only at the lowest value, which gives no threshold

  def note(self) -> str:
    """One sentence on how the score came about, to stand beside it."""
    text = (
      f"mean sensitivity at {', '.join(f'{v:g}' for v in self.false_positives)}"
      f" false positives a slide; {self.lesions} lesions on {self.slides} "
      f"slides, {self.isolated} of isolated tumour cells not counted"
    )
    if self.extrapolated:
      text += (
        f"; the curve ends at {self.curve_false_positives[-1]:.3g} false "
        "positives a slide and its last sensitivity is held from there "
        f"(at {', '.join(f'{v:g}' for v in self.extrapolated)})"
      )
    if self.lost:
      text += (
        f"; {self.lost} found lesions are lost with the lowest threshold, as "
        "in the official script"
      )
    return text


def hits(
  slide_id: str,
  patient: str,
  probability: Float[np.ndarray, " n"],
  xy: Shaped[np.ndarray, "n 2"],
  lesions: Lesions | None,
) -> SlideHits:
  """Compares the detections of one slide with its lesions.

  Args:
    slide_id: the slide.
    patient: its patient.
    probability: of each detection, in [0, 1]; none at all is an empty array.
    xy: where, x and y in level-0 pixels.
    lesions: of the slide; None or no lesion for a normal slide.

  Raises:
    ValueError: a probability outside [0, 1], a detection outside the slide, or
      arrays of different lengths.

  Example:
    >>> there = Lesions(np.eye(2, dtype=np.int32), np.array([False]), 32.0)
    >>> at = np.array([[10, 10], [40, 63], [10, 40]])
    >>> found = hits("s", "p", np.array([0.4, 0.7, 0.2]), at, there)
    >>> found.lesions.tolist(), found.false_positives.tolist()
    ([0.7], [0.2])
  """
  probability = np.asarray(probability, np.float64)
  if len(probability) != len(xy):
    raise ValueError(
      f"slide {slide_id!r}: {len(probability)} probabilities for {len(xy)} "
      "places"
    )
  # False for NaN, too.
  bad = ~((probability >= 0) & (probability <= 1))
  if bad.any():
    raise ValueError(
      f"slide {slide_id!r}: a detection has probability "
      f"{probability[bad][0]}, which is not in [0, 1]"
    )
  if lesions is None or not len(lesions.isolated):
    return SlideHits(slide_id, patient, probability, np.zeros(0), 0)
  shape = np.array(lesions.labels.shape)
  place = np.floor(np.asarray(xy, np.float64)[:, ::-1] / lesions.downsample)
  # Masks drop the incomplete pixels at the right and lower edge.
  outside = (place < 0).any(axis=1) | (place > shape).any(axis=1)
  if outside.any():
    raise ValueError(
      f"slide {slide_id!r}: the detection at {xy[outside][0].tolist()} lies "
      f"outside its mask of {shape[1]}x{shape[0]} px at {lesions.downsample:g} "
      "level-0 px a pixel"
    )
  row, column = np.minimum(place, shape - 1).astype(int).T
  label = lesions.labels[row, column]
  best = np.zeros(len(lesions.isolated) + 1)
  np.maximum.at(best, label, probability)
  return SlideHits(
    slide_id,
    patient,
    probability[label == 0],
    best[1:][~lesions.isolated],
    int(lesions.isolated.sum()),
  )


def froc(
  slides: Sequence[SlideHits],
) -> Froc:
  """The curve and the score of a cohort.

  Args:
    slides: every slide of the cohort, those without detections, too.

  Raises:
    ValueError: no lesion that counts, or a slide twice.

  Example:
    >>> one = SlideHits("a", "p", np.array([0.6]), np.array([0.9, 0.0]), 0)
    >>> other = SlideHits("b", "q", np.array([]), np.array([]), 0)
    >>> found = froc([one, other])
    >>> found.score, found.extrapolated
    (0.5, (1.0, 2.0, 4.0, 8.0))
  """
  _check(slides)
  events = _events(slides)
  ones = np.ones(len(slides))
  x, y, keep = _curve(events, ones)
  read = np.interp(FALSE_POSITIVES, x, y)
  everything = np.concatenate([s.lesions for s in slides])
  lowest = events[0].min() if len(events[0]) else 0.0
  return Froc(
    score=float(read.mean()),
    sensitivities=tuple(read.tolist()),
    false_positives=FALSE_POSITIVES,
    extrapolated=tuple(v for v in FALSE_POSITIVES if v > x[-1]),
    curve_false_positives=x,
    curve_sensitivity=y,
    curve_threshold=np.append(np.inf, np.unique(events[0])[::-1][keep]),
    slides=len(slides),
    lesions=len(everything),
    isolated=sum(s.isolated for s in slides),
    lost=int(((everything > 0) & (everything == lowest)).sum()),
  )


def interval(
  slides: Sequence[SlideHits],
  resamples: int = 1000,
  seed: int = 0,
) -> tuple[float, float]:
  """95 % interval of the score by drawing patients with replacement.

  A drawn patient brings all slides, as often as drawn; a resample without a
  lesion has no score and is left out. NaN of one patient. Arguments and errors
  are those of `froc`.
  """
  _check(slides)
  events = _events(slides)

  def statistics(weights):
    scores = np.full(len(weights), np.nan)
    for number, row in enumerate(weights):
      x, y, _ = _curve(events, row)
      scores[number] = np.interp(FALSE_POSITIVES, x, y).mean()
    return {"score": scores}

  patients = np.array([slide.patient for slide in slides])
  return bootstrap.intervals(statistics, patients, resamples, seed)["score"]


def _check(slides) -> None:
  names, counts = np.unique([s.slide_id for s in slides], return_counts=True)
  if (counts > 1).any():
    raise ValueError(
      f"slides {names[counts > 1].tolist()} are there more than once"
    )
  if not sum(len(slide.lesions) for slide in slides):
    raise ValueError(
      f"none of {len(slides)} slides has a lesion that counts "
      f"({sum(slide.isolated for slide in slides)} are isolated tumour cells): "
      "FROC is not defined"
    )


def _events(slides):
  """Values, slide numbers, whether false positive, whether lesion, sorted."""
  # Isolated tumour cells are events that count as neither.
  values, number, wrong, right = [], [], [], []
  for index, slide in enumerate(slides):
    for scores, is_wrong, is_right in (
      (slide.false_positives, 1.0, 0.0),
      (slide.lesions, 0.0, 1.0),
      (np.zeros(slide.isolated), 0.0, 0.0),
    ):
      values.append(scores)
      number.append(np.full(len(scores), index))
      wrong.append(np.full(len(scores), is_wrong))
      right.append(np.full(len(scores), is_right))
  values, number, wrong, right = map(
    np.concatenate, (values, number, wrong, right)
  )
  order = np.argsort(-values, kind="stable")
  return values[order], number[order], wrong[order], right[order]


def _curve(events, weights):
  """X [p], y [p] from (0, 0) on; which values, descending, are points."""
  values, number, wrong, right = events
  last = np.flatnonzero(np.append(np.diff(values) != 0, True))
  weight = weights[number]
  seen = np.cumsum(weight)[last]
  # Nothing comes after the lowest value: all is seen there, and only there.
  keep = seen < seen[-1]
  lesions = (weight * right).sum()
  if not lesions:
    return np.zeros(1), np.full(1, np.nan), keep
  x = np.cumsum(weight * wrong)[last][keep] / weights.sum()
  y = np.cumsum(weight * right)[last][keep] / lesions
  return np.append(0.0, x), np.append(0.0, y), keep
