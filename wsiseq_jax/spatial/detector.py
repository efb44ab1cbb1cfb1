"""Nuclei without a trained model: colour deconvolution, then blobs.

Haematoxylin is parted from eosin (Ruifrok's vectors); a Laplacian of Gaussian
of a few radii, each normalised by its scale, is highest in the middle of a dark
disc. Its maxima are nuclei. Touching nuclei part as long as their middles are
further apart than a radius. There are no types; where the other stain is DAB,
how much of it a nucleus has can be its score, from which types are cut.

A slide is read tile by tile with a margin, so that memory stays bounded and a
nucleus on a border is seen whole; of the two tiles that see it one counts it.

References:
  Ruifrok and Johnston 2001, "Quantification of histochemical staining by color
  deconvolution".
  Lindeberg 1998, "Feature detection with automatic scale selection".
"""

import dataclasses
from typing import Annotated, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import spatial
from skimage import color, feature

from data_prep.files.errors import SlideError
from data_prep.files.schema import Range
from data_prep.wsi import tiles
from data_prep.wsi.slides import Slide
from wsiseq_jax.spatial import raw_cells
from wsiseq_jax.spatial.raw_cells import MICROMETRE, RawCells

KIND = "detector"
# Tiles that tell how strong the stain is, and their darkest share.
_SAMPLE, _DARK = 16, 99.0
_TILE_PX, _BATCH = 1024, 4
# A tile with less tissue is not looked at.
_MIN_TISSUE = 1e-3
_MAX_BAD_SHARE = 0.1  # of the tiles may be unreadable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
  """`config.detector`; chosen on images that no number is reported of."""

  mpp: Annotated[float, Range(0.1, 2)] = 0.5  # at which nuclei are looked for
  # Of nuclei, µm; what is smaller is seen at the smallest, and so on.
  radii_um: Annotated[tuple[float, ...], Range(0.5, 20)] = (3.0, 4.5)
  # Least answer, in shares of the slide's dark haematoxylin.
  threshold: Annotated[float, Range(0, 2)] = 0.12
  # Two nuclei are not nearer than this.
  apart_um: Annotated[float, Range(0.5, 20)] = 3.0
  # What the score of a nucleus is: the answer of the filter, or, on slides of
  # haematoxylin and DAB, the mean optical density of DAB (to base 10) within
  # the smallest radius.
  score: Literal["answer", "dab"] = "answer"

  @property
  def margin_px(self) -> int:
    """How far around a place its answer reaches."""
    sigma = max(self.radii_um) / np.sqrt(2) / self.mpp
    return int(np.ceil(4 * sigma + self.apart_um / self.mpp)) + 2


def haematoxylin(
  picture: UInt8[np.ndarray, "h w 3"],
) -> Float[np.ndarray, "h w"]:
  """How much haematoxylin there is, in units of Ruifrok's vector."""
  pixels = picture.astype(np.float32) / 255
  return np.ascontiguousarray(color.rgb2hed(pixels)[..., 0], np.float32)


def stains(
  picture: UInt8[np.ndarray, "h w 3"], detector: Detector
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"] | None]:
  """Haematoxylin, and with `detector.score` 'dab' each pixel's DAB.

  DAB is the mean optical density, to base 10, within the smallest radius.
  """
  if detector.score == "answer":
    return haematoxylin(picture), None
  pixels = picture.astype(np.float32) / 255
  found = color.separate_stains(pixels, color.hdx_from_rgb)
  found = np.ascontiguousarray(found[..., :2], np.float32)
  # scikit-image divides logarithms by that of 1e-6.
  density = 6.0 * found[..., 1]
  half = round(min(detector.radii_um) / detector.mpp)
  disc = cv2.getStructuringElement(
    cv2.MORPH_ELLIPSE, (2 * half + 1, 2 * half + 1)
  ).astype(np.float32)
  mean = cv2.filter2D(
    density, cv2.CV_32F, disc / disc.sum(), borderType=cv2.BORDER_REFLECT
  )
  return found[..., 0], mean


def blobs(
  stain: Float[np.ndarray, "h w"], detector: Detector, strength: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
  """Middles of dark discs in a picture.

  Args:
    stain: what `haematoxylin` gave, at `detector.mpp`.
    detector: the settings.
    strength: dark haematoxylin of the slide.

  Returns:
    x, y in pixels (pixel i covers [i, i + 1]), and the answer of each in
    shares of the slide's dark haematoxylin.
  """
  answer = np.full(stain.shape, -np.inf, np.float32)
  for radius in detector.radii_um:
    sigma = radius / np.sqrt(2) / detector.mpp
    smooth = cv2.GaussianBlur(
      stain, (0, 0), sigma, borderType=cv2.BORDER_REFLECT
    )
    laplacian = cv2.Laplacian(
      smooth, cv2.CV_32F, ksize=1, borderType=cv2.BORDER_REFLECT
    )
    np.maximum(answer, -(sigma**2) * laplacian, out=answer)
  answer /= max(strength, 1e-6)
  apart = max(1, round(detector.apart_um / detector.mpp))
  peaks = feature.peak_local_max(
    answer,
    min_distance=apart,
    threshold_abs=detector.threshold,
    exclude_border=False,
  )
  return peaks[:, ::-1] + 0.5, answer[peaks[:, 0], peaks[:, 1]]


def detect(
  slide: Slide,
  mask: Bool[np.ndarray, "h w"],
  downsample: float,
  detector: Detector,
) -> tuple[RawCells, list[SlideError]]:
  """The nuclei of a slide.

  Args:
    slide: the open slide.
    mask: its tissue.
    downsample: level-0 pixels per pixel of the mask.
    detector: the settings.

  Returns:
    The nuclei in µm, without types, scored as `detector.score` says, and an
    error for each damaged place.

  Raises:
    SlideError: the slide is coarser than the detector's scale, or too much of
      it cannot be read.
  """
  slide.check_target_mpp(detector.mpp)
  grid = tiles.tile_grid(
    slide,
    mask,
    downsample,
    tile_px=_TILE_PX,
    mpp=detector.mpp,
    min_tissue=_MIN_TISSUE,
  )
  if not len(grid):
    return raw_cells.make(KIND, [], unit=MICROMETRE), []
  strength = _strength(slide, grid, detector)
  margin, bad = detector.margin_px, []
  found, scores, answers, owner = [], [], [], []
  for batch in tiles.read_tiles(
    slide,
    grid,
    window_px=_TILE_PX + 2 * margin,
    batch_size=_BATCH,
    max_bad_share=_MAX_BAD_SHARE,
    bad=bad,
  ):
    for picture, corner, number in zip(
      batch.pixels, batch.xy, batch.index, strict=True
    ):
      stain, dab = stains(picture, detector)
      xy, answer = blobs(stain, detector, strength)
      score = answer
      if dab is not None:
        column, row = xy.astype(int).T
        score = dab[row, column]
      xy -= margin
      # A pixel more on each side: corners of tiles are whole pixels of the
      # level, and what two tiles see is made one below.
      keep = ((xy >= -1) & (xy < _TILE_PX + 1)).all(axis=1)
      found.append(corner * slide.mpp + xy[keep] * detector.mpp)
      scores.append(score[keep])
      answers.append(answer[keep])
      owner.append(np.full(keep.sum(), number))
  xy, score = np.concatenate(found), np.concatenate(scores)
  kept = alone(
    xy, np.concatenate(answers), np.concatenate(owner), detector.apart_um
  )
  cells = raw_cells.make(KIND, xy[kept], score=score[kept], unit=MICROMETRE)
  return cells, bad


def _strength(slide: Slide, grid: tiles.TileGrid, detector: Detector) -> float:
  """Dark haematoxylin of a slide, from tiles spread over its tissue."""
  most = np.argsort(-grid.tissue, kind="stable")[: max(_SAMPLE, len(grid) // 2)]
  most = np.sort(most)
  chosen = most[np.linspace(0, len(most) - 1, _SAMPLE).round().astype(int)]
  chosen = np.unique(chosen)
  some = dataclasses.replace(
    grid, xy=grid.xy[chosen], tissue=grid.tissue[chosen]
  )
  values = [
    np.percentile(stains(picture, detector)[0], _DARK)
    for batch in tiles.read_tiles(
      slide,
      some,
      window_px=_TILE_PX,
      batch_size=_BATCH,
      max_bad_share=1.0,
    )
    for picture in batch.pixels
  ]
  return float(np.median(values)) if values else 1.0


def alone(
  xy: Float[np.ndarray, "n 2"],
  score: Float[np.ndarray, " n"],
  owner: Int[np.ndarray, " n"],
  apart_um: float,
) -> Int[np.ndarray, " m"]:
  """Which detections stay: of two tiles' views of a nucleus the stronger.

  Args:
    xy: places, µm.
    score: how sure each is.
    owner: the tile that saw it.
    apart_um: two nuclei are not nearer than this.

  Returns:
    Their numbers, from top to bottom of the slide.
  """
  stays = np.ones(len(xy), bool)
  if len(xy):
    tree = spatial.cKDTree(xy)
    pairs = tree.query_pairs(apart_um / 2, output_type="ndarray")
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    weaker = np.where(
      score[pairs[:, 0]] >= score[pairs[:, 1]], pairs[:, 1], pairs[:, 0]
    )
    stays[weaker] = False
  kept = np.flatnonzero(stays)
  return kept[np.lexsort((xy[kept, 0], xy[kept, 1]))]
