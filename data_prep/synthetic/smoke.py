"""Small shards in a second, for the presets `smoke` and for tests.

Strips of noise drift as real ones do; slides, patients and splits exist. From
the plain ones nothing can be learned but smoothness. The labelled ones are as
bright as the number `level` says, and its third is the class `kind`; `rare` is
unknown for a third of the patients and visible in nothing, `constant` is the
same for all. Data with structure: `data_prep/synthetic/slides.py`.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_prep import records, shards
from data_prep.targets import Target, TargetTable

SPLITS = {"slide_a": "train", "slide_b": "train", "slide_c": "val"}
LABELLED_PATIENTS = {"train": 24, "val": 9, "test": 12}
_FRAMES, _STEP_PX = 12, 4  # of the plain records
TARGETS = (
  Target("kind", ("dark", "middle", "bright")),
  Target("level"),
  Target("rare", ("no", "yes")),
  Target("constant"),
)


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
    panels=(simplejpeg.encode_jpeg(strip, quality=85),),
    frame_panel=np.zeros(frames, np.int32),
    frame_box=box,
    frame_level0_xy=centre.astype(np.float32),
    time=left,
    frame_mask=np.ones(frames, np.float32),
    mpp=1.0,
    heading_deg=0.0,
  )


def _labelled_record(
  patient: str, number: int, index: int
) -> records.SequenceRecord:
  """A strip whose brightness is its class and its number."""
  rng = np.random.default_rng([index, *patient.encode()])
  level = (60, 130, 200)[number % 3] + rng.uniform(-15, 15)
  plain = drift_record(patient, index, frames=8, window_px=32, step_px=2)
  strip = np.full((32, 32 + 7 * 2, 3), level, np.float32)
  strip += rng.normal(0, 4, strip.shape)
  jpeg = simplejpeg.encode_jpeg(strip.clip(0, 255).astype(np.uint8))
  rare = np.nan if number % 3 == 2 else float(number % 2)
  return dataclasses.replace(
    plain,
    sequence_id=f"{patient}/{index}",
    panels=(jpeg,),
    targets=np.array([number % 3, level, rare, 7.0], np.float32),
  )


def make_shards(
  folder: pathlib.Path,
  sequences: int = 16,
  window_px: int = 40,
) -> pathlib.Path:
  """Writes plain shards to `<folder>/shards`, unless they are there already."""
  made = {
    slide: [
      drift_record(slide, i, _FRAMES, window_px, _STEP_PX)
      for i in range(sequences)
    ]
    for slide in SPLITS
  }
  slides = {
    slide: {
      "mpp": 1.0,
      "mpp_origin": "synthetic",
      "level0_px": [6000, 6000],
      "split": split,
      "patient_id": f"patient_of_{slide}",
      "sequences": sequences,
    }
    for slide, split in SPLITS.items()
  }
  config = {
    "geometry": "drift",
    "frames": _FRAMES,
    "window_px": window_px,
    "step_px": _STEP_PX,
    "sequences": sequences,
  }
  table = TargetTable((), {slide: () for slide in SPLITS})
  return _write(folder, made, SPLITS, config, slides, table)


def make_labelled_shards(folder: pathlib.Path) -> pathlib.Path:
  """Writes labelled shards to `<folder>/shards`, unless they are there."""
  made = {
    split: [
      _labelled_record(f"{split}_{number}", number, index)
      for number in range(patients)
      for index in range(2)
    ]
    for split, patients in LABELLED_PATIENTS.items()
  }
  rows = {
    record.sequence_id: tuple(map(float, record.targets))
    for part in made.values()
    for record in part
  }
  config = {"geometry": "drift", "labelled": True}
  splits = {split: split for split in made}
  return _write(folder, made, splits, config, {}, TargetTable(TARGETS, rows))


def _write(
  folder: pathlib.Path,
  made: Mapping[str, Sequence[records.SequenceRecord]],
  splits: Mapping[str, str],
  config: Mapping[str, Any],
  slides: Mapping[str, Any],
  table: TargetTable,
) -> pathlib.Path:
  out = folder / "shards"
  if (out / "features.json").is_file():
    return out
  first = next(iter(made.values()))[0]
  frames, (_, _, _, window_px) = len(first.time), first.frame_box[0]
  window_px = int(window_px)
  width = int(first.frame_box[-1, 0]) + window_px
  layout = shards.Layout(frames, panels=1, panel_px=(window_px, width))
  parts = []
  for name, part in made.items():
    path = folder / "parts" / name / "sequences.array_record"
    path.parent.mkdir(parents=True, exist_ok=True)
    count, size = shards.write_part(path, iter(part), layout)
    parts.append(shards.Part(path, name, splits[name], count, size))
  metadata = {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(config),
    "geometry": "drift",
    "frames": frames,
    "panels": 1,
    "panel_px": list(layout.panel_px),
    "frame_px": [window_px, window_px],
    "time_unit": "um",
    "mpp": 1.0,
    "slides": slides,
    "config": config,
  }
  shards.assemble(out, parts, layout, metadata, table)
  return out


_KINDS = {"": make_shards, "labelled": make_labelled_shards}


@functools.cache
def cached(kind: str = "") -> pathlib.Path:
  """Shards in the machine's folder for temporary files, made at first use."""
  if kind not in _KINDS:
    raise ValueError(
      f"config.data.path = 'synthetic:{kind}': must be one of 'synthetic', "
      "'synthetic:labelled'"
    )
  # Other code draws other shards.
  code = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:12]
  name = f"wsiseq_smoke_{os.getuid()}_{kind or 'plain'}_{code}"
  folder = pathlib.Path(tempfile.gettempdir()) / name
  if not folder.is_dir():
    draft = pathlib.Path(tempfile.mkdtemp(prefix=name))
    _KINDS[kind](draft)
    try:
      draft.rename(folder)
    except OSError:  # another process was faster
      shutil.rmtree(draft)
  return folder / "shards"
