r"""Runs an experiment: trains, evaluates, embeds, or writes the report.

    python main.py --config=configs/videomae.py:demo \
        --config.data.path=DATA --config.workdir=RUN [--config.job=embed]

`config.job` is train (the default), evaluate, embed or report; all take the
same config, and the last three what training left in the workdir.
"""

import importlib
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment: a file of configs/, and a preset.",
  lock_config=True,
)  # fmt: skip

# Imported when needed: loader processes import this file, and need no JAX.
JOBS = {
  "train": ("wsiseq_jax.train", "train"),
  "evaluate": ("wsiseq_jax.evaluate", "run_evaluate"),
  "embed": ("wsiseq_jax.evaluate", "run_embed"),
  "report": ("wsiseq_jax.evals.report_job", "report_job"),
}


def main(_: list[str]) -> None:
  """Starts up, checks the config, and runs its job."""
  from configs import smoke_data
  from wsiseq_jax import config as configs
  from wsiseq_jax import launch, tasks

  if not flags.FLAGS["verbosity"].present:
    # Libraries log each file they write; --verbosity=0 brings that back.
    logging.set_verbosity(logging.WARNING)
  launch.start()
  config = _CONFIG.value
  try:
    configs.validate(config, tasks.get(config.task).CHECKS)
    if config.data.path == "synthetic":
      folder = pathlib.Path(config.workdir, "data")
      config.data.path = str(smoke_data.make_shards(folder))
    module, function = JOBS[config.job]
    getattr(importlib.import_module(module), function)(config)
  except (ValueError, FileNotFoundError) as error:
    # The message is for whoever wrote the config; --verbosity=1 shows where.
    if flags.FLAGS.verbosity > 0:
      raise
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
