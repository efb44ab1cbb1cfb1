import math

import cv2
import numpy as np
import pytest

from configs import prep_wsi
from data_prep import records
from data_prep.files import schema
from data_prep.files.errors import SlideError
from data_prep.sequences import cut as sequences
from data_prep.sequences import geometries
from data_prep.sequences.geometries import base

RIGHT_ANGLES = (-180.0, -90.0, 0.0, 90.0)
ALL = (*RIGHT_ANGLES, -135.0, -45.0, 45.0, 135.0)


class Picture:
  """A slide that is an array; red = x, green = y of the level-0 pixel."""

  def __init__(self, size=(240, 240), mpp=0.5):
    self.mpp, self.level0_px = mpp, size
    y, x = np.mgrid[: size[1], : size[0]]
    self.pixels = np.stack([x, y, 0 * x + 128], -1).astype(np.float32)
    self.reads = []

  def read_region(self, centre_xy, size_px, mpp):
    self.reads.append((tuple(centre_xy), size_px, mpp))
    scale = mpp / self.mpp
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    matrix[:, 2] = np.array(centre_xy) - scale * np.array(size_px) / 2
    matrix[:, 2] += (scale - 1) / 2
    out = cv2.warpAffine(
      self.pixels,
      matrix,
      size_px,
      flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
      borderValue=(255, 255, 255),
    )
    return np.rint(out).astype(np.uint8)


def spec_of(mpp=0.5, preset="", **sequence):
  config = prep_wsi.get_config(preset).unlock()
  config.mpp = mpp
  sequence.setdefault("window_um", (8.0, 8.0))
  sequence.setdefault("frames", 5)
  sequence.setdefault("step_um", 2.0)
  for key, value in sequence.items():
    config.sequence[key] = value
  settings = config.to_dict()
  schema.build(
    geometries.SequenceSettings, settings["sequence"], "config.sequence"
  )
  return geometries.from_config(settings)


def cut(slide, spec, xy=(120, 120), paths=None):
  paths = range(len(spec.paths())) if paths is None else paths
  made = list(
    sequences.cut_sequences(
      slide,
      geometries.Centre(xy, tuple(paths)),
      spec,
      slide_id="s",
      patient_id="p",
      jpeg={"quality": 98, "subsampling": "444"},
    )
  )
  for record in made:
    records.validate(record)
  return made


def frame(record, t):
  """Frame t as float, and its middle by linear interpolation."""
  panel = records.decode_panels(record)[record.frame_panel[t]]
  x, y, w, h = record.frame_box[t]
  assert x == int(x)
  return panel[int(y) : int(y + h), int(x) : int(x + w)].astype(float)


class Damaged(Picture):
  """A slide of which nothing beyond x = 150 can be read."""

  code = "damaged_tile"

  def read_region(self, centre_xy, size_px, mpp):
    right = centre_xy[0] + size_px[0] / 2 * mpp / self.mpp
    if right > 150:
      raise SlideError("odd", error=self.code)
    return super().read_region(centre_xy, size_px, mpp)


@pytest.mark.parametrize(
  ("preset", "more", "kept"),
  [
    ("", {"headings_deg": (0.0, 180.0, 90.0)}, [180.0, 90.0]),
    ("", {"headings_deg": (90.0,)}, [90.0]),
    ("walk", {"headings_deg": (180.0, 0.0), "step_um": 0.0}, [180.0]),
    ("walk", {"headings_deg": (0.0, 180.0), "step_um": 0.0}, [180.0]),
    ("zoom", {"zoom_factor": 8.0}, []),
  ],
)
def test_damage_costs_the_sequences_that_touch_it(preset, more, kept):
  """At x = 120 alone what goes to the right, or out, gets beyond 150."""
  spec = spec_of(preset=preset, frames=7, **more)
  centre = geometries.Centre((120, 120), tuple(range(len(spec.paths()))))
  names = {"slide_id": "s", "patient_id": "p"}
  names["jpeg"] = {"quality": 98, "subsampling": "444"}
  lost = []
  made = list(
    sequences.cut_sequences(Damaged(), centre, spec, **names, lost=lost)
  )
  assert [record.heading_deg for record in made] == kept
  assert len(lost) == len(centre.paths) - len(kept)
  whole = {r.sequence_id: r for r in cut(Picture(), spec)}
  for record in made:
    assert record.panels == whole[record.sequence_id].panels
  other = Damaged()
  other.code = "missing_file"
  for slide, takes in ((other, lost), (Damaged(), None)):
    if len(kept) < len(centre.paths):
      with pytest.raises(SlideError, match="odd"):
        list(sequences.cut_sequences(slide, centre, spec, **names, lost=takes))


def test_defaults_are_the_reference_recipe():
  spec = geometries.from_config(prep_wsi.get_config().to_dict())
  assert spec.window_px == (336, 336)
  assert spec.step_px == 8.0
  assert spec.frames == 96
  assert spec.strip_px == (336, 1096)
  assert sorted(spec.headings_deg) == list(range(-180, 180, 45))
  time = spec.time()
  assert time[-1] == 190.0  # um
  assert spec.frame_box()[-1].tolist() == [760, 0, 336, 336]


def test_demo_suits_the_demo_model():
  spec = geometries.from_config(prep_wsi.get_config("demo").to_dict())
  assert (spec.window_px, spec.step_px, spec.frames) == ((48, 48), 4.0, 24)
  assert spec.layout().panel_px == (48, 140)


def test_centres_by_hand():
  # 0.5 um/px on a slide of 0.25 um/px: 2 level-0 px each; 4 px a frame.
  spec = spec_of(headings_deg=(0.0, 90.0, 45.0))
  slide = Picture(mpp=0.25)
  right, up, diagonal = cut(slide, spec)
  assert right.frame_level0_xy[:3].tolist() == [
    [120, 120],
    [128, 120],
    [136, 120],
  ]
  assert up.frame_level0_xy[2].tolist() == [120, 104]
  np.testing.assert_allclose(
    diagonal.frame_level0_xy[4], [120 + 32 / 2**0.5, 120 - 32 / 2**0.5], 1e-6
  )
  assert right.time.tolist() == [0, 2, 4, 6, 8]
  assert right.sequence_id == "s/x120_y120_h0"


@pytest.mark.parametrize("heading", ALL)
@pytest.mark.parametrize("window_um", [(8.0, 8.0), (6.0, 10.0)])
def test_level0_centre_is_what_the_frame_shows(heading, window_um):
  """Red and green are coordinates: the middle of a frame says where it is."""
  spec = spec_of(headings_deg=(heading,), window_um=window_um)
  (record,) = cut(Picture(), spec)
  for t in range(5):
    seen = frame(record, t).mean((0, 1))[:2] + 0.5
    np.testing.assert_allclose(seen, record.frame_level0_xy[t], atol=0.6)


@pytest.mark.parametrize("heading", ALL)
def test_tissue_drifts_left_and_the_frame_turns_with_travel(heading):
  (record,) = cut(Picture(), spec_of(headings_deg=(heading,)))
  first = frame(record, 0)
  angle = math.radians(heading)
  along, across = np.diff(first, axis=1), np.diff(first, axis=0)
  for got, want in (
    (along, (math.cos(angle), -math.sin(angle))),
    (across, (math.sin(angle), math.cos(angle))),
  ):
    np.testing.assert_allclose(got.mean((0, 1))[:2], want, atol=0.08)
  step = int(record.frame_box[1, 0])
  np.testing.assert_array_equal(first[:, step:], frame(record, 1)[:, :-step])


@pytest.mark.parametrize("heading", RIGHT_ANGLES)
def test_right_angles_are_exact_and_agree_with_the_warp(heading):
  rng = np.random.default_rng(0)
  region = rng.integers(0, 255, (100, 100, 3), np.uint8)
  exact = base.cut_strip(region, (50, 50), heading, (12, 16), 40)
  u, v = base.axes(heading)
  for y in (0, 11):
    for x in (0, 39):
      at = np.array([50, 50]) + (x + 0.5 - 8) * u + (y + 0.5 - 6) * v - 0.5
      column, row = np.rint(at).astype(int)
      assert exact[y, x].tolist() == region[row, column].tolist()
  nearly = base.cut_strip(region, (50, 50), heading + 1e-9, (12, 16), 40)
  assert np.abs(exact.astype(int) - nearly).max() <= 1


@pytest.mark.parametrize("heading", ALL)
def test_strip_has_no_fill(heading):
  """The region read for one heading holds its whole strip."""
  slide = Picture()
  slide.pixels[:] = 100
  for step in (2.0, 1.3):
    (record,) = cut(slide, spec_of(headings_deg=(heading,), step_um=step))
    panel = records.decode_panels(record)
    assert (panel == 100).all()


def test_drift_reads_a_region_once_for_all_headings():
  slide = Picture()
  assert len(cut(slide, spec_of(headings_deg=ALL))) == 8
  assert len(slide.reads) == 1


def test_walk_shares_no_pixel():
  slide = Picture()
  spec = spec_of(preset="walk", step_um=0.0, headings_deg=(0.0, -45.0))
  right, diagonal = cut(slide, spec, xy=(60, 60))
  assert len(right.panels) == 5
  assert right.frame_level0_xy[:, 0].tolist() == [60, 76, 92, 108, 124]
  assert right.time.tolist() == [0, 8, 16, 24, 32]
  columns = [frame(right, t)[..., 0].mean(axis=0) for t in range(5)]
  for before, after in zip(columns[:-1], columns[1:], strict=True):
    assert after[0] - before[-1] == pytest.approx(1, abs=0.7)
  for t in range(5):
    seen = frame(diagonal, t).mean((0, 1))[:2] + 0.5
    np.testing.assert_allclose(seen, diagonal.frame_level0_xy[t], atol=0.6)


def test_serpentine_goes_back_and_forth():
  spec = spec_of(preset="walk", frames=6, step_um=0.0, serpentine_columns=3)
  (record,) = cut(Picture(), spec, xy=(120, 120))
  xy = record.frame_level0_xy
  assert xy.tolist() == [
    [104, 112], [120, 112], [136, 112], [136, 128], [120, 128], [104, 128],
  ]  # fmt: skip
  assert math.isnan(record.heading_deg)
  for t in range(6):
    seen = frame(record, t).mean((0, 1))[:2] + 0.5
    np.testing.assert_allclose(seen, xy[t], atol=0.6)


def test_zoom_widens_around_one_centre():
  slide = Picture()
  spec = spec_of(preset="zoom", frames=3, zoom_factor=4.0)
  (record,) = cut(slide, spec, xy=(120, 100))
  assert record.time.tolist() == [8, 16, 32]  # um across
  assert [read[2] for read in slide.reads] == [0.5, 1.0, 2.0]
  assert record.mpp == 0.5
  assert (record.frame_level0_xy == [120, 100]).all()
  for t in range(3):
    pixels = frame(record, t)
    np.testing.assert_allclose(
      pixels.mean((0, 1))[:2] + 0.5, [120, 100], atol=0.9
    )
    slope = np.diff(pixels[..., 0], axis=1).mean()
    assert slope == pytest.approx(2**t, rel=0.05)


def test_zoom_is_white_beyond_the_slide():
  slide = Picture(size=(64, 64))
  slide.pixels[:] = 50
  spec = spec_of(preset="zoom", frames=2, zoom_factor=16.0)
  (record,) = cut(slide, spec, xy=(32, 32))
  assert frame(record, 1)[0, 0].min() > 245
  assert frame(record, 0).max() < 60


def choose(mask, slide, spec, **changes):
  settings = {
    "spacing_um": 5.0,
    "max_centres": 0,
    "min_tissue": 0.5,
    "all_headings": True,
    "rng": sequences.slide_rng(0, "s"),
    **changes,
  }
  return sequences.choose_centres(mask, 4.0, slide, spec, **settings)


def test_no_frame_shows_blank_glass():
  slide = Picture()
  mask = np.zeros((60, 60), bool)
  mask[20:40, 5:50] = True  # level 0: x 20..200, y 80..160
  spec = spec_of(headings_deg=(0.0, 90.0))
  centres = choose(mask, slide, spec, all_headings=False)
  assert centres
  for centre in centres:
    for path in centre.paths:
      for x, y in np.array(centre.xy) + spec.paths()[path]:
        window = mask[
          int((y - 8) // 4) : math.ceil((y + 8) / 4),
          int((x - 8) // 4) : math.ceil((x + 8) / 4),
        ]
        assert window.mean() >= 0.3, (centre, x, y)
  every = choose(mask, slide, spec)
  assert 0 < len(every) < len(centres)
  assert all(centre.paths == (0, 1) for centre in every)


def test_sparse_tissue_gives_few_centres_not_glass():
  mask = np.zeros((60, 60), bool)
  mask[30, 30] = True
  assert choose(mask, Picture(), spec_of()) == []
  assert choose(np.zeros((60, 60), bool), Picture(), spec_of()) == []


def test_regions_stay_on_the_slide():
  slide, spec = Picture(), spec_of(headings_deg=ALL)
  centres = choose(np.ones((60, 60), bool), slide, spec)
  assert centres
  # 8 px of window and 16 px of travel on each side.
  xy = np.array([centre.xy for centre in centres])
  assert xy.min() >= 24 and xy.max() <= 216


def test_sampling_is_seeded_by_slide():
  slide, spec = Picture(), spec_of()
  mask = np.ones((60, 60), bool)

  def sample(seed, name):
    rng = sequences.slide_rng(seed, name)
    return choose(mask, slide, spec, max_centres=5, rng=rng)

  assert len(sample(0, "a")) == 5
  assert sample(0, "a") == sample(0, "a")
  assert sample(0, "a") != sample(0, "b")
  assert sample(0, "a") != sample(1, "a")


def test_spacing_is_physical():
  """The same tissue at twice the resolution gives the same places."""
  spec, fine = spec_of(), Picture(size=(480, 480), mpp=0.25)
  coarse = choose(np.ones((60, 60), bool), Picture(), spec, spacing_um=9.0)
  mask = np.ones((120, 120), bool)
  twice = choose(mask, fine, spec, spacing_um=9.0)
  assert len(coarse) == len(twice)
  for a, b in zip(coarse, twice, strict=True):
    np.testing.assert_allclose(np.array(a.xy) * 2, b.xy, atol=2)


@pytest.mark.parametrize(
  ("key", "change"),
  [
    ("sequence.geometry", {"geometry": "spiral"}),
    ("sequence.window_um", {"window_um": (0.1, 8.0)}),
    ("sequence.step_um", {"step_um": 0.0}),
    ("sequence.step_um", {"geometry": "walk", "step_um": 3.0}),
    ("sequence.headings_deg", {"headings_deg": ()}),
    ("sequence.headings_deg", {"headings_deg": (180.0, -180.0)}),
    ("sequence.frames", {"frames": 0}),
    ("sequence.zoom_factor", {"geometry": "zoom", "zoom_factor": 1.0}),
    (
      "sequence.serpentine_columns",
      {"geometry": "walk", "step_um": 0.0, "serpentine_columns": 2},
    ),
  ],
)
def test_bad_settings_name_their_key(key, change):
  with pytest.raises(ValueError, match=f"config.{key} = "):
    spec_of(**change)


@pytest.mark.slow
def test_frames_of_a_real_slide_are_where_they_say(real_data):
  from data_prep.wsi import slides

  path = real_data / "slides" / "bs9_he1_10x.tiff"
  spec = spec_of(mpp=1.0112, window_um=(64 * 1.0112,) * 2, step_um=8 * 1.0112)
  with slides.Slide.open(path) as slide:
    for record in cut(slide, spec, xy=(2500, 2500)):
      for t in (0, 4):
        x, y = record.frame_level0_xy[t]
        if record.heading_deg not in RIGHT_ANGLES:
          continue
        there = slide.read_region((x, y), (64, 64), spec.mpp).astype(float)
        turns = round(record.heading_deg / 90) % 4
        want = np.rot90(there, -turns)
        assert np.abs(frame(record, t) - want).mean() < 2.5
