"""Tissue masks: physical, guarded, and agreed to by the eye on real slides."""

import cv2
import numpy as np
import pytest

from data_prep.wsi import tissue
from data_prep.wsi.slides import Slide

PINK, PALE, GLASS = (200, 120, 180), (236, 222, 232), (243, 242, 240)


def _slide(shape=(300, 400), glass=GLASS, noise=2.0, seed=0):
  """Glass with some noise."""
  rng = np.random.default_rng(seed)
  picture = np.array(glass) + rng.normal(0, noise, (*shape, 3))
  return np.clip(picture, 0, 254).astype(np.uint8)


def _paint(picture, centre, radius, colour, texture=6.0):
  y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
  where = np.hypot(x - centre[0], y - centre[1]) < radius
  noise = np.random.default_rng(1).normal(0, texture, (where.sum(), 1))
  picture[where] = np.clip(np.array(colour) + noise, 0, 255)
  return where


def _iou(a, b):
  return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (248, 244, 232)])
def test_blank_glass_is_not_tissue(glass):
  picture = _slide(glass=glass)
  assert not tissue.tissue_mask(picture, mpp=8.0).any()
  dusty = picture.copy()
  _paint(dusty, (100, 100), 4, (60, 50, 40))
  assert not tissue.tissue_mask(dusty, mpp=8.0).any()


@pytest.mark.parametrize("colour", [PINK, PALE, (90, 60, 140), (150, 100, 60)])
def test_stains_are_tissue(colour):
  """H&E, very pale H&E, dense lymphocytes, DAB."""
  picture = _slide()
  where = _paint(picture, (200, 150), 80, colour, texture=3.0)
  assert _iou(tissue.tissue_mask(picture, mpp=8.0), where) > 0.95


def test_slide_without_glass_is_all_tissue():
  rng = np.random.default_rng(0)
  field = cv2.GaussianBlur(rng.normal(0, 1, (300, 300, 1)), (0, 0), 8)
  field = field / field.std()
  picture = np.clip(np.array((190, 130, 180)) + 25 * field[..., None], 0, 255)
  mask = tissue.tissue_mask(picture.astype(np.uint8), mpp=3.0)
  assert mask.mean() > 0.99


def test_pale_stroma_beside_dark_tissue_is_kept():
  picture = _slide()
  dark = _paint(picture, (150, 150), 60, (110, 70, 150))
  pale = _paint(picture, (270, 150), 60, (232, 216, 228), texture=2.0)
  mask = tissue.tissue_mask(picture, mpp=8.0)
  assert mask[dark].mean() > 0.97 and mask[pale].mean() > 0.9


@pytest.mark.parametrize(
  "colour", [(25, 25, 28), (70, 66, 72), (30, 120, 60), (40, 80, 190)]
)
def test_ink_and_bubbles_are_not_tissue(colour):
  """Black ink, grey rims, green and blue pen: beside and inside tissue."""
  picture = _slide()
  _paint(picture, (120, 150), 70, PINK)
  spot = _paint(picture, (120, 150), 25, colour)
  pen = _paint(picture, (320, 150), 40, colour)
  mask = tissue.tissue_mask(picture, mpp=8.0)
  assert mask[pen].mean() < 0.1
  assert mask[spot].mean() < 0.25
  assert mask.any()


@pytest.mark.parametrize(
  "colour",
  [
    *((190, 30, 40), (220, 60, 70), (225, 110, 115), (210, 20, 20)),
    # Crimson: bluer, and not as bright.
    *((180, 40, 70), (170, 35, 65), (200, 40, 90), (185, 45, 85)),
  ],
)
def test_red_pen_is_not_tissue(colour):
  picture = _slide()
  tissue_where = _paint(picture, (120, 150), 70, PINK)
  pen = _paint(picture, (320, 150), 40, colour)
  picture = cv2.GaussianBlur(picture, (5, 5), 0)
  mask = tissue.tissue_mask(picture, mpp=8.0)
  assert mask[pen].mean() < 0.02
  assert _iou(mask, tissue_where) > 0.95


@pytest.mark.parametrize(
  "colour",
  [
    (226, 115, 160),  # the brightest eosin of the real slides
    (224, 101, 164),
    (176, 83, 94),  # blood of the real slides
    (166, 79, 88),
    (190, 60, 80),  # fresh blood
    (180, 50, 70),
    (150, 30, 45),
  ],
)
def test_eosin_and_blood_are_tissue(colour):
  picture = _slide()
  where = _paint(picture, (200, 150), 80, colour, texture=3.0)
  assert _iou(tissue.tissue_mask(picture, mpp=8.0), where) > 0.95


def test_red_pen_costs_no_tissue_of_real_slides(real_data):
  """No slide loses any to either rule for red pen."""
  paths = sorted((real_data / "slides").glob("*.tiff"))
  assert len(paths) > 10
  never = {"max_red": 1e9, "max_crimson": 1e9}
  for path in paths:
    with Slide.open(path, default_mpp=1.0) as slide:
      thumb, downsample = slide.thumbnail(1024)
      mpp = slide.mpp * downsample
    mask = tissue.tissue_mask(thumb, mpp=mpp)
    assert mask.any()
    np.testing.assert_array_equal(
      mask, tissue.tissue_mask(thumb, mpp=mpp, **never), path.name
    )


def test_empty_mask_of_a_grey_slide_says_why():
  picture = _slide()
  _paint(picture, (120, 150), 70, PINK)
  assert tissue.why_empty(picture) == "the tissue mask is empty"
  grey = np.repeat(picture[..., 1:2], 3, axis=2)
  assert not tissue.tissue_mask(grey, mpp=8.0).any()
  assert "grey" in tissue.why_empty(grey) and "mask" in tissue.why_empty(grey)
  blank = np.full((50, 50, 3), 255, np.uint8)
  assert tissue.why_empty(blank) == "the tissue mask is empty"


def test_unscanned_white_is_not_taken_for_glass():
  """Most of a MIRAX canvas is white filler, around tinted glass."""
  picture = np.full((300, 400, 3), 255, np.uint8)
  picture[100:250, 100:300] = _slide((150, 200), glass=(244, 240, 226))
  where = _paint(picture, (200, 175), 40, PINK)
  assert _iou(tissue.tissue_mask(picture, mpp=8.0), where) > 0.95


@pytest.mark.parametrize("method", ["guarded", "hsd", "hsv_otsu"])
def test_same_tissue_same_area_at_any_thumbnail(method):
  fine = _slide((1200, 1600), noise=1.0)
  _paint(fine, (800, 600), 300, PINK)
  areas = []
  for factor in (1, 2, 4):
    small = cv2.resize(
      fine, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
    )
    mask = tissue.tissue_mask(small, method, mpp=5.0 * factor)
    areas.append(tissue.tissue_mm2(mask, 5.0 * factor))
  truth = np.pi * 1.5**2
  np.testing.assert_allclose(areas, truth, rtol=0.03)


@pytest.mark.parametrize("method", ["guarded", "hsd", "hsv_otsu"])
def test_mask_does_not_depend_on_the_size_of_the_slide(method):
  """More glass around the same tissue changes nothing but the glass."""
  small = _slide((300, 300), noise=0.0)
  where = _paint(small, (150, 150), 60, PINK)
  large = np.full((900, 1200, 3), GLASS, np.uint8)
  large[300:600, 500:800] = small
  a = tissue.tissue_mask(small, method, mpp=8.0)
  b = tissue.tissue_mask(large, method, mpp=8.0)
  assert _iou(a, where) > 0.95
  assert _iou(a, b[300:600, 500:800]) > 0.99
  assert b.sum() == b[300:600, 500:800].sum()


def test_hsd_by_hand():
  """One purple patch, one grey, one green: only purple has c_y above 0.05."""
  picture = np.full((120, 300, 3), 255, np.uint8)
  picture[30:90, 20:80] = 150, 90, 160  # c_y = (1.04 - .47) / (1.73 * .68)
  picture[30:90, 120:180] = 120, 121, 120  # standard deviation below 5
  picture[30:90, 220:280] = 90, 180, 110  # c_y negative
  mask = tissue.tissue_mask(picture, "hsd", mpp=8.0, box_um=8.0)
  expected = np.zeros_like(mask)
  expected[30:90, 20:80] = True
  np.testing.assert_array_equal(mask, expected)


def test_hsd_fills_holes_and_options():
  picture = np.full((200, 300, 3), 255, np.uint8)
  picture[20:120, 20:120] = 150, 90, 160
  picture[60:80, 60:80] = 255
  picture[150:180, 200:230] = 150, 90, 160
  mask = tissue.tissue_mask(picture, "hsd", mpp=8.0, box_um=8.0)
  assert mask[70, 70] and mask[165, 215]
  mask = tissue.tissue_mask(
    picture, "hsd", mpp=8.0, box_um=8.0, keep_largest=1, erode_um=160.0
  )
  assert not mask[165, 215]
  rows = np.nonzero(mask.any(1))[0]
  # 160 um are 20 px of 100: 60 remain.
  assert (rows[0], rows[-1]) == (40, 99)


def test_hsv_otsu_drops_black():
  picture = _slide(noise=1.0)
  where = _paint(picture, (120, 150), 70, PINK)
  black = _paint(picture, (300, 150), 40, (30, 15, 25), texture=1.0)
  mask = tissue.tissue_mask(picture, "hsv_otsu", mpp=25.0)
  assert _iou(mask, where) > 0.9
  assert not mask[black].any()


def test_small_pieces_and_holes():
  picture = _slide(noise=0.5)
  _paint(picture, (150, 150), 80, PINK)
  lumen = _paint(picture, (150, 150), 10, GLASS, texture=0.5)
  crumb = _paint(picture, (350, 40), 10, PINK)
  # 10 px at 8 um/px: 20,000 um2, below both bounds.
  mask = tissue.tissue_mask(picture, mpp=8.0)
  assert mask[lumen].all() and not mask[crumb].any()
  mask = tissue.tissue_mask(
    picture, mpp=8.0, min_area_um2=5000, max_hole_um2=5000
  )
  assert mask[lumen].mean() < 0.5 and mask[crumb].mean() > 0.8


def test_unknown_names_are_errors():
  picture = _slide((20, 20))
  with pytest.raises(ValueError, match="otsuu"):
    tissue.tissue_mask(picture, "otsuu", mpp=8.0)
  with pytest.raises(ValueError, match="kernel_um"):
    tissue.tissue_mask(picture, mpp=8.0, kernel_um=3.0)
  with pytest.raises(ValueError, match="mpp"):
    tissue.tissue_mask(picture, mpp=0.0)


@pytest.mark.parametrize("method", ["guarded", "hsd", "hsv_otsu"])
def test_tiny_and_uniform_pictures_do_not_crash(method):
  for picture in (
    np.zeros((1, 1, 3), np.uint8),
    np.zeros((30, 30, 3), np.uint8),
    np.full((30, 1, 3), 255, np.uint8),
  ):
    mask = tissue.tissue_mask(picture, method, mpp=8.0)
    assert mask.shape == picture.shape[:2] and not mask.any()


# Polygons.


def _fill(rings, shape, downsample):
  canvas = np.zeros(shape, np.uint8)
  rings = [
    np.round(np.array(r) / downsample * 16 - 8).astype(np.int32) for r in rings
  ]
  cv2.fillPoly(canvas, rings, 1, shift=4)  # even-odd
  return canvas > 0


def test_polygons_give_the_mask_back_with_its_holes():
  mask = np.zeros((120, 160), bool)
  cv2.circle(canvas := mask.astype(np.uint8), (60, 60), 40, 1, -1)
  cv2.circle(canvas, (60, 60), 15, 0, -1)
  cv2.rectangle(canvas, (120, 0), (159, 50), 1, -1)
  mask = canvas > 0
  rings = tissue.mask_polygons(mask, 16.0)
  assert len(rings) == 3
  areas = []
  for ring in rings:
    assert ring[0] == ring[-1]
    x, y = np.array(ring).T
    areas.append(((x[:-1] * y[1:]) - (x[1:] * y[:-1])).sum() / 2)
  assert sorted(np.sign(areas)) == [-1, 1, 1]
  assert sum(areas) == pytest.approx(mask.sum() * 16.0**2, rel=0.04)
  assert _iou(_fill(rings, mask.shape, 16.0), mask) > 0.95
  flat = np.concatenate([np.array(ring) for ring in rings])
  assert flat.min() >= 0
  assert flat[:, 0].max() <= 160 * 16 and flat[:, 1].max() <= 120 * 16
  assert tissue.mask_polygons(np.zeros((5, 5), bool), 4.0) == []


# The picture.


def test_qc_picture():
  picture = _slide()
  mask = np.zeros(picture.shape[:2], bool)
  mask[100:200, 100:200] = True
  arguments = {"downsample": 16.0, "mpp": 0.5, "mpp_origin": "tiff"}
  plain = tissue.qc_picture(picture, mask, title="S1", **arguments)
  assert plain.shape[1:] == (400, 3) and plain.shape[0] > 300
  caption = plain[300:]
  assert (caption < 100).any() and (caption == 255).mean() > 0.8
  with_centres = tissue.qc_picture(
    picture,
    mask,
    title="S1",
    centres_level0=np.array([[2400.0, 2400.0]]),
    region_px=500,
    **arguments,
  )
  changed = (with_centres[:300] != plain[:300]).any(-1)
  rows, columns = np.nonzero(changed)
  # Centre (150, 150), half a region 15.6 px.
  assert abs(rows.mean() - 150) < 2 and abs(columns.mean() - 150) < 2
  assert 14 <= rows.max() - 150 <= 18
  nothing = tissue.qc_picture(
    picture, mask & False, title="S" * 90, **arguments
  )
  assert nothing.shape == plain.shape


# Real slides: bounds set after looking at the pictures.


@pytest.mark.parametrize(
  ("name", "mm2"),
  [
    ("breast_lobular_he_10x", (6.3, 7.6)),  # faint stain, grey marks
    ("bs9_he1_10x", (3.6, 4.3)),
    ("ectopic_pancreas_he_10x", (22.5, 27.5)),  # pale oedematous stroma
    ("fistula_he_mpp0p81", (6.0, 6.2)),  # no glass at all: 6.18 is all
    ("pdac_trucut_he2_10x", (10.0, 11.2)),  # dried-out dark patch
    ("seed_he_10x", (6.2, 7.0)),
    ("lung_scc_he4_10x", (5.0, 5.8)),
  ],
)
def test_real_tissue_area(real_data, name, mm2):
  with Slide.open(real_data / f"slides/{name}.tiff") as slide:
    thumb, downsample = slide.thumbnail(1024)
    mpp = slide.mpp * downsample
  mask = tissue.tissue_mask(thumb, mpp=mpp)
  assert mm2[0] < tissue.tissue_mm2(mask, mpp) < mm2[1]


def test_one_piece_of_tissue_scanned_twice_has_one_area(real_data):
  """The same two pieces at 0.25 um/px and, in a crop, at 1.01 um/px."""
  areas = []
  for name in ("bs9_duodenum_giardiasis_he2_40x", "bs9_he1_10x"):
    with Slide.open(real_data / f"slides/{name}.tiff") as slide:
      thumb, downsample = slide.thumbnail(1024)
      mpp = slide.mpp * downsample
    areas.append(tissue.tissue_mm2(tissue.tissue_mask(thumb, mpp=mpp), mpp))
  assert areas[0] == pytest.approx(areas[1], rel=0.05)


def test_dried_patch_of_a_real_slide_is_left_out(real_data):
  with Slide.open(real_data / "slides/pdac_trucut_he2_10x.tiff") as slide:
    thumb, downsample = slide.thumbnail(1024)
    mpp = slide.mpp * downsample
  mask = tissue.tissue_mask(thumb, mpp=mpp)
  assert mask[935:965, 560:590].mean() < 0.5
  assert mask[880:910, 560:590].mean() > 0.9
