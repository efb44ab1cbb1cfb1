"""Full fine-tuning: the encoder and a linear head learn from the labels.

Starts from the checkpoint (`fine_tune`) or from fresh parameters of the same
architecture (`supervised`): the baseline that self-supervision must beat. What
the encoder knows of time, the baseline knows too, because both are the model
that the checkpoint's config describes.

Training cuts random clips with mild augmentation; validation and test use the
clips that frozen features come from (`Task.encode` without a key).
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from data_prep.files import done
from wsiseq_jax import fit, parallel
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.probe import trained
from wsiseq_jax.probe.samples import ProbeTarget, Samples
from wsiseq_jax.tasks import base


def encoder_model(
  task: base.Task, from_scratch: bool, width: int, target: ProbeTarget
) -> fit.Model:
  """The encoder with a linear head, from fresh or from frozen parameters."""

  def init(key, frozen, example):
    del example
    fresh = task.init(base.stream(key, "init")) if from_scratch else frozen
    return {"encoder": fresh}

  def features(params, frozen, batch, key):
    del frozen
    return task.encode(params["encoder"], batch, key)

  return trained.head_model(init, features, width, target)


def feature_width(task: base.Task, source: sources.Records, mesh: Mesh) -> int:
  """Channels of a feature; computes nothing."""
  # Shapes of a batch of one record a device.
  row = loader.load(source, 0)
  batch = {
    name: jax.ShapeDtypeStruct((mesh.size, *np.shape(x)), np.asarray(x).dtype)
    for name, x in row.items()
  }
  params = jax.eval_shape(task.init, jax.random.key(0))
  encode = parallel.with_mesh(mesh, lambda p, b: task.encode(p, b, None))
  return jax.eval_shape(encode, params, batch).shape[-1]


@dataclasses.dataclass(frozen=True)
class PixelFeed(trained.Feed):
  """Batches of decoded records; see `trained.Feed`."""

  mesh: Mesh
  threads: int
  worker_processes: int

  def train(
    self, train: Samples, rows: int, seed: int, start: int, stop: int
  ) -> Iterator[fit.Batch]:
    """Random rows with labels."""
    batches = loader.train_batches(
      _Subset(train),
      seed=seed,
      batch_size=rows,
      start_step=start,
      stop_step=stop,
      **self._reading(rows),
    )

    def labelled():
      with loader.closing(batches):
        for batch in batches:
          label = train.labels[batch["index"]].astype(np.float32)
          yield {**batch, "label": label}

    return parallel.prefetch(labelled(), self.mesh)

  def in_order(self, of: Samples, rows: int) -> Iterator[fit.Batch]:
    """All rows."""
    batches = loader.eval_batches(
      _Subset(of), batch_size=rows, **self._reading(rows)
    )
    with loader.closing(batches):
      yield from parallel.prefetch(batches, self.mesh)

  def _reading(self, rows: int):
    return {
      "rows": parallel.local_rows(self.mesh, rows),
      "threads": self.threads,
      "worker_processes": self.worker_processes,
    }


class _Subset:
  """The records of samples, numbered anew, as the loader needs them."""

  def __init__(self, of: Samples):
    self.source, self.rows = of.source, tuple(map(int, of.index))
    self.spec, self.split = of.source.spec, of.source.split
    self.identity = done.digest([of.source.identity, self.rows])

  def __len__(self) -> int:
    return len(self.rows)

  def record(self, index: int):
    return self.source.record(self.rows[index])
