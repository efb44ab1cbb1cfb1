"""Small shards with labels, for `configs/probe.py:smoke` and for tests.

Strips as in `smoke_data`, but plain: their brightness is the number `level`,
and its third the class `kind`. `rare` is unknown for a third of the patients
and told by nothing, `constant` is the same for all.
"""

import dataclasses
import pathlib

import numpy as np
import simplejpeg

from data_prep import records, shards
from data_prep.synthetic import smoke_data
from data_prep.targets import Target, TargetTable

FRAMES, WINDOW_PX, STEP_PX = 8, 32, 2
CLASSES = ("dark", "middle", "bright")
PATIENTS = {"train": 24, "val": 9, "test": 12}
SEQUENCES = 2  # of a patient


def labelled_record(
  patient: str, number: int, index: int
) -> records.SequenceRecord:
  """A strip whose brightness is its class and its number."""
  name = number % 3
  rng = np.random.default_rng([index, *patient.encode()])
  level = (60, 130, 200)[name] + rng.uniform(-15, 15)
  plain = smoke_data.drift_record(patient, index, FRAMES, WINDOW_PX, STEP_PX)
  strip = np.full(
    (WINDOW_PX, WINDOW_PX + (FRAMES - 1) * STEP_PX, 3), level, np.float32
  )
  strip += rng.normal(0, 4, strip.shape)
  jpeg = simplejpeg.encode_jpeg(strip.clip(0, 255).astype(np.uint8))
  # One label is unknown for a third of the patients.
  unknown = np.nan if number % 3 == 2 else float(number % 2)
  return dataclasses.replace(
    plain,
    sequence_id=f"{patient}/{index}",
    panels=(jpeg,),
    targets=np.array([name, level, unknown, 7.0], np.float32),
  )


def make_shards(folder: pathlib.Path) -> pathlib.Path:
  """Writes `<folder>/shards`, unless they are there already.

  Args:
    folder: where; made if it is missing.

  Returns:
    The TFDS directory.
  """
  out = folder / "shards"
  if (out / "features.json").is_file():
    return out
  panel_px = (WINDOW_PX, WINDOW_PX + (FRAMES - 1) * STEP_PX)
  layout = shards.Layout(FRAMES, panels=1, panel_px=panel_px)
  parts, rows = [], {}
  for split, count in PATIENTS.items():
    path = folder / "parts" / split / "sequences.array_record"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [
      labelled_record(f"{split}_{n}", n, i)
      for n in range(count)
      for i in range(SEQUENCES)
    ]
    rows |= {r.sequence_id: tuple(map(float, r.targets)) for r in made}
    found, size = shards.write_part(path, made, layout)
    parts.append(shards.Part(path, split, split, found, size))
  config = {"geometry": "drift", "labelled": True}
  metadata = {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(config),
    "geometry": "drift",
    "frames": FRAMES,
    "panels": 1,
    "panel_px": list(panel_px),
    "frame_px": [WINDOW_PX, WINDOW_PX],
    "time_unit": "um",
    "mpp": 1.0,
    "slides": {},
    "config": config,
  }
  columns = (
    Target("kind", CLASSES),
    Target("level"),
    Target("rare", ("no", "yes")),
    Target("constant"),
  )
  shards.assemble(out, parts, layout, metadata, TargetTable(columns, rows))
  return out
