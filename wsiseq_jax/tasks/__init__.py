"""The learning tasks by name: one loop trains them all.

A task is a module with `Config` (the schema of its config, see `config.py`),
`resolve(config)`, which fills in what other files decide, `clip(config)`, a
`base.Clip`, and `make_task(config, spec)`, a `base.Task`.
"""

from types import ModuleType

from data_prep.files.schema import did_you_mean
from wsiseq_jax.tasks import contrastive, latent, videomae

TASKS: dict[str, ModuleType] = {
  "contrastive": contrastive,
  "latent": latent,
  "videomae": videomae,
}


def get(name: str) -> ModuleType:
  """The module of a task.

  Raises:
    ValueError: There is no such task.

  Example:
    >>> get("videomae").__name__
    'wsiseq_jax.tasks.videomae'
  """
  if name not in TASKS:
    raise ValueError(
      f"config.task = {name!r}: must be one of {sorted(TASKS)}"
      f"{did_you_mean(name, TASKS)}"
    )
  return TASKS[name]
