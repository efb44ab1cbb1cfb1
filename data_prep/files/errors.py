"""What went wrong with one slide or series: a row of `errors.csv`.

A run over many slides never stops for one of them: whatever is wrong becomes a
`SlideError`, and the run goes on.
"""

import errno
import os
import pathlib
import traceback
from collections.abc import Iterable, Sequence

from data_prep.files import atomic, tables

# `slide_id` holds the series id in runs over series, and the path of what has
# no id yet. `place` is where in a slide: level, x, y in level-0 pixels.
COLUMNS = ("slide_id", "stage", "code", "message", "place")
# Stage of a remark on something that is kept: no failure.
NOTE = "note"
# Set by the tests: a mistake of this program is raised, not put into a row.
STRICT = "WSISEQ_STRICT"
_MISTAKES = (NameError, AttributeError, TypeError, AssertionError, ImportError)
_FULL = os.strerror(errno.ENOSPC)
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_OURS = (_ROOT / "data_prep", _ROOT / "wsiseq_jax")


class SlideError(Exception):
  """What is wrong with one slide, readable by the person who owns it.

  Args:
    message: a sentence that names the offending value and the remedy.
    stage: where it happened: `find`, `open`, `mpp`, `thumbnail`, `tissue`,
      `read`, ...
    error: a short code, stable enough to filter a table by.
    slide: slide id, or the path where there is no id yet.
    tile: where in the slide, (level, x, y) with x, y in level-0 pixels.
    trace: the whole traceback of what nobody expected, for errors.log.
  """

  def __init__(
    self,
    message: str,
    stage: str = "open",
    error: str = "unreadable",
    slide: str = "",
    tile: Sequence[int] | None = None,
    trace: str = "",
  ):
    super().__init__(message)
    self.message, self.stage, self.error = message, stage, error
    self.slide, self.trace = slide, trace
    self.tile = None if tile is None else tuple(tile)

  def state(self) -> tuple:
    """All arguments: what JSON keeps, and `SlideError(*state)` takes."""
    place = (self.slide, self.tile, self.trace)
    return (self.message, self.stage, self.error, *place)

  def __reduce__(self):
    # Errors travel between processes; the default forgets all but `message`.
    return type(self), self.state()

  def row(self) -> dict[str, str]:
    """Returns the error as a row of `errors.csv`."""
    place = "" if self.tile is None else " ".join(str(v) for v in self.tile)
    return dict(
      zip(
        COLUMNS,
        (self.slide, self.stage, self.error, self.message, place),
        strict=True,
      )
    )


def as_slide_error(
  error: Exception, slide_id: str, stage: str, folder: str = ""
) -> SlideError:
  """Turns whatever went wrong while reading a user's file into a row.

  Args:
    error: what was raised.
    slide_id: the slide.
    stage: what was being done.
    folder: config key of the folder that is written to.

  Returns:
    The error, with the slide's id.

  Raises:
    Exception: `error` itself, if tests are strict and it is our own mistake.
  """
  if isinstance(error, SlideError):
    error.slide = error.slide or slide_id
    return error
  code, message, trace = type(error).__name__, str(error), ""
  number = getattr(error, "errno", None)
  # HDF5 says so in words alone when a file is closed.
  full = number in (errno.ENOSPC, errno.EDQUOT) or _FULL in message
  if isinstance(error, OSError) or full:
    code, message = "os_error", getattr(error, "strerror", "") or message
    if full:
      code, stage = "disk_full", "write"
      message += f": make room in {folder} and start again"
  else:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    file = pathlib.Path(last[0].filename) if last else pathlib.Path()
    is_ours = any(file.is_relative_to(folder) for folder in _OURS)
    is_typing = type(error).__module__.startswith("jaxtyping")
    is_mistake = is_typing or is_ours and isinstance(error, _MISTAKES)
    if is_mistake and os.environ.get(STRICT):
      raise error
    if is_ours and isinstance(error, ValueError):
      code = "unreadable"  # a reader of ours says what is wrong
    else:
      message += f" ({file.name}:{last[0].lineno})" if last else ""
      trace = "".join(traceback.format_exception(error))
  return SlideError(message, stage, code, slide_id, None, trace)


def write(path: pathlib.Path, errors: Iterable[SlideError]) -> bool:
  """Writes errors.csv, and errors.log with tracebacks beside it if any.

  Returns:
    Whether the table changed.
  """
  errors = sorted(errors, key=lambda error: error.slide)
  traces = [f"{e.slide} [{e.stage}]\n{e.trace}" for e in errors if e.trace]
  log = path.with_suffix(".log")
  if traces:
    atomic.write_atomic(log, "\n".join(traces))
  else:
    log.unlink(missing_ok=True)
  return tables.write(path, COLUMNS, [error.row() for error in errors])
