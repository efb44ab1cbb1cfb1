"""Blending, areas and files of a slide's mask, against slow references."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from shapely import geometry

from data_prep.wsi import annotation_masks
from tests.maps import qupath
from wsiseq_jax.maps import geojson
from wsiseq_jax.segment import slide_masks
from wsiseq_jax.segment.slide_masks import Blended, MaskPlace


def test_ramps_of_neighbours_add_up_to_one():
  line = slide_masks.ramp(16, 6)[8]  # a row in the middle
  together = line[10:] + line[:6]  # the next tile begins at 10
  np.testing.assert_allclose(together, 1.0)
  assert slide_masks.ramp(16, 0).min() == 1.0


def test_tiles_are_blended_as_a_slow_loop_does(tmp_path):
  rng = np.random.default_rng(0)
  side, size = 8, (21, 17)
  weights = slide_masks.ramp(side, 4)
  canvas = Blended(tmp_path / "draft", size, 2)
  total, weight = np.zeros((*size, 2)), np.zeros(size)
  for top in range(-2, 20, 4):
    for left in range(-2, 8, 4):  # the right columns have no tile
      scores = rng.random((side, side, 2))
      canvas.add(scores, top, left, weights)
      for r in range(side):
        for c in range(side):
          y, x = top + r, left + c
          if 0 <= y < size[0] and 0 <= x < size[1]:
            total[y, x] += scores[r, c] * weights[r, c]
            weight[y, x] += weights[r, c]
  canvas.add(np.ones((side, side, 2)), 90, 3, weights)  # beside the slide
  found = np.concatenate([band for _, band in canvas.bands()])
  is_seen = weight > 0
  want = total[is_seen] / weight[is_seen][:, None]
  np.testing.assert_allclose(found[is_seen], want, rtol=1e-5)
  assert not is_seen.all() and not found[~is_seen].any()
  canvas.remove()
  assert not (tmp_path / "draft").exists()


def test_constant_scores_stay_what_they_are(tmp_path):
  canvas = Blended(tmp_path / "draft", (40, 40), 1)
  for top in range(-4, 40, 12):
    for left in range(-4, 40, 12):
      canvas.add(np.full((16, 16, 1), 0.3), top, left, slide_masks.ramp(16, 4))
  for _, band in canvas.bands():
    np.testing.assert_allclose(band, 0.3, rtol=1e-5)


def test_mask_is_the_best_class_on_tissue_above_the_threshold(tmp_path):
  canvas = Blended(tmp_path / "draft", (4, 4), 2)
  scores = np.zeros((4, 4, 2))
  scores[0] = (0.6, 0.2)
  scores[1] = (0.1, 0.7)
  scores[2] = (0.4, 0.4)
  canvas.add(scores, 0, 0, np.ones((4, 4)))
  tissue = np.array([[True, False], [True, False]])  # two of our px each
  found = canvas.mask(0.5, tissue, 0.5)
  assert found.tolist() == [[1, 1, 0, 0], [2, 2, 0, 0], [0] * 4, [0] * 4]


def drawn():
  mask = np.zeros((700, 900), np.uint8)
  mask[100:400, 200:600] = 1
  mask[200:300, 300:400] = 0  # a hole
  mask[150:154, 250:254] = 0  # a small one
  mask[500:650, 50:300] = 2
  mask[690:692, 800:802] = 2  # a speck
  return mask


def test_areas_are_those_of_pixels():
  found = slide_masks.areas(drawn(), 3, 2.0)
  first = (300 * 400 - 100 * 100 - 16) * 4e-6
  np.testing.assert_allclose(found, [first, (150 * 250 + 4) * 4e-6, 0])


def test_tiff_is_a_pyramid_of_numbers_that_viewers_show_in_colours(tmp_path):
  path, mask = tmp_path / "a.tif", drawn()
  slide_masks.write_tiff(path, mask, 2.0)
  with tifffile.TiffFile(path) as file:
    levels = file.series[0].levels
    assert [level.shape for level in levels] == [(700, 900), (350, 450)]
    assert (levels[0].asarray() == mask).all()
    assert (levels[1].asarray() == mask[1::2, 1::2]).all()
    page = file.pages[0]
    assert page.is_tiled and page.photometric == tifffile.PHOTOMETRIC.PALETTE
    assert page.resolution == (5000.0, 5000.0)  # pixels per cm
  found = annotation_masks.read_mask(path, (3600, 2800), 4.0, [2])
  assert (found == (mask == 2)).all()


def test_png_and_overlay(tmp_path):
  mask = drawn()
  slide_masks.write_png(tmp_path / "a.png", mask, 300)
  found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
  assert (found == mask[1::3, 1::3]).all()
  white = np.full((70, 90, 3), 255, np.uint8)
  slide_masks.write_overlay(tmp_path / "a.jpg", mask, white)
  seen = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1].astype(int)
  assert seen.shape == (70, 90, 3) and seen[2, 2].min() > 245
  assert np.abs(seen[12, 50] - seen[55, 15]).max() > 40  # two colours


@pytest.mark.parametrize("step", [1, 2])
def test_outlines_are_what_the_mask_covers(tmp_path, step):
  mask = drawn()
  place = MaskPlace.of("s", (3600, 2800), 0.5, 2.0, (10, 20))
  assert place.size == mask.shape and place.downsample == 4
  found = slide_masks.features(
    mask,
    place,
    ("tumour", "stroma"),
    outline_um=2.0 * step,
    min_area_um2=100.0,
    max_hole_um2=100.0,
  )
  geojson.write(tmp_path / "a.geojson", found)
  read = json.loads((tmp_path / "a.geojson").read_text())
  qupath.validate(read)
  names = [f["properties"]["classification"]["name"] for f in read["features"]]
  assert names == ["tumour", "stroma"]  # the speck is none
  tumour = geometry.shape(read["features"][0]["geometry"])
  assert tumour.is_valid and len(tumour.interiors) == 1
  # The corner that QuPath counts from is taken off.
  want = (200 * 4 - 10, 100 * 4 - 20, 600 * 4 - 10, 400 * 4 - 20)
  np.testing.assert_allclose(tumour.bounds, want, atol=4 * step)
  area = read["features"][0]["properties"]["measurements"]["Area mm^2"]
  np.testing.assert_allclose(area, 0.44, rtol=0.01)
  np.testing.assert_allclose(tumour.area * 0.5**2 / 1e6, area, rtol=1e-6)


def test_nothing_found_is_an_empty_collection(tmp_path):
  place = MaskPlace.of("s", (40, 40), 0.5, 2.0)
  found = slide_masks.features(
    np.zeros((10, 10), np.uint8),
    place,
    ("a",),
    outline_um=2.0,
    min_area_um2=0.0,
    max_hole_um2=0.0,
  )
  geojson.write(tmp_path / "a.geojson", found)
  qupath.validate(json.loads((tmp_path / "a.geojson").read_text()))
  assert found == []
