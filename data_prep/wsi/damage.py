"""What damaged tiles cost a slide: what lies on them, or all of it.

Whatever is cut from a slide, tiles or sequences, one damaged tile costs what
touches it. A slide that loses most is refused: what is left of it says little.
"""

from collections.abc import Iterable, Sequence

from data_prep.files.errors import SlideError

CODE = "damaged_tile"
MAX_BAD_SHARE = 0.5  # of what is cut from a slide


def check(
  bad: Sequence[SlideError],
  total: int,
  allowed: float | int = MAX_BAD_SHARE,
  what: str = "tiles could not be read",
) -> None:
  """Refuses a slide that has lost too much.

  Args:
    bad: an error for each tile or sequence that was lost so far.
    total: how many there would be without damage.
    allowed: the share that may be lost.
    what: what was lost, and how, for the message.

  Raises:
    SlideError: more is lost than allowed.
  """
  if len(bad) <= allowed * total:
    return
  raise SlideError(
    f"given up after {len(bad)} of {total} {what}, more than the "
    f"{allowed:.0%} allowed; the last: {bad[-1].message}",
    stage="read",
    error="too_many_bad_tiles",
    slide=bad[-1].slide,
    tile=bad[-1].tile,
  )


def by_place(errors: Iterable[SlideError]) -> list[SlideError]:
  """One error for each damaged place: much may have been cut from one."""
  first: dict[tuple, SlideError] = {}
  for error in errors:
    first.setdefault((error.error, error.tile), error)
  return list(first.values())
