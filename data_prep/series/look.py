"""A first look at all files of a run: are they there, how many frames, what.

It reads headers and digests, so that a plan can be made before any work: the
length that all sequences share, and which parts are finished already.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent import futures

from data_prep.files.errors import SlideError
from data_prep.series import files
from data_prep.series.spans import Series, Span, kept

_WHOLE_BYTES = 8 << 20
_DIGEST_BYTES = 1 << 16
_LOOKING_THREADS = 16


class Look:
  """What a first look at all files gives; nothing is decoded.

  Attributes:
    series: those with at least one file.
    headers: what each stack of frames says of itself.
    digests: each file's content, in short.
    errors: files that are missing or no file of their kind.
  """

  def __init__(self, found: Sequence[Series]):
    self.headers: dict[str, files.Header] = {}
    self.digests: dict[str, str] = {}
    self.errors: list[SlideError] = []
    self.series: list[Series] = []
    stacks = {
      path: span.is_stack
      for one in found
      for span in one.spans
      for path in span.files
    }
    with futures.ThreadPoolExecutor(_LOOKING_THREADS) as pool:
      seen = pool.map(_look_at, stacks, stacks.values())
      bad = {}
      for path, result in zip(stacks, seen, strict=True):
        if isinstance(result, SlideError):
          bad[path] = result
        else:
          self.digests[path], self.headers[path] = result
    for one in found:
      self._keep(one, bad)

  def _keep(self, series: Series, bad: Mapping[str, SlideError]) -> None:
    spans, told = [], set()
    for span in series.spans:
      keep = [i for i, path in enumerate(span.files) if path not in bad]
      for path in span.files:
        if path in bad and path not in told:
          told.add(path)
          error, left = bad[path], "" if span.is_stack else "; left out"
          self.errors.append(
            SlideError(
              error.message + left, error.stage, error.error, series.series_id
            )
          )
      span = kept(span, keep)
      if span.files:
        spans.append(span)
    if spans:
      self.series.append(dataclasses.replace(series, spans=tuple(spans)))
    elif len(told) > 1:
      self.errors.append(
        SlideError("no file is left", "find", "empty_series", series.series_id)
      )

  def frames(self, span: Span) -> int:
    """Number of frames of a span."""
    if span.is_stack:
      return self.headers[span.files[0]].frames
    return len(span.files)

  def source_px(self) -> tuple[int, int]:
    """The commonest (h, w) of the files; the largest of several."""
    count = collections.Counter(
      self.headers[one.spans[0].files[0]].size for one in self.series
    )
    return max(count, key=lambda size: (count[size], size))


def _look_at(
  path: str, is_stack: bool
) -> tuple[str, files.Header] | SlideError:
  try:
    header = files.inspect(path, one=not is_stack)
    return _digest(path), header
  except SlideError as error:
    return error
  except OSError as error:
    return SlideError(f"cannot read {path}: {error.strerror}", "open")


def _digest(path: str) -> str:
  """Names the content of a file: all of it up to 8 MB, else size and ends."""
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    if size <= _WHOLE_BYTES:
      return hashlib.sha256(file.read()).hexdigest()
    start = file.read(_DIGEST_BYTES)
    file.seek(size - _DIGEST_BYTES)
    return hashlib.sha256(b"%d/" % size + start + file.read()).hexdigest()
