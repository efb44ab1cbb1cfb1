"""Labelled pictures with tumour whose outline and nuclei are known.

A cohort in the shape of a clinical one: 17 patients with tumour, of whom every
picture shows some, and 32 without, of whom none does; 6,406 pictures, scaled
down by `pictures`. Lesions have many sizes: an eighth of the positive pictures
is tumour all over, in the others it covers between a fiftieth and most of the
tissue, a third in the middle, as one mass or as scattered nests.

Colour does not name the tumour. All tissue types take their mean colour from
one distribution (`optics.match_mean_colour`), each patient has a stain of its
own, and lymphoid sheets, glands and necrosis are in the pictures of both
groups. What tells tumour is the size, shape and order of its nuclei. Of 600
pictures the mean colour names the label of unseen patients with an AUROC of
0.69, that of a pixel tumour with 0.72, and the best threshold on haematoxylin
has an IoU of 0.38 where calling everything tumour has 0.37
(`benchmarks/pictures_colour.py`).

    python -m data_prep.synthetic.pictures --out=COHORT --pictures=600

Written to the folder: `images/<id>.jpg`, `masks/<id>.png` (1 = tumour),
`points/<id>.csv` (x, y, class: nuclei, 1 those of tumour) and `pictures.csv`,
the table that `configs/prep_pictures.py` takes. The same call writes the same
bytes, and a second one does nothing.
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, Int, UInt8

from data_prep.files import atomic, tables
from data_prep.files.done import Done
from data_prep.pictures import prepare, records
from data_prep.pictures.settings import PictureSettings
from data_prep.synthetic import optics, texture

CLASSES = ("tumour",)
# Patients of each split with tumour and without.
PATIENTS = {"train": (10, 20), "val": (3, 5), "test": (4, 7)}
# Pictures of the clinical cohort with tumour and without.
PICTURES = (4232, 2174)
_DOWNSAMPLE = 2
_VERSION = 2
_WHOLE = 0.125  # share of the positive pictures that is tumour all over
_COVER = (0.02, 0.9)  # part of the tissue that is tumour in the others
# Types beside tumour, and how often each is among those of a picture.
_OTHERS = {
  texture.STROMA: 1.0,
  texture.GLANDS: 0.5,
  texture.LYMPHOID: 0.5,
  texture.ADIPOSE: 0.25,
  texture.NECROSIS: 0.25,
}


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnPicture:
  """A picture and the truth about it."""

  pixels: UInt8[np.ndarray, "h w 3"]
  truth: UInt8[np.ndarray, "h w"]  # 1 = tumour
  tissue: UInt8[np.ndarray, "h w"]  # 0 = glass
  # Nuclei: x, y, and 1 where they are those of tumour. Septa in tumour have
  # nuclei that are neither: those are left out.
  points: Float[np.ndarray, "n 3"]


class _Recorder(texture.Painter):
  """A painter that remembers where it put nuclei."""

  fibre_px = 256

  def __init__(self, *args):
    self.found, self._class = [], 0
    super().__init__(*args)

  def _draw_nuclei(self, points, *args, **kwargs):
    if self._class is not None:
      column = np.full((len(points), 1), self._class)
      self.found.append(np.concatenate([points, column], 1))
    return super()._draw_nuclei(points, *args, **kwargs)

  def _spindles(self, points):
    before, self._class = self._class, None if self._class else 0
    super()._spindles(points)
    self._class = before

  def _nests(self):
    # Voronoi cells are open at the border, where much of a picture is.
    field = texture.noise(self.rng, self.shape, (22 * self.s,) * 2)
    return np.where(np.abs(field) > 0.14, 255, 0).astype(np.uint8)

  def _tumour(self):
    self._class = 1
    densities = super()._tumour()
    self._class = 0
    return densities


def draw(
  rng: np.random.Generator,
  px: int,
  mpp: float,
  is_positive: bool,
  stain: Float[np.ndarray, "2 3"],
  light: Float[np.ndarray, "3"],
) -> DrawnPicture:
  """Draws a picture.

  Args:
    rng: source of randomness.
    px: side of the picture, even.
    mpp: micrometres per pixel.
    is_positive: whether there is tumour.
    stain: of the patient, see `optics.patient_stain`.
    light: grey level of blank glass.
  """
  d, s = _DOWNSAMPLE, 1 / mpp
  shape = (px // d, px // d)
  types = _types(rng, shape, d * mpp, is_positive)
  painter = _Recorder(rng, types, types, d, s)
  h, e = painter.paint()
  count = len(texture.TISSUE_TYPES)
  targets = np.array([0.64, 0.47]) * np.exp(rng.normal(0, 0.07, (count, 2)))
  gains = optics.match_mean_colour(h[::d, ::d], e[::d, ::d], types, targets)
  thickness = 1 + 0.06 * texture.noise(rng, shape, (60 / mpp / d,) * 2)
  for density, gain in ((h, gains[:, 0]), (e, gains[:, 1])):
    field = np.where(types >= 0, gain[types], 1).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 1.0) * thickness
    density *= cv2.resize(field, (px, px), interpolation=cv2.INTER_LINEAR)
  stain = stain * np.exp(rng.normal(0, 0.03, (2, 1))).astype(np.float32)
  lamp = np.ones((px, px), np.float32)
  pixels = optics.render(h, e, stain, light, lamp, rng)
  large = np.kron(types, np.ones((d, d), types.dtype))
  points = np.concatenate([np.zeros((0, 3)), *painter.found])
  points[:, :2] = points[:, :2].round(2)  # as a table has them
  points = points[records.inside(points, (px, px))]
  x, y = np.rint(points[:, :2]).astype(int).T
  # Voids and the edge of the tissue take nuclei away again.
  is_seen = (painter.nuclei[y, x] > 60) & (painter.void[y, x] < 128)
  is_seen &= (large[y, x] == texture.TUMOUR) == (points[:, 2] == 1)
  is_seen &= large[y, x] >= 0
  return DrawnPicture(
    pixels,
    (large == texture.TUMOUR).astype(np.uint8),
    (large >= 0).astype(np.uint8),
    points[is_seen].astype(np.float32),
  )


def _types(
  rng: np.random.Generator, shape: tuple[int, int], um: float, is_positive: bool
) -> Int[np.ndarray, "h w"]:
  """Which tissue lies where; -1 = glass. `um` is the side of a pixel."""

  def field(grain):
    return texture.noise(rng, shape, (grain / um,) * 2)

  types = np.full(shape, texture.STROMA, np.int8)
  strongest = np.full(shape, -np.inf, np.float32)
  for kind, often in _OTHERS.items():
    if rng.random() < often:
      strength = field(rng.uniform(25, 60)) + rng.normal(0, 0.5)
      types[strength > strongest] = kind
      strongest = np.maximum(strongest, strength)
  if rng.random() < 0.3:
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    turn = rng.uniform(0, 2 * np.pi)
    across = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
    types[across + 0.05 * field(20) > rng.uniform(0.15, 0.45)] = -1
  if is_positive:
    types[_lesion(rng, types >= 0, um, field)] = texture.TUMOUR
  return types


def _lesion(rng, tissue, um, field) -> np.ndarray:
  if rng.random() < _WHOLE:
    return tissue
  if rng.random() < 0.5:  # one mass
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]] * um
    side = np.array(tissue.shape) * um
    cy, cx = rng.uniform(0.1, 0.9, 2) * side
    strength = 0.2 * field(25) - np.hypot(y - cy, x - cx) / (0.3 * side[0])
  else:
    strength = field(rng.uniform(14, 40))
  low, high = _COVER
  cover = low + (high - low) * rng.random() ** 1.5  # a third at the median
  return tissue & (strength > np.quantile(strength[tissue], 1 - cover))


def plan(pictures: int, seed: int) -> list[tuple[str, str, bool, int, int]]:
  """Who has how many pictures.

  Args:
    pictures: of the whole cohort, as near as rounding allows; every patient
      has at least one.
    seed: of how they are dealt out.

  Returns:
    Patient, split, has tumour, number of the patient, pictures.
  """
  rng = np.random.default_rng([seed, 11])
  rows = []
  for kind, total in enumerate(PICTURES):
    patients = sum(counts[kind] for counts in PATIENTS.values())
    # Some patients have three times as many as others.
    share = np.exp(rng.normal(0, 0.35, patients))
    wanted = pictures * total / sum(PICTURES) * share / share.sum()
    counts = np.maximum(1, np.rint(wanted)).astype(int)
    place = 0
    for split, of_kind in PATIENTS.items():
      for _ in range(of_kind[kind]):
        name = f"{'MN'[kind]}{place:02d}"
        rows.append((name, split, kind == 0, len(rows), int(counts[place])))
        place += 1
  return rows


def _drawn(
  pictures: int, px: int, mpp: float, seed: int
) -> Iterator[tuple[str, str, str, bool, DrawnPicture]]:
  """Id, patient, split, has tumour, and the picture, of all in order."""
  for patient, split, is_positive, number, count in plan(pictures, seed):
    stain, light = optics.patient_stain(seed, number)
    for index in range(count):
      rng = np.random.default_rng([seed, 12, number, index])
      one = draw(rng, px, mpp, is_positive, stain, light)
      yield f"{patient}_{index:04d}", patient, split, is_positive, one


def make_cohort(
  folder: str | os.PathLike,
  pictures: int = 600,
  px: int = 128,
  mpp: float = 1.0,
  seed: int = 0,
) -> pathlib.Path:
  """Writes pictures, masks and points, and returns their table.

  Args:
    folder: the folder.
    pictures: of the whole cohort; the clinical one has 6,406.
    px: side of a picture, even.
    mpp: micrometres per pixel.
    seed: of all draws.

  Raises:
    ValueError: `px` is odd or below 32, or `pictures` below 49.
  """
  if px % _DOWNSAMPLE or px < 32:
    raise ValueError(f"px={px}: want an even number of 32 or more")
  if pictures < 49:
    raise ValueError(f"pictures={pictures}: want one a patient, 49 or more")
  folder = pathlib.Path(folder)
  settings = {
    "version": _VERSION,
    "pictures": pictures,
    "px": px,
    "mpp": mpp,
    "seed": seed,
  }
  table = folder / "pictures.csv"
  stage = Done(folder / "cohort.json", settings)
  if stage.read() is not None:
    return table
  stage.clear()
  for name in ("images", "masks", "points"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  rows = []
  for name, patient, split, is_positive, one in _drawn(pictures, px, mpp, seed):
    jpeg = simplejpeg.encode_jpeg(one.pixels, 90, colorsubsampling="444")
    row = {
      "filename": f"images/{name}.jpg",
      "patient_id": patient,
      "split": split,
      "tumour": int(is_positive),
      "mask": f"masks/{name}.png",
      "points": f"points/{name}.csv",
    }
    atomic.write_atomic(folder / row["filename"], jpeg)
    atomic.write_atomic(folder / row["mask"], records.png(one.truth))
    points = [
      {"x": f"{x:.2f}", "y": f"{y:.2f}", "class": int(k)}
      for x, y, k in one.points.tolist()
    ]
    tables.write(folder / row["points"], ("x", "y", "class"), points)
    rows.append(row)
  tables.write(table, list(rows[0]), rows)
  stage.write(settings, [table])
  return table


def _write_tiny(folder: pathlib.Path) -> None:
  """Shards of a tiny cohort: 64 px, two pictures or so a patient."""
  table = make_cohort(folder / "drawn", pictures=98, px=64, mpp=2.0)
  settings = PictureSettings(
    csv=str(table),
    out=str(folder),
    mpp=2.0,
    parts=1,
    workers=0,
  )
  summary = prepare.prepare_pictures(dataclasses.asdict(settings))
  if summary.exit_code:
    raise ValueError(summary.text)


@functools.cache
def cached() -> pathlib.Path:
  """Shards of a tiny cohort in the machine's folder for temporary files."""
  # Other code draws, or prepares, other shards.
  files = [__file__, optics.__file__, texture.__file__]
  files += sorted(pathlib.Path(prepare.__file__).parent.glob("*.py"))
  code = b"".join(pathlib.Path(file).read_bytes() for file in files)
  code = hashlib.sha256(code).hexdigest()
  name = f"wsiseq_pictures_{os.getuid()}_{code[:12]}"
  folder = pathlib.Path(tempfile.gettempdir()) / name
  if not folder.is_dir():
    draft = pathlib.Path(tempfile.mkdtemp(prefix=name))
    _write_tiny(draft)
    try:
      draft.rename(folder)
    except OSError:  # another process was faster
      shutil.rmtree(draft)
  return folder / "shards"


def main(argv: list[str] | None = None) -> None:
  """Command line: `python -m data_prep.synthetic.pictures --out=OUT`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.synthetic.pictures",
    description="Makes labelled pictures with tumour of known outline.",
  )
  parser.add_argument("--out", required=True, help="output folder")
  parser.add_argument("--pictures", type=int, default=600)
  parser.add_argument("--px", type=int, default=128, help="side of a picture")
  parser.add_argument("--mpp", type=float, default=1.0, help="um per pixel")
  parser.add_argument("--seed", type=int, default=0)
  options = vars(parser.parse_args(argv))
  print(make_cohort(options.pop("out"), **options))


if __name__ == "__main__":
  main()
