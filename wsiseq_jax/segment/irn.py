"""Inter-pixel relations: where boundaries are, and where an instance's centre.

    x1 .. x5 --1x1, group-norm, enlarged, ReLU each--> joined --1x1--> boundary
    x1, x2   --the same------------------> joined with --1x1, ...--> 1x1 --> D
    x3 .. x5 --the same--> joined, 1x1, ... --> enlarged

Two small heads on features of a network that does not learn, at a stride of 4,
taught by pairs of pixels whose labels the stage before mined (`pairs.py`). The
boundary is a logit; D(p) points from a pixel to the centre of its instance,
vertical before horizontal, in pixels of the grid.

The backbone is that of the stage that made the scores: where it is trained from
scratch there is no other. The original takes that of ImageNet once more, here
`features='start'`. Labels are guesses, so the last epoch is kept; the loss on
pairs of validation is only reported.

Reference: Ahn, Cho and Kwak, CVPR 2019.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_prep.files.schema import Range
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.models import conv
from wsiseq_jax.segment import decide, pairs, pictures, training
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.decide import UNDECIDED
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

STRIDE = 4  # of maps
_GROUPS = 16  # of the norms of displacement; that of x1 has 8
_BOUNDARY_GROUPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Irn:
  """The stage `irn`; `optim.head_lr_factor` is that of displacement."""

  name: ClassVar[str] = "irn"
  readings: ClassVar[tuple[Reading, ...]] = ()

  # Of the stage that made the scores, or as configured.
  features: Literal["scores", "start"] = "scores"
  radius: Annotated[int, Range(2)] = 10  # of pairs, in places of the grid
  boundary_width: Annotated[int, Range(1)] = 32  # channels of each of x1 .. x5
  width: Annotated[int, Range(8)] = 256  # channels of displacement
  optim: StageFit = StageFit(epochs=3)

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Trains, writes maps of all splits.

    Returns:
      `mean_displacement` of the training pictures, vertical and horizontal.
    """
    side = context.crops.crop_px // STRIDE
    if side < pairs.least_side(self.radius):
      raise ValueError(
        f"config.stages.irn.radius = {self.radius}: no pair fits into crops of "
        f"config.data.crops.crop_px = {context.crops.crop_px}; they must have "
        f"{STRIDE * pairs.least_side(self.radius)} px or more"
      )
    mesh, backbone = context.mesh, context.backbone
    frozen = backbone.start(context.seed)
    if self.features == "scores":
      frozen = {**frozen, **context.params(context.before("crf"))["backbone"]}
    frozen = jax.device_put(frozen, parallel.replicated(mesh))
    if not context.has_params(self.name):
      self._train(context, frozen)
    params = context.params(self.name)
    params = jax.device_put(params, parallel.replicated(mesh))
    program = training.compiled(functools.partial(mirrored, backbone), mesh)
    for split, of_split in context.splits.items():

      def finish(number, found, sizes=of_split.sizes):
        size = tuple(sizes[number].tolist())
        boundary, displacement = (
          decide.cut(found[name], size, STRIDE).astype(np.float16)
          for name in ("boundary", "displacement")
        )
        return {
          "boundary": boundary,
          "displacement": displacement.transpose(2, 0, 1),
        }

      context.write_maps(
        self.name, split, lambda batch: program(params, frozen, batch), finish
      )
    maps, ids = context.maps(self.name, "train"), context.pictures("train").ids
    each = [
      maps.read(i)["displacement"].astype(np.float64).mean(axis=(1, 2))
      for i in ids
    ]
    return {"mean_displacement": np.mean(each, axis=0).tolist()}

  def _train(self, context: StageContext, frozen: Any) -> None:
    labels = context.before(self.name)
    targets = {s: context.maps(labels, s).folder for s in ("train", "val")}
    data = dataclasses.replace(
      self.optim.data(context, targets["train"]),
      val=lambda: pictures.whole_batches(
        context.pictures("val"),
        context.batch_size,
        context.mesh,
        targets=targets["val"],
      ),
    )
    factors = (("displacement", self.optim.head_lr_factor),)
    settings = self.optim.settings(keep="last", lr_factors=factors)
    model = network(
      context.backbone, self.boundary_width, self.width, self.radius
    )
    folder = context.fit_folder(self.name)
    fitted = fit.Trainer(model, settings, context.mesh, frozen).fit(
      data, validate, context.seed, folder
    )
    context.save_params(self.name, fitted.params)
    folder.clear()
    row = fitted.history[-1]
    launch.log(
      f"{self.name}: loss on pairs of validation: "
      f"{row['val/boundary']:.3f} boundary, "
      f"{row['val/displacement']:.3f} displacement"
    )


@functools.lru_cache(maxsize=8)
def network(
  backbone: Backbone, boundary_width: int, width: int, radius: int
) -> fit.Model:
  """The heads as the trainer wants them, the same whenever asked for.

  Outputs are `pairs.SUMS`.
  """

  def init(key, frozen, example):
    del frozen, example
    return init_heads(key, backbone.widths, boundary_width, width)

  def apply(params, frozen, batch):
    features = backbone.features(frozen, batch["pixels"])
    logits, displacement = apply_heads(params, features)
    return pairs.pair_sums(logits, displacement, grid_labels(batch), radius)

  def loss(params, frozen, batch, key):
    del key
    return sum(pairs.losses(apply(params, frozen, batch)).values())

  return fit.Model(init, loss, apply)


def grid_labels(batch: fit.Batch) -> Array:
  """The label of the middle of each place of the grid; 255 to be ignored."""
  counts = (batch["weight"] > 0) & (batch["mask"] > 0)[:, None, None]
  labels = jnp.where(counts, batch["target"], UNDECIDED)
  return labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def validate(
  sums: Float[np.ndarray, "n 8"],
) -> tuple[tuple[float, ...], dict[str, float]]:
  """Both losses of all validation pictures; the lowest sum is best."""
  found = pairs.losses(jnp.asarray(sums, jnp.float32))
  found = {f"val/{name}": float(value) for name, value in found.items()}
  return (-sum(found.values()),), found


def init_heads(
  key: Array, widths: tuple[int, ...], boundary_width: int, width: int
) -> dict[str, Any]:
  """Random parameters of both heads.

  Args:
    key: random.
    widths: channels of x1 .. x5.
    boundary_width: channels that the boundary makes of each of them.
    width: channels that displacement makes of x3 .. x5; half as many of x2, a
      quarter of x1.
  """
  keys = iter(jax.random.split(key, 2 * len(widths) + 4))
  outs = (width // 4, width // 2, width, width, width)
  boundary = {
    f"x{n}": conv.init(next(keys), (1, 1, inner, boundary_width), norm=True)
    for n, inner in enumerate(widths, start=1)
  }
  displacement = {
    f"x{n}": conv.init(next(keys), (1, 1, inner, out), norm=True)
    for n, (inner, out) in enumerate(zip(widths, outs, strict=True), start=1)
  }
  boundary["out"] = conv.init(
    next(keys), (1, 1, boundary_width * len(widths), 1), bias=True
  )
  displacement["coarse"] = conv.init(
    next(keys), (1, 1, 3 * width, width), norm=True
  )
  displacement["fine"] = conv.init(
    next(keys), (1, 1, outs[0] + outs[1] + width, width), norm=True
  )
  displacement["out"] = conv.init(next(keys), (1, 1, width, 2))
  return {"boundary": boundary, "displacement": displacement}


def apply_heads(
  params: Mapping[str, Any], features: tuple[Float[Array, "b _ _ _"], ...]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w 2"]]:
  """Logits of the boundary, and displacement, of the size of x2.

  Args:
    params: of `init_heads`.
    features: x1 .. x5.
  """
  names = [f"x{n}" for n in range(1, len(features) + 1)]
  fine, middle = features[1].shape[1:3], features[2].shape[1:3]

  def block(params, x, size, groups):
    return jax.nn.relu(conv.resize(conv.apply(params, x, 1, groups), size))

  head = params["boundary"]
  joined = [
    block(head[name], x, fine, _BOUNDARY_GROUPS)
    for name, x in zip(names, features, strict=True)
  ]
  logits = conv.apply(head["out"], jnp.concatenate(joined, axis=-1))[..., 0]
  head = params["displacement"]
  sizes, groups = (fine, fine, *(middle,) * 3), (8, *(_GROUPS,) * 4)
  x1, x2, *coarse = [
    block(head[name], x, size, count)
    for name, x, size, count in zip(names, features, sizes, groups, strict=True)
  ]
  coarse = block(head["coarse"], jnp.concatenate(coarse, -1), fine, _GROUPS)
  joined = jnp.concatenate([x1, x2, coarse], axis=-1)
  joined = block(head["fine"], joined, fine, _GROUPS)
  return logits, conv.apply(head["out"], joined)


def mirrored(
  backbone: Backbone, params: Any, frozen: Any, batch: fit.Batch
) -> dict[str, Array]:
  """`boundary`, of the mean logit of picture and mirror image; `displacement`.

  Displacement is that of the picture alone.
  """
  pixels = batch["pixels"]
  both = jnp.concatenate([pixels, pixels[:, :, ::-1]])
  features = backbone.features(frozen, both)
  logits, displacement = apply_heads(params, features)
  b = len(pixels)
  mean = 0.5 * (logits[:b] + logits[b:, :, ::-1])
  return {
    "boundary": jax.nn.sigmoid(mean),
    "displacement": displacement[:b],
  }
