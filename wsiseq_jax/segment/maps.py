"""What a stage found out about each picture: one NPZ a picture.

Arrays of a file, each where a stage has it, for a picture of `h` × `w`:

    classes       uint8 [h, w]         0 background, 1..y, 255 = not decided
    weight        float [h, w]         how much each pixel counts; 1 without it
    scores        float16 [y, h/s, w/s]
    boundary      float16 [h/s, w/s]
    displacement  float16 [2, h/s, w/s]
"""

import os
import pathlib
import threading
import zipfile

import numpy as np
from jaxtyping import Float, UInt8

from data_prep.files import atomic

# NumPy parses headers by `ast`, and threads that parse at once can raise a
# SystemError in Python 3.11 (CPython issue 106905).
_READING = threading.Lock()


class Maps:
  """A folder of maps.

  Args:
    folder: where they lie or shall lie; need not exist.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)

  def path(self, picture_id: str) -> pathlib.Path:
    """The file of a picture; ids may have folders."""
    return self.folder / f"{picture_id}.npz"

  def has(self, picture_id: str) -> bool:
    """Whether the picture is done."""
    return self.path(picture_id).is_file()

  def write(self, picture_id: str, **arrays: np.ndarray) -> None:
    """Writes the maps of a picture, whole or not at all."""
    path = self.path(picture_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as draft, open(draft, "wb") as file:
      np.savez_compressed(file, **arrays)

  def read(self, picture_id: str) -> dict[str, np.ndarray]:
    """The maps of a picture.

    Raises:
      ValueError: there are none, or the file is damaged.
    """
    path = self.path(picture_id)
    try:
      with _READING, np.load(path) as file:
        return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise ValueError(
        f"{path}: no maps of picture {picture_id!r}: run the stage before "
        f"({error})"
      ) from error

  def target(
    self, picture_id: str
  ) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Classes and weights to train on.

    Raises:
      ValueError: there are none.
    """
    maps = self.read(picture_id)
    if "classes" not in maps:
      raise ValueError(
        f"{self.path(picture_id)}: holds {sorted(maps)} and no classes to "
        "train on"
      )
    classes = maps["classes"].astype(np.uint8)
    weight = maps.get("weight", np.ones(classes.shape))
    return classes, weight.astype(np.float32)
