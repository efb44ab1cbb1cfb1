"""The synthetic lymph nodes: true to their truth, hard, repeatable."""

import csv
import json
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from data_prep.synthetic import slides
from data_prep.synthetic.lymph import layout as plans
from data_prep.synthetic.lymph import lesions
from data_prep.synthetic.lymph import nodes as lymph
from data_prep.synthetic.lymph import texture as cells
from data_prep.synthetic.lymph import truth as truths
from data_prep.wsi import annotations
from wsiseq_jax.metrics.lesions import find_lesions

# A node of 1.3 mm at a coarse scale: room for all kinds, a sixteenth the work.
MPP, SIZE = 1.2, (1088, 1088)
# Slides of this seed: which have what.
SEED = 0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lymph")
  lymph.make_cohort(folder, slides=7, seed=SEED, mpp=MPP, size_px=SIZE)
  return folder


@pytest.fixture(scope="module")
def rows(cohort):
  with open(cohort / "slides.csv") as file:
    return list(csv.DictReader(file))


def load(folder, row):
  return slides.Truth.load(folder / "truth" / f"{row['slide_id']}.npz")


@pytest.fixture(scope="module")
def drawn():
  """Plans of every kind, at 4.8 um/px, three of each."""
  return {
    kind: [
      plans.layout(np.random.default_rng(n), (420, 420), 4.8, kind)
      for n in range(3)
    ]
    for kind in plans.METASTASES
  }


def test_table(rows, cohort):
  assert [row["patient_id"] for row in rows] == [
    f"patient_{n:03d}" for n in (0, 0, 1, 2, 2, 3, 4)
  ]
  assert {row["label"] for row in rows} == {"tumor", "normal"}
  for row in rows:
    assert (row["label"] == "tumor") == (row["metastasis"] != "none")
    assert row["centre"] in lymph.CENTRES
    assert (cohort / row["filename"]).exists()
  # Slides of one patient come from one scanner.
  assert rows[0]["centre"] == rows[1]["centre"]


def test_labels_agree_with_truth(rows, cohort):
  seen = set()
  for row in rows:
    truth = load(cohort, row)
    assert truth.names == cells.LYMPH_TYPES
    assert (truth.lesions > 0).any() == (row["label"] == "tumor")
    kinds = truth.lesion_kinds
    if kinds:
      order = ("itc", "micro", "macro")
      assert max(kinds, key=order.index) == row["metastasis"]
    tumour = np.isin(truth.types, (cells.TUMOUR, cells.NECROSIS))
    np.testing.assert_array_equal(tumour, truth.lesions > 0)
    seen.add(row["metastasis"])
  assert {"none", "macro", "micro"} <= seen


def test_hard_negatives_are_in_every_slide(rows, cohort):
  for row in rows:
    truth = load(cohort, row)
    area = np.bincount(truth.types[truth.types >= 0], minlength=10)
    um2 = area * (truth.downsample * truth.mpp) ** 2
    least = {
      cells.GERMINAL: 3000,
      cells.SINUS: 10_000,
      cells.CRUSH: 1000,
      cells.VESSEL: 500,
    }
    there = [um2[kind] > area for kind, area in least.items()]
    # On so small a node a large metastasis may grow over one of them.
    assert sum(there) >= (4 if row["label"] == "normal" else 3)
    assert um2[cells.LYMPHOID] > 0.15 * um2.sum()


def test_polygons_give_the_mask_again(rows, cohort):
  for row in rows:
    truth = load(cohort, row)
    path = cohort / "annotations" / f"{row['slide_id']}.xml"
    root = ElementTree.parse(path).getroot()
    shapes = root.findall("./Annotations/Annotation")
    assert {a.get("PartOfGroup") for a in shapes} <= {"Tumor"}
    assert len(shapes) == len(truth.lesion_kinds)
    # Our own reader, which fills by another rule than the outline was drawn.
    mask = annotations.draw(annotations.read(path), SIZE, lymph.DOWNSAMPLE)
    np.testing.assert_array_equal(mask, truth.lesions > 0)
    png = cv2.imread(
      str(cohort / "masks" / f"{row['slide_id']}.png"), cv2.IMREAD_UNCHANGED
    )
    np.testing.assert_array_equal(png, mask * np.uint8(255))


def test_outline_by_hand():
  corner = np.array([[1, 0], [1, 1]], bool)
  ring = truths.outline(corner).tolist()
  start = ring.index([0.0, 0.0])
  assert ring[start:] + ring[:start] == [
    [0, 0], [0, 2], [2, 2], [2, 1], [1, 1], [1, 0],
  ]  # fmt: skip


def test_tumour_share_by_hand():
  found = np.zeros((4, 4), np.int16)
  found[1, 1] = 1
  found[1, 2] = 2
  truth = slides.Truth(
    "s", np.zeros((4, 4), np.int8), found, ("itc", "itc"), 4, 1.0
  )
  xy = np.array([[0, 0], [8, 4], [4, 4], [0, 8], [12, 12]])
  share = truths.tumour_share(truth, xy, 8)
  np.testing.assert_allclose(share, [0.25, 0.25, 0.5, 0, 0])


def test_oracle_separates_the_slides(rows, cohort):
  """The tile truth knows every label: AUROC 1 is possible."""
  best = {"tumor": [], "normal": []}
  side = 112 / MPP
  steps = np.arange(0, SIZE[0], side)
  xy = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
  for row in rows:
    share = truths.tumour_share(load(cohort, row), xy, side)
    best[row["label"]].append(share.max())
  assert min(best["tumor"]) > 0.005 and max(best["normal"]) == 0


def test_lesions_lie_on_their_side_of_the_limit(drawn):
  for kind, some in drawn.items():
    for plan in some:
      if kind == "none":
        assert plan.lesion_kinds == ()
        continue
      assert kind == plan.lesion_kinds[0]
      found = find_lesions(plan.lesions > 0, level0_mpp=4.8 / 4, downsample=4)
      # Each is a lesion of its own after dilation.
      assert len(found.isolated) == len(plan.lesion_kinds)
      for number, name in enumerate(plan.lesion_kinds, 1):
        mask = plan.lesions == number
        low, high = lesions.EXTENT_UM[name]
        assert low <= lesions.major_axis(mask) * 4.8 <= high
        label = found.labels[mask][0]
        assert found.isolated[label - 1] == (name == "itc")


def test_micrometastases_are_a_hundredth_of_the_tissue(drawn):
  shares = [
    (p.lesions > 0).sum() / (p.types >= 0).sum() for p in drawn["micro"]
  ]
  assert 0.004 < np.mean(shares) < 0.03


def test_the_picture_shows_the_truth(cohort, rows):
  """Glass is bright where the truth says glass; lymphocytes are dark."""
  with openslide.OpenSlide(cohort / rows[0]["filename"]) as slide:
    assert slide.dimensions == SIZE
    assert slide.properties["openslide.level[0].tile-width"] == "256"
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP)
  for row in rows[:3]:
    truth = load(cohort, row)
    picture = tifffile.imread(cohort / row["filename"], key=0)
    small = cv2.resize(
      picture, truth.types.shape[::-1], interpolation=cv2.INTER_AREA
    ).mean(-1)
    assert np.median(small[truth.types < 0]) > 215
    assert np.median(small[truth.types == cells.LYMPHOID]) < 190


def test_colours_of_tumour_and_of_what_resembles_it_overlap():
  tumour = lymph._COLOURS[cells.TUMOUR]
  for kind in (cells.GERMINAL, cells.SINUS, cells.CRUSH):
    other = lymph._COLOURS[kind]
    apart = np.abs(np.log(np.divide(tumour[:2], other[:2])))
    assert (apart < tumour[2] + other[2]).all()


def test_longer_cohorts_begin_with_shorter_ones(cohort, rows, tmp_path):
  lymph.make_cohort(tmp_path, slides=2, seed=SEED, mpp=MPP, size_px=SIZE)
  for row in rows[:2]:
    name = row["slide_id"]
    for path in (
      row["filename"], f"truth/{name}.npz", f"masks/{name}.png",
      f"annotations/{name}.xml",
    ):  # fmt: skip
      assert (tmp_path / path).read_bytes() == (cohort / path).read_bytes()


def test_seed_changes_the_slide():
  some = [
    plans.layout(np.random.default_rng([seed, 12, 0]), (300, 300), 6.0, "none")
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(some[0].types, some[1].types)
  assert (some[0].types != some[2].types).mean() > 0.05


def test_resumes_where_it_stopped(cohort, capsys):
  first = cohort / "lymph_000.tiff"
  second = cohort / "lymph_001.tiff"
  written, bytes_ = first.stat().st_mtime_ns, second.read_bytes()
  second.unlink()
  lymph.make_cohort(cohort, slides=7, seed=SEED, mpp=MPP, size_px=SIZE)
  assert second.read_bytes() == bytes_
  assert first.stat().st_mtime_ns == written
  capsys.readouterr()
  lymph.make_cohort(cohort, slides=7, seed=SEED, mpp=MPP, size_px=SIZE)
  assert "nothing to do" in capsys.readouterr().out
  assert not list(cohort.rglob("*.tmp-*"))


def test_other_settings_are_not_mixed_in(cohort):
  with pytest.raises(ValueError, match="choose another folder"):
    lymph.make_cohort(cohort, slides=7, seed=1, mpp=MPP, size_px=SIZE)
  assert json.loads((cohort / "cohort.json").read_text())["seed"] == SEED


def test_kinds_and_patients_of_a_large_cohort():
  kinds = [lymph.metastasis_of(0, n) for n in range(60)]
  counts = {kind: kinds.count(kind) for kind in plans.METASTASES}
  assert counts == {"none": 36, "macro": 9, "micro": 12, "itc": 3}
  patients = [lymph.patient_of(n) for n in range(60)]
  assert len(set(patients)) == 40
  mixed = {
    p
    for p in patients
    if len(
      {k == "none" for k, q in zip(kinds, patients, strict=True) if q == p}
    )
    == 2
  }
  # Both labels in one patient: the label belongs to the slide.
  assert mixed
  assert len({lymph.centre_of(0, p) for p in patients}) == 2


@pytest.mark.parametrize(
  "bad, word",
  [
    ({"slides": 0}, "slides=0"),
    ({"mpp": 4.0}, "mpp=4.0"),
    ({"size_px": (600, 4000)}, "under 1000 micrometres"),
  ],
)
def test_bad_settings_are_named(tmp_path, bad, word):
  with pytest.raises(ValueError, match=word):
    lymph.make_cohort(tmp_path, **bad)
