"""Weights & Biases, for those who ask for it: `config.wandb.project`.

A copy of what `metrics.jsonl` gets. The library is imported when a project is
named, and not before. Whether it talks to a server, and as whom, are its own
variables (`WANDB_MODE=offline`, `WANDB_API_KEY`).

A resumed training goes on in the same run: its id is kept in the workdir. Steps
computed a second time are the same numbers, and Weights & Biases drops what is
not later than what it has.
"""

import importlib
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from wsiseq_jax import config as configs

# What a checkpoint has that was made before the block existed.
OFF = {"project": "", "entity": "", "group": ""}


class WandbSink:
  """Sends scalars to a run of Weights & Biases.

  Args:
    config: of the training; `wandb.project` is not ''.

  Raises:
    ValueError: the library is not installed.
  """

  def __init__(self, config: ConfigDict):
    try:
      wandb = importlib.import_module("wandb")
    except ImportError as error:
      raise ValueError(
        f"config.wandb.project = {config.wandb.project!r}: needs the package "
        "wandb (pip install wandb); '' switches it off"
      ) from error
    workdir = pathlib.Path(config.workdir)
    self._run = wandb.init(
      project=config.wandb.project,
      entity=config.wandb.entity or None,
      group=config.wandb.group or None,
      name=workdir.name,
      id=_run_id(workdir),
      resume="allow",
      dir=os.fspath(workdir),
      config=configs.flatten(configs.to_dict(config)),
    )

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends the values of a step."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Sends what is left, and ends the connection."""
    self._run.finish()


def _run_id(workdir: pathlib.Path) -> str:
  """The id in the workdir; a new one is written there."""
  path = workdir / "wandb_id.txt"
  if not path.exists():
    path.write_text(secrets.token_hex(8) + "\n")
  return path.read_text().strip()
