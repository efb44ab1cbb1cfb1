"""HDF5 files of features: opened, and what they hold found in them."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import h5py


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
  """An open file; whatever HDF5 cannot read of it is a ValueError."""
  if not pathlib.Path(path).is_file():
    raise ValueError(f"no such feature file: {path}")
  try:
    with h5py.File(path, "r") as file:
      yield file
  except ValueError:
    raise
  except Exception as error:  # HDF5 raises whatever it likes
    raise ValueError(f"cannot read the feature file {path}: {error}") from error


def datasets(
  file: h5py.File, path: str | os.PathLike
) -> tuple[h5py.Dataset, h5py.Dataset]:
  """Features and coordinates, their shapes checked, not read."""
  data = {k for k, v in file.items() if isinstance(v, h5py.Dataset)}
  names = sorted(data & {"features", "feats"})
  if len(names) != 1 or "coords" not in data:
    raise ValueError(
      f"{path} holds {sorted(file)}: expected 'features' and 'coords' (CLAM, "
      "TRIDENT) or 'feats' and 'coords' (STAMP)"
    )
  features, coords = file[names[0]], file["coords"]
  for one in (features, coords):
    made = one.id.get_create_plist()
    for code, *_, name in map(made.get_filter, range(made.get_nfilters())):
      if not h5py.h5z.filter_avail(code):
        raise ValueError(
          f"{path}: compressed by HDF5's filter {code} ({text(name)}), which "
          "is not here: write it anew with gzip, or uncompressed"
        )
  # Slide encoders of TRIDENT want one bag a batch.
  rows, places = (_without_batch(data.shape) for data in (features, coords))
  if len(rows) != 2 or features.dtype.kind != "f":
    raise ValueError(
      f"{path}: {names[0]} is {features.dtype} {features.shape}, want "
      "floating-point (tiles, width)"
    )
  if len(places) != 2 or places[1] != 2 or coords.dtype.kind not in "iuf":
    raise ValueError(
      f"{path}: coords is {coords.dtype} {coords.shape}, want (tiles, 2)"
    )
  if rows[0] != places[0]:
    raise ValueError(
      f"{path}: {rows[0]} rows of features but {places[0]} coordinates"
    )
  return features, coords


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def text(value: Any) -> str:
  """An attribute, which some programs write as bytes."""
  return value.decode() if isinstance(value, bytes) else str(value)
