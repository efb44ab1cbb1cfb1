"""The picture of the README: a slide, a path on it, its frames, clusters.

  make demo SLIDES=folder
  python benchmarks/overview_picture.py --slide=NAME

Needs what `make demo` left in `--demo`: the preparation's thumbnail and
records, and the features of the job `embed`.
"""

import argparse
import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from data_prep import records
from wsiseq_jax import charts
from wsiseq_jax.data import source
from wsiseq_jax.reports import figures
from wsiseq_jax.reports.sequences import data
from wsiseq_jax.search import clustering

CLUSTERS, FRAMES, SLIDE_PX = 6, 6, 460


def embeddings(run: pathlib.Path) -> dict[str, np.ndarray]:
  """All splits, one after the other."""
  parts = [dict(np.load(p)) for p in sorted(run.glob("embeddings/*.npz"))]
  for part, path in zip(
    parts, sorted(run.glob("embeddings/*.npz")), strict=True
  ):
    part["split"] = np.full(len(part["index"]), path.stem)
  names = ("features", "slide_id", "frame_level0_xy", "index", "split")
  return {name: np.concatenate([p[name] for p in parts]) for name in names}


def plain(axes, title: str) -> None:
  axes.set_title(title, fontsize=9, loc="left")
  axes.set_axis_off()


def draw(demo: pathlib.Path, slide_id: str, number: int) -> Figure:
  """The four panels."""
  found = embeddings(demo / "run")
  prep = data.read_preparation(demo / "prep")
  (slide,) = (s for s in prep.slides if s.slide_id == slide_id)
  groups = clustering.kmeans(found["features"], CLUSTERS, seed=0)
  mine = np.flatnonzero(found["slide_id"] == slide_id)
  chosen = mine[number]
  thumbnail, downsample = slide.thumbnail(SLIDE_PX)
  record = source.RecordSource(
    demo / "prep" / "shards", str(found["split"][chosen])
  ).record(int(found["index"][chosen]))
  (strip,) = records.decode_panels(record)

  figure = Figure(figsize=(9.6, 3.0), layout="constrained")
  axes = figure.subplot_mosaic(
    [["slide", "strip", "clusters"], ["slide", "frames", "clusters"]],
    width_ratios=(1, 1.5, 1),
    height_ratios=(1.2, 1),
  )
  axes["slide"].imshow(thumbnail)
  path = found["frame_level0_xy"][chosen] / downsample
  for colour, width in (("white", 6.5), ("#d00000", 4.0)):
    axes["slide"].plot(
      *path.T, color=colour, linewidth=width, solid_capstyle="round"
    )
  axes["slide"].plot(
    *path.mean(axis=0),
    "o",
    color="#d00000",
    markersize=26,
    fillstyle="none",
    markeredgewidth=2,
  )
  plain(axes["slide"], "1  a slide, and a path on it")

  axes["strip"].imshow(strip)
  boxes = record.frame_box
  for box in (boxes[0], boxes[len(boxes) // 2], boxes[-1]):
    x, y, width, height = box
    axes["strip"].add_patch(
      Rectangle(
        (x, y), width, height, fill=False, edgecolor=charts.ACCENT, linewidth=2
      )
    )
  plain(axes["strip"], f"2  a window drifts along it: {len(boxes)} frames")

  cut = []
  for t in np.linspace(0, len(boxes) - 1, FRAMES).round().astype(int):
    x, y, width, height = np.round(boxes[t]).astype(int)
    cut.append(strip[y : y + height, x : x + width])
  axes["frames"].imshow(figures.strip(np.stack(cut), 96))
  plain(axes["frames"], "3  a network learns to fill in what is hidden")

  picture = figures.cluster_picture(
    thumbnail,
    downsample,
    found["frame_level0_xy"][mine],
    groups.assignment[mine],
  )
  axes["clusters"].imshow(picture)
  plain(axes["clusters"], "4  clusters of what it learned")
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--demo", type=pathlib.Path, default="out/demo")
  parser.add_argument("--slide", default="syn_00")
  parser.add_argument("--sequence", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, default="docs/overview.png")
  args = parser.parse_args()
  charts.to_png(draw(args.demo, args.slide, args.sequence), args.out)
  # Colours of a palette: a quarter of the bytes.
  with Image.open(args.out) as picture:
    small = picture.convert("RGB").quantize(192, dither=Image.Dither.NONE)
  small.save(args.out, optimize=True)
  print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
