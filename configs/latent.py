r"""Latent prediction on sequences of tissue: features of what is hidden.

    python main.py --config=configs/latent.py:base \
        --config.data.path=DATA --config.workdir=RUN

As `configs/videomae.py`, of which it is the newer relative (I-JEPA, V-JEPA):
the same clips, masks and encoder, but the target is what a slow copy of the
encoder, the teacher, makes of the hidden tokens. There are no reconstructions
to look at; watch `feature_std` and `clip_cosine` beside the loss. See
wsiseq_jax/tasks/latent.

Presets (after the colon; `base` if none is given):

  smoke        A few seconds of training on two CPU cores, on shards of noise.
  demo         Minutes on two CPU cores: the clips, the encoder and the number
               of steps of `configs/videomae.py:demo`.
  small base   Clips and encoder of VideoMAE's presets of that name, a predictor
               of 12 blocks of width 384, the optimiser of the references.
"""

from ml_collections import ConfigDict

from configs import common, videomae

PRESETS = ("base", "smoke", "demo", "small")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.base_config("latent")
  if preset in ("smoke", "demo"):
    _like_videomae(config, preset)
    config.optim.b2 = 0.999
    if preset == "demo":
      config.optim.lr_per_256 = 6e-3  # pixels bear 0.016
    return config.lock()
  config.model.update(
    {
      "size": preset,
      "decoder_width": 384,
      "decoder_depth": 12,
      "decoder_heads": 6,
    }
  )
  config.mask.ratio = 0.8
  config.optim.update({"lr_per_256": 1e-4, "min_lr_per_256": 1e-6, "b2": 0.999})
  config.teacher.decay = 0.998
  return config.lock()


def _like_videomae(config: ConfigDict, preset: str) -> None:
  """Takes over what the preset of that name says there: the two compare."""
  other = videomae.get_config(preset)
  for block in config:
    if isinstance(config[block], ConfigDict) and block in other:
      config[block].update(
        {key: other[block][key] for key in config[block] if key in other[block]}
      )
    elif block in ("log_every_steps", "eval_every_steps"):
      config[block] = other[block]
