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
from ml_collections import ConfigDict

from wsiseq_jax import parallel
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.probe import tokens, training
from wsiseq_jax.probe.samples import Samples
from wsiseq_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some records of a split, numbered anew: what the loader needs of a source.

  Attributes:
    source: the split.
    rows: its records that are in.
  """

  source: sources.Records
  rows: tuple[int, ...]

  @property
  def spec(self) -> sources.DataSpec:
    """What the data set says of itself."""
    return self.source.spec

  @property
  def split(self) -> str:
    """Name of the split."""
    return self.source.split

  def __len__(self) -> int:
    return len(self.rows)

  def record(self, index: int):
    """Reads a record by its new number."""
    return self.source.record(self.rows[index])


def encoder_model(
  task: base.Task, from_scratch: bool, width: int, outputs: int
) -> training.Model:
  """The encoder with a linear head.

  Args:
    task: the task of the checkpoint.
    from_scratch: whether the encoder starts with fresh parameters, which
      depend on the seed, or with the frozen ones.
    width: channels of a feature.
    outputs: values of the head.
  """

  def init(key, frozen, batch):
    del batch
    fresh = task.init(base.stream(key, "init")) if from_scratch else frozen
    return {"encoder": fresh, "head": training.head_init(width, outputs)}

  def apply(params, frozen, batch, key):
    del frozen
    features = task.encode(params["encoder"], batch, key)
    return training.head_apply(params["head"], features)

  return training.Model(init, apply)


def feature_width(task: base.Task, source, mesh: Mesh) -> int:
  """Channels of a feature; computes nothing."""
  # Shapes of a batch of one record a device.
  row = loader.load(source, 0)
  batch = {
    name: jax.ShapeDtypeStruct((mesh.size, *np.shape(x)), np.asarray(x).dtype)
    for name, x in row.items()
  }
  params = jax.eval_shape(task.init, jax.random.key(0))
  encode = parallel.within(mesh, lambda p, b: task.encode(p, b, None))
  return jax.eval_shape(encode, params, batch).shape[-1]


def pixel_data(
  train: tuple[sources.Records, Samples],
  validation: tuple[sources.Records, Samples],
  test: tuple[sources.Records, Samples],
  batch_size: int,
  config: ConfigDict,
  mesh: Mesh,
) -> training.Data:
  """Batches of decoded records with their labels.

  Args:
    train: the split, and the samples of it that are used.
    validation: likewise.
    test: likewise.
    batch_size: rows of a batch; fewer if there are not as many samples.
    config: for threads and worker processes.
    mesh: the devices.
  """
  reading = {
    "threads": config.data.threads,
    "worker_processes": config.data.worker_processes,
  }

  def labelled(batches, labels: np.ndarray) -> Iterator[training.Batch]:
    def with_labels():
      with loader.closing(batches):
        for batch in batches:
          label = labels[batch["index"]].astype(np.float32)
          yield {**batch, "label": label}

    yield from parallel.prefetch(with_labels(), mesh)

  def subset(split):
    source, chosen = split
    return Subset(source, tuple(int(i) for i in chosen.index)), chosen.labels

  rows = tokens.fitting_batch(len(train[1]), batch_size, mesh.size)

  def training_batches(seed: int, steps: int) -> Iterator[training.Batch]:
    records, labels = subset(train)
    batches = loader.train_batches(
      records,
      seed=seed,
      batch_size=rows,
      start_step=0,
      stop_step=steps,
      rows=parallel.local_rows(mesh, rows),
      **reading,
    )
    return labelled(batches, labels)

  def in_order(split):
    def batches():
      records, labels = subset(split)
      size = tokens.fitting_batch(batch_size, batch_size, mesh.size)
      found = loader.eval_batches(
        records,
        batch_size=size,
        rows=parallel.local_rows(mesh, size),
        **reading,
      )
      return labelled(found, labels)

    return batches

  return training.Data(
    count=len(train[1]),
    labels=train[1].labels,
    validation_labels=validation[1].labels,
    batch_size=rows,
    train=training_batches,
    validation=in_order(validation),
    test=in_order(test),
  )
