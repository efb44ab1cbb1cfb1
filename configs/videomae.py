r"""VideoMAE pretraining on sequences of tissue.

    python -m data_prep --config=configs/prep_wsi.py \
        --config.slides=SLIDES --config.out=DATA
    python main.py --config=configs/videomae.py:base \
        --config.data.path=DATA --config.workdir=RUN

Run the same command again after an interruption: it goes on from the last
checkpoint. Then, with the same workdir,

    python main.py --config=configs/videomae.py:base --config.job=evaluate ...
    python main.py --config=configs/videomae.py:base --config.job=embed ...

Presets (after the colon; `base` if none is given):

  smoke   A few seconds of training on two CPU cores, about half a minute with
          start-up, on shards of noise (data.path = 'synthetic'). Shows that
          everything runs.
  demo    About four minutes on two CPU cores, and past the point where the
          decoder only paints the mean colour. 4 of every fourth frame of 48 px
          (it needs 24 stored ones, as `configs/prep_wsi.py:demo` makes them),
          64 clips a step, patches of 6 px, pixels predicted as they are. At 1
          um/px little of what a ratio of 0.9 hides can be told from the rest
          (benchmarks/predictability.py), so 0.75 is hidden, in short runs.
          Positions are those of the tissue.
  small base large huge giant
          The recipe of the histology sequence encoder that this follows: 16 of
          96 frames, every fourth, 224 px, 4 crops and masks of each sequence
          loaded, mask ratio 0.9, 200 epochs, 20 of warm-up, 1e-3 per 256
          sequences. huge and giant: 300 and 30 epochs, giant 6e-4 and clipping
          at 0.02, as VideoMAE V2. They need accelerators: on two CPU cores one
          step of `small` at batch 4 takes seconds. The published run of `base`
          used 16 V100 (32 GB) for under 25 epochs at batch 256; no full run
          has been made with this code. Memory is saved, in this order, by
          mesh.fsdp, model.remat=dots or full, a smaller data.batch_size (the
          rate follows it).

  series  The MAE baseline of `configs/contrastive.py`, for series and films: a
          ViT-S on 8 of every second frame, 128 px, tokens of one frame and
          16 x 16 px of which 0.9 are hidden at random; its optimiser is that
          of the contrastive methods. `series,demo` has encoder and pictures of
          theirs (32 px, 6 visits, under a minute on one CPU core, for
          `configs/prep_series.py:demo`); `series,smoke` takes seconds.

Keys, defaults and what they mean: wsiseq_jax/config.py, and
wsiseq_jax/tasks/videomae/setup.py. The defaults are the recipe of `base`.

Differences from the published recipe: masks follow the tissue (`mask.kind`;
'tube' is the published one), the decoder rebuilds all hidden tokens
(mask.decoder='running_cell' is V2's half).
"""

from ml_collections import ConfigDict

from configs import common

SERIES = ("series", "series,demo", "series,smoke")
PRESETS = ("base", "smoke", "demo", "small", "large", "huge", "giant", *SERIES)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.base_config("videomae")
  config.model.size = "small" if preset in SERIES else preset
  if preset in ("smoke", "demo"):
    _for_cpu(config)
  if preset == "smoke":
    _smoke(config)
  if preset == "demo":
    _demo(config)
  if preset == "large":
    config.optim.update({"warmup_epochs": 30.0, "total_epochs": 300.0})
  if preset in ("huge", "giant"):
    config.optim.update({"warmup_epochs": 30.0, "total_epochs": 300.0})
    config.model.remat = "dots"
  if preset == "giant":
    config.model.patch = (2, 14, 14)
    config.optim.update({"lr_per_256": 6e-4, "clip_norm": 0.02})
  if preset in SERIES:
    _series(config)
  if preset == "series,demo":
    _series_demo(config)
  if preset == "series,smoke":
    _for_cpu(config)
    config.data.update({"frames": 4, "frame_step": 2})
    config.model.patch = (1, 16, 16)
    _smoke(config)
  return config.lock()


def _for_cpu(config: ConfigDict) -> None:
  """Small pictures, float32, one clip a sequence."""
  config.data.update(
    {"frames": 8, "frame_step": 1, "repeats": 1, "image_px": (32, 32)}
  )
  config.data.threads = 2
  config.model.update({"patch": (2, 8, 8), "dtype": "float32"})
  config.optim.update({"warmup_epochs": 0.0, "total_epochs": 0.0})


def _smoke(config: ConfigDict) -> None:
  config.data.update({"path": "synthetic", "batch_size": 8})
  config.model.size = "tiny"
  config.mask.ratio = 0.75
  config.optim.update(
    {"warmup_steps": 2, "total_steps": 12, "lr_per_256": 0.03}
  )
  config.checkpoint.every_steps = 6
  config.log_every_steps = 3
  config.eval_every_steps = 6
  config.report.update({"clusters": 4, "queries": 2})


def _demo(config: ConfigDict) -> None:
  config.data.update({"frames": 4, "frame_step": 4, "image_px": (48, 48)})
  config.data.update({"batch_size": 64, "crop_scales": (1.0, 0.875, 0.75)})
  # On two cores the decoder, which has four times the tokens, takes most of a
  # step: one block of it. Few wide heads are faster than many narrow ones.
  config.model.update(
    {
      "patch": (2, 6, 6),
      "normalise_target": False,
      "width": 96,
      "heads": 3,
      "decoder_depth": 1,
      "positions": "tissue",
    }
  )
  # Runs of half the window: longer ones leave no room for two in a row.
  config.mask.update({"ratio": 0.75, "run_patches": 4.0})
  config.optim.update(
    {
      "warmup_steps": 50,
      "total_steps": 600,
      # A small network: 4e-3 in a step.
      "lr_per_256": 0.016,
      "min_lr_per_256": 1e-4,
    }
  )
  config.checkpoint.update({"every_steps": 100, "every_minutes": 1.0})
  config.log_every_steps = 20
  config.eval_every_steps = 100
  config.report.mask_ratios = (0.25, 0.5, 0.75)


def _series(config: ConfigDict) -> None:
  config.data.update(
    {
      "batch_size": 128,
      "frames": 8,
      "frame_step": 2,
      "repeats": 1,
      "image_px": (128, 128),
      "crop_scales": (1.0,),
    }
  )
  config.model.patch = (1, 16, 16)
  config.mask.kind = "random"
  config.optim.update({"lr_per_256": 2e-4, "min_lr_per_256": 0.0, "b2": 0.999})


def _series_demo(config: ConfigDict) -> None:
  _for_cpu(config)
  # The shortest series has 6 visits.
  config.data.update({"frames": 6, "batch_size": 32})
  config.model.update(
    {
      "size": "tiny",
      "patch": (1, 8, 8),
      # Encoder of the contrastive demo.
      "width": 64,
      "depth": 2,
      "heads": 2,
      "decoder_width": 32,
    }
  )
  config.mask.ratio = 0.75
  config.optim.update(
    {"warmup_steps": 25, "total_steps": 600, "lr_per_256": 8e-3}
  )
  config.checkpoint.update({"every_steps": 300, "every_minutes": 0.0})
  config.log_every_steps = 50
  config.eval_every_steps = 300
