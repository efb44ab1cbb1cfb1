"""The job `embed`: features of every record, from a checkpoint."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_prep.files import atomic, done, tables
from wsiseq_jax import evaluate, launch, parallel
from wsiseq_jax.data import loader
from wsiseq_jax.data.source import Records
from wsiseq_jax.evaluate import Loaded


@functools.lru_cache(maxsize=4)
def _compile_embed(embed, mesh: Mesh):
  """Compiles `Task.embed`, once for all splits."""
  return jax.jit(
    parallel.with_mesh(mesh, embed), out_shardings=parallel.batch_sharding(mesh)
  )


def embed_split(
  run: Loaded, source: Records, tokens: bool = False
) -> dict[str, Any]:
  """Features of all records of a split, in their order.

  Args:
    run: the model.
    source: the split.
    tokens: also what the features were averaged from: tokens f32 [N, n, d],
      token_mask and token_time f32 [N, n].

  Returns:
    Arrays with a leading axis of records: features f32 [N, d]; sequence_id,
    slide_id, patient_id; frame_level0_xy f32 [N, t, 2], time f32 [N, t] and
    frames int32 [N, t] of the frames that were looked at; level0_xy f32 [N, 2],
    their mean; mpp, heading_deg, index. Without an axis:
    checkpoint_step, checkpoint (its identity) and data (its fingerprint).
  """
  embed = _compile_embed(run.task.embed, run.mesh)
  batches = loader.eval_batches(
    source,
    batch_size=run.config.data.batch_size,
    rows=parallel.local_rows(run.mesh, run.config.data.batch_size),
    threads=run.config.data.threads,
    worker_processes=run.config.data.worker_processes,
  )
  # Not `targets`: labels may be corrected, and are joined where they are used.
  kept = ("mpp", "heading_deg", "index")
  parts = []
  with loader.closing(batches):
    for batch in parallel.prefetch(batches, run.mesh):
      out = embed(run.params, batch) | {name: batch[name] for name in kept}
      if not tokens:
        out = {k: v for k, v in out.items() if not k.startswith("token")}
      is_real = parallel.fetch(batch["mask"]) > 0
      out = parallel.fetch(out)
      parts.append({name: array[is_real] for name, array in out.items()})
  arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  ids = [source.record(int(index)) for index in arrays["index"]]
  for name in ("sequence_id", "slide_id", "patient_id"):
    arrays[name] = np.array([getattr(record, name) for record in ids])
  arrays["level0_xy"] = arrays["frame_level0_xy"].mean(axis=1)
  arrays["checkpoint_step"] = np.int64(run.step)
  arrays["checkpoint"] = np.array(run.identity)
  arrays["data"] = np.array(run.spec.fingerprint)
  return arrays


def run(config: ConfigDict) -> list[pathlib.Path]:
  """The job `embed`: features of every split, in `<workdir>/embeddings/`.

  Writes `<split>.npz` (see `embed_split`) and `<split>.csv`, the same without
  the features, for other programs. `config.embed.tokens` adds the tokens that
  features were averaged from, many times their size.

  Returns:
    The npz files.
  """
  loaded = evaluate.load(config)
  folder = pathlib.Path(config.workdir) / "embeddings"
  written = []
  data = evaluate.find_data(loaded.config)
  for split in data.splits:
    source = data.open(split, "data.path")
    path = folder / f"{split}.npz"
    written.append(path)
    inputs = [loaded.identity, source.identity, config.embed.tokens]
    stage = done.Done(path.with_suffix(".json"), inputs)
    # The main process writes, so it knows; the others may see another disk.
    if launch.agree(stage.read() is not None):
      launch.log(f"{split}: embeddings of step {loaded.step} are done: {path}")
      continue
    arrays = embed_split(loaded, source, config.embed.tokens)
    if launch.is_main():
      stage.clear()
      folder.mkdir(parents=True, exist_ok=True)
      with atomic.replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
      table = path.with_suffix(".csv")
      _write_table(table, arrays)
      stage.write(outputs=(path, table))
    width = arrays["features"].shape[1]
    launch.log(f"{split}: {len(source)} records × {width} → {path}")
  return written


def _write_table(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  names = ("sequence_id", "slide_id", "patient_id", "mpp", "heading_deg")
  columns = {name: arrays[name].tolist() for name in names}
  for name, values in zip("xy", arrays["level0_xy"].T, strict=True):
    columns[f"level0_{name}"] = [f"{value:.10g}" for value in values]
  rows = zip(*columns.values(), strict=True)
  named = (dict(zip(columns, row, strict=True)) for row in rows)
  tables.write(path, list(columns), named)
