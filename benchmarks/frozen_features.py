"""What benchmarks of frozen features share: training runs and their summary."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import harness
import numpy as np

from data_prep import records
from wsiseq_jax.data import source as sources

# One step at a rate of 0 leaves the weights as they were initialised.
UNTRAINED = (
  "--config.optim.warmup_steps=0",
  "--config.optim.lr_per_256=0.0",
  "--config.optim.min_lr_per_256=0.0",
)


def embed(
  workdir: pathlib.Path,
  steps: int,
  *options: str,
  log: pathlib.Path | None = None,
) -> dict[str, np.ndarray]:
  """Trains and embeds all splits; what is finished already is not repeated.

  Args:
    workdir: the run's folder.
    steps: of training; 0 to embed with the weights as initialised.
    *options: the config and more of it, `--config...`.
    log: file for what is printed.

  Returns:
    Arrays of all sequences and their `split`, in order of `sequence_id`.
  """
  command = (
    "main.py",
    *options,
    f"--config.workdir={workdir}",
    f"--config.optim.total_steps={max(steps, 1)}",
    *(() if steps else UNTRAINED),
  )
  harness.call(*command, log=log)
  harness.call(*command, "--config.job=embed", log=log)
  parts = []
  for path in sorted((workdir / "embeddings").glob("*.npz")):
    with np.load(path) as file:
      part = {k: file[k] for k in file.files if file[k].ndim}
    part["split"] = np.full(len(part["features"]), path.stem)
    parts.append(part)
  joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  order = np.argsort(joined["sequence_id"])
  return {k: v[order] for k, v in joined.items()}


def read_records(folder: pathlib.Path) -> Iterator[records.SequenceRecord]:
  """The records of all splits of a data set."""
  for split in sources.split_names(folder):
    source = sources.RecordSource(folder, split)
    for i in range(len(source)):
      yield source.record(i)


def summarise(
  rows: Sequence[Mapping], keys: Sequence[str]
) -> dict[str, dict[str, dict]]:
  """Mean and deviation over seeds of each kind of `features`; prints them.

  Args:
    rows: one a kind and seed, with `features` and the keys.
    keys: the scores.
  """
  summary = {}
  for name in dict.fromkeys(row["features"] for row in rows):
    mine = [row for row in rows if row["features"] == name]
    summary[name] = {
      key: harness.mean_std([row[key] for row in mine], digits=4)
      for key in keys
    }
    print(name, summary[name])
  return summary
