"""The sequence record: what preparation writes and training reads.

One record is one sequence of `t` frames. Pixels are stored once, in as few
JPEG *panels* as possible, and `frame_panel` and `frame_box` say how each frame
is cut out of them. A window that drifts over a slide is therefore ONE panel (a
strip) with `t` overlapping boxes; a walk over separate tiles or a series of
images is `t` panels with one full-size box each. Nothing downstream needs to
know which.

All sequences of a data set have the same `t`. A shorter series is padded at its
end, and `frame_mask` says which frames are real. Labels are not stored: they
are joined from `targets.json` when a record is read.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float, Int, UInt8

# 2: labels inside the records. 3: labels in targets.json.
SCHEMA_VERSION = 3
KNOWN_SCHEMAS = (2, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceRecord:
  """One sequence of frames, all of one size, cut from one or more panels."""

  sequence_id: str  # unique within the data set
  slide_id: str  # the slide (or series) it was cut from
  patient_id: str  # the patient; train/val/test splits never divide a patient
  # The stored images, JPEG, all of the same height and width.
  panels: tuple[bytes, ...]
  frame_panel: Int[np.ndarray, " t"]  # the panel each frame is cut from
  # X, y, w, h of each frame in panel pixels; may be fractional.
  frame_box: Float[np.ndarray, "t 4"]
  # Centre of each frame in level-0 pixels of the slide, NaN where there is no
  # slide.
  frame_level0_xy: Float[np.ndarray, "t 2"]
  # Position along the sequence; the data set's metadata names the unit. For
  # `zoom` it is the side of the field of view in micrometres.
  time: Float[np.ndarray, " t"]
  # 1 for a real frame, 0 for padding, which comes last and repeats the last
  # real frame's panel, box, centre and time.
  frame_mask: Float[np.ndarray, " t"]
  # Micrometres per panel pixel (of the finest panel for `zoom`), NaN where
  # unknown.
  mpp: float
  # Direction of travel, counter-clockwise with 0 to the right and 90 up; NaN
  # where there is none.
  heading_deg: float
  # Labels, NaN = unknown; not stored, joined when read.
  targets: Float[np.ndarray, " y"] = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.float32)
  )

  @property
  def frames(self) -> int:
    """Number of frames."""
    return len(self.frame_panel)


def validate(record: SequenceRecord) -> None:
  """Checks a record before it is written, so that a reader may trust shards.

  Raises:
    ValueError: naming the sequence, the field and the offending value.
  """

  def check(condition: bool, field: str, value: Any, want: str) -> None:
    if not condition:
      raise ValueError(
        f"sequence {record.sequence_id!r}: {field} is {value!r}, want {want}"
      )

  for field in ("sequence_id", "slide_id", "patient_id"):
    value = getattr(record, field)
    check(isinstance(value, str) and value != "", field, value, "a name")
  check(len(record.panels) > 0, "panels", record.panels, "at least one JPEG")
  sizes = {panel_size(jpeg) for jpeg in record.panels}
  check(len(sizes) == 1, "panel size (h, w)", sorted(sizes), "one size for all")
  height, width = sizes.pop()
  t = len(record.frame_panel)
  check(t > 0, "frames", t, "at least one")
  for field, dtype, shape in (
    ("frame_panel", np.int32, (t,)),
    ("frame_box", np.float32, (t, 4)),
    ("frame_level0_xy", np.float32, (t, 2)),
    ("time", np.float32, (t,)),
    ("frame_mask", np.float32, (t,)),
  ):
    array = getattr(record, field)
    got = (np.asarray(array).dtype.name, np.asarray(array).shape)
    want = (np.dtype(dtype).name, shape)
    check(got == want, field, got, f"dtype and shape {want}")
  count = len(record.panels)
  inside = (record.frame_panel >= 0) & (record.frame_panel < count)
  check(
    bool(inside.all()), "frame_panel", record.frame_panel, f"0 .. {count - 1}"
  )
  x, y, w, h = record.frame_box.T
  # Half a thousandth of a pixel: what float32 may lose on a long strip.
  slack = 5e-4
  inside = (
    (x >= 0)
    & (y >= 0)
    & (w > 0)
    & (h > 0)
    & (x + w <= width + slack)
    & (y + h <= height + slack)
  )
  check(
    bool(inside.all()),
    "frame_box",
    record.frame_box[~inside][:1].tolist(),
    f"boxes inside the panel of {width} x {height} px",
  )
  check(
    bool(np.isfinite(record.time).all()), "time", record.time, "finite numbers"
  )
  real = int(record.frame_mask.sum())
  check(
    real > 0 and np.array_equal(record.frame_mask, np.arange(t) < real),
    "frame_mask",
    record.frame_mask.tolist(),
    "ones, at least one, and then zeros",
  )
  for field in ("frame_panel", "frame_box", "frame_level0_xy", "time"):
    array = getattr(record, field)
    want = np.broadcast_to(array[real - 1], array[real:].shape)
    check(
      np.array_equal(array[real:], want, equal_nan=array.dtype.kind == "f"),
      field,
      array[real:].tolist(),
      "the value of the last real frame in padding",
    )
  check(
    math.isnan(record.mpp) or record.mpp > 0,
    "mpp",
    record.mpp,
    "positive or NaN",
  )


def panel_size(jpeg: bytes) -> tuple[int, int]:
  """Returns (h, w) of a JPEG from its header, without decoding it."""
  height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
  return height, width


def to_example(record: SequenceRecord) -> dict[str, Any]:
  """Turns a record into what TFDS encodes, one entry a feature."""
  example = {
    field.name: getattr(record, field.name)
    for field in dataclasses.fields(SequenceRecord)
    if field.name != "targets"
  }
  # As files TFDS stores the JPEG bytes as they are; an array would be encoded
  # anew, by TensorFlow.
  example["panels"] = [io.BytesIO(jpeg) for jpeg in record.panels]
  example["mpp"] = np.float32(record.mpp)
  example["heading_deg"] = np.float32(record.heading_deg)
  return example


def from_example(example: Mapping[str, Any]) -> SequenceRecord:
  """Rebuilds a record from a parsed but undecoded TFDS example.

  Args:
    example: what TFDS's NumPy example parser returns: panels still JPEG bytes
      (or file objects, as `to_example` makes them), text as bytes or str.

  Returns:
    The record; with labels if it is of schema 2.
  """

  def text(value: Any) -> str:
    # A parsed scalar string is `bytes` or a NumPy scalar around them.
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else str(value)

  def jpeg(value: Any) -> bytes:
    return value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)

  return SequenceRecord(
    sequence_id=text(example["sequence_id"]),
    slide_id=text(example["slide_id"]),
    patient_id=text(example["patient_id"]),
    panels=tuple(jpeg(panel) for panel in example["panels"]),
    frame_panel=np.asarray(example["frame_panel"], np.int32),
    frame_box=np.asarray(example["frame_box"], np.float32).reshape(-1, 4),
    frame_level0_xy=np.asarray(example["frame_level0_xy"], np.float32).reshape(
      -1, 2
    ),
    time=np.asarray(example["time"], np.float32),
    frame_mask=np.asarray(example["frame_mask"], np.float32),
    mpp=float(np.asarray(example["mpp"]).item()),
    heading_deg=float(np.asarray(example["heading_deg"]).item()),
    targets=np.asarray(example.get("targets", ()), np.float32).reshape(-1),
  )


def decode_panels(record: SequenceRecord) -> UInt8[np.ndarray, "p h w 3"]:
  """Decodes the panels of a record, as `decode_jpegs` does."""
  return decode_jpegs(record.panels, record.sequence_id)


def decode_jpegs(
  panels: Sequence[bytes], name: str
) -> UInt8[np.ndarray, "p h w 3"]:
  """Decodes JPEGs of one size into one array."""
  height, width = panel_size(panels[0])
  out = np.empty((len(panels), height, width, 3), np.uint8)
  for index, jpeg in enumerate(panels):
    try:
      # Without the size check a smaller picture would fill the buffer askew.
      if panel_size(jpeg) != (height, width):
        raise ValueError(f"its size (h, w) is {panel_size(jpeg)}")
      simplejpeg.decode_jpeg(jpeg, buffer=out[index])
    except ValueError as error:
      raise ValueError(
        f"panel {index} of sequence {name!r} does not decode to "
        f"{height} x {width} px: {error}"
      ) from error
  return out
