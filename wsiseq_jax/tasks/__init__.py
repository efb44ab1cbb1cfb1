"""The learning tasks by name: one loop trains them all.

A task is a module with `CHECKS` (its config keys, see `config.py`),
`resolve(config)`, which fills in what other files decide, and
`make_task(config, spec)`, which returns a `base.Task`.
"""

import difflib
from types import ModuleType

from wsiseq_jax.tasks import contrastive, videomae

TASKS: dict[str, ModuleType] = {
  "contrastive": contrastive,
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
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"config.task = {name!r}: must be one of {sorted(TASKS)}{hint}"
    )
  return TASKS[name]
