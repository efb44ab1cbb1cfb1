"""Frozen features, computed once and kept on disk.

A file belongs to one checkpoint, one data set and one split. Its name ends in a
hash of the three, so that several checkpoints may share a workdir and a file
can never be mistaken for another's.
"""

import hashlib
import pathlib
from typing import Any

import numpy as np

from data_prep.files import atomic
from wsiseq_jax import evaluate, launch


def file_of(
  run: evaluate.Loaded, source: Any, workdir: pathlib.Path
) -> pathlib.Path:
  """Where the features of a checkpoint and a split lie."""
  text = f"{run.identity} {source.identity} {source.split}"
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  # A split may be a slice such as `train[:80%]`.
  split = "".join(c if c.isalnum() else "_" for c in source.split)
  return workdir / "features" / f"{split}-{digest}.npz"


def frozen(
  run: evaluate.Loaded, source: Any, workdir: pathlib.Path, tokens: bool
) -> dict[str, np.ndarray]:
  """Features of a split, from the file if there is one.

  Args:
    run: the model.
    source: the split.
    workdir: where files are kept.
    tokens: whether tokens are needed too, see `evaluate.embed_split`.

  Returns:
    What `evaluate.embed_split` returns.

  Raises:
    ValueError: features are not finite.
  """
  path = file_of(run, source, workdir)
  arrays = _read(path, tokens)
  if launch.agree(arrays is not None):
    if arrays is None:
      raise ValueError(f"{path} is not visible to every process")
    launch.log(f"{source.split}: features of {len(arrays['index'])} are cached")
    return arrays
  launch.log(f"{source.split}: features of {len(source)} sequences ...")
  arrays = evaluate.embed_split(run, source, tokens)
  bad = ~np.isfinite(arrays["features"]).all(axis=1)
  if bad.any():
    raise ValueError(
      f"checkpoint of step {run.step}: features of {int(bad.sum())} of "
      f"{len(bad)} sequences of {source.split!r} are not finite, the first is "
      f"{arrays['sequence_id'][bad.argmax()]}"
    )
  if launch.is_main():
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as draft, draft.open("wb") as file:
      np.savez(file, **arrays)
  return arrays


def _read(path: pathlib.Path, tokens: bool) -> dict[str, np.ndarray] | None:
  if not path.exists():
    return None
  with np.load(path) as file:
    if tokens and "tokens" not in file.files:
      return None
    wanted = [n for n in file.files if tokens or not n.startswith("token")]
    return {name: file[name] for name in wanted}
