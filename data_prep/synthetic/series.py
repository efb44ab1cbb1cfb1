"""Small longitudinal image series with known dynamics, for demos and tests.

Each subject has one object, drawn at 6 to 12 visits, years apart. Two things
change, at constant speeds of their own: the object *grows* (px of radius a
year) and the contrast of its *texture* rises or falls. Everything else is the
subject's own look: shape, kind of texture, position, orientation, background,
brightness, contrast, and noise.

The point of the set is what time is needed for:

- appearance labels can be read off one picture: `last_size` (radius at the last
  visit, px), `shape`, `texture` (kind);
- rate labels cannot: `growth_rate` (px a year) and `growth` (slow or fast, half
  of the subjects each). Growth between the first and last visit is rate times
  span, and the span varies more than the rate (a factor of 12 against one of 3)
  and independently of it, of the starting size and of the number of visits. So
  how much the object grew says little about how fast it grew; together with
  the visits' times it says everything. Time between two visits varies by a
  factor of 5 within a subject.

The texture must not be a clock by which the span could be told: its contrasts
at the first and last visit are drawn, and its speed follows from the span. A
speed drawn independently of the span would give the span away, and with it a
third of the growth rate. The speed is in the truth, and not among the labels.

`benchmarks/growth_r2.py` measures both claims on a set's truth.
"""

import argparse
import dataclasses
import io
import math
import pathlib
from collections.abc import Sequence

import cv2
import imagecodecs
import numpy as np
from jaxtyping import Float, UInt8

from data_prep.files import tables

SHAPES = ("disc", "square", "star")
TEXTURES = ("checks", "rings", "stripes")
RATE = (0.5, 1.5)  # px of radius a year
SPAN = (0.75, 9.0)  # years from the first to the last visit
GAPS = 5.0  # longest over shortest time between visits of a subject, at most
START = (3.5, 6.5)  # px of radius at the first visit
VISITS = (6, 12)
CONTRAST = (0.3, 1.0)  # of the texture, at the first and at the last visit
TABLE, TRUTH = "series.csv", "truth.csv"
# Large next to the grid below, so that an edge is smooth to a tenth of a pixel.
_OVERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is true of one subject."""

  name: str  # its id
  shape: str  # of `SHAPES`
  texture: str  # of `TEXTURES`
  rate: float  # growth in px of radius a year
  start: float  # radius at the first visit, px
  texture_rate: float  # change of the texture's contrast a year
  texture_start: float  # contrast at the first visit
  times: tuple[float, ...]  # of the visits, years from the first
  seed: int  # of everything that is drawn

  @property
  def sizes(self) -> Float[np.ndarray, " t"]:
    """Radius at each visit, px."""
    return self.start + self.rate * np.array(self.times)

  @property
  def contrasts(self) -> Float[np.ndarray, " t"]:
    """Contrast of the texture at each visit, within `CONTRAST`."""
    return self.texture_start + self.texture_rate * np.array(self.times)

  def labels(self) -> dict[str, str]:
    """The columns of the table that can be learned."""
    return {
      "last_size": f"{self.sizes[-1]:.4f}",
      "shape": self.shape,
      "texture": self.texture,
      "growth_rate": f"{self.rate:.4f}",
      "growth": "fast" if self.rate >= math.sqrt(math.prod(RATE)) else "slow",
    }


def make_subjects(count: int, seed: int) -> list[Subject]:
  """Draws subjects."""
  rng = np.random.default_rng([seed, 1])
  # Half of the rates on either side of the middle, and each class of shape and
  # texture equally often: one in a random order for each.
  halves = (rng.permutation(count) % 2 + rng.random(count)) / 2
  shapes, textures = rng.permutation(count) % 3, rng.permutation(count) % 3
  subjects = []
  for i in range(count):
    visits = int(rng.integers(VISITS[0], VISITS[1] + 1))
    gaps = _log_uniform(1.0, GAPS, rng.random(visits - 1))
    span = _log_uniform(*SPAN, rng.random())
    times = np.concatenate([[0.0], np.cumsum(gaps) / gaps.sum() * span])
    first, last = rng.uniform(*CONTRAST, 2)
    subjects.append(
      Subject(
        name=f"s{i:04d}",
        shape=SHAPES[shapes[i]],
        texture=TEXTURES[textures[i]],
        rate=float(_log_uniform(*RATE, halves[i])),
        start=float(rng.uniform(*START)),
        texture_rate=float((last - first) / span),
        texture_start=float(first),
        times=tuple(times.round(4).tolist()),
        seed=int(rng.integers(2**31)),
      )
    )
  return subjects


def _log_uniform(low: float, high: float, u: np.ndarray | float):
  """The value at share `u` of a range that is even in its logarithm."""
  return low * (high / low) ** u


def draw(
  subject: Subject, size_px: int = 48, color: bool = False
) -> UInt8[np.ndarray, "t h w c"]:
  """Draws all visits of a subject."""
  rng = np.random.default_rng([subject.seed, 2])
  side = size_px * _OVERSAMPLING
  unit = size_px / 48  # sizes are stated for 48 px
  centre = size_px / 2 + rng.uniform(-2, 2, 2) * unit
  angle = rng.uniform(0, 2 * np.pi)
  back = rng.uniform(0.15, 0.4)
  bright = float(back + rng.uniform(0.3, 0.45))
  wave = float(rng.uniform(3.5, 5.0))
  noise = rng.uniform(0.01, 0.03)
  coarse = rng.standard_normal((5, 5)).astype(np.float32)
  ground = back + rng.uniform(0.02, 0.06) * cv2.resize(
    coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC
  )
  tint = rng.uniform(0.8, 1.0, 3) if color else np.ones(1)
  pictures = []
  for radius, contrast in zip(
    subject.sizes.tolist(), subject.contrasts.tolist(), strict=True
  ):
    # A patient never stands exactly where they stood before.
    left, top = (centre + rng.normal(0, 0.3, 2) * unit).tolist()
    turned = float(angle + rng.normal(0, 0.03))
    grid = ((np.arange(side) + 0.5) / _OVERSAMPLING).astype(np.float32)
    x, y = np.meshgrid((grid - left) / unit, (grid - top) / unit)
    u = math.cos(turned) * x + math.sin(turned) * y
    v = math.cos(turned) * y - math.sin(turned) * x
    pattern = _pattern(subject.texture, u, v, wave)
    value = bright + 0.16 * contrast * pattern
    inside = _inside(subject.shape, u, v, radius)
    inside, value = (
      cv2.resize(
        a.astype(np.float32), (size_px, size_px), interpolation=cv2.INTER_AREA
      )
      for a in (inside, np.where(inside, value, 0))
    )
    picture = ground * (1 - inside) + value
    picture = picture * rng.normal(1, 0.02)  # no two exposures are the same
    picture = picture[..., None] * tint
    picture = picture + rng.normal(0, noise, picture.shape)
    pictures.append(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8))
  return np.stack(pictures)


def _inside(
  shape: str,
  u: Float[np.ndarray, "h w"],
  v: Float[np.ndarray, "h w"],
  radius: float,
) -> np.ndarray:
  """Where the object is; all shapes of one radius have the same area."""
  if shape == "disc":
    return u**2 + v**2 <= radius**2
  if shape == "square":
    half = radius * math.sqrt(math.pi) / 2
    return np.maximum(np.abs(u), np.abs(v)) <= half
  # r = m (1 + 0.3 cos 5a) has the area pi m^2 (1 + 0.3^2 / 2).
  mean = radius / math.sqrt(1 + 0.3**2 / 2)
  edge = mean * (1 + 0.3 * np.cos(5 * np.arctan2(v, u)))
  return u**2 + v**2 <= edge**2


def _pattern(
  texture: str,
  u: Float[np.ndarray, "h w"],
  v: Float[np.ndarray, "h w"],
  wave: float,
) -> np.ndarray:
  """The texture at full contrast, -1 to 1; it does not grow with the object."""
  k = 2 * np.pi / wave
  if texture == "stripes":
    return np.sin(k * u)
  if texture == "rings":
    return np.sin(k * np.hypot(u, v))
  return np.sin(k * u) * np.sin(k * v)


def write(
  out: pathlib.Path,
  subjects: Sequence[Subject],
  size_px: int = 48,
  color: bool = False,
  arrays: bool = False,
) -> None:
  """Writes pictures, `series.csv` and `truth.csv`."""
  images = out / "images"
  images.mkdir(parents=True, exist_ok=True)
  table, truth = [], []
  for subject in subjects:
    pictures = draw(subject, size_px, color)
    pictures = pictures if color else pictures[..., 0]
    # Real tables count calendar years.
    calendar = 2000 + subject.seed % 2000 / 100
    years = [f"{calendar + time:.4f}" for time in subject.times]
    if arrays:
      file = io.BytesIO()
      np.save(file, pictures)
      (images / f"{subject.name}.npy").write_bytes(file.getvalue())
      file = f"images/{subject.name}.npy"
      place = {"subject": subject.name, "file": file, "times": ";".join(years)}
      table.append({**place, **subject.labels()})
    for number, picture in enumerate(pictures):
      name = f"{subject.name}_{number:02d}.png"
      if not arrays:
        data = imagecodecs.png_encode(picture)
        (images / name).write_bytes(data)
        place = {"file": f"images/{name}", "time": years[number]}
        table.append({"subject": subject.name, **place, **subject.labels()})
      truth.append(
        {
          "subject": subject.name,
          "visit": number,
          "years": f"{subject.times[number]:.4f}",
          "size": f"{subject.sizes[number]:.4f}",
          "contrast": f"{subject.contrasts[number]:.4f}",
          "growth_rate": f"{subject.rate:.4f}",
          "texture_rate": f"{subject.texture_rate:.4f}",
        }
      )
  tables.write(out / TABLE, list(table[0]), table)
  tables.write(out / TRUTH, list(truth[0]), truth)


def main(argv: list[str] | None = None) -> None:
  """Command line: `python -m data_prep.synthetic.series --out=...`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.synthetic.series",
    description="Makes small longitudinal image series with known dynamics.",
  )
  parser.add_argument("--out", required=True, help="output folder")
  parser.add_argument("--subjects", type=int, default=800)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--size_px", type=int, default=48)
  parser.add_argument("--color", action="store_true")
  parser.add_argument(
    "--arrays", action="store_true", help="one .npy a subject, not PNG files"
  )
  args = parser.parse_args(argv)
  if args.subjects < 1 or args.size_px < 16:
    parser.error("want at least 1 subject and 16 px")
  subjects = make_subjects(args.subjects, args.seed)
  out = pathlib.Path(args.out)
  write(out, subjects, args.size_px, args.color, args.arrays)
  print(f"{len(subjects)} subjects in {out / TABLE}")


if __name__ == "__main__":
  main()
