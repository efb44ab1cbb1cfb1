"""Times drift sequences against the recipe they replace, in one run.

  python benchmarks/preparation.py             (real slide, about 2 minutes)

The slide is `slides/bs9_duodenum_giardiasis_he2_40x.tiff` in the folder that
`WSISEQ_DATA` names (`../shared/data` without it); `--slide` takes another one
of at least 40x. Both sides use one process, one thread, the same centres and
headings:

- ours: `cut_sequences` and `write_part`: read the region at exactly 0.25 um/px,
  cut and turn eight strips, encode them, write the ArrayRecord file.
- baseline: read a 2208 px square with OpenSlide, and for each heading warp the
  window out of it 96 times and write the frames as an mp4 at 10 fps. It does
  not resample to 0.25 um/px, which is work we do and it does not.

The two take turns, centre by centre, so that a busy machine slows both.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time

import cv2
import harness
import numpy as np
import openslide

from configs import prep_wsi
from data_prep import shards
from data_prep.sequences import cut as sequences
from data_prep.sequences import geometries
from data_prep.wsi import slides, tissue

FRAMES, STEP, WINDOW, REGION = 96, 8, 336, 2208


def baseline(
  handle: openslide.OpenSlide,
  centre: tuple[int, int],
  headings: tuple[float, ...],
  folder: pathlib.Path,
) -> None:
  """Makes the videos of one centre the way the reference recipe does."""
  corner = (centre[0] - REGION // 2, centre[1] - REGION // 2)
  image = handle.read_region(corner, 0, (REGION, REGION)).convert("RGB")
  region = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
  square = np.float32([[0, 0], [WINDOW, 0], [WINDOW, WINDOW], [0, WINDOW]])
  for heading in headings:
    angle = math.radians(heading)
    u = np.array([math.cos(angle), -math.sin(angle)])
    v = np.array([math.sin(angle), math.cos(angle)])
    path = folder / f"{heading:g}.mp4"
    writer = cv2.VideoWriter(
      str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (WINDOW, WINDOW)
    )
    for frame in range(FRAMES):
      middle = REGION / 2 + u * STEP * frame
      corners = [
        middle + WINDOW / 2 * (a * u + b * v)
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
      ]
      matrix = cv2.getPerspectiveTransform(np.float32(corners), square)
      writer.write(cv2.warpPerspective(region, matrix, (WINDOW, WINDOW)))
    writer.release()
    if path.stat().st_size < 1000:
      raise RuntimeError("OpenCV wrote no video: the baseline means nothing")


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--slide", default=str(harness.real_slide()))
  parser.add_argument("--centres", type=int, default=24)
  parser.add_argument("--baseline-centres", type=int, default=6)
  parser.add_argument("--result", default="", help="JSON file to write")
  args = parser.parse_args()
  cv2.setNumThreads(1)
  config = prep_wsi.get_config()
  spec = geometries.from_config(config.to_dict())
  slide = slides.Slide.open(args.slide)
  thumbnail, downsample = slide.thumbnail(config.tissue.thumbnail_px)
  mask = tissue.tissue_mask(thumbnail, mpp=slide.mpp * downsample)
  centres = sequences.choose_centres(
    mask,
    downsample,
    slide,
    spec,
    spacing_um=config.sequence.spacing_um,
    max_centres=args.centres,
    min_tissue=config.sequence.min_tissue,
    all_headings=True,
    rng=sequences.slide_rng(0, "benchmark"),
  )
  handle = openslide.OpenSlide(args.slide)
  ours, theirs = [], []
  count = len(spec.headings_deg)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)

    def cut(number: int) -> float:
      begin = time.perf_counter()
      shards.write_part(
        folder / f"{number}.array_record",
        sequences.cut_sequences(
          slide,
          centres[number],
          spec,
          slide_id="slide",
          patient_id="patient",
          jpeg=config.jpeg,
        ),
        spec.layout(),
      )
      return (time.perf_counter() - begin) / count * 1e3

    # The first video and the first record load libraries; not timed.
    cut(0)
    baseline(handle, centres[0].xy, spec.headings_deg[:1], folder)
    for number, centre in enumerate(centres):
      ours.append(cut(number))
      if number < args.baseline_centres:
        begin = time.perf_counter()
        baseline(handle, centre.xy, spec.headings_deg, folder)
        theirs.append((time.perf_counter() - begin) / count * 1e3)
    # As a slide is really done: all centres into one file.
    begin = time.perf_counter()
    made, num_bytes = shards.write_part(
      folder / "all.array_record",
      (
        record
        for centre in centres
        for record in sequences.cut_sequences(
          slide,
          centre,
          spec,
          slide_id="slide",
          patient_id="patient",
          jpeg=config.jpeg,
        )
      ),
      spec.layout(),
    )
    whole = (time.perf_counter() - begin) / made * 1e3
  ratio = statistics.median(theirs) / statistics.median(ours)
  result = {
    "slide": pathlib.Path(args.slide).name,
    "machine": (
      f"{harness.cpu_name()}, {os.cpu_count()} cores, one process used"
    ),
    "centres": len(centres),
    "headings": count,
    "ours_ms_per_sequence_median": round(statistics.median(ours), 2),
    "ours_ms_per_sequence_min": round(min(ours), 2),
    "ours_ms_per_sequence_one_file": round(whole, 2),
    "baseline_ms_per_sequence_median": round(statistics.median(theirs), 1),
    "baseline_ms_per_sequence_min": round(min(theirs), 1),
    "baseline_centres": len(theirs),
    "ratio_of_medians": round(ratio, 1),
    "ratio_of_minima": round(min(theirs) / min(ours), 1),
    "bytes_per_sequence": num_bytes // made,
  }
  for key, value in result.items():
    print(f"{key:<36}{value}")
  if args.result:
    harness.write_result(args.result, result)
  return 0


if __name__ == "__main__":
  sys.exit(main())
