"""How a stage trains: the block `optim` of its settings."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from data_prep.files.schema import AtLeast0, AtLeast1, NotNegative, Range
from wsiseq_jax import fit, launch, optim, parallel
from wsiseq_jax.data import colour
from wsiseq_jax.segment import pictures
from wsiseq_jax.segment.stage import StageContext

Share = Annotated[float, Range(0, 1)]

_jitter = jax.jit(colour.jitter_stain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFit:
  """Optimiser and epochs; see `fit.FitSettings`."""

  optimizer: Literal[optim.NAMES] = "adamw"
  lr: NotNegative = 1e-3  # of a step, whatever its batch
  head_lr_factor: NotNegative = 1.0  # of the parameters that start at random
  weight_decay: NotNegative = 1e-4
  b1: Share = 0.9
  b2: Share = 0.999
  eps: NotNegative = 1e-8
  clip_norm: NotNegative = 5.0  # 0 switches clipping off
  warmup_epochs: AtLeast0 = 1
  epochs: AtLeast1 = 10
  # Epochs without a better validation; 0 = never.
  patience: AtLeast0 = 0
  # Of an epoch; 0 = as many as see all pictures once.
  steps_per_epoch: AtLeast0 = 0
  # How much the stain of training pictures varies; see `data/colour.py`.
  stain_jitter: Share = 0.0

  def settings(self, **more: Any) -> fit.FitSettings:
    """What the trainer takes; `more` are fields of it that a stage decides.

    `head_lr_factor` is that of parameters below `head`, unless `lr_factors` are
    given.
    """
    values = dataclasses.asdict(self)
    del values["steps_per_epoch"], values["stain_jitter"]
    head = (("head", values.pop("head_lr_factor")),)
    return fit.FitSettings(**{"lr_factors": head, **values, **more})

  def data(
    self,
    context: StageContext,
    targets: pathlib.Path | None = None,
    order: Callable[[int], Sequence[int]] | None = None,
  ) -> fit.Data:
    """What a stage trains on: random crops, and whole pictures to validate.

    Args:
      context: of the stage.
      targets: folder of maps of an earlier stage.
      order: step → numbers of its pictures; shuffled by default.
    """
    train, crops = context.pictures("train"), context.crops
    key = jax.random.key(context.seed)

    def batches(start):
      made = pictures.train_batches(
        train, crops, context.seed, context.mesh, start, targets, order
      )
      with contextlib.closing(made):
        for step, batch in enumerate(made, start=start):
          if self.stain_jitter:
            pixels = _jitter(
              batch["pixels"], jax.random.fold_in(key, step), self.stain_jitter
            )
            batch = {**batch, "pixels": pixels}
          yield batch

    steps = self.steps_per_epoch or math.ceil(len(train) / crops.batch_size)
    return fit.Data(steps, batches, lambda: context.whole("val"))


# IRN's: SGD without momentum, ten times as fast in the head.
IRN_FIT = StageFit(
  optimizer="irn_sgd",
  lr=0.1,
  head_lr_factor=10.0,
  weight_decay=1e-4,
  clip_norm=0.0,
  warmup_epochs=0,
  epochs=5,
)


def learned(
  context: StageContext,
  stage: str,
  model: fit.Model,
  settings: fit.FitSettings,
  data: fit.Data,
  validate: fit.Validate,
  frozen: Any,
) -> Any:
  """What a stage learns: trained and saved, or as it saved it before.

  Returns:
    Parameters, on the devices.
  """
  if not context.has_params(stage):
    folder = context.fit_folder(stage)
    fitted = fit.Trainer(model, settings, context.mesh, frozen).fit(
      data, validate, context.seed, folder
    )
    context.save_params(stage, fitted.params)
    folder.clear()
    launch.log(f"{stage}: epoch {fitted.epoch} is kept")
  params = context.params(stage)
  return jax.device_put(params, parallel.replicated(context.mesh))


def compiled(
  function: Callable[..., Any], mesh: Mesh
) -> Callable[..., dict[str, Float[Array, "b ..."]]]:
  """A function of parameters and a batch, compiled for a mesh."""
  return jax.jit(parallel.with_mesh(mesh, function))
