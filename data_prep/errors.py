"""What went wrong with one slide, as a row of `errors.csv`.

A run over many slides never stops for one of them: whatever is wrong becomes a
`SlideError`, and the run goes on.
"""


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
