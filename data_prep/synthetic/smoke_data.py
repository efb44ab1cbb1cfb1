"""A few small shards in a second, for `:smoke` and for tests.

Strips of coloured noise, coarse and fine, drift as real ones do; slides,
patients and splits exist; nothing can be learned from them but smoothness. For
data with structure see `data_prep/synthetic/slides.py`, which draws slides.
"""

import pathlib

import cv2
import numpy as np
import simplejpeg

from data_prep import records, shards, targets

SPLITS = {"slide_a": "train", "slide_b": "train", "slide_c": "val"}


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """Coloured noise at three scales, uint8 [h, w, 3]."""
  image = np.full((height, width, 3), 180.0, np.float32)
  for size, strength in ((3, 8.0), (8, 20.0), (24, 25.0)):
    shape = (height // size + 2, width // size + 2, 3)
    coarse = rng.standard_normal(shape).astype(np.float32)
    image += strength * cv2.resize(
      coarse, (width, height), interpolation=cv2.INTER_CUBIC
    )
  return np.clip(image, 0, 255).astype(np.uint8)


def drift_record(
  slide_id: str,
  index: int,
  frames: int,
  window_px: int,
  step_px: int,
  quality: int = 85,
) -> records.SequenceRecord:
  """One strip with a window drifting right; a function of its name."""
  rng = np.random.default_rng([index, *slide_id.encode()])
  strip = texture(rng, window_px, window_px + (frames - 1) * step_px)
  left = np.arange(frames, dtype=np.float32) * step_px
  box = np.zeros((frames, 4), np.float32)
  box[:, 0], box[:, 2:] = left, window_px
  x, y = rng.integers(500, 5000, 2)
  centre = np.stack([x + left, np.full(frames, y, np.float32)], axis=1)
  return records.SequenceRecord(
    sequence_id=f"{slide_id}/{index}_x{x}_y{y}_h0",
    slide_id=slide_id,
    patient_id=f"patient_of_{slide_id}",
    panels=(simplejpeg.encode_jpeg(strip, quality=quality),),
    frame_panel=np.zeros(frames, np.int32),
    frame_box=box,
    frame_level0_xy=centre.astype(np.float32),
    time=left,
    frame_mask=np.ones(frames, np.float32),
    mpp=1.0,
    heading_deg=0.0,
  )


def make_shards(
  folder: pathlib.Path,
  sequences: int = 16,
  frames: int = 12,
  window_px: int = 40,
  step_px: int = 4,
) -> pathlib.Path:
  """Writes `<folder>/shards`, unless they are there already.

  Args:
    folder: where; made if it is missing.
    sequences: records of each of the slides in `SPLITS`.
    frames: stored frames of a sequence.
    window_px: side of a frame.
    step_px: drift from one frame to the next.

  Returns:
    The TFDS directory.
  """
  out = folder / "shards"
  if (out / "features.json").is_file():
    return out
  panel_px = (window_px, window_px + (frames - 1) * step_px)
  layout = shards.Layout(frames, panels=1, panel_px=panel_px)
  parts, slides = [], {}
  for slide_id, split in SPLITS.items():
    path = folder / "parts" / slide_id / "sequences.array_record"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = (
      drift_record(slide_id, i, frames, window_px, step_px)
      for i in range(sequences)
    )
    count, size = shards.write_part(path, made, layout)
    parts.append(shards.Part(path, slide_id, split, count, size))
    slides[slide_id] = {
      "mpp": 1.0,
      "mpp_origin": "synthetic",
      "level0_px": [6000, 6000],
      "split": split,
      "patient_id": f"patient_of_{slide_id}",
      "sequences": count,
    }
  config = {"geometry": "drift", "frames": frames, "window_px": window_px,
            "step_px": step_px, "sequences": sequences}  # fmt: skip
  metadata = {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(config),
    "geometry": "drift",
    "frames": frames,
    "panels": 1,
    "panel_px": list(panel_px),
    "frame_px": [window_px, window_px],
    "time_unit": "um",
    "mpp": 1.0,
    "slides": slides,
    "config": config,
  }
  shards.assemble(
    out,
    parts,
    layout,
    metadata,
    targets.TargetTable((), {slide: () for slide in SPLITS}),
  )
  return out
