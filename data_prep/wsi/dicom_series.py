"""DICOM files into slides: one file is one level of one picture, not a slide.

A series (one SeriesInstanceUID) is a slide: its VOLUME instances are the levels
of the pyramid, its LABEL, OVERVIEW and THUMBNAIL instances are pictures around
it. OpenSlide, given any VOLUME instance, finds the others beside it.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import struct
from collections.abc import Callable, Iterable

import numpy as np
import pydicom
from jaxtyping import UInt8

from data_prep.files import names
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import oddities

_WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy
_NOT_SLIDES = {"LABEL", "OVERVIEW", "THUMBNAIL"}
_TAGS = (
  "SOPClassUID",
  "SeriesInstanceUID",
  "ImageType",
  "TotalPixelMatrixColumns",
  "PatientID",
  "ContainerIdentifier",
)
_ITEM = b"\xfe\xff\x00\xe0"  # tag (FFFE,E000), which begins each frame


_FRAME_HEAD = 4096  # bytes that hold the main header of a frame
_J2K = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 code stream
_COD = 0xFF52  # the marker of how it is coded


@dataclasses.dataclass(frozen=True)
class DicomSeries:
  """One slide stored as DICOM."""

  path: pathlib.Path  # the instance with the largest picture
  # the file's name where the slide is one file or shares its folder with
  # others; else the folder's, because files are called `level-0`
  slide_id: str
  patient_id: str  # PatientID, '' where there is none
  members: list[pathlib.Path]  # all VOLUME instances


def is_dicom(path: pathlib.Path) -> bool:
  """Whether a file without a telling extension is DICOM, by its content.

  Names of DICOM files are often bare identifiers, such as `1.2.840.5.17`.
  """
  end = path.suffix[1:]
  if end and not end.isdigit() or path.name == "DICOMDIR":
    return False
  try:
    with open(path, "rb") as file:
      return file.read(132)[128:] == b"DICM"
  except OSError:
    return False


def group(
  paths: Iterable[pathlib.Path],
) -> tuple[list[DicomSeries], list[SlideError]]:
  """Groups DICOM files into slides.

  Args:
    paths: DICOM files.

  Returns:
    The slides, and the files that are no part of one, with the reason.
  """
  series: dict[tuple, list[tuple[int, pathlib.Path, str]]] = {}
  errors = []
  for path in paths:
    try:
      found = _instance(path)
    except Exception as error:  # pydicom raises whatever it likes
      wrong = as_slide_error(error, names.stem(path), "find")
      if path.is_file() and path.stat().st_size == 0:
        wrong = _error(path, "empty_file", f"the file is empty: {path}")
      elif wrong.error != "not_a_slide":
        wrong.error = "unreadable"
        wrong.message = f"cannot read {path} as DICOM: {wrong.message}"
      errors.append(wrong)
      continue
    if found is not None:
      key, size, patient = found
      series.setdefault(key, []).append((size, path, patient))
  largest = [max(members, key=lambda m: m[0]) for members in series.values()]
  folders = [path.parent for _, path, _ in largest]
  found = []
  for members, (_, path, patient) in zip(series.values(), largest, strict=True):
    own_folder = len(members) > 1 and folders.count(path.parent) == 1
    slide_id = path.absolute().parent.name if own_folder else names.stem(path)
    found.append(DicomSeries(path, slide_id, patient, [m[1] for m in members]))
  return found, errors


def beside(path: pathlib.Path) -> list[pathlib.Path]:
  """The other files of the folder that are of a file's series."""
  try:
    uids = _uids(path.parent, path.parent.stat().st_mtime_ns)
  except OSError:
    return []
  own = uids.get(path) or path
  return [one for one, uid in uids.items() if uid == own and one != path]


@functools.lru_cache(maxsize=8)
def _uids(folder: pathlib.Path, changed_ns: int) -> dict[pathlib.Path, str]:
  """The series of each DICOM file of a folder; read once for all its slides."""
  del changed_ns
  found = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in names.DICOM_EXTENSIONS:
      with contextlib.suppress(Exception):  # pydicom raises whatever it likes
        header = pydicom.dcmread(
          path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]
        )
        found[path] = str(header.get("SeriesInstanceUID") or "")
  return found


def _instance(path: pathlib.Path) -> tuple[tuple, int, str] | None:
  """What tells its slide from others, its width, its patient; None: a label."""
  header = pydicom.dcmread(
    path, stop_before_pixels=True, specific_tags=list(_TAGS)
  )
  if header.get("SOPClassUID") != _WSI_CLASS:
    text = f"{path}: DICOM, but no whole-slide image"
    raise _error(path, "not_a_slide", text)
  if set(header.get("ImageType") or ()) & _NOT_SLIDES:
    return None
  size = int(header.get("TotalPixelMatrixColumns") or 0)
  uid = str(header.get("SeriesInstanceUID") or path)
  patient = str(header.get("PatientID") or "")
  # Copies and anonymised studies share identifiers; a slide never leaves its
  # folder, and has one container.
  container = str(header.get("ContainerIdentifier") or "")
  return (uid, path.absolute().parent, patient, container), size, patient


def is_mislabelled_ycbcr(
  path: str | os.PathLike, small: Callable[[], UInt8[np.ndarray, "h w 3"]]
) -> bool:
  """Says whether OpenSlide takes YCbCr frames of a file for RGB.

  Some converters (Bio-Formats' among them) compress the pixels anew and keep
  the old PhotometricInterpretation. OpenSlide believes it and shows green or
  salmon glass. The first frame decides: a JPEG with a JFIF marker is YCbCr
  whatever is said, and JPEG 2000 called YBR_ICT is it too unless its header
  says that the decoder turns it into RGB. JPEG 2000 called RGB without such a
  header may be either: there the pixels decide.

  Args:
    path: a VOLUME instance.
    small: reads a small picture of the slide as OpenSlide shows it.
  """
  with open(path, "rb") as file:
    header = pydicom.dcmread(
      file, stop_before_pixels=True, specific_tags=["PhotometricInterpretation"]
    )
    said = header.get("PhotometricInterpretation")
    if said not in ("RGB", "YBR_ICT"):
      return False
    # The pixel element: tag, VR, length; an offset table; then the frames.
    file.seek(12, os.SEEK_CUR)
    table = file.read(8)
    if table[:4] != _ITEM:
      return False  # not compressed
    file.seek(struct.unpack("<I", table[4:])[0], os.SEEK_CUR)
    start = file.read(8 + _FRAME_HEAD)[8:]
  if start[:4] == b"\xff\xd8\xff\xe0" and start[6:11] == b"JFIF\0":
    return True
  if _j2k_transform(start) != 0:
    return False
  return said == "YBR_ICT" or oddities.is_ycbcr(small())


def _j2k_transform(start: bytes) -> int | None:
  """The colour transform a JPEG 2000 decoder inverts; 0 = none."""
  at = start.find(_J2K)  # behind boxes, in a JP2
  if at < 0:
    return None
  at += 2
  while at + 4 <= len(start):
    marker, length = struct.unpack_from(">HH", start, at)
    if marker == _COD and at + 9 <= len(start):
      return start[at + 8]
    at += 2 + length
  return None


def _error(path: pathlib.Path, error: str, message: str) -> SlideError:
  return SlideError(message, stage="find", error=error, slide=names.stem(path))
