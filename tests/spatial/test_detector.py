"""Nuclei on drawn slides, all of whose cells are known."""

import cv2
import numpy as np
import pytest
from scipy import spatial

from data_prep.files.errors import SlideError
from data_prep.synthetic import slides
from data_prep.wsi.slides import Slide
from wsiseq_jax.spatial import detector

PINK, PURPLE = (232, 176, 206), (90, 56, 130)


def drawn(places, size_px, radius_px):
  """Purple discs on pink."""
  picture = np.full((*size_px[::-1], 3), PINK, np.uint8)
  for place in np.asarray(places):
    centre = np.round(place * 16 - 8).astype(int).tolist()
    cv2.circle(picture, centre, radius_px * 16, PURPLE, -1, cv2.LINE_AA, 4)
  return picture


def nearest(found, places):
  return spatial.cKDTree(found).query(places)[0]


def test_middles_of_discs():
  places = [(40.0, 30.0), (90.0, 60.0), (104.0, 60.0)]
  stain = detector.haematoxylin(drawn(places, (140, 100), 6))
  xy, score = detector.blobs(
    stain, detector.Detector(), float(np.percentile(stain, 99))
  )
  # Touching discs part: their middles are further apart than a radius.
  assert len(xy) == 3 and nearest(xy, places).max() < 1.5
  assert (score > 0.12).all()


def test_blank_tissue_has_none():
  stain = detector.haematoxylin(np.full((100, 100, 3), PINK, np.uint8))
  xy, _ = detector.blobs(stain, detector.Detector(), 0.1)
  assert len(xy) == 0


def test_dab_of_nuclei_is_their_optical_density(tmp_path):
  """Haematoxylin and DAB of known density, by the vectors of Ruifrok."""
  haematoxylin, dab = np.array([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78]])
  picture = np.full((400, 400, 3), 245, np.uint8)
  line = np.arange(40, 400, 40)
  places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
  positive = places[:, 0] > 200
  for place, is_dab in zip(places.tolist(), positive, strict=True):
    density = 0.6 * haematoxylin + (0.35 * dab if is_dab else 0)
    colour = np.rint(255 * 10**-density).astype(int).tolist()
    cv2.circle(picture, place, 9, colour, -1)
  slides.write_pyramid(tmp_path / "s.tiff", picture, 0.5)
  with Slide.open(tmp_path / "s.tiff") as opened:
    found, _ = detector.detect(
      opened,
      np.ones((40, 40), bool),
      10.0,
      detector.Detector(score="dab", threshold=0.05),
    )
  order = spatial.cKDTree(found.xy).query((places + 0.5) * 0.5)
  assert len(found.xy) == len(places) and order[0].max() < 1.0
  score = found.score[order[1]]
  np.testing.assert_allclose(score[positive], 0.35, atol=0.05)
  np.testing.assert_allclose(score[~positive], 0.0, atol=0.05)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
  """A slide at 0.4 um: tiles of the detector are 1280 level-0 px."""
  path = tmp_path_factory.mktemp("slide") / "s.tiff"
  # Every 60 px, so that borders of tiles cut nuclei, at 1280 and around.
  line = np.arange(20, 1500, 60.0)
  x, y = np.meshgrid(line, line)
  places = np.stack([x.ravel(), y.ravel()], axis=1)
  slides.write_pyramid(path, drawn(places, (1500, 1500), 9), 0.4)
  return path, places * 0.4


def test_no_nucleus_is_doubled_or_lost_between_tiles(slide):
  path, places = slide
  with Slide.open(path) as opened:
    found, bad = detector.detect(
      opened, np.ones((150, 150), bool), 10.0, detector.Detector()
    )
  assert bad == [] and found.unit == "um"
  assert len(found.xy) == len(places)
  assert nearest(found.xy, places).max() < 1.0
  assert (found.score > 0).all()


def test_a_coarse_slide_is_refused(slide, tmp_path):
  path, _ = slide
  with (
    Slide.open(path, mpp_override=1.0) as opened,
    pytest.raises(SlideError, match="finer than the scan"),
  ):
    detector.detect(opened, np.ones((10, 10), bool), 150.0, detector.Detector())


def test_no_tissue_has_no_cells(slide):
  path, _ = slide
  with Slide.open(path) as opened:
    found, _ = detector.detect(
      opened, np.zeros((150, 150), bool), 10.0, detector.Detector()
    )
  assert len(found.xy) == 0
