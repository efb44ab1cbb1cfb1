"""Slides in folders: where they are looked for, and what no reader opens."""

import os
import pathlib
from collections.abc import Callable, Iterator

from data_prep.files import names
from data_prep.wsi import dicom_series

# Of other programs; nothing here reads them.
_UNREADABLE = (
  *(".vsi", ".isyntax", ".i2syntax", ".kfb", ".sdpc", ".mds", ".tmap", ".lif"),
  *(".nd2", ".zvi", ".oir", ".dyqx", ".tron", ".hdx", ".jp2", ".jpx", ".jxl"),
  *(".afi", ".zarr", ".ims", ".mcd"),
)
# What is still on its way, or packed.
_UNFINISHED = (
  *(".part", ".partial", ".crdownload", ".filepart", ".download", ".aspx"),
  *(".tmp", ".gz", ".zip", ".7z", ".bz2", ".xz", ".zst"),
)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Folders of file servers and systems: previews, and what was thrown away.
_NOT_SEARCHED = (
  *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot"),
  *("$recycle.bin", "system volume information", "lost+found", "__macosx"),
)


def walk(
  folder: pathlib.Path,
  on_error: Callable[[OSError], None] = lambda error: None,
) -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
  """Yields a folder and all below it, each with its files, in order.

  Links to folders are followed, each folder once. Hidden files and folders,
  previews of file servers and their bins are left out.

  Args:
    folder: where to begin.
    on_error: is told of a folder that cannot be read.
  """
  seen: set[str] = set()
  start = pathlib.Path(os.path.realpath(folder))
  for place, folders, inside in os.walk(
    folder, onerror=on_error, followlinks=True
  ):
    real = os.path.realpath(place)
    # A link upwards would lead out of what was named.
    if real in seen or pathlib.Path(real) in start.parents:
      folders[:] = []
      continue
    seen.add(real)
    here = pathlib.Path(place)
    packed = [name for name in folders if is_unreadable(name)]
    folders[:] = sorted(
      name
      for name in folders
      if name[0] != "." and name.lower() not in _NOT_SEARCHED
      if name not in packed
    )
    shown = sorted(name for name in (*inside, *packed) if name[0] != ".")
    yield here, [here / name for name in shown]


def is_unreadable(name: str) -> bool:
  """Whether a name is that of a format which nothing here reads."""
  return name.lower().endswith(_UNREADABLE)


def is_unfinished(name: str) -> bool:
  """Whether a name is that of a slide in a package, or being copied."""
  name, end = os.path.splitext(name.lower())
  return end in _UNFINISHED and name.endswith(names.SLIDE_EXTENSIONS)


def is_slide(path: pathlib.Path) -> bool:
  """Whether a file is a slide by its name, or DICOM by its content."""
  is_named = path.name.lower().endswith(names.SLIDE_EXTENSIONS)
  return is_named or dicom_series.is_dicom(path)


def index(folder: pathlib.Path) -> names.Files:
  """The slides in a folder and below, by name."""
  return names.Files(
    {
      path: os.path.relpath(path, folder)
      for _, paths in walk(folder)
      for path in paths
      if is_slide(path)
    }
  )


def parts_of(path: pathlib.Path) -> list[pathlib.Path]:
  """The other files that a slide is made of: data of MRXS, levels of DICOM."""
  kind = path.suffix.lower()
  if kind in names.DICOM_EXTENSIONS:
    return dicom_series.beside(path)
  if kind != ".mrxs":
    return []
  try:
    folder = path.with_suffix("")
    return sorted(one for one in folder.iterdir() if one.is_file())
  except OSError:
    return []


def not_a_slide(path: pathlib.Path) -> tuple[str, str] | None:
  """Returns (error, message) for a file that cannot be a slide at a glance."""
  try:
    with open(path, "rb") as file:
      start = file.read(4)
  except OSError as error:
    text = f"cannot read {path}: {error.strerror}"
    if path.is_symlink():
      text += f"; it is a link to {os.readlink(path)}"
    return "unreadable", text
  if not start:
    return "empty_file", f"the file is empty: {path}"
  is_tiff = path.suffix.lower() in names.TIFF_EXTENSIONS
  if is_tiff and start not in _TIFF_STARTS:
    return (
      "not_an_image",
      f"{path} is named like a slide but is no TIFF (it starts with {start!r})",
    )
  return None
