"""Files that are there whole or not at all, whenever a process is killed.

Each is written under another name beside its place, and renamed. What a killed
process leaves has `TEMPORARY` in its name, and nothing else has.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

TEMPORARY = ".tmp-"
_NAMES = "backslashreplace"


def temporary_path(path: pathlib.Path) -> pathlib.Path:
  """A name beside `path` to write to before renaming, of this process alone."""
  return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives the name to write a file under, and renames it at the end.

  Several processes may write the same file at the same time; the last counts.
  After an error the old file is still there, and no draft. The draft has
  another ending: say the format where a writer would tell it from that.
  """
  path = pathlib.Path(path)
  draft = temporary_path(path)
  try:
    yield draft
    os.replace(draft, path)
  except BaseException:
    draft.unlink(missing_ok=True)
    raise


def write_atomic(path: pathlib.Path, data: str | bytes) -> bool:
  """Writes a small file; False if it already had this content.

  Names of files that are no Unicode are written with backslashes.

  Raises:
    OSError: the disk is full or not writable; the old file is still there.
  """
  data = data if isinstance(data, bytes) else data.encode(errors=_NAMES)
  if path.is_file() and path.read_bytes() == data:
    return False
  with replacing(path) as draft, open(draft, "wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  return True


def remove_temporaries(folder: pathlib.Path) -> None:
  """Removes what a killed run left behind in a folder and below it."""
  for item in sorted(folder.rglob(f"*{TEMPORARY}*")):
    if item.is_dir():
      remove_tree(item)
    else:
      item.unlink(missing_ok=True)


def remove_tree(folder: pathlib.Path) -> None:
  """Removes a folder and all in it, if there is one."""
  if folder.is_dir():
    shutil.rmtree(folder)


def sync(path: pathlib.Path) -> None:
  """Asks the system to put a file, or the entries of a folder, on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
