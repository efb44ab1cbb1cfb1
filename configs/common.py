"""Blocks that all experiments share, and how a config reads its argument.

`--config=configs/videomae.py:small` calls `get_config("small")`. Every value
may then be overridden on the command line: `--config.optim.lr_per_256=6e-4`.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean


def choose(arg: str, presets: Sequence[str]) -> str:
  """The preset named after the colon.

  Args:
    arg: What stood after the colon; '' means the first preset.
    presets: Their names.

  Raises:
    ValueError: There is no such preset.

  Example:
    >>> choose("", ["base", "smoke"])
    'base'
  """
  if not arg:
    return presets[0]
  if arg not in presets:
    hint = did_you_mean(arg, presets)
    raise ValueError(f"preset {arg!r}: must be one of {list(presets)}{hint}")
  return arg


def base_config(task: str) -> ConfigDict:
  """What every experiment has; a task adds `model` and its own keys."""
  return ConfigDict(
    {
      "job": "train",
      "task": task,
      "workdir": "",
      "seed": 0,
      "data": {
        "path": "",
        "train_split": "train",
        "eval_split": "val",
        # Sequences loaded in a step, on all devices of all hosts together.
        "batch_size": 256,
        "threads": 8,
        "worker_processes": 0,
      },
      "optim": {
        # Rates for 256 sequences a step; see wsiseq_jax/optim.py.
        "lr_per_256": 1e-3,
        "min_lr_per_256": 1e-5,
        # Of each pair below one is 0.
        "warmup_epochs": 0.0,
        "warmup_steps": 0,
        "total_epochs": 0.0,
        "total_steps": 0,
        "weight_decay": 0.05,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip_norm": 0.0,  # 0 switches clipping off
        # Evaluation and features use the average of parameters, decayed by
        # this at each step; 0 is none.
        "ema_decay": 0.0,
        # Parts of a batch computed one after another; saves memory.
        "accumulate_steps": 1,
      },
      "mesh": {"fsdp": 1, "sharding_rules": ()},
      "checkpoint": {
        "path": "",  # '' is <workdir>/checkpoints
        "every_steps": 0,  # 0 is never
        "every_minutes": 10.0,  # 0 is never
        "keep": 2,
      },
      # Scalars also go to this project of Weights & Biases; '' is nowhere.
      "wandb": {"project": "", "entity": "", "group": ""},
      "log_every_steps": 50,
      "eval_every_steps": 0,  # 0 is never
      # Compiling for TPUs that are not there, see wsiseq_jax/tpu/aot.py.
      "aot": {
        "topology": "v5e:2x4",
        "records_per_chip": 0,  # 0 leaves data.batch_size as it is
        "find_largest": False,
      },
      # Whether embeddings/*.npz also keep the tokens, many times the size.
      "embed": {"tokens": False},
      "report": {
        "prep": "",  # what data_prep wrote; '' is the folder of data.path
        "out": "",  # '' is <workdir>/report
        "clusters": 16,
        "queries": 4,
        "mask_ratios": (0.5, 0.75, 0.9),
      },
    }
  )
