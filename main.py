r"""Runs an experiment: trains, evaluates, embeds, probes, or writes a report.

    python main.py --config=configs/videomae.py:demo \
        --config.data.path=DATA --config.workdir=RUN [--config.job=embed]

`config.job` is train (the default), evaluate, embed, report or aot; all take
the same config, and evaluate, embed and report what training left in the
workdir. The job `probe` has a config of its own, `configs/probe.py`.

Imports are made late: loader processes import this file, and need no JAX.
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


def main(_: list[str]) -> None:
  """Starts up, checks the config, and runs its job."""
  from configs import smoke_data
  from wsiseq_jax import config as configs
  from wsiseq_jax import launch, tasks

  if not flags.FLAGS["verbosity"].present:
    # Libraries log each file they write; --verbosity=0 brings that back.
    logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  launch.start(saves_on_sigterm=config.job == "train")
  with launch.ending_together():
    try:
      if config.job != "probe":  # which has a config of its own
        configs.validate(config, tasks.get(config.task).CHECKS)
      if config.data.path == "synthetic":
        folder = pathlib.Path(config.workdir, "data")
        with launch.main_first("synthetic data"):
          config.data.path = str(smoke_data.make_shards(folder))
      module, function = configs.JOBS[config.job]
      getattr(importlib.import_module(module), function)(config)
    except (ValueError, FileNotFoundError) as error:
      # The message is for whoever wrote the config; --verbosity=1 shows where.
      if flags.FLAGS.verbosity > 0:
        raise
      sys.exit(f"error: {error}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
