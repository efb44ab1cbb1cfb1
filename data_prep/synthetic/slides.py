"""Makes small pyramidal slides whose truth is known, for demo and tests.

A cohort is a folder of tiled JPEG TIFF pyramids that any slide reader opens,
a `slides.csv`, and for every slide the truth: which tissue lies where, and
where the lesions are. It answers questions that real slides without
annotations cannot: do features follow the tissue's structure, or only its
colour?

    python -m data_prep.synthetic.slides --out=out/demo/slides --slides=6

What is deliberate:

- six tissue types that differ by structure while their mean colours overlap
  (how far is stated in `synthetic_texture.py`);
- the stain belongs to the *patient*: two slides of one patient share it, so a
  split by slide leaks and a split by patient does not;
- blank glass, uneven light, tissue folds, dust, and pen marks, because real
  slides have them and a tissue mask has to survive them;
- every third slide carries one large lesion (`macro`), every third a few small
  nests (`micro`), the rest none (`negative`).

Everything follows from `seed`: the same call writes the same bytes, and a call
that finds its cohort already there does nothing.

These are drawings. They check plumbing and say whether a feature can see
structure at all; a result on them says nothing about patients.
"""

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence

import cv2
import numpy as np
import tifffile
from jaxtyping import Bool, Float, Int, UInt8

from data_prep.files import atomic, tables
from data_prep.files.done import Done
from data_prep.synthetic import optics, texture
from data_prep.synthetic.layout import layout

LABELS = ("macro", "micro", "negative")

# Raise when the drawing changes, so that old cohorts are made anew.
_VERSION = 1
# Truth and layout are kept at this downsample: 4 px are less than a nucleus.
_DOWNSAMPLE = 4
_TILE_PX = 256
_LEAST_SHARE = 0.6  # of a sequence's frames, to be called of a type


@dataclasses.dataclass(frozen=True)
class Truth:
  """What is where on one synthetic slide."""

  slide_id: str  # name of the slide
  # Tissue type at 1/`downsample` of level 0; −1 = glass.
  types: Int[np.ndarray, "h w"]
  # 0 = none, otherwise the number of the lesion (1, 2, ...).
  lesions: Int[np.ndarray, "h w"]
  lesion_kinds: tuple[str, ...]  # `macro` or `micro` for lesion 1, 2, ..
  downsample: int  # level-0 pixels per pixel of the two maps
  mpp: float  # micrometres per level-0 pixel
  names: tuple[str, ...] = texture.TISSUE_TYPES  # name of type 0, 1, ..

  @classmethod
  def load(cls, path: str | os.PathLike) -> "Truth":
    """Reads `<cohort>/truth/<slide_id>.npz`."""
    with np.load(path, allow_pickle=False) as f:
      return cls(
        slide_id=str(f["slide_id"]),
        types=f["types"],
        lesions=f["lesions"],
        lesion_kinds=tuple(f["lesion_kinds"].tolist()),
        downsample=int(f["downsample"]),
        mpp=float(f["mpp"]),
        names=tuple(f["names"].tolist()),
      )

  def save(self, path: str | os.PathLike) -> None:
    """Writes the truth as an npz file, atomically."""
    arrays = {
      field.name: np.asarray(getattr(self, field.name))
      if field.name not in ("lesion_kinds", "names")
      else np.array(getattr(self, field.name), dtype="U16")
      for field in dataclasses.fields(self)
    }
    with atomic.replacing(path) as draft, draft.open("wb") as file:
      np.savez_compressed(file, **arrays)

  def tissue_type(
    self, level0_xy: Float[np.ndarray, "m 2"]
  ) -> Int[np.ndarray, " m"]:
    """Tissue type at points of the slide."""
    return self._look_up(self.types, level0_xy, -1)

  def lesion(
    self, level0_xy: Float[np.ndarray, "m 2"]
  ) -> Bool[np.ndarray, " m"]:
    """Whether points (x, y in level-0 pixels) lie in a lesion."""
    return self._look_up(self.lesions, level0_xy, 0) > 0

  def _look_up(self, field, level0_xy, outside):
    xy = np.asarray(level0_xy, dtype=np.float64).reshape(-1, 2)
    # A point without a position (NaN) is outside.
    cell = np.floor(np.nan_to_num(xy, nan=-1.0) / self.downsample).astype(int)
    height, width = field.shape
    ok = (cell >= 0).all(1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    cell = np.where(ok[:, None], cell, 0)
    return np.where(ok, field[cell[:, 1], cell[:, 0]], outside).astype(np.int64)


def sequence_types(
  truth: str | os.PathLike,
  slide_id: np.ndarray,
  level0_xy: Float[np.ndarray, "n t 2"],
) -> Int[np.ndarray, " n"]:
  """The tissue type of sequences: the commonest under their frames' centres.

  Args:
    truth: the folder `truth` of a cohort.
    slide_id: slide of each sequence, [n].
    level0_xy: centres of the frames looked at, level-0 pixels.

  Returns:
    Number of the type; -1 where fewer than 60 % of all frames agree.

  Raises:
    FileNotFoundError: the cohort does not know a slide.
  """
  result = np.full(len(slide_id), -1)
  for slide in np.unique(slide_id):
    known = Truth.load(pathlib.Path(truth) / f"{slide}.npz")
    for i in np.flatnonzero(slide_id == slide):
      types = known.tissue_type(level0_xy[i])
      found, counts = np.unique(types[types >= 0], return_counts=True)
      if len(found) and counts.max() >= _LEAST_SHARE * len(types):
        result[i] = found[counts.argmax()]
  return result


def draw_slide(
  slide_id: str,
  seed: int,
  number: int,
  patient: int,
  label: str,
  mpp: float,
  size_px: tuple[int, int],
  region_um: float,
) -> tuple[UInt8[np.ndarray, "h w 3"], Truth]:
  """Draws one slide and its truth."""
  rng = np.random.default_rng([seed, 2, number])
  d, s = _DOWNSAMPLE, 1.0 / mpp
  width, height = size_px
  shape = (-(-height // d), -(-width // d))
  types, regions, lesions, kinds = layout(rng, shape, d, s, region_um, label)

  painter = texture.Painter(rng, types, regions, d, s)
  h, e = painter.paint()
  count = int(regions.max()) + 1
  # One distribution for all types: that is what makes colour uninformative.
  targets = np.array([0.64, 0.47]) * np.exp(rng.normal(0, 0.07, (count, 2)))
  gains = optics.match_mean_colour(
    h[2::d, 2::d], e[2::d, 2::d], regions, targets
  )
  size = (shape[1] * d, shape[0] * d)
  thickness = 1 + 0.06 * texture.noise(rng, shape, (120 * s / d,) * 2)
  thickness += 0.8 * optics.fold(rng, shape, types >= 0, s / d)
  for density, gain in ((h, gains[:, 0]), (e, gains[:, 1])):
    field = np.where(regions >= 0, gain[regions], 1).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 1.0) * thickness
    density *= cv2.resize(field, size, interpolation=cv2.INTER_LINEAR)

  stain, light = optics.patient_stain(seed, patient)
  stain = stain * np.exp(rng.normal(0, 0.03, (2, 1))).astype(np.float32)
  lamp = 1 + 0.02 * texture.noise(rng, shape, (400 * s / d,) * 2)
  lamp = cv2.resize(lamp, size, interpolation=cv2.INTER_LINEAR)
  picture = optics.render(h, e, stain, light, lamp.astype(np.float32), rng)
  picture = np.ascontiguousarray(picture[:height, :width])
  optics.add_artefacts(rng, picture, s, number)
  truth = Truth(slide_id, types, lesions, kinds, d, float(mpp))
  return picture, truth


def _tiles(picture):
  """Tiles in reading order; those over the edge repeat the last pixels.

  Zeros there would be cheaper, but JPEG rings at the step to black and the
  ringing reaches pixels that are seen.
  """
  for y in range(0, picture.shape[0], _TILE_PX):
    for x in range(0, picture.shape[1], _TILE_PX):
      tile = picture[y : y + _TILE_PX, x : x + _TILE_PX]
      missing = [(0, _TILE_PX - n) for n in tile.shape[:2]]
      yield np.pad(tile, (*missing, (0, 0)), mode="edge")


def write_pyramid(
  path: str | os.PathLike,
  picture: UInt8[np.ndarray, "h w 3"],
  mpp: float,
  quality: int = 85,
) -> None:
  """Writes a tiled JPEG TIFF pyramid with resolution tags, atomically."""
  level = picture
  # `rgb` describes the pixels handed over; tifffile converts them and writes
  # YCbCr JPEG itself. `ycbcr` here would promise pixels already converted.
  with (
    atomic.replacing(path) as draft,
    tifffile.TiffWriter(draft, bigtiff=False) as tif,
  ):
    for n in range(8):
      scale = picture.shape[1] / level.shape[1]
      tif.write(
        _tiles(level),
        shape=level.shape,
        dtype=level.dtype,
        tile=(_TILE_PX, _TILE_PX),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality},
        resolution=(1e4 / (mpp * scale),) * 2,
        resolutionunit="CENTIMETER",
        subfiletype=0 if n == 0 else 1,
        metadata=None,
        software="wsiseq_jax synthetic",
      )
      if max(level.shape[:2]) <= 2 * _TILE_PX:
        break
      size = (level.shape[1] // 2, level.shape[0] // 2)
      level = cv2.resize(level, size, interpolation=cv2.INTER_AREA)


def make_cohort(
  folder: str | os.PathLike,
  slides: int = 6,
  patients: int | None = None,
  seed: int = 0,
  mpp: float | int = 1.0,
  size_px: Sequence[int] = (3072, 2304),
  region_um: float | int = 430.0,
) -> pathlib.Path:
  """Writes a cohort of synthetic slides with their truth.

  Slide i belongs to patient `i % patients`: with fewer patients than slides
  some patients have two slides. Labels go round `LABELS`.
  """
  if slides < 1:
    raise ValueError(f"slides={slides} must be at least 1 (make_cohort)")
  if patients is None:
    patients = max(1, round(slides * 2 / 3))
  if not 1 <= patients <= slides:
    raise ValueError(
      f"patients={patients} must lie in 1..slides={slides} (make_cohort)"
    )
  if not 0.1 <= mpp <= 4:
    raise ValueError(
      f"mpp={mpp} must lie in 0.1..4 micrometres per pixel (make_cohort)"
    )
  if min(size_px) * mpp < 256:
    raise ValueError(
      f"size_px={tuple(size_px)} at mpp={mpp} is under 256 micrometres on one "
      "side, too small for any structure (make_cohort)"
    )
  folder = pathlib.Path(folder)
  settings = {
    "version": _VERSION,
    "slides": slides,
    "patients": patients,
    "seed": seed,
    "mpp": float(mpp),
    "size_px": [int(v) for v in size_px],
    "region_um": float(region_um),
  }
  table = folder / "slides.csv"
  rows = [
    {
      "slide_id": f"syn_{i:02d}",
      "filename": f"syn_{i:02d}.tiff",
      "patient_id": f"patient_{i % patients:02d}",
      "label": LABELS[i % 3],
    }
    for i in range(slides)
  ]
  stage = Done(folder / "cohort.json", settings)
  if stage.read() is not None:
    print(f"synthetic slides: {slides} already in {folder}, nothing to do")
    return table
  (folder / "truth").mkdir(parents=True, exist_ok=True)
  stage.clear()
  start = time.monotonic()
  for i, row in enumerate(rows):
    picture, truth = draw_slide(
      row["slide_id"],
      seed,
      i,
      i % patients,
      row["label"],
      float(mpp),
      tuple(size_px),
      float(region_um),
    )
    truth.save(folder / "truth" / f"{row['slide_id']}.npz")
    write_pyramid(folder / row["filename"], picture, float(mpp))
    print(
      f"synthetic slides: {row['slide_id']} ({row['label']}) "
      f"{i + 1}/{slides}, {time.monotonic() - start:.0f} s",
      flush=True,
    )
  tables.write(table, list(rows[0]), rows)
  files = [table, *(folder / row["filename"] for row in rows)]
  files += [folder / "truth" / f"{row['slide_id']}.npz" for row in rows]
  stage.write(settings, files)
  return table


def main(argv: list[str] | None = None) -> None:
  """Command line: `python -m data_prep.synthetic.slides --out=OUT`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.synthetic.slides",
    description="Makes small synthetic slides with known truth.",
  )
  parser.add_argument("--out", required=True, help="output folder")
  parser.add_argument("--slides", type=int, default=6)
  parser.add_argument(
    "--patients", type=int, help="default: two thirds of the slides"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--mpp", type=float, default=1.0)
  size = {"nargs": 2, "help": "width, height"}
  parser.add_argument("--size_px", type=int, default=(3072, 2304), **size)
  options = vars(parser.parse_args(argv))
  make_cohort(options.pop("out"), **options)


if __name__ == "__main__":
  main()
