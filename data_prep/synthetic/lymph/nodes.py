r"""Makes small slides of lymph nodes, some with metastases, of known truth.

A cohort for weakly supervised detection: only `slides.csv` says which slide has
tumour, and everything else says where, to check what was found.

    python -m data_prep.synthetic.lymph.nodes --out=out/lymph/slides --slides=60

Each slide is a 2 mm square with one or two sections of a node, 215 to 265
tissue tiles of 112 um. What is deliberate:

- 40 % of the slides have metastases: a large one (`macro`), one or two narrow
  ones (`micro`, about 1 % of the tissue), or isolated tumour cells alone
  (`itc`), which also lie beside the others. How they are scaled is said in
  `synthetic_lymph_layout.py`.
- Slides with and without tumour are full of what resembles it: germinal
  centres and sinuses are as pale, histiocytes' cytoplasm is as pink, vessels
  lie in rings like glands; there are crushed and blurred areas, folds, pen.
  The mean colour of a tile is drawn from overlapping distributions.
- The stain belongs to the patient, of whom every second has two slides, each
  with its own label; two scanners differ in light, contrast, sharpness, noise
  and compression, and a patient was scanned by one of them.

What a cohort consists of:

  slides.csv                  slide_id, filename, patient_id, label (tumor or
                              normal), metastasis (macro, micro, itc, none),
                              centre (a or b)
  <slide_id>.tiff             tiled JPEG pyramid
  annotations/<slide_id>.xml  lesions, as Camelyon has them (ASAP); an empty
                              file of this kind where there are none
  masks/<slide_id>.png        lesions = 255, at 1/4 of level 0
  truth/<slide_id>.npz        `synthetic.Truth`: tissue types and lesions

Slides follow from `seed` and their number alone: a longer cohort begins with
the shorter one. What is finished is not drawn again.

These are drawings; a result on them says nothing about patients.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.files import atomic, tables
from data_prep.synthetic import optics, texture
from data_prep.synthetic import slides as synthetic
from data_prep.synthetic.lymph import layout as plans
from data_prep.synthetic.lymph import texture as cells
from data_prep.synthetic.lymph import truth as truths

MPP = 0.6
SIZE_PX = (3328, 3328)
DOWNSAMPLE = 4

# Raise when the drawing changes, so that old and new are never mixed.
_VERSION = 1
_BLOCK = 10  # slides among which labels are shuffled
# Mean transmitted light in red and green, and by how much (log) it varies from
# region to region. What resembles tumour has nearly its colour.
_COLOURS = {
  cells.STROMA: (0.72, 0.50, 0.05),
  cells.LYMPHOID: (0.55, 0.42, 0.05),
  cells.TUMOUR: (0.60, 0.44, 0.08),
  cells.NECROSIS: (0.67, 0.51, 0.05),
  cells.GERMINAL: (0.60, 0.455, 0.06),
  cells.MANTLE: (0.49, 0.38, 0.05),
  cells.SINUS: (0.64, 0.48, 0.06),
  cells.CRUSH: (0.55, 0.41, 0.09),
}


@dataclasses.dataclass(frozen=True)
class Scanner:
  """How a centre's slides look, beside their stain."""

  # Factor on the grey level of blank glass in R, G, B.
  light: tuple[float, float, float]
  gamma: float  # exponent of the brightness; above 1 is darker
  blur_px: float  # standard deviation of the optics
  noise: float  # of the sensor, in grey levels
  quality: int  # of the JPEG


CENTRES = {
  "a": Scanner((1.0, 1.0, 1.0), 1.0, 0.0, 1.6, 85),
  "b": Scanner((1.0, 0.985, 0.95), 1.12, 0.8, 2.6, 75),
}


def patient_of(number: int) -> int:
  """Patient of a slide: of three slides the first two are one patient's.

  Example:
    >>> [patient_of(n) for n in range(7)]
    [0, 0, 1, 2, 2, 3, 4]
  """
  return number // 3 * 2 + number % 3 // 2


def centre_of(seed: int, patient: int) -> str:
  """The centre where a patient's slides were scanned."""
  rng = np.random.default_rng([seed, 13, patient])
  return list(CENTRES)[rng.integers(len(CENTRES))]


def metastasis_of(seed: int, number: int) -> str:
  """What a slide has: 4 of 10 slides have tumour, in random order."""
  block, place = divmod(number, _BLOCK)
  kinds = ["macro", "micro", "micro", ("macro", "itc")[block % 2]]
  kinds += ["none"] * (_BLOCK - len(kinds))
  rng = np.random.default_rng([seed, 11, block])
  return kinds[rng.permutation(_BLOCK)[place]]


def draw_slide(
  slide_id: str,
  seed: int,
  number: int,
  metastasis: str,
  mpp: float = MPP,
  size_px: tuple[int, int] = SIZE_PX,
) -> tuple[UInt8[np.ndarray, "h w 3"], synthetic.Truth]:
  """Draws one slide and its truth."""
  rng = np.random.default_rng([seed, 12, number])
  patient = patient_of(number)
  scanner = CENTRES[centre_of(seed, patient)]
  d, s = DOWNSAMPLE, 1.0 / mpp
  width, height = size_px
  shape = (-(-height // d), -(-width // d))
  plan = plans.layout(rng, shape, d * mpp, metastasis)
  painter = cells.LymphPainter(
    rng,
    plan.types,
    plan.regions,
    d,
    s,
    plan.lesions,
    plan.vessels,
    plan.depth_um,
    plan.around_um,
  )
  h, e = painter.paint()
  _tint(rng, h, e, plan, s)
  stain, light = optics.patient_stain(seed, patient)
  stain = stain * np.exp(rng.normal(0, 0.03, (2, 1))).astype(np.float32)
  light = light * np.array(scanner.light, np.float32)
  lamp = 1 + 0.02 * texture.noise(rng, shape, (400 * s / d,) * 2)
  lamp = cv2.resize(lamp, h.shape[::-1], interpolation=cv2.INTER_LINEAR)
  picture = optics.render(
    h, e, stain, light, lamp.astype(np.float32), rng, scanner.noise
  )
  picture = np.ascontiguousarray(picture[:height, :width])
  _defocus(rng, picture, plan, d, s)
  optics.add_artefacts(rng, picture, s, number)
  picture = _scan(picture, scanner)
  truth = synthetic.Truth(
    slide_id,
    plan.types,
    plan.lesions,
    plan.lesion_kinds,
    d,
    float(mpp),
    cells.LYMPH_TYPES,
  )
  return picture, truth


def _tint(rng, h, e, plan, s) -> None:
  """Gives every region its mean colour, and the section its thickness."""
  d, shape = DOWNSAMPLE, plan.types.shape
  count = int(plan.regions.max()) + 1
  kind_of = np.full(count, -1)
  kind_of[plan.regions[plan.types >= 0]] = plan.types[plan.types >= 0]
  targets = np.full((count, 2), 0.6)
  for kind, (red, green, spread) in _COLOURS.items():
    mine = kind_of == kind
    shift = rng.normal(0, spread, (int(mine.sum()), 2))
    targets[mine] = np.array([red, green]) * np.exp(shift)
  step = 2 * d
  gains = optics.match_mean_colour(
    h[d::step, d::step], e[d::step, d::step], plan.regions[1::2, 1::2], targets
  )
  # Fat, and the blood in vessels, keep their own colour.
  gains[~np.isin(kind_of, list(_COLOURS))] = 1
  thickness = 1 + 0.06 * texture.noise(rng, shape, (120 * s / d,) * 2)
  if rng.random() < 0.6:
    thickness += 0.8 * optics.fold(rng, shape, plan.types >= 0, s / d)
  size = h.shape[::-1]
  for density, gain in ((h, gains[:, 0]), (e, gains[:, 1])):
    field = np.where(plan.regions >= 0, gain[plan.regions], 1)
    field = cv2.GaussianBlur(field.astype(np.float32), (0, 0), 1.5) * thickness
    # A section stains unevenly: within a type colour varies as between them.
    field *= np.exp(0.10 * texture.noise(rng, shape, (160 * s / d,) * 2))
    density *= cv2.resize(field, size, interpolation=cv2.INTER_LINEAR)


def _defocus(rng, picture, plan, d, s) -> None:
  """Blurs up to two round areas of the tissue, in place."""
  inside = np.argwhere(plan.types >= 0)
  for _ in range(rng.integers(0, 3)):
    row, column = inside[rng.integers(len(inside))] * d
    radius = int(rng.uniform(130, 300) * s)
    top, left = max(0, row - radius), max(0, column - radius)
    window = picture[top : row + radius, left : column + radius]
    y, x = np.ogrid[: window.shape[0], : window.shape[1]]
    r = np.hypot(y + top - row, x + left - column) / radius
    share = np.clip((1 - r) * 3, 0, 1).astype(np.float32)[..., None]
    dull = cv2.GaussianBlur(window, (0, 0), rng.uniform(1.2, 2.6) * s)
    window[:] = window + share * (dull.astype(np.float32) - window)


def _scan(picture, scanner):
  """What the scanner's optics and its brightness curve do."""
  if scanner.blur_px:
    picture = cv2.GaussianBlur(picture, (0, 0), scanner.blur_px)
  if scanner.gamma != 1:
    levels = 255 * (np.arange(256) / 255) ** scanner.gamma
    picture = cv2.LUT(picture, np.round(levels).astype(np.uint8))
  return picture


def make_cohort(
  folder: str | os.PathLike,
  slides: int = 60,
  seed: int = 0,
  mpp: float | int = MPP,
  size_px: Sequence[int] = SIZE_PX,
) -> pathlib.Path:
  """Writes a cohort of slides with their truth; see the module's docstring."""
  if slides < 1:
    raise ValueError(f"slides={slides} must be at least 1 (make_cohort)")
  if not 0.2 <= mpp <= 2:
    raise ValueError(
      f"mpp={mpp} must lie in 0.2..2 micrometres per pixel (make_cohort)"
    )
  if min(size_px) * mpp < 1000:
    raise ValueError(
      f"size_px={tuple(size_px)} at mpp={mpp} is under 1000 micrometres on one "
      "side, too small for a node (make_cohort)"
    )
  folder = pathlib.Path(folder)
  for name in ("annotations", "masks", "truth"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  settings = {
    "version": _VERSION,
    "seed": seed,
    "mpp": float(mpp),
    "size_px": [int(v) for v in size_px],
  }
  _claim(folder / "cohort.json", settings)
  rows = [_row(seed, number) for number in range(slides)]
  start, drawn = time.monotonic(), 0
  for number, row in enumerate(rows):
    if (folder / row["filename"]).exists():
      continue
    _write_slide(folder, row, seed, number, float(mpp), tuple(size_px))
    drawn += 1
    print(
      f"lymph nodes: {row['slide_id']} ({row['metastasis']}) "
      f"{number + 1}/{slides}, {time.monotonic() - start:.0f} s",
      flush=True,
    )
  if not drawn:
    print(f"lymph nodes: {slides} already in {folder}, nothing to do")
  table = folder / "slides.csv"
  tables.write(table, list(rows[0]), rows)
  return table


def _claim(path, settings) -> None:
  """Writes down how this cohort is drawn; another one may not be mixed in."""
  if path.exists():
    found = json.loads(path.read_text())
    if found != settings:
      raise ValueError(
        f"{path.parent} holds a cohort drawn with {found}, not {settings}: "
        "choose another folder (make_cohort)"
      )
    return
  with atomic.replacing(path) as draft:
    draft.write_text(json.dumps(settings, indent=2) + "\n")


def _row(seed, number) -> dict:
  metastasis = metastasis_of(seed, number)
  patient = patient_of(number)
  return {
    "slide_id": f"lymph_{number:03d}",
    "filename": f"lymph_{number:03d}.tiff",
    "patient_id": f"patient_{patient:03d}",
    "label": "normal" if metastasis == "none" else "tumor",
    "metastasis": metastasis,
    "centre": centre_of(seed, patient),
  }


def _write_slide(folder, row, seed, number, mpp, size_px) -> None:
  """Writes everything about one slide, the slide itself last."""
  name = row["slide_id"]
  picture, truth = draw_slide(
    name, seed, number, row["metastasis"], mpp, size_px
  )
  # Each appears whole or not at all, and the slide says that all are there.
  truth.save(folder / "truth" / f"{name}.npz")
  _, png = cv2.imencode(".png", (truth.lesions > 0).astype(np.uint8) * 255)
  for path, data in (
    (folder / "masks" / f"{name}.png", png.tobytes()),
    (
      folder / "annotations" / f"{name}.xml",
      truths.annotation_xml(truth).encode(),
    ),
  ):
    with atomic.replacing(path) as draft:
      draft.write_bytes(data)
  quality = CENTRES[row["centre"]].quality
  synthetic.write_pyramid(folder / row["filename"], picture, mpp, quality)


def main(argv: list[str] | None = None) -> None:
  """Command line: `python -m data_prep.synthetic.lymph.nodes --out=...`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.synthetic.lymph.nodes",
    description="Makes small slides of lymph nodes with known metastases.",
  )
  parser.add_argument("--out", required=True, help="output folder")
  parser.add_argument("--slides", type=int, default=60)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--mpp", type=float, default=MPP)
  size = {"nargs": 2, "help": "width, height"}
  parser.add_argument("--size_px", type=int, default=SIZE_PX, **size)
  options = vars(parser.parse_args(argv))
  make_cohort(options.pop("out"), **options)


if __name__ == "__main__":
  main()
