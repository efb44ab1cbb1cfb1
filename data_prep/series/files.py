"""Opens what a series is stored in: arrays, pictures, videos, DICOM.

`inspect` reads no more than a header; `read` gives frames as a viewer shows
them (`data_prep/wsi/pictures.py`), [h, w, c], one after the other, so that a
long video never has to fit in memory.

- `.npy`: [t, h, w] or [t, h, w, c]; as one picture [h, w] or [h, w, c].
- pictures: png (8 and 16 bit), jpg, bmp; tiff, one page a frame.
- videos through FFmpeg (PyAV). A frame's time is its presentation time, which
  is right for a varying rate too. The decoder is told to stop at the first
  damage: FFmpeg would otherwise paint over it and say nothing.
- DICOM, single or multi-frame (pydicom): YBR colours become RGB, stored values
  become modality values (rescale slope and intercept), MONOCHROME1 is inverted.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.error
import av.filter
import numpy as np
import pydicom
import pydicom.errors
import pydicom.pixels
import tifffile
from jaxtyping import Shaped

from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import pictures

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
VIDEOS = tuple(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv".split())
ARRAYS = (".npy",)
EXTENSIONS = (*ARRAYS, *VIDEOS, *PICTURES)

Frame = Shaped[np.ndarray, "h w c"]


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of itself."""

  frames: int  # pictures in it
  size: tuple[int, int]  # (h, w) of a picture in pixels
  # Time of each frame in s, None where the file does not say.
  seconds: tuple[float, ...] | None = None


def inspect(path: str, one: bool = False) -> Header:
  """Reads the header of a file."""
  return _open(path, "open", _header, one)


def read(
  path: str, indices: Sequence[int], one: bool = False
) -> Iterator[Frame]:
  """Reads frames as they are stored."""
  yield from _open(path, "read", _frames, indices, one)


def _open(path: str, stage: str, function: Any, *more: Any) -> Any:
  """Calls a function on a file; what goes wrong becomes a `SlideError`."""
  try:
    if not os.path.isfile(path):
      raise SlideError(f"no such file: {path}", "find", "missing_file")
    if not os.path.getsize(path):
      raise SlideError(f"the file is empty: {path}", stage, "empty_file")
    result = function(path, *more)
    # A generator fails when it runs, so it runs in here.
    return _guarded(path, stage, result) if _is_lazy(result) else result
  except Exception as error:  # decoders raise whatever they like
    raise _problem(path, stage, error) from error


def _is_lazy(result: Any) -> bool:
  return isinstance(result, Iterator)


def _guarded(path: str, stage: str, frames: Iterator[Frame]) -> Iterator[Frame]:
  try:
    yield from frames
  except Exception as error:
    raise _problem(path, stage, error) from error


def _problem(path: str, stage: str, error: Exception) -> SlideError:
  problem = as_slide_error(error, "", stage)
  if problem is error:
    return problem
  if isinstance(error, PermissionError):
    return SlideError(f"cannot read {path}: {error.strerror}", stage)
  kind = "video" if path.lower().endswith(VIDEOS) else "file"
  text = str(error).replace("\n", " ") or type(error).__name__
  # FFmpeg's own number and the path once more say nothing new.
  text = re.sub(r"\[Errno \d+\] ", "", text).replace(f": {path!r}", "")
  problem.message = f"cannot read {path}: {text}"
  problem.stage, problem.error = stage, f"damaged_{kind}"
  return problem


def _kind(path: str) -> str:
  """The extension in lower case; DICOM files often have none."""
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in EXTENSIONS:
    with open(path, "rb") as file:
      if file.read(132)[128:] == b"DICM":
        return ".dcm"
  return suffix


def _header(path: str, one: bool) -> Header:
  suffix = _kind(path)
  if suffix in ARRAYS:
    array = _array(path, one)
    header = Header(array.shape[0], array.shape[1:3])
  elif suffix in VIDEOS:
    header = _video_header(path)
  elif suffix == ".dcm":
    header = _dicom_header(path)
  elif suffix in (".tif", ".tiff"):
    with tifffile.TiffFile(path) as file:
      _check_axes(path, file)
      page = file.pages[0]
      showing = pictures.tiff_page(page)
      size = showing.size((page.imagelength, page.imagewidth))
      header = Header(len(file.pages), size)
  elif suffix in PICTURES:
    header = Header(pictures.count(path), pictures.size(path))
    _check_count(path, header.frames, True)
  else:
    raise _unknown(path, suffix)
  _check_count(path, header.frames, one)
  return header


def _unknown(path: str, suffix: str) -> SlideError:
  return SlideError(
    f"{path}: {suffix or 'no extension'} is not known here; known are "
    + ", ".join(EXTENSIONS),
    "open",
    "unknown_kind",
  )


def _check_count(path: str, frames: int, one: bool) -> None:
  if one and frames != 1:
    raise SlideError(
      f"{path} holds {frames} pictures; want one, or a video or TIFF of frames",
      "open",
      "not_one_picture",
    )


def _frames(path: str, indices: Sequence[int], one: bool) -> Iterator[Frame]:
  suffix = _kind(path)
  if suffix in ARRAYS:
    array = _array(path, one)
    return (_checked(path, np.array(array[i])) for i in indices)
  if suffix in VIDEOS:
    if one:
      _check_count(path, _video_header(path).frames, one)
    return _video_frames(path, indices)
  if suffix == ".dcm":
    return _dicom_frames(path, indices, one)
  if suffix in (".tif", ".tiff"):
    return _tiff_frames(path, indices, one)
  if suffix in PICTURES:
    return iter([_checked(path, pictures.read(path))])
  raise _unknown(path, suffix)


def _checked(path: str, frame: np.ndarray) -> Frame:
  """Returns a frame as [h, w, c] with one to three channels."""
  frame = frame[..., None] if frame.ndim == 2 else frame
  channels = frame.shape[-1]
  if channels == 4 and frame.dtype.kind == "u":
    # Programs write an opaque alpha channel without being asked.
    if (frame[..., 3] == np.iinfo(frame.dtype).max).all():
      return np.ascontiguousarray(frame[..., :3])
  if not 1 <= channels <= 3:
    raise SlideError(
      f"{path} has {channels} channels; one to three can be stored",
      "read",
      "too_many_channels",
    )
  return frame


def _array(path: str, one: bool) -> Shaped[np.ndarray, "t h w c"]:
  # Mapped, not loaded: only the frames asked for are read.
  array = np.load(path, mmap_mode="r", allow_pickle=False)
  if array.dtype.kind not in "buif":
    raise SlideError(
      f"{path} holds {array.dtype}; want numbers", "open", "bad_array"
    )
  if one:
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] <= 4):
      return array.reshape(1, *array.shape[:2], -1)
    want = "one picture, [h, w] or [h, w, c]"
  else:
    # [h, w, 3] is a picture that somebody took for a stack.
    if array.ndim == 3 and (array.shape[-1] > 4 or not array.size):
      return array[..., None]
    if array.ndim == 2:
      return array[None, ..., None]
    if array.ndim == 4:
      return array
    want = "[t, h, w] or [t, h, w, c], or one picture [h, w]"
  raise SlideError(
    f"{path} has the shape {array.shape}; want {want}", "open", "bad_array"
  )


def _tiff_frames(
  path: str, indices: Sequence[int], one: bool
) -> Iterator[Frame]:
  with tifffile.TiffFile(path) as file:
    _check_count(path, len(file.pages), one)
    for index in indices:
      yield _checked(path, pictures.read_page(file.pages[index]))


def _check_axes(path: str, file: tifffile.TiffFile) -> None:
  """Refuses pages that run along two axes, such as times and channels."""
  whole = file.series[0]
  axes = zip(whole.axes, whole.shape, strict=True)
  longer = [axis for axis, size in axes if axis not in "YXS" and size > 1]
  if len(longer) > 1:
    raise SlideError(
      f"{path} has the axes {whole.axes} of {whole.shape}: pages have to be "
      "the frames of one axis; write each channel or plane into a file",
      "open",
      "several_axes",
    )


def _video_header(path: str) -> Header:
  with av.open(path) as container:
    stream = _video_stream(path, container)
    size = stream.codec_context.height, stream.codec_context.width
    base, stamps, first = stream.time_base, [], None
    # Counted, because the number in the header is often wrong or missing.
    for packet in container.demux(stream):
      if packet.size and not packet.is_discard:
        # AVI knows times of decoding only; they are as far apart.
        stamps.append(packet.dts if packet.pts is None else packet.pts)
        if first is None:
          # Damage is the business of whoever reads the frames.
          with contextlib.suppress(av.error.FFmpegError):
            first = next(iter(packet.decode()), None)
    if first is not None:
      size = _video_showing(stream, first).size((first.height, first.width))
  # Packets come in the order of decoding, frames in the order of time.
  seconds = None
  if stamps and None not in stamps:
    start = min(stamps)
    seconds = tuple(float((t - start) * base) for t in sorted(stamps))
  return Header(len(stamps), size, seconds)


def _video_showing(stream: Any, frame: av.VideoFrame) -> pictures.Showing:
  """How frames are shown: phones store them as the sensor lies."""
  matrix = frame.side_data.get("DISPLAYMATRIX")
  return pictures.Showing(
    orientation=pictures.orientation_of(bytes(matrix) if matrix else None),
    aspect=float(stream.sample_aspect_ratio or 1),
    has_alpha=any(part.is_alpha for part in frame.format.components),
  )


def _video_stream(path: str, container: Any) -> Any:
  # Programs put a cover in front; FFmpeg knows which one players show.
  stream = container.streams.best("video")
  if stream is None:
    text = f"{path} holds no video, or is cut short"
    raise SlideError(text, "open", "no_video")
  stream.codec_context.options = {"err_detect": "explode"}
  stream.codec_context.thread_count = 1  # parallel over files, not inside one
  return stream


def _video_frames(path: str, indices: Sequence[int]) -> Iterator[Frame]:
  wanted = list(reversed(indices))
  count = 0
  with av.open(path) as container:
    stream = _video_stream(path, container)
    for count, frame in enumerate(_decoded(container, stream), 1):  # noqa: B007
      while wanted and wanted[-1] == count - 1:
        wanted.pop()
        showing = _video_showing(stream, frame)
        kind = "rgba" if showing.has_alpha else "rgb24"
        kind = "gray" if frame.format.name.startswith("gray") else kind
        pixels = frame.to_ndarray(format=kind)
        yield _checked(path, showing.apply(pixels))
      if not wanted:
        return
  raise ValueError(f"it ends after {count} frames, {wanted[0] + 1} expected")


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
  """All frames; of two fields that were taken one after the other, one."""
  graph = None
  for number, frame in enumerate(container.decode(stream)):
    if frame.is_corrupt:
      raise ValueError(f"frame {number} is damaged")
    if graph is None and not frame.interlaced_frame:
      yield frame
      continue
    graph = graph or _deinterlacer(stream)
    graph.push(frame)
    yield from _pulled(graph)
  if graph is not None:
    graph.push(None)
    yield from _pulled(graph)


def _deinterlacer(stream: Any) -> Any:
  graph = av.filter.Graph()
  start, end = graph.add_buffer(template=stream), graph.add("buffersink")
  filtered = graph.add("yadif", "deint=interlaced")
  graph.link_nodes(start, filtered, end).configure()
  return graph


def _pulled(graph: Any) -> Iterator[av.VideoFrame]:
  with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
    while True:
      yield graph.pull()


def _dicom_header(path: str) -> Header:
  header = pydicom.dcmread(path, stop_before_pixels=True)
  if "Rows" not in header or "Columns" not in header:
    raise SlideError(f"{path}: DICOM without a picture", "open", "no_picture")
  frames = int(header.get("NumberOfFrames") or 1)
  stored = int(header.Rows), int(header.Columns)
  size = _dicom_showing(header).size(stored)
  return Header(frames, size, _dicom_times(header))


def _dicom_showing(header: pydicom.Dataset) -> pictures.Showing:
  # (vertical, horizontal). PixelSpacing is no request to stretch: scans of
  # OCT have pixels several times as wide as high, and nobody shows them so.
  height, width = header.get("PixelAspectRatio") or (1, 1)
  return pictures.Showing(aspect=int(width) / int(height))


def _dicom_times(header: pydicom.Dataset) -> tuple[float, ...] | None:
  """Frame times in s: increments in ms first, then a rate."""
  frames = int(header.get("NumberOfFrames") or 1)
  steps = [float(v) for v in np.atleast_1d(header.get("FrameTimeVector") or [])]
  if len(steps) == frames:
    # The first entry is the first frame's own, 0 by the standard.
    return tuple(((np.cumsum(steps) - steps[0]) / 1000).tolist())
  milliseconds = float(header.get("FrameTime") or 0)
  rate = float(
    header.get("CineRate") or header.get("RecommendedDisplayFrameRate") or 0
  )
  if milliseconds <= 0 and rate > 0:
    milliseconds = 1000 / rate
  if milliseconds <= 0:
    return None
  return tuple((np.arange(frames) * milliseconds / 1000).tolist())


def _dicom_frames(
  path: str, indices: Sequence[int], one: bool
) -> Iterator[Frame]:
  header = pydicom.dcmread(path)
  _check_count(path, int(header.get("NumberOfFrames") or 1), one)
  # `raw=False` turns YBR into RGB, whatever the subsampling.
  frames = pydicom.pixels.iter_pixels(header, indices=list(indices), raw=False)
  for frame in frames:
    if header.PhotometricInterpretation == "PALETTE COLOR":
      frame = pydicom.pixels.apply_color_lut(frame, header)
    elif header.get("SamplesPerPixel", 1) == 1:
      frame = _modality(frame, header)
    yield _checked(path, _dicom_showing(header).apply(frame))


def _modality(frame: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
  """Stored values to modality values, with bright as more."""
  if header.PhotometricInterpretation == "MONOCHROME1":
    # The stored value of the other end of the range, as the standard says.
    signed = bool(header.get("PixelRepresentation"))
    ends = -1 if signed else (1 << int(header.BitsStored)) - 1
    frame = (ends - frame.astype(np.int64)).astype(frame.dtype)
  slope = float(header.get("RescaleSlope", 1))
  intercept = float(header.get("RescaleIntercept", 0))
  if (slope, intercept) != (1.0, 0.0) or "ModalityLUTSequence" in header:
    frame = pydicom.pixels.apply_modality_lut(frame, header)
  return frame
