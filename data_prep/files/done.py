"""Is a stage done? A mark, written last, says what its result was made from."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.files import atomic

_END_BYTES = 1 << 16


def digest(inputs: Any) -> str:
  """sha256 of anything JSON can say; dataclasses, paths and arrays too."""
  text = json.dumps(inputs, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  if hasattr(value, "items"):
    return dict(value.items())
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  return value.tolist()


def file_digest(path: str | os.PathLike, *, whole: bool = False) -> str:
  """sha256 of a file's size and first and last 64 kB, or of all of it.

  Headers and directories of slides lie at their ends; reading gigabytes to skip
  a slide would defeat the purpose. `whole` is for tables and other small files.

  Raises:
    OSError: it cannot be read.
  """
  with open(path, "rb") as file:
    if whole:
      return hashlib.file_digest(file, "sha256").hexdigest()
    size = os.fstat(file.fileno()).st_size
    start = file.read(_END_BYTES)
    file.seek(max(0, size - _END_BYTES))
    content = b"%d/" % size + start + file.read(_END_BYTES)
  return hashlib.sha256(content).hexdigest()


class Done:
  """A stage whose mark lies at `path`, made from `inputs` (see `digest`)."""

  def __init__(self, path: str | os.PathLike, inputs: Any):
    self.path, self.inputs = pathlib.Path(path), digest(inputs)

  def read(self) -> dict[str, Any] | None:
    """The facts that `write` was given; None if the stage has to be done."""
    try:
      info = json.loads(self.path.read_text(encoding="utf-8"))
      is_same = info.pop("inputs") == self.inputs
      for name, size in info.pop("outputs").items():
        is_same &= (self.path.parent / name).stat().st_size == size
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
      return None
    return info if is_same else None

  def clear(self) -> None:
    """Says that the outputs are about to change."""
    self.path.unlink(missing_ok=True)

  def write(
    self,
    info: Mapping[str, Any] | None = None,
    outputs: Iterable[str | os.PathLike] = (),
  ) -> None:
    """Marks the stage as done, after its outputs were written.

    Args:
      info: facts that `read` returns, plain values.
      outputs: files that have to be there, as long as they are now.

    Raises:
      OSError: an output is not there, or the mark cannot be written.
    """
    where = self.path.parent
    where.mkdir(parents=True, exist_ok=True)
    sizes = {os.path.relpath(p, where): os.stat(p).st_size for p in outputs}
    mark = {**(info or {}), "inputs": self.inputs, "outputs": sizes}
    text = json.dumps(mark, ensure_ascii=False, indent=1, sort_keys=True)
    atomic.write_atomic(self.path, text + "\n")


def read_facts(path: str | os.PathLike) -> dict[str, Any]:
  """The facts of a mark, whatever it was made from.

  Raises:
    ValueError: there is no mark.
  """
  try:
    info = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    del info["inputs"], info["outputs"]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(f"{path}: not the mark of a stage ({error})") from error
  return info
