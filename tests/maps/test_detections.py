"""Detections by hand, and their files."""

import numpy as np
import pytest

from wsiseq_jax.maps import detections
from wsiseq_jax.maps.tile_map import TileMap


def row_of_tiles(probability, unit="level0_px", mpp=0.5):
  """Tiles of 100 um side by side; level-0 pixels are 0.5 um."""
  side = 200.0 if unit == "level0_px" else 100.0
  probability = np.asarray(probability, np.float32)
  xy = np.stack(
    [np.arange(len(probability)) * side, np.full(len(probability), 3 * side)], 1
  )
  return TileMap(
    slide_id="s", patient_id="c", xy=xy, tile_size=side, unit=unit,
    level0_mpp=mpp, level0_size=(4000, 2000), attention=probability,
    probability=probability, contribution=probability, class_name="tumour",
    slide_probability=0.5, threshold=0.5, label=None,
  )  # fmt: skip


@pytest.mark.parametrize("unit", ["level0_px", "um"])
def test_the_highest_takes_its_neighbourhood(unit):
  found = detections.detect(
    row_of_tiles([0.6, 0.9, 0.8, 0.7, 0.4, 0.95, 0.5], unit),
    threshold=0.5,
    radius_um=150,
  )
  # 0.95 first; 0.9 takes 0.6 and 0.8, so 0.7 is left; 0.5 is not above.
  np.testing.assert_allclose(found.probability, [0.95, 0.9, 0.7], rtol=1e-6)
  assert found.xy.tolist() == [[1100, 700], [300, 700], [700, 700]]


def test_radius_is_in_um_and_open():
  tiles = row_of_tiles([0.9, 0.8, 0.7])
  # Centres are 100 um apart: what is as far as the radius is not near.
  assert len(detections.detect(tiles, radius_um=100).xy) == 3
  assert len(detections.detect(tiles, radius_um=100.1).xy) == 2
  assert len(detections.detect(tiles, radius_um=0).xy) == 3
  assert len(detections.detect(tiles, radius_um=1000).xy) == 1


def test_equal_scores_come_in_order_and_most_stops():
  xy = np.arange(8.0)[:, None] * [1.0, 0.0]
  score = np.array([0.5, 0.9, 0.9, 0.9, 0.5, 0.9, 0.5, 0.5])
  assert detections.suppress(score, xy, 1.5).tolist() == [1, 3, 5, 7]
  assert detections.suppress(score, xy, 0, most=3).tolist() == [1, 2, 3]
  assert detections.suppress(score, xy, 1.5, 0.95).tolist() == []


def test_smoothing_prefers_many_over_one():
  # A lone hot tile among cold ones, and three warm ones in a row.
  tiles = row_of_tiles([0, 0, 0.9, 0, 0, 0, 0.7, 0.7, 0.7, 0, 0])
  sharp = detections.detect(tiles, 0.3, radius_um=250)
  assert sharp.xy[0, 0] == 500
  soft = detections.detect(tiles, 0.3, radius_um=250, smooth_um=100)
  assert soft.xy[0, 0] == 1500  # the middle one of the three
  # Weights 1, e^-1/2, e^-2, and nothing beyond three deviations but e^-9/2.
  one, two, three = np.exp([-0.5, -2, -4.5])
  wanted = 0.7 * (1 + 2 * one) / (1 + 2 * (one + two + three))
  assert soft.probability[0] == pytest.approx(wanted, rel=1e-5)


def test_nothing_to_find():
  assert len(detections.detect(row_of_tiles([0.1, 0.2])).xy) == 0
  empty = detections.detect(row_of_tiles([]), smooth_um=50)
  assert empty.xy.shape == (0, 2)


@pytest.mark.parametrize(
  "tiles, options, message",
  [
    (row_of_tiles([0.5], mpp=None), {}, "slide 's': its um per level-0 pixel"),
    (row_of_tiles([0.5]), {"radius_um": -1}, "radius_um=-1"),
    (row_of_tiles([0.5]), {"smooth_um": -1}, "smooth_um=-1"),
    (row_of_tiles([0.5, 3.5]), {}, "probabilities go from 0.5 to 3.5"),
    (row_of_tiles([np.nan]), {}, "not within"),
  ],
)
def test_bad_input(tiles, options, message):
  with pytest.raises(ValueError, match=message):
    detections.detect(tiles, **options)


def test_files_of_the_challenge(tmp_path):
  found = detections.Detections(
    np.array([0.75, 1 / 3]), np.array([[10.9, 20.0], [97000.5, 211000.0]])
  )
  path = tmp_path / "test_001.csv"
  detections.write(path, found)
  assert path.read_text() == "0.75,10,20\n0.333333333,97000,211000\n"
  back = detections.read(path)
  assert back.xy.tolist() == [[10, 20], [97000, 211000]]
  np.testing.assert_allclose(back.probability, found.probability, rtol=1e-8)
  assert [p.name for p in tmp_path.iterdir()] == ["test_001.csv"]
  # No detection is an empty file, not no file.
  detections.write(path, detections.Detections(np.zeros(0), np.zeros((0, 2))))
  assert path.read_bytes() == b""
  assert detections.read(path).xy.shape == (0, 2)


@pytest.mark.parametrize("line", ["p,x,y", "0.5,3", "nan,1,2", "0.5;1;2"])
def test_lines_that_are_none(tmp_path, line):
  path = tmp_path / "a.csv"
  path.write_text(f"0.5,1,2\n\n{line}\n")
  with pytest.raises(ValueError, match="a.csv, line 3: "):
    detections.read(path)
