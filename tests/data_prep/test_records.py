import dataclasses

import numpy as np
import pytest
import simplejpeg

from data_prep import records
from tests.data_prep import tiny_shards


def test_example_and_back():
  record = tiny_shards.strip_record("s", 3)
  again = records.from_example(records.to_example(record))
  for field in dataclasses.fields(record):
    before, after = getattr(record, field.name), getattr(again, field.name)
    np.testing.assert_array_equal(before, after, err_msg=field.name)
    if isinstance(before, np.ndarray):
      assert before.dtype == after.dtype


def test_decode_panels_gives_the_picture():
  image = np.zeros((16, 24, 3), np.uint8)
  image[:, 12:] = 200, 100, 150
  jpeg = simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444")
  pixels = records.decode_jpegs([jpeg, jpeg], "s")
  assert pixels.shape == (2, 16, 24, 3)
  assert np.abs(pixels[1].astype(int) - image).max() <= 3


def test_decode_names_sequence_and_panel():
  record = tiny_shards.strip_record("slide7", 0)
  jpeg = record.panels[0]
  broken = dataclasses.replace(record, panels=(jpeg, jpeg[: len(jpeg) // 2]))
  with pytest.raises(ValueError, match="panel 1 of sequence 'slide7/"):
    records.decode_panels(broken)


def test_decode_refuses_a_smaller_panel():
  small = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
  large = simplejpeg.encode_jpeg(np.zeros((16, 8, 3), np.uint8))
  with pytest.raises(ValueError, match="size"):
    records.decode_jpegs([large, small], "s")


def _mask(real):
  return (np.arange(tiny_shards.FRAMES) < real).astype(np.float32)


def _box(record, **change):
  box = record.frame_box.copy()
  for column, value in change.items():
    box[2, "xywh".index(column)] = value
  return box


@pytest.mark.parametrize(
  "change",
  [
    lambda r: {"patient_id": ""},
    lambda r: {"panels": ()},
    lambda r: {"frame_panel": r.frame_panel + 1},
    lambda r: {"frame_panel": r.frame_panel.astype(np.int64)},
    lambda r: {"frame_box": _box(r, x=-1)},
    lambda r: {"frame_box": _box(r, x=tiny_shards.STRIP_PX - 10)},
    lambda r: {"frame_box": _box(r, h=33)},
    lambda r: {"frame_box": _box(r, w=0)},
    lambda r: {"frame_level0_xy": r.frame_level0_xy.astype(np.float64)},
    lambda r: {"time": r.time * np.float32(np.nan)},
    lambda r: {"mpp": -0.5},
    lambda r: {"frame_mask": r.frame_mask * 0},
    lambda r: {"frame_mask": r.frame_mask * np.float32(0.5)},
    lambda r: {"frame_mask": r.frame_mask[::-1] * _mask(4)[::-1]},
    lambda r: {"frame_mask": r.frame_mask.astype(np.float64)},
    lambda r: {"frame_mask": _mask(4)},  # frames 4 .. 8 are no repetitions
  ],
)
def test_validate_refuses(change):
  record = tiny_shards.strip_record("s", 0)
  records.validate(record)
  wrong = dataclasses.replace(record, **change(record))
  with pytest.raises(ValueError, match="sequence 's/"):
    records.validate(wrong)


def test_padding_repeats_the_last_real_frame():
  record = tiny_shards.strip_record("s", 0)
  last = np.minimum(np.arange(tiny_shards.FRAMES), 3)
  padded = dataclasses.replace(
    record,
    frame_mask=_mask(4),
    frame_box=record.frame_box[last],
    frame_level0_xy=record.frame_level0_xy[last] * np.float32(np.nan),
    time=record.time[last],
  )
  records.validate(padded)
