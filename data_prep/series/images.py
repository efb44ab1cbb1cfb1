"""From stored frames to JPEG panels: intensity, size, channels.

Intensity. uint8 is stored as it is; bool becomes 0 and 255. Any other type is
mapped linearly from a window to 0 .. 255 and clipped: a fixed window, or the
percentiles of *all* frames of the sequence together. A window for each frame
would hide a change of brightness over time.

Size. Every frame of a data set ends at exactly the same size, in one step of
resampling: `crop` scales until the frame covers it and cuts the middle out,
`letterbox` scales until the frame fits in and fills the rest with black.

Channels. One channel is stored as three equal ones, which JPEG keeps exactly
grey; two are stored with an empty third.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8

from data_prep.files.errors import SlideError

FITS = ("crop", "letterbox")


def to_uint8(
  frames: Sequence[Shaped[np.ndarray, "_ _ c"]],
  window: Sequence[float | int],
  percentiles: Sequence[float | int],
) -> list[UInt8[np.ndarray, "_ _ c"]]:
  """Maps the intensities of one sequence to 0 .. 255.

  Example:
    >>> frame = np.array([[[0.0], [0.5], [2.0]]])
    >>> to_uint8([frame], (0.0, 1.0), ())[0].ravel().tolist()
    [0, 128, 255]
  """
  dtypes = {frame.dtype for frame in frames}
  if dtypes == {np.dtype(np.uint8)}:
    return list(frames)
  if dtypes == {np.dtype(bool)}:
    return [frame.astype(np.uint8) * np.uint8(255) for frame in frames]
  if not all(np.isfinite(frame).all() for frame in frames):
    raise SlideError(
      "a pixel is NaN or infinite: replace it by the value of the background",
      "image",
      "nan_pixels",
    )
  low, high = window or np.percentile(
    np.concatenate([frame.ravel() for frame in frames]), percentiles
  )
  if not high > low:
    raise SlideError(
      f"no contrast: the window of intensities is {low:g} to {high:g}; give "
      "one as config.image.window",
      "image",
      "no_contrast",
    )
  scale = 255 / (high - low)
  return [
    np.clip((frame - low) * scale + 0.5, 0, 255).astype(np.uint8)
    for frame in frames
  ]


def target_px(
  frame_px: Sequence[int], source_px: tuple[int, int]
) -> tuple[int, int]:
  """Returns the (h, w) that all frames of a data set get.

  Example:
    >>> target_px((128,), (240, 320)), target_px((64, 48), (240, 320))
    ((128, 171), (64, 48))
  """
  if len(frame_px) == 2:
    return int(frame_px[0]), int(frame_px[1])
  scale = frame_px[0] / min(source_px)
  return round(source_px[0] * scale), round(source_px[1] * scale)


def fit_frame(
  frame: UInt8[np.ndarray, "_ _ c"], size: tuple[int, int], fit: str
) -> UInt8[np.ndarray, "h w c"]:
  """Brings a frame to a size.

  Example:
    >>> wide = np.repeat(np.arange(4, dtype=np.uint8), 2).reshape(1, 8, 1)
    >>> fit_frame(wide.repeat(2, 0), (2, 4), "crop")[0, :, 0].tolist()
    [1, 1, 2, 2]
    >>> fit_frame(wide.repeat(2, 0), (2, 4), "letterbox")[1, :, 0].tolist()
    [0, 0, 0, 0]
  """
  height, width = frame.shape[:2]
  if (height, width) == size:
    return frame
  ratios = size[0] / height, size[1] / width
  scale = max(ratios) if fit == "crop" else min(ratios)
  # At least (crop) or at most (letterbox) the size, whatever rounding does.
  bound = max if fit == "crop" else min
  h = bound(size[0], max(1, round(height * scale)))
  w = bound(size[1], max(1, round(width * scale)))
  if (h, w) != (height, width):
    # INTER_AREA averages, so that fine structure does not alias.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    frame = cv2.resize(frame, (w, h), interpolation=how)
    frame = frame.reshape(h, w, -1)
  top, left = abs(h - size[0]) // 2, abs(w - size[1]) // 2
  if fit == "crop":
    return np.ascontiguousarray(
      frame[top : top + size[0], left : left + size[1]]
    )
  out = np.zeros((*size, frame.shape[-1]), np.uint8)
  out[top : top + h, left : left + w] = frame
  return out


def encode(
  frame: UInt8[np.ndarray, "h w c"], quality: int, subsampling: str
) -> bytes:
  """Encodes a frame of one to three channels as RGB JPEG."""
  channels = frame.shape[-1]
  if channels == 1:
    frame = np.repeat(frame, 3, axis=2)
  elif channels == 2:
    frame = np.concatenate([frame, np.zeros_like(frame[..., :1])], axis=2)
    subsampling = "444"
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(frame), quality=quality, colorsubsampling=subsampling
  )


def chosen_frames(
  count: int, max_frames: int, rule: str, stride: int
) -> list[tuple[int, ...]]:
  """Chooses the frames of a sequence that is longer than allowed.

  Example:
    >>> chosen_frames(7, 3, "last", 0), chosen_frames(7, 3, "subsample", 0)
    ([(4, 5, 6)], [(0, 3, 6)])
    >>> chosen_frames(7, 3, "windows", 0)
    [(0, 1, 2), (3, 4, 5), (4, 5, 6)]
  """
  if not max_frames or count <= max_frames:
    return [tuple(range(count))]
  if rule == "last":
    return [tuple(range(count - max_frames, count))]
  if rule == "subsample":
    # One frame cannot be both ends: it is the last.
    if max_frames == 1:
      return [(count - 1,)]
    spread = [
      math.floor(i * (count - 1) / (max_frames - 1) + 0.5)
      for i in range(max_frames)
    ]
    return [tuple(spread)]
  starts = list(range(0, count - max_frames + 1, stride or max_frames))
  if starts[-1] != count - max_frames:
    starts.append(count - max_frames)
  return [tuple(range(s, s + max_frames)) for s in starts]
