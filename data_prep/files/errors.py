"""What went wrong with one slide, as a row of `errors.csv`.

A run over many slides never stops for one of them: whatever is wrong becomes a
`SlideError`, and the run goes on.
"""

import errno
import pathlib
import traceback


class SlideError(Exception):
  """What is wrong with one slide, readable by the person who owns it.

  Args:
    message: a sentence that names the offending value and the remedy.
    stage: where it happened: `find`, `open`, `mpp`, `thumbnail`, `tissue`,
      `read`, ...
    error: a short code, stable enough to filter a table by.
    slide: slide id, or the path where there is no id yet.
    tile: where in the slide, (level, x, y) with x, y in level-0 pixels.
  """

  def __init__(
    self,
    message: str,
    stage: str = "open",
    error: str = "unreadable",
    slide: str = "",
    tile: tuple[int, int, int] | None = None,
  ):
    super().__init__(message)
    self.message, self.stage, self.error = message, stage, error
    self.slide, self.tile = slide, tile

  def __reduce__(self):
    # Errors travel between processes; the default forgets all but `message`.
    return type(self), (
      self.message,
      self.stage,
      self.error,
      self.slide,
      self.tile,
    )

  def row(self) -> dict[str, str]:
    """Returns the error as a row of `errors.csv`."""
    tile = "" if self.tile is None else " ".join(str(v) for v in self.tile)
    return {
      "slide": self.slide,
      "stage": self.stage,
      "error": self.error,
      "message": self.message,
      "tile": tile,
    }


def as_slide_error(
  error: Exception, slide_id: str, stage: str, folder: str
) -> SlideError:
  """Turns whatever went wrong with a slide into a row of errors.csv.

  Args:
    error: what was raised.
    slide_id: the slide.
    stage: what was being done.
    folder: config key of the folder that is written to.

  Returns:
    The error, with the slide's id.
  """
  if isinstance(error, SlideError):
    error.slide = slide_id
    return error
  code, message = type(error).__name__, str(error)
  if isinstance(error, OSError):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code, message = "os_error", error.strerror or message
    if full:
      code, stage = "disk_full", "write"
      message += f": make room in {folder} and start again"
  else:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    message += "".join(
      f" ({pathlib.Path(frame.filename).name}:{frame.lineno})" for frame in last
    )
  return SlideError(message, stage=stage, error=code, slide=slide_id)
