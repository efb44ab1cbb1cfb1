"""Which file is meant by a name that somebody wrote into a table.

Tables name slides with and without extension, in other case, with the folders
of another machine, with backslashes, in another Unicode normal form, and
without the zeros that a spreadsheet takes from the front of a number.
"""

import collections
import functools
import io
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

from data_prep.files import atomic

T = TypeVar("T")
TIFF_EXTENSIONS = (
  *(".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif"),
  *(".btf", ".tf2", ".tf8", ".qptiff"),
)
DICOM_EXTENSIONS = (".dcm", ".dicom")
# `.dat` lies beside `.mrxs` by the dozen and is never a slide.
SLIDE_EXTENSIONS = (
  *TIFF_EXTENSIONS,
  *DICOM_EXTENSIONS,
  *(".mrxs", ".svslide", ".vms", ".vmu", ".czi"),
)
FEATURE_EXTENSIONS = (".h5", ".hdf5", ".pt")
# Of a name of 255 at most, with what drafts and endings add.
MOST_BYTES = 230
_KNOWN = (*SLIDE_EXTENSIONS, *FEATURE_EXTENSIONS)
_DRIVE = re.compile(r"^[A-Za-z]:")


def folders_of(name: str | os.PathLike) -> list[str]:
  r"""The parts of a path of any system.

  Example:
    >>> folders_of(r"C:\slides\siteA\S3.tif"), folders_of("./a/S3")
    (['slides', 'siteA', 'S3.tif'], ['a', 'S3'])
  """
  text = _DRIVE.sub("", os.fspath(name)).replace("\\", "/")
  return [part for part in text.split("/") if part not in ("", ".")]


def stem(name: str | os.PathLike) -> str:
  r"""A slide's id: the name without folders and known extensions.

  Example:
    >>> stem("a/S-1.2.ome.tif"), stem("S00.svs.h5"), stem(r"a\S3"), stem("x.y")
    ('S-1.2', 'S00', 'S3', 'x.y')
  """
  name = (folders_of(name) or [""])[-1].strip()
  while (end := pathlib.PurePosixPath(name).suffix).lower() in _KNOWN:
    name = name[: -len(end)]
    if name.lower().endswith(".ome"):
      name = name[: -len(".ome")]
  return name.strip()


def unusable(name: str) -> str:
  r"""Why a name cannot be that of our files and folders; '' if it can.

  Example:
    >>> unusable("S 1#ä"), unusable("a/b"), unusable("a\nb")
    ('', "it has a '/'", "it has the character '\\n'")
  """
  if "/" in name:
    return "it has a '/'"
  if name[:1] in ("", "."):
    return "it is empty, or begins with '.'"
  if atomic.TEMPORARY in name:
    return f"it has {atomic.TEMPORARY!r}"
  # Control characters, ends of lines, and bytes that are no Unicode.
  odd = [c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
  if odd:
    return f"it has the character {odd[0]!r}"
  if len(os.fsencode(name)) > MOST_BYTES:
    return f"it is longer than {MOST_BYTES} bytes"
  return ""


def print_all() -> None:
  """Has bytes that are no Unicode printed with backslashes, as errors are."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def folded(name: str) -> str:
  """What spellings of one name share: no case, one Unicode normal form.

  Windows drops dots and blanks at the end; blanks in between count once.
  """
  name = unicodedata.normalize("NFC", name).casefold()
  return " ".join(name.split()).rstrip(" .")


def number(name: str) -> str:
  """What a spreadsheet makes of a name of digits alone; '' for any other.

  Example:
    >>> number("007"), number("7.0"), number("S07")
    ('7', '7', '')
  """
  found = re.fullmatch(r"0*([0-9]+?)(\.0+)?", name.strip())
  return found[1] if found else ""


def below(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  r"""What a path of a table means, in whatever spelling; None without a file.

  Backslashes, case and Unicode normal forms do not count where nothing has
  exactly the name.
  """
  exact = folder / os.path.expanduser(name)
  if os.path.exists(exact):
    return exact
  place = folder
  for part in folders_of(name):
    if not os.path.exists(place / part):
      part = _inside(place, folded(part))
    if not part:
      return None
    place = place / part
  return place


def _inside(folder: pathlib.Path, name: str) -> str:
  """The one name in a folder that is spelled alike; '' without one."""
  try:
    changed = os.stat(folder).st_mtime_ns
    found = _listing(os.fspath(folder), changed).get(name, [])
  except OSError:
    return ""
  return found[0] if len(found) == 1 else ""


@functools.lru_cache(maxsize=64)
def _listing(folder: str, changed: int) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for name in sorted(os.listdir(folder)):
    found.setdefault(folded(name), []).append(name)
  return found


def match(ids: Iterable[str], files: Mapping[str, T]) -> dict[str, T]:
  """Files of slides, whatever the spelling of their ids.

  Args:
    ids: the slides.
    files: anything by slide id.

  Returns:
    By the given ids; slides without a file, or with two that differ in
    spelling alone, are not in it. 7 is 007 where nothing else is.

  Example:
    >>> match(["s1", "S2.svs", "S3"], {"S1": 1, "S2": 2, "x": 3})
    {'s1': 1, 'S2.svs': 2}
  """
  ids = list(ids)
  near: dict[str, list[str]] = {}
  numbers: dict[str, list[str]] = {}
  for name in files:
    near.setdefault(folded(stem(name)), []).append(name)
    numbers.setdefault(number(stem(name)), []).append(name)
  same = collections.Counter(filter(None, map(number, ids)))
  found = {}
  for slide_id in ids:
    alike = near.get(folded(stem(slide_id)), [])
    if not alike and same[number(slide_id)] == 1:
      alike = numbers.get(number(slide_id), [])
    if slide_id in files:
      found[slide_id] = files[slide_id]
    elif len(alike) == 1:
      found[slide_id] = files[alike[0]]
  return found


class Files:
  """Files by name.

  Args:
    paths: each file, and where it lies below the folder that names start at.
  """

  def __init__(self, paths: Mapping[pathlib.Path, str]):
    self._by_name: dict[str, list[tuple[list[str], pathlib.Path]]] = {}
    self._by_number: dict[str, list[tuple[list[str], pathlib.Path]]] = {}
    for path, place in paths.items():
      file = ([folded(part) for part in folders_of(place)], path)
      self._by_name.setdefault(folded(stem(path)), []).append(file)
      if digits := number(stem(path)):
        self._by_number.setdefault(digits, []).append(file)

  def find(self, name: str) -> pathlib.Path | None:
    """The file that a name means; None if there is none.

    Folders count as far as both have them: `siteA/S3` is no `siteB/S3.tif`, but
    a folder of another machine in front does no harm. So does an extension.

    Raises:
      ValueError: it means several files alike.
    """
    wanted = [folded(part) for part in folders_of(name)]
    end = _extension(name)
    scored = []
    alike = self._by_name.get(folded(stem(name)))
    for parts, path in alike or self._by_number.get(number(stem(name)), ()):
      common = min(len(parts), len(wanted)) - 1
      if common and parts[-common - 1 : -1] != wanted[-common - 1 : -1]:
        continue
      if end and _extension(path) not in ("", end):
        continue
      is_near, is_alike = len(parts) == len(wanted), stem(path) == stem(name)
      scored.append(((common, is_near, is_alike), path))
    best = max((score for score, _ in scored), default=None)
    found = [path for score, path in scored if score == best]
    if len(found) > 1:
      some = " and ".join(str(path) for path in found[:2])
      raise ValueError(f"{name!r} may mean {some}: name one with its folder")
    return found[0] if found else None


def _extension(name: str | os.PathLike) -> str:
  """The known extension of a slide; '' if a name has none."""
  end = pathlib.PurePath(os.fspath(name)).suffix.lower()
  if end not in SLIDE_EXTENSIONS:
    return ""
  return {".tiff": ".tif", ".dicom": ".dcm"}.get(end, end)
