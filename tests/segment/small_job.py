"""The job `segment` at smoke size, through the real main.py."""

import csv
import sys
from unittest import mock

from absl import flags

import main
from configs import segment as segment_config

FILE = segment_config.__file__
# Of eight devices one divides both this and the crops of a batch.
BATCH = 9


def call(workdir, preset="smoke", *more):
  """What `python main.py --config=configs/segment.py:<preset>` does."""
  words = [
    "main.py",
    f"--config={FILE}:{preset}",
    f"--config.workdir={workdir}",
    f"--config.data.batch_size={BATCH}",
    *more,
  ]
  # The config's flag makes a flag of each override, which it looks for there.
  for name in [n for n in flags.FLAGS if n.startswith("config.")]:
    delattr(flags.FLAGS, name)
  with mock.patch.object(sys, "argv", words):
    flags.FLAGS(words)
  main.main(words[:1])


def config(workdir, preset="smoke"):
  """A smoke config for calls of functions."""
  found = segment_config.get_config(preset)
  found.workdir = str(workdir)
  found.data.batch_size = BATCH
  return found


def rows(folder, name="segmentation.csv"):
  with (folder / name).open() as file:
    return list(csv.DictReader(file))
