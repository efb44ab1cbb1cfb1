"""Cells on a slide: units found out by range, and what is left out."""

import dataclasses

import numpy as np
import pytest
import shapely

from data_prep.files.errors import SlideError
from wsiseq_jax.spatial import placing, raw_cells

# 0.25 µm a pixel: 2000 x 1200 µm, tissue in all but a margin of 200 µm.
WHERE = placing.Place(
  "s", "p", 0.25, (8000, 4800), (0, 0), (1.0, 4.0, 16.0),
  shapely.box(200, 200, 1800, 1000),
)  # fmt: skip
RNG = np.random.default_rng(0)
IN_TISSUE = RNG.uniform((200, 200), (1800, 1000), (500, 2))


def put(xy, where=WHERE, unit="file", mpp=0.0, kind="table", **more):
  raw = raw_cells.make(kind, xy, **more)
  return placing.place(raw, where, unit, mpp)


def codes(notes):
  return [note.error for note in notes]


def test_level0_pixels_become_um():
  found, notes = put(IN_TISSUE / 0.25)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)
  assert (found.slide_id, found.patient_id, notes) == ("s", "p", [])


@pytest.mark.parametrize(
  ("more", "scale"),
  [
    ({"unit": "um"}, 1.0),
    ({"mpp": 0.5}, 2.0),
    ({"unit": "px"}, 4.0),
  ],
)
def test_given_units(more, scale):
  found, notes = put(IN_TISSUE * scale, **more)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)
  assert notes == []


def test_magnification_of_hovernet():
  # The slide is one of 40x; at 20x a pixel is two of level 0.
  found, _ = put(IN_TISSUE / 0.5, magnification=20.0)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)
  found, _ = put(IN_TISSUE / 0.25, magnification=40.0)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)


def test_qupath_counts_from_the_scanned_part():
  where = dataclasses.replace(WHERE, bounds_xy=(400, 80))
  xy = (IN_TISSUE / 0.25) - (400, 80)
  found, _ = put(xy, where, kind=raw_cells.QUPATH)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)


def test_label_image_of_the_slide():
  more = {"kind": raw_cells.LABELS, "size_px": (800, 480)}
  found, _ = put(IN_TISSUE / 2.5, **more)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)
  with pytest.raises(SlideError, match="has not the shape") as error:
    put(IN_TISSUE / 2.5, kind=raw_cells.LABELS, size_px=(800, 800))
  assert error.value.error == "mask_shape"


@pytest.mark.parametrize(
  ("xy", "said"),
  [
    (IN_TISSUE, "config.cells.unit = 'um'"),
    (IN_TISSUE, "times 4"),
    (IN_TISSUE / 4.0, "config.cells.mpp = 4"),
  ],
)
def test_um_and_other_levels_are_told_by_their_range(xy, said):
  # Taken as level-0 pixels they lie in the slide, but not as its tissue does.
  with pytest.raises(SlideError, match="outside the tissue") as error:
    put(xy)
  assert said in error.value.message and error.value.error == "coordinates"


def test_pixels_that_were_said_to_be_um():
  with pytest.raises(SlideError, match="outside the slide") as error:
    put(IN_TISSUE / 0.25, unit="um")
  assert "unit = 'px'" in error.value.message
  assert "2000 x 1200 µm" in error.value.message


def test_cells_of_a_corner_of_the_tissue_are_no_error():
  corner = IN_TISSUE[(IN_TISSUE < 500).all(axis=1)]
  found, notes = put(corner / 0.25)
  assert len(found) == len(corner) and notes == []


def test_a_unit_that_is_said_outright_is_believed():
  found, _ = put(IN_TISSUE, unit="px")
  np.testing.assert_allclose(found.xy_um, IN_TISSUE * 0.25)


def test_a_scale_that_contradicts_the_slide():
  with pytest.raises(SlideError, match="0.5 µm/px, the slide 0.25") as error:
    placing.place(
      raw_cells.make("CellViT", IN_TISSUE, unit="px", mpp=0.5), WHERE
    )
  assert error.value.error == "mixed_mpp"


def test_what_is_left_out_is_said():
  xy = np.concatenate(
    [IN_TISSUE / 0.25, IN_TISSUE[:3] / 0.25, [[np.nan, 1], [-50, 9000]]]
  )
  found, notes = put(xy)
  assert len(found) == 500
  assert codes(notes) == ["no_place", "points_outside", "duplicated_points"]
  assert "3 of 503" in notes[2].message
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)


@pytest.mark.parametrize("xy", [np.zeros((0, 2)), [[np.nan, np.nan]]])
def test_no_cell(xy):
  with pytest.raises(SlideError, match="no cell") as error:
    put(xy)
  assert error.value.error == "no_cells"


def test_cells_outside_the_window():
  found, _ = put(IN_TISSUE / 0.25)
  half = shapely.box(200, 200, 1000, 1000)
  kept, notes = placing.within(found, half)
  assert len(kept) == (IN_TISSUE[:, 0] <= 1000).sum()
  assert codes(notes) == ["outside_window"]
  kept, notes = placing.within(found, WHERE.window)
  assert len(kept) == 500 and notes == []


def test_without_a_slide_pixels_need_a_scale():
  where = dataclasses.replace(WHERE, size_px=None, window=None)
  found, _ = put(IN_TISSUE * 2, where, mpp=0.5)
  np.testing.assert_allclose(found.xy_um, IN_TISSUE)
