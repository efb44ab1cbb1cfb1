"""The synthetic cohort: readable, true to its truth, repeatable."""

import csv

import numpy as np
import openslide
import pytest
import tifffile

from data_prep.synthetic import optics, slides, texture

SIZE = (1280, 1024)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cohort")
  slides.make_cohort(
    folder, slides=4, patients=3, seed=3, size_px=SIZE, region_um=260
  )
  return folder


def load(folder, number):
  name = f"syn_{number:02d}"
  truth = slides.Truth.load(folder / "truth" / f"{name}.npz")
  return tifffile.imread(folder / f"{name}.tiff"), truth


def test_table_gives_two_slides_to_one_patient(cohort):
  with open(cohort / "slides.csv") as f:
    rows = list(csv.DictReader(f))
  assert [r["patient_id"] for r in rows] == [
    "patient_00",
    "patient_01",
    "patient_02",
    "patient_00",
  ]
  assert [r["label"] for r in rows] == ["macro", "micro", "negative", "macro"]
  assert all((cohort / r["filename"]).exists() for r in rows)


def test_openslide_reads_the_pyramid_with_its_resolution(cohort):
  with openslide.OpenSlide(cohort / "syn_00.tiff") as slide:
    assert slide.dimensions == SIZE
    assert slide.level_dimensions == (SIZE, (640, 512), (320, 256))
    assert slide.properties["openslide.level[0].tile-width"] == "256"
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0)
    read = np.asarray(slide.read_region((300, 200), 0, (256, 256)))[..., :3]
  level0 = tifffile.imread(cohort / "syn_00.tiff")
  difference = read.astype(int) - level0[200:456, 300:556]
  # Colours swapped or converted twice would differ by tens of grey levels.
  assert np.abs(difference).mean() < 1


def test_written_colours_are_the_drawn_colours(tmp_path):
  flat = np.empty((300, 300, 3), np.uint8)
  flat[:] = (200, 120, 160)
  slides.write_pyramid(tmp_path / "flat.tiff", flat, 0.5)
  with openslide.OpenSlide(tmp_path / "flat.tiff") as slide:
    read = np.asarray(slide.read_region((0, 0), 0, (300, 300)))[..., :3]
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
  assert np.abs(read.astype(int) - flat).max() <= 3


def test_truth_knows_glass_from_tissue(cohort):
  for number in range(4):
    picture, truth = load(cohort, number)
    d = truth.downsample
    small = picture[d // 2 :: d, d // 2 :: d].astype(float)
    glass = truth.types < 0
    assert small[glass].mean() > 225
    assert small[~glass].mean() < 190


def test_lookup_by_hand():
  types = np.array([[-1, 0], [2, 3]], np.int8)
  lesions = np.array([[0, 0], [0, 1]], np.int16)
  truth = slides.Truth("s", types, lesions, ("micro",), 4, 1.0)
  xy = np.array(
    [[0, 0], [4, 0], [3.9, 4.0], [7.9, 7.9], [8, 0], [-0.1, 0], [np.nan, 1]]
  )
  assert truth.tissue_type(xy).tolist() == [-1, 0, 2, 3, -1, -1, -1]
  assert truth.lesion(xy).tolist() == [False] * 3 + [True] + [False] * 3


def test_type_of_a_sequence_by_hand(tmp_path):
  # Types 2 and 3 side by side, glass below; a cell is 2 px.
  types = np.array([[2, 3], [-1, -1]])
  truth = slides.Truth("a", types, np.zeros_like(types), (), 2, 1.0)
  truth.save(tmp_path / "a.npz")
  left, right, glass = (1.0, 1.0), (3.0, 1.0), (1.0, 3.0)
  frames = np.array(
    [
      [left] * 5,
      [left, right, right, right, glass],
      [left, left, right, right, glass],
      [glass] * 5,
    ]
  )
  found = slides.sequence_types(tmp_path, np.array(["a"] * 4), frames)
  # 5 of 5, 3 of 5, 2 of 5, none.
  assert found.tolist() == [2, 3, -1, -1]


def test_lesions_follow_the_label(cohort):
  for number, kinds in enumerate([("macro",), ("micro",) * 3, (), ("macro",)]):
    _, truth = load(cohort, number)
    assert truth.lesion_kinds == kinds
    # Tumour is the tissue of lesions and of nothing else.
    np.testing.assert_array_equal(
      truth.types == texture.TUMOUR, truth.lesions > 0
    )


def test_every_normal_type_occurs_on_every_slide(cohort):
  for number in range(4):
    _, truth = load(cohort, number)
    share = np.bincount(truth.types[truth.types >= 0], minlength=6)
    normal = np.delete(share, texture.TUMOUR) / share.sum()
    assert normal.min() > 0.03


def test_types_overlap_in_mean_colour_but_not_in_structure(cohort):
  """Windows of one type spread over the windows of the others."""
  means, spreads, kinds = [], [], []
  for number in range(4):
    picture, truth = load(cohort, number)
    for y in range(0, SIZE[1] - 64, 64):
      for x in range(0, SIZE[0] - 64, 64):
        types = truth.types[y // 4 : (y + 64) // 4, x // 4 : (x + 64) // 4]
        if types.min() == types.max() >= 0:
          window = picture[y : y + 64, x : x + 64].reshape(-1, 3)
          means.append(window.mean(0))
          spreads.append(window.std(0))
          kinds.append(types[0, 0])
  means, spreads, kinds = map(np.array, (means, spreads, kinds))
  assert len(set(kinds.tolist())) == 6

  def explained(values):
    """Share of the variance that the tissue type explains, by channel."""
    between = sum(
      (kinds == k).mean() * (values[kinds == k].mean(0) - values.mean(0)) ** 2
      for k in range(6)
    )
    return between / values.var(0)

  assert explained(means)[1] < 0.4
  assert explained(spreads)[1] > 0.5


def test_stain_belongs_to_the_patient():
  first, _ = optics.patient_stain(0, 0)
  again, _ = optics.patient_stain(0, 0)
  other, _ = optics.patient_stain(0, 1)
  np.testing.assert_array_equal(first, again)
  assert np.abs(np.log(first / other)).max() > 0.05


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path):
  sums = []
  for name, seed in (("a", 5), ("b", 5), ("c", 6)):
    slides.make_cohort(tmp_path / name, slides=1, seed=seed, size_px=(512, 384))
    truth = (tmp_path / name / "truth" / "syn_00.npz").read_bytes()
    sums.append(((tmp_path / name / "syn_00.tiff").read_bytes(), truth))
  assert sums[0] == sums[1]
  assert sums[0][0] != sums[2][0] and sums[0][1] != sums[2][1]


def test_a_finished_cohort_is_left_alone_and_a_broken_one_is_not(
  tmp_path, capsys
):
  def make():
    slides.make_cohort(tmp_path, slides=1, size_px=(512, 384))
    return capsys.readouterr().out

  make()
  slide = tmp_path / "syn_00.tiff"
  written = slide.stat().st_mtime_ns
  assert "nothing to do" in make()
  assert slide.stat().st_mtime_ns == written
  slide.unlink()
  assert "nothing to do" not in make()
  assert slide.exists()
  slides.make_cohort(tmp_path, slides=1, size_px=(512, 448))
  with openslide.OpenSlide(slide) as reader:
    assert reader.dimensions == (512, 448)


def test_structures_keep_their_size_in_micrometres(tmp_path):
  """Half the pixel size: twice the pixels across the same lesion."""
  area = {}
  for mpp, size in ((1.0, (640, 512)), (0.5, (1280, 1024))):
    _, truth = slides.draw_slide("s", 0, 1, 0, "micro", mpp, size, 300.0)
    um = truth.downsample * truth.mpp
    area[mpp] = (truth.lesions > 0).sum() * um**2 / 3
  for value in area.values():
    # Discs of 48 to 80 µm radius, roughened.
    assert 0.5 * np.pi * 48**2 < value < 1.5 * np.pi * 80**2


def test_matched_gains_by_hand():
  """One region with one stain only: the gain has a closed form."""
  h = np.full((4, 4), 0.5, np.float32)
  e = np.full((4, 4), 0.5, np.float32)
  s = optics.STAIN_MATRIX
  wanted_h, wanted_e = 0.6, 0.4
  target = np.exp(-wanted_h * s[0, :2] - wanted_e * s[1, :2])[None]
  gains = optics.match_mean_colour(h, e, np.zeros((4, 4), int), target)
  np.testing.assert_allclose(gains, [[1.2, 0.8]], atol=0.01)


def test_render_is_beer_lambert():
  shape = (32, 32)
  h, e = np.full(shape, 0.7, np.float32), np.full(shape, 0.3, np.float32)
  rng = np.random.default_rng(0)
  light = np.array([240.0, 240.0, 240.0])
  picture = optics.render(
    h, e, optics.STAIN_MATRIX, light, np.ones(shape, np.float32), rng, 0.0
  )
  expected = 240 * np.exp(-np.array([0.7, 0.3]) @ optics.STAIN_MATRIX)
  assert np.abs(picture - expected).max() <= 1


@pytest.mark.parametrize(
  "bad, word",
  [
    ({"slides": 0}, "slides=0"),
    ({"slides": 2, "patients": 3}, "patients=3"),
    ({"mpp": 40.0}, "mpp=40.0"),
    ({"size_px": (100, 800)}, "size_px=(100, 800)"),
  ],
)
def test_bad_settings_are_named(tmp_path, bad, word):
  with pytest.raises(ValueError, match=word.replace("(", r"\(")[:12]):
    slides.make_cohort(tmp_path, **bad)


def test_command_line(tmp_path, capsys):
  slides.main([f"--out={tmp_path}", "--slides=1", "--size_px", "512", "384"])
  assert "syn_00 (macro) 1/1" in capsys.readouterr().out
  assert (tmp_path / "slides.csv").exists()
