r"""Contrastive pretraining on sequences: of visits, of films, of tissue.

    python -m data_prep --config=configs/prep_series.py \
        --config.csv=TABLE.csv --config.out=DATA
    python main.py --config=configs/contrastive.py:tvrl \
        --config.data.path=DATA --config.workdir=RUN

Run the same command again after an interruption: it goes on from the last
checkpoint. With `--config.job=evaluate` or `embed` and the same workdir it
measures, or writes features.

Methods (after the colon; `tvrl` if none is given):

  cvrl         two clips of different times of a record look alike
  ltn          the same, after the second was moved by the time between them
  csimclr      one clip, changed twice, looks alike
  csimclr_te   the same, and the model is told the time of its frames
  tvrl         the same, and features of hidden frames are predicted from the
               others (a sixth of the frames; from half of training on)
  clm          the same with each next frame instead; in the released code of
               the reference, not in its paper

Each comes in three sizes:

  (none)       The reference's recipe for films of 50 frames: ViT-S, 128 px, 8
               of every second frame, batch 128, 200 epochs, 20 of warm-up,
               2e-4 per 256, strong changes. tvrl and clm draw clips from one
               half of the film (data.strict_half): a heart beats once in it.
               Needs an accelerator.
  ,demo        32 px, 32 records a step, 600 steps in about 80 seconds on one
               CPU core: made for `configs/prep_series.py:demo`, series of 6 to
               12 visits at irregular times. A view is 4 visits. All but csimclr
               compare clips of different times there, see below.
  ,smoke       Seconds, on shards of noise (data.path = 'synthetic').
               `smoke` alone is `tvrl,smoke`.

so `--config=configs/contrastive.py:csimclr_te,demo`.

For your own data, set at least

  data.clips         clips, frames and step, `{n}c{f}f{s}s`. Series of visits:
                     '1c8f1s'. Drift shards of 96 frames: '1c8f4s'. A record
                     that is shorter than a clip is padded, and padding is never
                     looked at; no record may need it for the clip to fit the
                     longest.
  data.strict_half   True for periodic films, False for the rest.
  data.time_jitter   noise on times in their unit: 0.01 for frames, 0.1 for
                     years (the reference's), 0 for micrometres.
  data.augment       for OCT the reference rotates by 5 degrees, crops areas of
                     0.1 to 1, never flips up-down, changes brightness by 0.6
                     and blurs with 0.1 to 1 px.

Time is whatever the data set says it is: years, seconds, frames, or um along
the tissue (for `zoom`, the side of the field of view). The time embedding takes
its shortest and longest time from the unit (models/time_embedding.py) unless
model.time_shortest and model.time_longest are set. Without relative_time it
counts from the record's first frame.

Times can give a record away. If both views show the same visits, and visits lie
at irregular times, then the times alone say which view belongs to which: a
model that is told them need not look at pictures, and does not. On the demo's
series csimclr_te with data.clips='1c6f1s' was right in 93 of 100 cases after
300 steps, with one and the same feature for all frames (`frame_cosine` 1.00),
and nothing about growth could be read off its clips. The reference's film
frames have the same times in all records, and its visits get noise of 0.1
years. So look at `frame_cosine`, and where it rises to 1 take two clips of
different times ('2c...'), as the demo does for csimclr_te, tvrl and clm.

data.dense_step = 1 averages features over all clips of a record in `embed`,
where 0 takes the middle one.

Keys, defaults and what they mean: wsiseq_jax/config.py, and
wsiseq_jax/tasks/contrastive/setup.py.

MAE, the other baseline of the paper, is `configs/videomae.py:series`.

Differences from the reference, beside its faults: no batch-norm in the model
(projections are standardised over the global batch instead) and no dropout
(models/clip_encoder.py), the target of frame prediction gets no gradient
(tasks/contrastive.py), images keep three channels and are normalised, weight
decay leaves biases and norms alone. The published data are private and no
numbers of the paper could be had; no full run has been made with this code.
"""

from ml_collections import ConfigDict

from configs import common

METHODS = ("tvrl", "cvrl", "ltn", "csimclr", "csimclr_te", "clm")
SIZES = ("", "demo", "smoke")
PRESETS = (
  *METHODS,
  *(f"{method},{size}" for size in SIZES[1:] for method in METHODS),
  "smoke",
)

# What the methods differ in.
_OBJECTIVES = {
  "tvrl": "masked_frames",
  "clm": "next_frame",
  "ltn": "navigation",
}
_TWO_CLIPS = ("cvrl", "ltn")
_KNOW_TIME = ("csimclr_te", "tvrl", "clm")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  if preset == "smoke":
    preset = "tvrl,smoke"
  method, _, size = preset.partition(",")
  count = 2 if method in _TWO_CLIPS else 1
  config = common.base_config("contrastive")
  config.data.update(
    {
      "batch_size": 128,
      "clips": f"{count}c8f2s",
      "strict_half": method in ("tvrl", "clm"),
    }
  )
  # The reference's changes for films of the heart.
  config.data.augment.update(
    {
      "rotate_deg": 15.0,
      "crop_areas": (0.08, 1.0),
      "flips": (0.5, 0.5),
      "jitter_probability": 0.8,
      "brightness": 0.8,
      "contrast": 0.8,
      "blur_probability": 0.5,
    }
  )
  config.model.time_embedding = method in _KNOW_TIME
  config.model.relative_time = method != "ltn"
  config.objective.kind = _OBJECTIVES.get(method, "contrastive")
  config.optim.update({"lr_per_256": 2e-4, "min_lr_per_256": 0.0, "b2": 0.999})
  if size:
    _for_cpu(config, count)
  if size == "demo":
    _demo(config, method)
  if size == "smoke":
    _smoke(config)
  return config.lock()


def _for_cpu(config: ConfigDict, count: int) -> None:
  """Small pictures, float32, no halves."""
  config.data.update({"strict_half": False, "threads": 2})
  config.data.clips = f"{count}c4f2s"
  config.model.update({"temporal_depth": 1, "dtype": "float32"})
  config.objective.directions = 8
  config.optim.update({"warmup_epochs": 0.0, "total_epochs": 0.0})


def _smoke(config: ConfigDict) -> None:
  config.data.update(
    {"path": "synthetic", "batch_size": 8, "image_px": (32, 32)}
  )
  config.model.update(
    {"size": "smoke", "patch": 16, "projector_width": 32, "projection": 16}
  )
  config.optim.update(
    {"warmup_steps": 2, "total_steps": 12, "lr_per_256": 0.03}
  )
  config.checkpoint.every_steps = 6
  config.log_every_steps = 3
  config.eval_every_steps = 6
  config.report.update({"clusters": 4, "queries": 2})


def _demo(config: ConfigDict, method: str) -> None:
  config.data.update(
    {
      # The shortest series has 6 visits. See the module on the second clip.
      "clips": "1c4f1s" if method == "csimclr" else "2c4f1s",
      "batch_size": 32,
      "image_px": (32, 32),
      "time_jitter": 0.02,
      "dense_step": 1,
    }
  )
  config.data.augment.update(
    {
      "crop_areas": (0.6, 1.0),
      "brightness": 0.4,
      "contrast": 0.4,
      "blur_sigma_px": (0.1, 1.0),
    }
  )
  config.model.update(
    {"size": "demo", "projector_width": 256, "projection": 64}
  )
  config.optim.update(
    {"warmup_steps": 25, "total_steps": 600, "lr_per_256": 8e-3}
  )
  config.checkpoint.update({"every_steps": 300, "every_minutes": 0.0})
  config.log_every_steps = 50
  config.eval_every_steps = 300
