"""The slides that can be seen, by names that are no paths."""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from data_prep.wsi.find import SlideEntry


def key_of(slide_id: str) -> str:
  """What a slide is called in addresses; the same in every run.

  Example:
    >>> key_of("slide 1")
    '9f662768026d71f4'
  """
  return hashlib.blake2s(slide_id.encode(), digest_size=8).hexdigest()


class Registry:
  """The slides of a server."""

  def __init__(self, entries: Iterable[SlideEntry]):
    self.entries = {key_of(entry.slide_id): entry for entry in entries}
    self.key_of_id = {e.slide_id: key for key, e in self.entries.items()}

  def rows(self) -> list[dict[str, Any]]:
    """What the list of slides shows."""
    return [
      {
        "key": key,
        "id": entry.slide_id,
        "patient": entry.patient_id,
        "label": entry.label or "",
        "split": entry.split or "",
        "folder": pathlib.Path(entry.path).parent.name,
      }
      for key, entry in self.entries.items()
    ]


def version(entry: SlideEntry) -> str:
  """Changes when the file does, so that no browser shows old tiles."""
  status = os.stat(entry.path)
  told = f"{status.st_size} {status.st_mtime_ns} {entry.mpp}"
  return hashlib.blake2s(told.encode(), digest_size=6).hexdigest()
