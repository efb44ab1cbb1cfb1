"""Times reading of tissue tiles and of drift regions, and compares pixels.

  python benchmarks/tile_reading.py                 (about half a minute)

The slide is `slides/bs9_duodenum_giardiasis_he2_40x.tiff` in the folder that
`WSISEQ_DATA` names (`../shared/data` without it); `--slide` takes any other
tiled JPEG pyramid. One process, one thread, file in the page cache; the methods
take turns, and the best of `--repeats` rounds counts, so that a busy machine
slows all alike. Every tile is compared with OpenSlide's.

Tiles: all native tiles with at least half tissue, one by one.
Regions: squares of 2208 px at 0.25 um/px (scan: 0.2528), at fractional places,
around random tissue tiles; nothing is cached between them.

Writes `benchmarks/results/tile_reading.json`.
"""

import argparse
import os
import pathlib
import platform
import time
from collections.abc import Callable
from unittest import mock

import cv2
import harness
import imagecodecs
import numpy as np
import openslide
import simplejpeg

from data_prep.wsi import tissue
from data_prep.wsi.slides import Slide

REGION_PX, REGION_MPP = 2208, 0.25


def tissue_tiles(slide: Slide, tile_px: int) -> list[tuple[int, int]]:
  """Returns (column, row) of the tiles that are at least half tissue."""
  thumbnail, downsample = slide.thumbnail(1024)
  mask = tissue.tissue_mask(thumbnail, mpp=slide.mpp * downsample)
  step = tile_px / downsample
  tiles = []
  for row in range(slide.level0_px[1] // tile_px):
    for column in range(slide.level0_px[0] // tile_px):
      rows = slice(round(row * step), round((row + 1) * step))
      columns = slice(round(column * step), round((column + 1) * step))
      if mask[rows, columns].mean() >= 0.5:
        tiles.append((column, row))
  return tiles


def take_turns(
  methods: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
  """Returns the best time of each method, in seconds."""
  best = dict.fromkeys(methods, float("inf"))
  for _ in range(repeats):
    for name, method in methods.items():
      start = time.perf_counter()
      method()
      best[name] = min(best[name], time.perf_counter() - start)
  return best


def time_tiles(path: pathlib.Path, repeats: int) -> dict:
  """Reads tissue tiles with each candidate."""
  with Slide.open(path) as slide:
    if slide.reader != "tiled":
      raise SystemExit(f"{path}: {slide.reader_reason}")
    pyramid = slide._pyramid
    level = pyramid.levels[0]
    size = level.tile_px
    tiles = tissue_tiles(slide, size[0])
    columns = -(-level.size_px[0] // size[0])
    handle = openslide.OpenSlide(path)
    file = os.open(path, os.O_RDONLY)

    def raw(column, row):
      index = row * columns + column
      data = os.pread(file, level.lengths[index], level.offsets[index])
      return level.header + data[2:]

    def with_openslide(column, row):
      corner = column * size[0], row * size[1]
      image = handle.read_region(corner, 0, size)
      return np.asarray(image.convert("RGB"))

    def read_all(reader):
      pyramid.clear()  # the cache would answer from the second round on
      for tile in tiles:
        reader(*tile)

    readers = {
      "OpenSlide read_region": with_openslide,
      "imagecodecs jpeg8": lambda c, r: imagecodecs.jpeg8_decode(raw(c, r)),
      "OpenCV imdecode": lambda c, r: cv2.imdecode(
        np.frombuffer(raw(c, r), np.uint8), cv2.IMREAD_COLOR_RGB
      ),
      "simplejpeg": lambda c, r: simplejpeg.decode_jpeg(raw(c, r), strict=True),
      "simplejpeg, fast upsampling": lambda c, r: simplejpeg.decode_jpeg(
        raw(c, r), strict=True, fastupsample=True
      ),
      "data_prep.wsi.tiled": lambda c, r: pyramid.tile(0, c, r),
    }
    reference = [with_openslide(*tile).astype(np.int16) for tile in tiles]
    rows = {}
    seconds = take_turns(
      {
        name: lambda reader=reader: read_all(reader)
        for name, reader in readers.items()
      },
      repeats,
    )
    for name, reader in readers.items():
      difference = [
        np.abs(reader(*tile) - expected)
        for tile, expected in zip(tiles, reference, strict=True)
      ]
      rows[name] = {
        "tiles_per_s": round(len(tiles) / seconds[name], 1),
        "times_openslide": round(
          seconds["OpenSlide read_region"] / seconds[name], 2
        ),
        "mean_abs_difference": round(float(np.mean(difference)), 4),
        "max_difference": int(np.max(difference)),
      }
    handle.close()
    os.close(file)
  return {"tiles": len(tiles), "tile_px": list(size), "methods": rows}


def time_regions(path: pathlib.Path, repeats: int, count: int) -> dict:
  """Reads drift regions with both readers."""
  rng = np.random.default_rng(0)
  with Slide.open(path) as ours, Slide.open(path, reader="openslide") as ref:
    size = ours._pyramid.levels[0].tile_px[0]
    tiles = tissue_tiles(ours, size)
    margin = REGION_PX * REGION_MPP / ours.mpp / 2
    centres = []
    while len(centres) < count:
      tile = np.array(tiles[rng.integers(len(tiles))])
      centre = (tile + rng.random(2)) * size
      inside = margin < centre, centre < np.array(ours.level0_px) - margin
      if np.all(inside):
        centres.append(centre)

    def read(slide, centre):
      if slide is ours:
        slide._pyramid.clear()
      return slide.read_region(centre, (REGION_PX, REGION_PX), REGION_MPP)

    times = {"data_prep.wsi.tiled": [], "OpenSlide": []}
    difference, decoded = [], []
    for centre in centres:
      decode = simplejpeg.decode_jpeg
      with mock.patch.object(simplejpeg, "decode_jpeg", wraps=decode) as seen:
        pair = [read(slide, centre) for slide in (ours, ref)]
      decoded.append(seen.call_count)
      difference.append(np.abs(pair[0].astype(np.int16) - pair[1]))
      best = take_turns(
        {
          "data_prep.wsi.tiled": lambda c=centre: read(ours, c),
          "OpenSlide": lambda c=centre: read(ref, c),
        },
        repeats,
      )
      for name, seconds in best.items():
        times[name].append(1000 * seconds)
  return {
    "regions": count,
    "region_px": REGION_PX,
    "mpp": REGION_MPP,
    "tiles_decoded_mean": round(float(np.mean(decoded)), 1),
    "mean_abs_difference": round(float(np.mean(difference)), 4),
    "max_difference": int(np.max(difference)),
    "ms": {
      name: {
        "median": round(float(np.median(values)), 1),
        "max": round(float(np.max(values)), 1),
      }
      for name, values in times.items()
    },
  }


def main() -> None:
  """Runs both comparisons, prints tables, writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--slide", type=pathlib.Path, default=harness.real_slide()
  )
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--regions", type=int, default=12)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=harness.RESULTS / "tile_reading.json",
  )
  options = parser.parse_args()
  cv2.setNumThreads(1)
  result = {
    "slide": options.slide.name,
    "machine": {
      "cpu": harness.cpu_name(),
      "cores": os.cpu_count(),
      "threads_used": 1,
      "python": platform.python_version(),
      "openslide": openslide.__library_version__,
      "opencv": cv2.__version__,
      "simplejpeg": simplejpeg.__version__,
      "imagecodecs": imagecodecs.__version__,
    },
    "aligned_tiles": time_tiles(options.slide, options.repeats),
    "drift_regions": time_regions(
      options.slide, options.repeats, options.regions
    ),
  }
  tiles = result["aligned_tiles"]
  print(f"{tiles['tiles']} tissue tiles of {tiles['tile_px'][0]} px")
  print(f"{'method':30}{'tiles/s':>9}{'x':>7}{'mean diff':>11}{'max':>5}")
  for name, row in tiles["methods"].items():
    print(
      f"{name:30}{row['tiles_per_s']:9.0f}{row['times_openslide']:7.2f}"
      f"{row['mean_abs_difference']:11.4f}{row['max_difference']:5d}"
    )
  regions = result["drift_regions"]
  print(
    f"\n{regions['regions']} regions of {REGION_PX} px at {REGION_MPP} um/px, "
    f"{regions['tiles_decoded_mean']} tiles each, mean difference "
    f"{regions['mean_abs_difference']}, max {regions['max_difference']}"
  )
  for name, row in regions["ms"].items():
    print(f"{name:30}{row['median']:8.1f} ms median{row['max']:8.1f} ms max")
  harness.write_result(options.out, result)


if __name__ == "__main__":
  main()
