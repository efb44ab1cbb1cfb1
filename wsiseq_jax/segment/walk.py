"""Scores spread where no boundary is in the way, and instances of them.

The scores of the stage before `crf` are spread by a random walk
(`random_walk.py`) that boundaries of the stage `irn` stop; what lies on one
counts less, by `1 - boundary`. Results become scores in two ways:

    per image   divided by the maximum of the picture, as in the original
    absolute    divided by what the walk makes of a score of 1 all over tissue:
                a mean of the scores that went in, with their meaning

Pictures that are not trained on get instances as well (`instances.py`), of the
scores per image.

Reference: Ahn, Cho and Kwak, CVPR 2019.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_prep.files.schema import AtLeast1, NotNegative, Range, Share
from wsiseq_jax import fit
from wsiseq_jax.segment import cam, crf, decide, random_walk, training
from wsiseq_jax.segment import instances as instance_maps
from wsiseq_jax.segment.stage import Reading, StageContext

STRIDE = 4  # of the grid
_LEAST_TISSUE = 1e-3  # what is spread of less than this has no score


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWalk:
  """The stage `walk`."""

  name: ClassVar[str] = "walk"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("per image", "image_scores", 0.25),
    Reading("absolute", "scores", 0.5),
    Reading("absolute, chosen", "scores"),
  )
  has_instances: ClassVar[bool] = True

  radius: Annotated[int, Range(2)] = 5  # of a step, in places of the grid
  beta: NotNegative = 10.0
  steps: AtLeast1 = 256
  # Labels to train on: absolute scores from here on are foreground, ...
  foreground: Share = 0.3
  background: Share = 0.2  # ... below this, background
  # Of instances: least score, of the picture's highest; clusters of a class.
  instance_background: Share = 0.25
  most_instances: AtLeast1 = 64

  def __post_init__(self):
    if self.background > self.foreground:
      raise ValueError(
        f"config.stages.walk.background = {self.background}: must not exceed "
        f"config.stages.walk.foreground = {self.foreground}"
      )

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Writes scores of all splits, and instances of all but training."""
    before, source = context.before(self.name), context.before("crf")
    mean = np.array(context.facts(before)["mean_displacement"], np.float32)
    program = training.compiled(
      functools.partial(spread, self.radius, self.beta, self.steps),
      context.mesh,
    )
    for split in context.splits:

      def compute(batch, split=split):
        read = functools.partial(context.padded_maps, split=split, batch=batch)
        found = program(
          *(read(source, name=name) for name in ("scores", "image_scores")),
          read(before, name="boundary"),
          batch,
        )
        return {**found, "displacement": read(before, name="displacement")}

      finish = functools.partial(self._finish, context, split, mean)
      context.write_maps(self.name, split, compute, finish)
    return {}

  def _finish(
    self,
    context: StageContext,
    split: str,
    mean: Float[np.ndarray, "2"],
    number: int,
    found: dict[str, np.ndarray],
  ) -> dict[str, np.ndarray]:
    """The maps of one picture."""
    of_split = context.pictures(split)
    size = tuple(of_split.sizes[number].tolist())
    rows, columns = (-(-side // STRIDE) for side in size)
    walked = found["walked"][:, :rows, :columns]
    scores, per_image = np.split(walked[:-1], 2)
    tissue = np.where(walked[-1] > _LEAST_TISSUE, walked[-1], np.inf)
    maps = {
      "scores": (scores / tissue[None]).astype(np.float16),
      "image_scores": (per_image / (per_image.max() + 1e-5)).astype(np.float16),
    }
    if split == "train":
      maps["classes"] = decide.classes_of(
        decide.enlarge(maps["scores"], size),
        of_split.picture(number).tissue,
        self.foreground,
        self.background,
      )
      return maps
    displacement = found["displacement"].transpose(1, 2, 0)
    displacement = displacement - mean.reshape(1, 1, 2)
    ends = instance_maps.follow(displacement, np.array([rows, columns]))
    clusters = instance_maps.clusters(
      displacement[:rows, :columns], np.asarray(ends)[:rows, :columns]
    )
    boundary = found["boundary"]
    room = [(0, n - m) for n, m in zip(boundary.shape, (rows, columns))]  # noqa: B905

    def spread_parts(parts):
      x = np.pad(parts, ((0, 0), *room)) * (1.0 - boundary)[None]
      walked = random_walk.walk(x, boundary, self.radius, self.beta, self.steps)
      return np.asarray(walked)[:, :rows, :columns]

    result = instance_maps.instances(
      found["scored"][:, :rows, :columns],
      clusters,
      spread_parts,
      size,
      self.instance_background,
      self.most_instances,
    )
    return maps | {
      "instances": result.numbers,
      "instance_classes": result.classes,
      "instance_scores": result.scores,
    }


def spread(
  radius: int,
  beta: float,
  steps: int,
  scores: Float[Array, "b y h w"],
  image_scores: Float[Array, "b y h w"],
  boundary: Float[Array, "b h w"],
  batch: fit.Batch,
) -> dict[str, Array]:
  """Walks of both kinds of scores, and of tissue.

  Returns:
    `walked` [b, 2 y + 1, h, w], `boundary`, 1 in padding, and `scored`, the
    scores of the picture that instances are made of.
  """
  grid = boundary.shape[1:]
  boundary = jnp.where(crf.inside(batch["size"], grid), boundary, 1.0)
  tissue = (cam.shrink(batch["tissue"], grid) >= 0.5).astype(jnp.float32)
  image_scores = image_scores * tissue[:, None]
  maps = jnp.concatenate(
    [scores * tissue[:, None], image_scores, tissue[:, None]], axis=1
  )
  maps = maps * (1.0 - boundary)[:, None]
  walked = jax.vmap(lambda x, b: random_walk.walk(x, b, radius, beta, steps))
  return {
    "walked": walked(maps, boundary),
    "boundary": boundary,
    "scored": image_scores,
  }
