"""Writes a small shard folder of random strips, for tests that only read."""

import pathlib

import numpy as np
import simplejpeg

from data_prep import records, shards
from data_prep.targets import Target, TargetTable

WINDOW_PX, STEP_PX, FRAMES = 32, 4, 9
STRIP_PX = WINDOW_PX + (FRAMES - 1) * STEP_PX
LAYOUT = shards.Layout(frames=FRAMES, panels=1, panel_px=(WINDOW_PX, STRIP_PX))


def strip_record(
  slide_id: str, index: int, patient_id: str = ""
) -> records.SequenceRecord:
  """Returns one drift sequence of smooth noise, a function of its name."""
  seed = [index, *slide_id.encode()]
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 255, (WINDOW_PX // 8, STRIP_PX // 8, 3), np.uint8)
  image = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))
  t = np.arange(FRAMES, dtype=np.float32)
  window = np.full(FRAMES, WINDOW_PX, np.float32)
  box = np.stack([t * STEP_PX, np.zeros_like(t), window, window], axis=1)
  start = rng.integers(100, 1000, 2)
  return records.SequenceRecord(
    sequence_id=f"{slide_id}/x{start[0]}_y{start[1]}_h0",
    slide_id=slide_id,
    patient_id=patient_id or f"patient_{slide_id}",
    panels=(simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420"),),
    frame_panel=np.zeros(FRAMES, np.int32),
    frame_box=box,
    frame_level0_xy=(start + np.stack([t * STEP_PX, 0 * t], 1)).astype(
      np.float32
    ),
    time=t * STEP_PX * 0.5,
    frame_mask=np.ones(FRAMES, np.float32),
    mpp=0.5,
    heading_deg=0.0,
  )


def write(
  out: pathlib.Path,
  splits: dict[str, str],
  sequences: int = 4,
) -> pathlib.Path:
  """Writes `out/shards` with `sequences` records for each slide.

  Args:
    out: the folder, made if it is missing.
    splits: slide id to split, one patient a slide.
    sequences: records of each slide.

  Returns:
    The TFDS folder.
  """
  parts, slides = [], {}
  for slide_id, split in splits.items():
    path = out / "parts" / slide_id / "sequences.array_record"
    path.parent.mkdir(parents=True, exist_ok=True)
    count, num_bytes = shards.write_part(
      path,
      (strip_record(slide_id, index) for index in range(sequences)),
      LAYOUT,
    )
    parts.append(shards.Part(path, slide_id, split, count, num_bytes))
    slides[slide_id] = {
      "mpp": 0.5,
      "mpp_origin": "tiff",
      "level0_px": [2048, 2048],
      "split": split,
      "patient_id": f"patient_{slide_id}",
      "sequences": count,
    }
  config = {"geometry": "drift", "mpp": 0.5}
  metadata = {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(config),
    "geometry": "drift",
    "frames": FRAMES,
    "panels": 1,
    "panel_px": list(LAYOUT.panel_px),
    "frame_px": [WINDOW_PX, WINDOW_PX],
    "time_unit": "um",
    "mpp": 0.5,
    "slides": slides,
    "config": config,
  }
  rows = {slide_id: (float(n % 2),) for n, slide_id in enumerate(splits)}
  table = TargetTable((Target("label", ("a", "b")),), rows)
  shards.assemble(out / "shards", parts, LAYOUT, metadata, table)
  return out / "shards"
