r"""Runs an experiment: trains, evaluates, embeds, probes, or writes a report.

    python main.py --config=configs/videomae.py:demo \
        --config.data.path=DATA --config.workdir=RUN [--config.job=embed]

`config.job` is train (the default), evaluate, embed, report or aot; all take
the same config, and evaluate, embed and report what training left in the
workdir. Other jobs have configs of their own: `configs/probe.py`, and for
slides with labels `configs/embed_tiles.py`, `configs/mil.py` and
`configs/mil_report.py`. For example:

    python main.py --config=configs/probe.py --config.workdir=PROBE \
        --config.checkpoint.path=RUN --config.data.path=DATA

Many runs of this at once: `python -m wsiseq_jax.sweep --help`.

Imports are made late: loader processes import this file, and need no JAX.
"""

import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment: a file of configs/, and a preset.",
  lock_config=True,
)  # fmt: skip


def main(_: list[str]) -> None:
  """Runs the job of the config that the flags give."""
  run(_CONFIG.value)


def run(config: ConfigDict) -> None:
  """Starts up, checks the config, and runs its job."""
  from data_prep.files import names
  from data_prep.files.errors import SlideError
  from wsiseq_jax import config as configs
  from wsiseq_jax import jobs, launch, tasks

  if not flags.FLAGS["verbosity"].present:
    # Libraries log each file they write; --verbosity=0 brings that back.
    logging.set_verbosity(logging.WARNING)
  names.print_all()
  launch.start(saves_on_sigterm=config.job in ("train", "probe"))
  with launch.ending_together():
    try:
      jobs.check(config)
      if not jobs.JOBS[config.job].config:
        configs.validate(config, tasks.get(config.task).Config)
      jobs.run(config)
    except (ValueError, OSError, SlideError) as error:
      # The message is for whoever wrote the config; --verbosity=1 shows where.
      if flags.FLAGS.verbosity > 0:
        raise
      sys.exit(f"error: {error}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
