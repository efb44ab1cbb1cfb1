"""The job `segment` at smoke size, through the real main.py."""

import csv

from configs import segment as segment_config
from tests import small_run

FILE = segment_config.__file__
# Of eight devices one divides both this and the crops of a batch.
BATCH = 9


def call(workdir, preset="smoke", *more):
  """What `python main.py --config=configs/segment.py:<preset>` does."""
  small_run.main(
    f"--config={FILE}:{preset}",
    f"--config.workdir={workdir}",
    f"--config.data.batch_size={BATCH}",
    *more,
  )


def config(workdir, preset="smoke"):
  """A smoke config for calls of functions."""
  found = segment_config.get_config(preset)
  found.workdir = str(workdir)
  found.data.batch_size = BATCH
  return found


def rows(folder, name="segmentation.csv"):
  with (folder / name).open() as file:
    return list(csv.DictReader(file))
