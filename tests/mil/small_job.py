"""A job `mil` on small bags, and what it wrote."""

import csv
import pathlib

from configs import mil as mil_configs

# Of eight devices one divides three bags.
QUICK = {"batch_size": 3}


def make(workdir, preset="smoke", data=None, **blocks):
  """A smoke config on bags that are shared."""
  config = mil_configs.get_config(preset)
  config.workdir = str(workdir)
  config.data.update(QUICK)
  if data is not None:
    features, table = data
    config.data.update({"features": str(features), "table": str(table)})
  for name, values in blocks.items():
    if isinstance(values, dict):
      config[name].update(values)
    else:
      config[name] = values
  return config


def table(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def folder_of(finished):
  return pathlib.Path(finished[0].workdir)
