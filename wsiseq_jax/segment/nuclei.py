"""Nuclei from a few points: a detector that teaches itself.

A network learns to see nuclei: an extended Gaussian round each annotated point,
certain background on a ring round it, nothing beyond. It then teaches itself:
what it sees clearly becomes points, what it clearly does not see becomes
background, and it is trained again. Its peaks are nuclei, those that nobody
annotated too; `nucleus_masks.py` makes masks of them.

Rules are of NumPy, a picture at a time; their results are uint8 maps that
survive rotation and nearest-neighbour scaling, so that batches cut them as they
cut masks. x, y are in pixels; whole numbers are middles of pixels. Whatever
class a point has, it is a nucleus.

References:
  Qu et al. 2019, "Weakly Supervised Deep Nuclei Segmentation using Points
  Annotation in Histopathology Images"; 2020, "Weakly Supervised Deep Nuclei
  Segmentation Using Partial Points Annotation in Histopathology Images".
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, UInt8
from scipy import spatial
from skimage import feature

from data_prep.files import tables
from data_prep.files.schema import AtLeast1, Range, Share
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.metrics import detection
from wsiseq_jax.segment import clicks, decide, student, training
from wsiseq_jax.segment import pictures as pictures_of
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.clicks import IGNORE
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

_LEVELS = 253  # of a Gaussian, as a map keeps it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
  """How nuclei are learned from points, and seen."""

  # Of a nucleus, pixels; beyond it, up to `outer_px`, is background.
  inner_px: Annotated[float, Range(1)] = 11.0
  outer_px: Annotated[float, Range(1)] = 22.0
  weight: Annotated[float, Range(above=0)] = 10.0  # of nuclei; background: 1
  threshold: Share = 0.35  # least height of a peak that is a nucleus
  # Peaks that become points, and what becomes background, between rounds.
  sure: Share = 0.6
  low: Share = 0.05
  apart_px: Annotated[float, Range(1)] = 6.0  # between two nuclei

  def __post_init__(self):
    if self.outer_px < self.inner_px:
      raise ValueError(
        f"config.stages.detect.rule.outer_px = {self.outer_px:g}: must be at "
        f"least inner_px, {self.inner_px:g}"
      )
    if self.sure < self.threshold:
      raise ValueError(
        f"config.stages.detect.rule.sure = {self.sure:g}: must be at least "
        f"threshold, {self.threshold:g}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detect:
  """The stage `detect`: where nuclei are."""

  name: ClassVar[str] = "detect"
  readings: ClassVar[tuple[Reading, ...]] = ()

  rule: Detection = Detection()
  rounds: AtLeast1 = 3  # of training; after each but the last it teaches itself
  # Points of a picture that are used, drawn for good; 1 = all.
  share: Annotated[float, Range(0.001, 1)] = 1.0
  width: AtLeast1 = 64  # channels of the decoder
  optim: StageFit = StageFit()

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Trains, teaches itself, writes maps and nuclei of all splits."""
    frozen = context.backbone.start(context.seed)
    frozen = jax.device_put(frozen, parallel.replicated(context.mesh))
    model = network(context.backbone, self.width, self.rule.weight)
    program = training.compiled(
      functools.partial(slide_scores, context.backbone), context.mesh
    )
    known = self._known(context, "train")
    count = sum(len(points) for points in known.values())
    if not count:
      raise ValueError(
        f"config.data.path: none of the {len(known)} training pictures has a "
        "point; the stage 'detect' learns from points (column `points` of the "
        "table of pictures)"
      )
    launch.log(f"{self.name}: {count} points on {len(known)} pictures")
    for number in range(1, self.rounds + 1):
      stage = self.round(number)
      self._teach(context, number, known)
      data = self.optim.data(
        context, context.maps(f"{stage}/labels", "train").folder
      )
      labels = context.maps(f"{stage}/labels", "val").folder
      data = dataclasses.replace(
        data,
        val=lambda labels=labels: pictures_of.whole_batches(
          context.pictures("val"),
          context.batch_size,
          context.mesh,
          targets=labels,
        ),
      )
      settings = self.optim.settings(keep="last")
      params = training.learned(
        context, stage, model, settings, data, validate, frozen
      )
      if number < self.rounds:
        self._write(context, stage, "train", program, params, frozen)
    for split in context.splits:
      self._write(context, self.name, split, program, params, frozen, known)
    rows = self._score(context)
    tables.write(
      context.folder(self.name) / "detection.csv", detection.COLUMNS, rows
    )
    return {"points": count, **student.about(context)}

  def round(self, number: int) -> str:
    """The folder of a round, counted from 1."""
    return f"{self.name}/round{number}"

  def _known(self, context: StageContext, split: str) -> dict[str, np.ndarray]:
    """What people said of each picture."""
    pictures, found = context.pictures(split), {}
    for number, picture_id in enumerate(pictures.ids):
      points = pictures.picture(number).points
      if self.share < 1:
        most = math.ceil(self.share * len(points))
        whole = np.concatenate([points[:, :2], 0 * points[:, 2:]], axis=1)
        points = clicks.chosen(whole, most, picture_id, context.seed)
      found[picture_id] = points[:, :2].astype(np.float64)
    return found

  def _teach(
    self, context: StageContext, number: int, known: Mapping[str, np.ndarray]
  ) -> None:
    """Writes what a round learns from, where it is not there yet."""
    stage = self.round(number)
    for split in ("train", "val"):
      pictures = context.pictures(split)
      labels = context.maps(f"{stage}/labels", split)
      told = known if split == "train" else self._known(context, split)
      for index, picture_id in enumerate(pictures.ids):
        if labels.has(picture_id):
          continue
        one, points = pictures.picture(index), told[picture_id]
        background = one.tissue == 0
        if not len(one.points) and (one.labels == 0).all():
          background[:] = True  # a certain negative
        if number > 1 and split == "train":
          seen = context.maps(self.round(number - 1), split).read(picture_id)
          share = decide.enlarge(seen["scores"], one.size)[0]
          points, empty = taught(points, share, self.rule)
          background |= empty
        labels.write(
          picture_id,
          classes=gaussian_map(points, one.size, self.rule, background),
        )

  def _write(
    self, context, stage, split, program, params, frozen, known=None
  ) -> None:
    """Writes what is seen in the pictures of a split."""
    pictures = context.pictures(split)

    def finish(number, found):
      size = tuple(pictures.sizes[number].tolist())
      scores = decide.cut(found["scores"], size, student.STRIDE)
      scores = scores.transpose(2, 0, 1).astype(np.float16)
      maps = {"scores": scores}
      if known is not None:
        share = decide.enlarge(scores, size)[0]
        points, height = peaks(share, self.rule.threshold, self.rule.apart_px)
        maps["points"] = np.concatenate([points, height[:, None]], axis=1)
        if split == "train":  # people's, and what was added to them
          maps["taught"], _ = taught(
            known[pictures.ids[number]], share, self.rule
          )
      return maps

    context.write_maps(
      stage,
      split,
      lambda batch: program(params, frozen, batch["pixels"]),
      finish,
    )

  def _score(self, context: StageContext) -> list[dict[str, Any]]:
    """Rows of detection.csv: found nuclei of the test split against points."""
    pictures = context.pictures("test")
    maps = context.maps(self.name, "test")
    counts = np.array(
      [
        detection.counts(
          maps.read(picture_id)["points"],
          pictures.picture(number).points[:, :2],
          self.rule.inner_px,
        )
        for number, picture_id in enumerate(pictures.ids)
      ]
    )
    return detection.table(counts, np.array(pictures.patient_ids))


@functools.lru_cache(maxsize=8)
def network(backbone: Backbone, width: int, weight: float) -> fit.Model:
  """The detector as the trainer wants it, the same one whenever asked for.

  Its outputs are the sum of weighted errors and of weights, [b, 2].
  """

  def init(key, frozen, example):
    del example
    return {
      "backbone": backbone.learned(frozen),
      "head": student.init_decoder(key, backbone.widths, 0, width),
    }

  def share_of(params, frozen, batch):
    logits = student.pixel_logits(backbone, params, frozen, batch["pixels"])
    target = jnp.where(clicks.real_pixels(batch), batch["target"], IGNORE)
    return jax.nn.sigmoid(logits[..., 0]), target

  def loss(params, frozen, batch, key):
    del key
    return detection_loss(*share_of(params, frozen, batch), weight)

  def apply(params, frozen, batch):
    error, weights = weighted_errors(*share_of(params, frozen, batch), weight)
    return jnp.stack([error.sum(axis=(1, 2)), weights.sum(axis=(1, 2))], axis=1)

  return fit.Model(init, loss, apply)


def validate(
  sums: Float[np.ndarray, "n 2"],
) -> tuple[tuple[float, ...], dict[str, float]]:
  """The loss on validation; 0 where nothing is known of it."""
  error, weight = sums.sum(axis=0).tolist()
  loss = error / max(weight, 1.0)
  return (-loss,), {"val/loss": loss}


def slide_scores(
  backbone: Backbone, params: Any, frozen: Any, pixels: Array
) -> dict[str, Float[Array, "b h w 1"]]:
  """How much each place is a nucleus, of a stride of 4."""
  logits = student.grid_logits(backbone, params, frozen, pixels)
  return {"scores": jax.nn.sigmoid(logits)}


def inside(
  points: Float[np.ndarray, "n 2"], shape: tuple[int, int]
) -> Float[np.ndarray, "m 2"]:
  """The points of a picture: on it, no two on one pixel."""
  points = np.asarray(points, np.float64).reshape(-1, 2)
  height, width = shape
  on = np.isfinite(points).all(axis=1)
  points = points[on]
  pixels = np.rint(points)
  on = ((pixels >= 0) & (pixels < [width, height])).all(axis=1)
  _, first = np.unique(pixels[on], axis=0, return_index=True)
  return points[on][np.sort(first)]


def pixels_of(points: Float[np.ndarray, "n 2"]) -> tuple[np.ndarray, ...]:
  """Rows and columns of points."""
  return tuple(np.rint(points[:, ::-1]).astype(int).T)


def gaussian_map(
  points: Float[np.ndarray, "n 2"],
  shape: tuple[int, int],
  settings: Detection,
  background: Bool[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "h w"]:
  """What a detector learns of a picture.

  Args:
    points: nuclei, of which some are known.
    shape: height, width.
    settings: the radii.
    background: pixels that are certainly no nucleus, wherever they are; those
      of a disc round a point count as that.

  Returns:
    `IGNORE` where nothing is known, 0 for background, and within `inner_px` of
    a point 1 to 254 for the Gaussian exp(−d²/2σ²) from 0 to 1, σ a quarter of
    `inner_px`, d the distance to the nearest point.
  """
  apart, _ = clicks.nearest(inside(points, shape), shape, settings.outer_px)
  found = np.full(shape, IGNORE, np.uint8)
  if background is not None:
    found[background] = 0
  found[apart <= settings.outer_px] = 0
  is_nucleus = apart <= settings.inner_px
  sigma = settings.inner_px / 4
  height_of = np.exp(-(apart[is_nucleus] ** 2) / (2 * sigma**2))
  found[is_nucleus] = 1 + np.rint(_LEVELS * height_of).astype(np.uint8)
  return found


def weighted_errors(
  share: Float[Array, "b h w"],
  target: Integer[Array, "b h w"],
  weight: float,
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
  """Weighted squared errors of a detector, and the weights.

  Args:
    share: what it says, from 0 to 1.
    target: `gaussian_map`; what is not known weighs 0.
    weight: of pixels of nuclei; those of background weigh 1.
  """
  is_nucleus = (target > 0) & (target != IGNORE)
  heights = jnp.where(is_nucleus, (target - 1) / _LEVELS, 0.0)
  weights = jnp.where(target == IGNORE, 0.0, jnp.where(is_nucleus, weight, 1.0))
  return weights * jnp.square(share - heights), weights


def detection_loss(
  share: Float[Array, "b h w"],
  target: Integer[Array, "b h w"],
  weight: float,
) -> Float[Array, ""]:
  """Weighted mean squared error; 0 where nothing is known."""
  error, weights = weighted_errors(share, target, weight)
  return error.sum() / jnp.maximum(weights.sum(), 1.0)


def peaks(
  share: Float[np.ndarray, "h w"], threshold: float, apart_px: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
  """Nuclei that a detector sees: x, y of its maxima, and their heights."""
  share = np.asarray(share, np.float32)
  found = feature.peak_local_max(
    share,
    min_distance=max(1, round(apart_px)),
    threshold_abs=threshold,
    exclude_border=False,
  )
  return found[:, ::-1] * 1.0, share[found[:, 0], found[:, 1]]


def taught(
  points: Float[np.ndarray, "n 2"],
  share: Float[np.ndarray, "h w"],
  settings: Detection,
) -> tuple[Float[np.ndarray, "m 2"], Bool[np.ndarray, "h w"]]:
  """What a detector adds to what people said: points, and background.

  Args:
    points: people's.
    share: what it sees in the picture.
    settings: `sure`, `low` and the inner radius: what it sees nearer to a
      person's point is the same nucleus.

  Returns:
    People's points and then its own; pixels that it is sure are background.
  """
  points = inside(points, share.shape)
  found, _ = peaks(share, settings.sure, settings.apart_px)
  if len(points) and len(found):
    apart, _ = spatial.cKDTree(points).query(found)
    found = found[apart > settings.inner_px]
  return np.concatenate([points, found]), share < settings.low
