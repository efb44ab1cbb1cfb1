r"""Clips a second of the loader on one thread.

    python benchmarks/loader.py [--slide=SLIDE.tiff]

Writes 200 drift sequences at the defaults of preparation (window 336 px, 96
frames, one strip of 336 x 1096 px) twice: as strips, read through the real
loader; and as their 16 training frames (every fourth) in 16 JPEGs of 336 x 336
px, read through the same code. Same pixels, same JPEG settings, same process,
in turns, so that the ratio of the rates does not depend on what else the
machine does. A sequence is one clip. Without `--slide` the strips are drawn by
data_prep/synthetic/slides.py; with it they are cut from the slide's middle,
from places that are not glass.

"decoded" is the loader's whole work: read, parse, decode, batch.
"""

import argparse
import pathlib
import tempfile
import time

import harness
import numpy as np
import simplejpeg
from absl import flags

from data_prep import records, shards, targets
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources

WINDOW, STEP, FRAMES, CHOSEN = 336, 8, 96, 16
STRIP = WINDOW + (FRAMES - 1) * STEP
QUALITY = {"quality": 90, "colorsubsampling": "420"}


def pictures_of(slide: str, scratch: pathlib.Path, count: int):
  """Strips of tissue, uint8 [336, 1096, 3], from the middle outwards."""
  from data_prep.synthetic import slides as synthetic
  from data_prep.wsi import slides

  if not slide:
    synthetic.make_cohort(scratch / "slides", slides=1, patients=1)
    slide = str(sorted((scratch / "slides").glob("*.tiff"))[0])
  found = []
  with slides.Slide.open(pathlib.Path(slide), default_mpp=1.0) as opened:
    width, height = opened.level0_px
    for y in range(WINDOW, height - WINDOW, WINDOW // 2):
      for x in range(STRIP // 2, width - STRIP // 2, STRIP // 2):
        strip = opened.read_region((x, y), (STRIP, WINDOW), opened.mpp)
        if strip.std() > 20 and np.median(strip) < 225:
          found.append(np.ascontiguousarray(strip))
        if len(found) == count:
          return found
  if not found:
    raise SystemExit(f"{slide}: no tissue")
  return [found[i % len(found)] for i in range(count)]


def write(folder: pathlib.Path, pictures, is_strip: bool) -> int:
  """Writes one data set; returns the bytes of JPEG in it."""
  chosen = np.arange(CHOSEN) * 4

  def record(index):
    left = np.arange(FRAMES) * STEP if is_strip else chosen * 0
    panel = np.zeros(FRAMES, int) if is_strip else np.arange(CHOSEN)
    cuts = [pictures[index]]
    if not is_strip:
      cuts = [pictures[index][:, c * STEP : c * STEP + WINDOW] for c in chosen]
    jpegs = tuple(
      simplejpeg.encode_jpeg(np.ascontiguousarray(cut), **QUALITY)
      for cut in cuts
    )
    t = len(panel)
    box = np.full((t, 4), WINDOW, np.float32)
    box[:, 0], box[:, 1] = left, 0
    return records.SequenceRecord(
      sequence_id=f"slide/{index}",
      slide_id="slide",
      patient_id="patient",
      panels=jpegs,
      frame_panel=panel.astype(np.int32),
      frame_box=box,
      frame_level0_xy=np.zeros((t, 2), np.float32),
      time=np.arange(t, dtype=np.float32),
      frame_mask=np.ones(t, np.float32),
      mpp=0.25,
      heading_deg=0.0,
    )

  panels = 1 if is_strip else CHOSEN
  size = (WINDOW, STRIP if is_strip else WINDOW)
  frames = FRAMES if is_strip else CHOSEN
  made = [record(i) for i in range(len(pictures))]
  layout = shards.Layout(frames, panels, size)
  folder.mkdir(parents=True)
  path = folder / "part.array_record"
  count, total = shards.write_part(path, made, layout)
  part = shards.Part(path, "slide", "train", count, total)
  metadata = {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": "benchmark",
    "geometry": "drift",
    "frames": frames,
    "panels": panels,
    "panel_px": list(size),
    "frame_px": [WINDOW, WINDOW],
    "time_unit": "um",
  }
  table = targets.TargetTable((), {"slide": ()})
  shards.assemble(folder / "shards", [part], layout, metadata, table)
  return sum(len(jpeg) for r in made for jpeg in r.panels) // len(made)


def rate(source, batch_size: int, steps: int) -> float:
  """Clips a second through the real loader, one thread, after a warm-up."""
  batches = loader.train_batches(
    source, seed=0, batch_size=batch_size, start_step=0, stop_step=steps + 3
  )
  with loader.closing(batches):
    for _ in range(3):
      next(batches)
    started = time.perf_counter()
    clips = sum(len(batch["index"]) for batch in batches)
    return clips / (time.perf_counter() - started)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--slide", default="")
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    pictures = pictures_of(options.slide, scratch, 200)
    strip_bytes = write(scratch / "strips", pictures, is_strip=True)
    frame_bytes = write(scratch / "frames", pictures, is_strip=False)
    strips = sources.RecordSource(scratch / "strips", "train")
    frames = sources.RecordSource(scratch / "frames", "train")
    started = time.perf_counter()
    for index in range(len(strips)):
      strips.record(index)
    parsed = len(strips) / (time.perf_counter() - started)
    pairs = [
      (rate(strips, 8, 100), rate(frames, 8, 20)) for _ in range(options.rounds)
    ]
  strip_rate, frame_rate = (
    float(np.median(r)) for r in zip(*pairs, strict=True)
  )
  result = {
    "pixels": pathlib.Path(options.slide).name or "synthetic slide",
    "jpeg": QUALITY,
    "strip_kB": round(strip_bytes / 1e3, 1),
    "frames_kB": round(frame_bytes / 1e3, 1),
    "parsed_records_per_s": round(parsed),
    "strip_clips_per_s": round(strip_rate),
    "strip_clips_per_s_rounds": [round(s) for s, _ in pairs],
    "frames_clips_per_s": round(frame_rate, 1),
    "frames_clips_per_s_rounds": [round(f, 1) for _, f in pairs],
    "ratio": round(strip_rate / frame_rate, 2),
    "threads": 1,
    "load_average_at_end": harness.load_average(),
    "machine": harness.machine(),
  }
  name = "loader_synthetic" if not options.slide else "loader_slide"
  print(harness.write_result(harness.RESULTS / f"{name}.json", result))


if __name__ == "__main__":
  main()
