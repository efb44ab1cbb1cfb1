"""Maps, pixel by pixel."""

import numpy as np
import pytest

from wsiseq_jax.maps import heatmaps
from wsiseq_jax.maps.tile_map import TileMap

NAN = np.nan


def tiles(xy, probability, side=20.0, size=(60, 40), mpp=0.5, **other):
  probability = np.asarray(probability, np.float32)
  values = dict(
    slide_id="s", patient_id="c", xy=np.array(xy, np.float64).reshape(-1, 2),
    tile_size=side, unit="level0_px", level0_mpp=mpp, level0_size=size,
    attention=probability / max(probability.sum(), 1e-6),
    probability=probability, contribution=probability - np.float32(0.5),
    class_name="tumour", slide_probability=0.9, threshold=0.5, label="tumour",
  )  # fmt: skip
  return TileMap(**{**values, **other})


def test_tiles_lie_where_they_were_read():
  # 0.5 um a level-0 pixel, 5 um a pixel of the map: 10 to 1.
  canvas = heatmaps.draw(tiles([[0, 0], [40, 20]], [0.25, 0.75]), um_per_px=5.0)
  assert canvas.downsample == 10 and canvas.limits == (0, 1)
  np.testing.assert_array_equal(
    canvas.values,
    [
      [0.25, 0.25, NAN, NAN, NAN, NAN],
      [0.25, 0.25, NAN, NAN, NAN, NAN],
      [NAN, NAN, NAN, NAN, 0.75, 0.75],
      [NAN, NAN, NAN, NAN, 0.75, 0.75],
    ],
  )


def test_overlap_is_the_mean():
  canvas = heatmaps.draw(
    tiles([[0, 0], [10, 0], [10, 10]], [0.25, 0.75, 0.5]), um_per_px=5.0
  )
  np.testing.assert_allclose(
    canvas.values[:, :4],
    [
      [0.25, 0.5, 0.75, NAN],
      [0.25, 0.5, 0.625, NAN],
      [NAN, 0.5, 0.5, NAN],
      [NAN, NAN, NAN, NAN],
    ],
  )


def test_pixels_belong_to_the_tile_over_their_centre():
  # Tiles of 20 on pixels of 8: centres at 4, 12, 20, 28, 36.
  canvas = heatmaps.draw(
    tiles([[0, 0], [20, 0]], [0.25, 0.75], size=(42, 20)), um_per_px=4.0
  )
  np.testing.assert_array_equal(
    canvas.values, [[0.25, 0.25, 0.75, 0.75, 0.75, NAN]] * 2 + [[NAN] * 6]
  )


def test_tiles_in_um_and_over_the_edge():
  many = tiles([[0, 0], [20, 10]], [0.25, 0.75], side=10.0, unit="um")
  canvas = heatmaps.draw(many, um_per_px=5.0)
  assert canvas.values[2:, 4:].tolist() == [[0.75, 0.75]] * 2
  beyond = heatmaps.draw(tiles([[50, 30]], [0.75]), um_per_px=5.0)
  assert np.argwhere(np.isfinite(beyond.values)).tolist() == [[3, 5]]


def test_a_large_map_stays_exact():
  """Sums over the whole canvas must not leave rounding behind."""
  rng = np.random.default_rng(0)
  place = np.stack(np.meshgrid(np.arange(80), np.arange(60)), -1).reshape(-1, 2)
  score = rng.random(len(place)).astype(np.float32)
  canvas = heatmaps.draw(
    tiles(place * 20.0, score, size=(1600, 1200)), um_per_px=5.0
  )
  wanted = np.kron(score.reshape(60, 80), np.ones((2, 2)))
  np.testing.assert_allclose(canvas.values, wanted, atol=1e-7)


def test_smoothing_stays_on_the_tissue():
  flat = tiles([[0, 0], [20, 0], [0, 20]], [0.6, 0.6, 0.6])
  soft = heatmaps.draw(flat, um_per_px=2.5, smooth_um=8.0)
  sharp = heatmaps.draw(flat, um_per_px=2.5)
  # The edge is not pulled down, and nothing spreads beyond it.
  np.testing.assert_allclose(soft.values, sharp.values, atol=1e-5)
  step = tiles([[0, 0], [20, 0]], [0.0, 1.0])
  row = heatmaps.draw(step, um_per_px=2.5, smooth_um=5.0).values[1, :8]
  assert (np.diff(row) > 0).all() and row[3] + row[4] == pytest.approx(1)


def test_contributions_have_the_range_of_their_cohort():
  one = tiles([[0, 0]], [0.0])
  canvas = heatmaps.draw(one, "contribution", um_per_px=5.0, limit=2.0)
  assert canvas.limits == (-2, 2) and canvas.values[0, 0] == -0.5
  assert "red for, blue against" in canvas.label
  strongest = [np.array([0.1, -3.0]), np.array([1.0]), np.zeros(0)]
  # Strongest tiles 3 and 1; the slide without tiles has none.
  assert heatmaps.cohort_range(strongest) == pytest.approx(1 + 0.9 * 2)
  assert heatmaps.cohort_range([np.zeros(4)]) == 1
  with pytest.raises(ValueError, match="no slide has a tile"):
    heatmaps.cohort_range([np.zeros(0)])


def test_colours_mean_the_same_everywhere():
  ends = heatmaps.colours(
    np.array([-9.0, -2, 0, 2, 9]), "contribution", (-2, 2)
  )
  assert (ends[0] == ends[1]).all() and (ends[3] == ends[4]).all()
  assert ends[0, 2] > ends[0, 0] + 80  # blue against
  assert ends[4, 0] > ends[4, 2] + 60  # red for
  assert np.ptp(ends[2].astype(int)) <= 2  # none: neither
  shown = heatmaps.colours(np.array([[0.2, NAN]]), "probability")
  assert shown.shape == (1, 2, 3) and shown[0, 1].tolist() == [255] * 3


def test_percentiles_say_what_they_are():
  many = tiles([[0, 0], [20, 0], [40, 0]], [0.01, 0.02, 0.03])
  canvas = heatmaps.draw(many, "percentile", um_per_px=5.0)
  # However little there is, a percentile map spans it all.
  np.testing.assert_allclose(canvas.values[0, ::2], [1 / 6, 1 / 2, 5 / 6])
  assert "DISPLAY ONLY" in canvas.label and "rank of attention" in canvas.label
  assert "DISPLAY" not in heatmaps.draw(many, um_per_px=5.0).label


@pytest.mark.parametrize(
  "options, message",
  [
    ({"kind": "jet"}, "kind='jet'"),
    ({"um_per_px": 0}, "um_per_px=0"),
    ({"um_per_px": 20.0}, "larger than a tile"),
    ({"kind": "contribution"}, "limit=None"),
    ({"kind": "contribution", "limit": 0}, "limit=0"),
    ({"limit": 1.0}, "limit=1.0 with kind='probability'"),
  ],
)
def test_bad_settings(options, message):
  with pytest.raises(ValueError, match=message):
    heatmaps.draw(tiles([[0, 0]], [0.5]), **{"um_per_px": 5.0, **options})


def test_slides_of_unknown_size_have_no_map():
  with pytest.raises(ValueError, match="slide 's': its um per level-0"):
    heatmaps.draw(tiles([[0, 0]], [0.5], mpp=None), um_per_px=5.0)
  with pytest.raises(ValueError, match="slide 's': its size is unknown"):
    heatmaps.draw(tiles([[0, 0]], [0.5], size=None), um_per_px=5.0)


def test_colour_lies_on_tissue_alone():
  canvas = heatmaps.draw(tiles([[0, 0], [20, 0]], [0.0, 1.0]), um_per_px=5.0)
  thumbnail = np.full((40, 60, 3), (200, 120, 160), np.uint8)
  tissue = np.zeros((8, 12), bool)
  tissue[:2] = True  # the upper quarter, over tiles and beyond
  picture = heatmaps.overlay(thumbnail, canvas, tissue)
  assert picture.shape == (4, 6, 3)
  assert (picture[1:] == thumbnail[0, 0]).all()
  assert (picture[0, 4:] == thumbnail[0, 0]).all()
  grey = round(0.299 * 200 + 0.587 * 120 + 0.114 * 160)
  # Half of the contrast of the grey, 0.85 of the strength of the colour.
  pale = 1 - 0.5 * (1 - grey / 255)
  for column, value in ((0, 0.0), (2, 1.0)):
    paint = heatmaps.colours(np.array(value), "probability").astype(float)
    np.testing.assert_allclose(
      picture[0, column], (255 - 0.85 * (255 - paint)) * pale, atol=1
    )
  everywhere = heatmaps.overlay(thumbnail, canvas)
  assert (everywhere[1, :4] != thumbnail[0, 0]).any()


def test_pictures_of_another_slide_are_refused():
  canvas = heatmaps.draw(
    tiles([[0, 0]], [0.5], size=(2000, 1000)), um_per_px=5.0
  )
  with pytest.raises(ValueError, match="thumbnail of 100x100 px does not"):
    heatmaps.overlay(np.zeros((100, 100, 3), np.uint8), canvas)
  thumbnail = np.zeros((50, 100, 3), np.uint8)
  with pytest.raises(ValueError, match="tissue of 50x50 px"):
    heatmaps.overlay(thumbnail, canvas, np.ones((50, 50), bool))


def test_figure_has_bar_title_and_both_pictures():
  canvas = heatmaps.draw(
    tiles([[0, 0]], [1.0], side=600.0, size=(1200, 600)), um_per_px=1.0
  )
  thumbnail = np.full((300, 600, 3), (200, 120, 160), np.uint8)
  plain = heatmaps.figure(thumbnail, canvas, "slide")
  # A wide slide has its map below: 300 px each, 6 between, 2.4 and 7 letters.
  assert plain.shape == (round(2.4 * 12) + 2 * 300 + 6 + 7 * 12, 600, 3)
  ring = np.array([[100.0, 100], [500, 100], [500, 500], [100, 100]])
  drawn = heatmaps.figure(thumbnail, canvas, "slide", outlines=[ring])
  top = round(2.4 * 12) + 306  # of the map
  changed = np.argwhere((drawn != plain).any(-1))
  assert changed.min(0)[0] >= top + 50 - 3 and changed.min(0)[1] >= 50 - 3
  # The bar is painted as the map is: its right end has the colour of 1.
  foot = plain[top + 300 :].reshape(-1, 3).astype(int)
  inside = plain[top + 150, 100].astype(int)
  assert (np.abs(foot - inside).max(1) <= 2).any()
  # A scale bar of 100 um at 1 um a pixel: the longest dark line.
  dark = (plain[top + 300 :] < 30).all(-1)
  assert dark.sum(axis=1).max() == pytest.approx(100, abs=25)
  # Another number, another bar.
  other = heatmaps.draw(
    tiles([[0, 0]], [1.0], side=600.0, size=(1200, 600)),
    "contribution", um_per_px=1.0, limit=3.0,
  )  # fmt: skip
  text = heatmaps.figure(thumbnail, other, "slide")
  assert (text[top + 300 :] != plain[top + 300 :]).any()


def test_colour_bar():
  assert heatmaps.ticks("probability", (0, 1)) == ["0", "0.25", "0.5", "0.75",
                                                   "1"]  # fmt: skip
  assert heatmaps.ticks("contribution", (-3, 3)) == [
    "≤ \u22123", "\u22121.5", "0", "+1.5", "≥ +3",
  ]  # fmt: skip
  ends = heatmaps.ramp("probability", (0, 1), 255, 3)[[0, -1]]
  colours = heatmaps.colours(np.array([0.0, 1.0]), "probability")
  np.testing.assert_allclose(ends, 255 - 0.85 * (255.0 - colours), atol=0.5)
