"""What the report says of a task: facts, measures, how to read the curves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from wsiseq_jax.data import clip_sampling

# (name, value, meaning)
Measures = list[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class ReportText:
  """What the report says of a task."""

  facts: Mapping[str, str]  # about the model, for the summary
  curve: str  # how to read the curves of the loss
  # Result of the job `evaluate` → (name, value, meaning) of each number worth
  # showing.
  measures: Callable[[Mapping[str, Any]], Measures]


def of(config: ConfigDict) -> ReportText:
  """The text for a config's task; plain text for a task not listed here."""
  return _TASKS.get(config.task, _plain)(config)


def _plain(config: ConfigDict) -> ReportText:
  def measures(result: Mapping[str, Any]) -> Measures:
    return [
      (f"{metric} on {result['split']}, {name}", f"{value:.4f}", _of(result))
      for metric, values in result.items()
      if isinstance(values, Mapping)
      for name, value in values.items()
    ]

  return ReportText({"task": config.task}, "", measures)


def _of(result: Mapping[str, Any]) -> str:
  return f"mean over {result['records']} sequences, step {result['step']}"


_VIDEOMAE_CURVE = (
  "mean_colour_loss is what painting all hidden patches in the mean colour of "
  "the visible ones would cost (with normalised patches: each in its own mean "
  "colour); a model above it has understood nothing yet. Losses at different "
  "mask ratios or mask kinds cannot be compared: what a mask leaves visible "
  "nearby can simply be copied."
)


def _videomae(config: ConfigDict) -> ReportText:
  model, mask = config.model, config.mask
  h, w = config.data.image_px

  def measures(result: Mapping[str, Any]) -> Measures:
    trivial = result["mean_colour_loss"]
    own = f"{result['trained_mask_ratio']:g}"
    return [
      (
        f"loss against mean colour on {result['split']}",
        f"{result['loss'][own] / trivial[own]:.2f}",
        f"part of what painting the mean colour costs, at the mask of training "
        f"({own}); 1 or more is no more than colour, below is structure",
      ),
      *(
        (
          f"loss on {result['split']}, mask ratio {ratio}",
          f"{loss:.4f}",
          f"{_of(result)}; painting the mean colour costs {trivial[ratio]:.4f}",
        )
        for ratio, loss in result["loss"].items()
      ),
    ]

  return ReportText(
    facts={
      "model": f"VideoMAE {model.size}, {config.data.frames} frames of {h} × "
      f"{w} px, tokens of {' × '.join(map(str, model.patch))}",
      "masks in training": f"{mask.kind}, ratio {mask.ratio:g}",
      "target": "normalised patches" if model.normalise_target else "pixels",
    },
    curve=_VIDEOMAE_CURVE,
    measures=measures,
  )


_COLLAPSE = {
  "feature_std": "spread of clip features; 0 if all are one",
  "feature_rank": "directions in which clip features differ",
  "clip_cosine": "cosine of clips of different records; 1 if all are one, or "
  "share a large part",
  "frame_cosine": "cosine of frames of different records; 1 if the model does "
  "not look at them",
}
_LATENT_CURVE = (
  "The target is the teacher's own, and moves: the loss may rise while "
  "features improve, and losses of two runs do not compare. "
  "mean_feature_loss is what predicting the mean of the visible tokens would "
  "cost. A loss near 0 with feature_std near 0 is collapse."
)
_LATENT_MEANINGS = {
  "loss": "absolute error of predicted features of hidden tokens",
  "mean_feature_loss": "that of predicting the mean of the visible tokens",
  **{name: _COLLAPSE[name] for name in ("feature_std", "clip_cosine")},
}


def _latent(config: ConfigDict) -> ReportText:
  model, mask = config.model, config.mask
  h, w = config.data.image_px
  teacher = config.teacher

  def measures(result: Mapping[str, Any]) -> Measures:
    (ratio,) = result["loss"]
    return [
      (
        f"{name} on {result['split']}",
        f"{result[name][ratio]:.4f}",
        f"{meaning}; {_of(result)}",
      )
      for name, meaning in _LATENT_MEANINGS.items()
    ]

  return ReportText(
    facts={
      "model": f"latent prediction, {model.size}, {config.data.frames} frames "
      f"of {h} × {w} px, tokens of {' × '.join(map(str, model.patch))}",
      "masks in training": f"{mask.kind}, ratio {mask.ratio:g}",
      "teacher": f"keeps {teacher.decay:g} to {teacher.decay_end:g} of itself "
      "at a step",
    },
    curve=_LATENT_CURVE,
    measures=measures,
  )


_CONTRASTIVE_CURVE = (
  "contrastive_loss is log(2 B - 1) for B records in a batch where nothing was "
  "learned. prediction_loss is minus a cosine: -1 at best, which a model that "
  "gives all frames one feature reaches as well. The loss is a weighted mean "
  "of both; it jumps where the weight changes."
)
_CONTRASTIVE_MEANINGS = {
  "contrastive_loss": "InfoNCE; log(2 B - 1) where nothing was learned, B "
  "records in a batch",
  "top1": "how often the partner is the most similar of all views",
  "prediction_loss": "minus the cosine of predicted and true frame features",
  **_COLLAPSE,
}


def _contrastive(config: ConfigDict) -> ReportText:
  frames = clip_sampling.parse_clip_name(config.data.clips).frames
  h, w = config.data.image_px

  def measures(result: Mapping[str, Any]) -> Measures:
    return [
      (
        f"{name} on {result['split']}",
        f"{result[name]['fixed views']:.4f}",
        f"{meaning}; {_of(result)}, {result['batch_size']} a batch",
      )
      for name, meaning in _CONTRASTIVE_MEANINGS.items()
      if name in result
    ]

  return ReportText(
    facts={
      "model": f"clip encoder {config.model.size}, {frames} frames of {h} × "
      f"{w} px",
      "objective": f"{config.objective.kind}, clips {config.data.clips}",
      "told the time": "yes" if config.model.time_embedding else "no",
    },
    curve=_CONTRASTIVE_CURVE,
    measures=measures,
  )


_TASKS: Mapping[str, Callable[[ConfigDict], ReportText]] = {
  "contrastive": _contrastive,
  "latent": _latent,
  "videomae": _videomae,
}
