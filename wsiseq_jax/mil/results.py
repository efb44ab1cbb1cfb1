"""What a trained model leaves behind: parameters and predictions.

`models/<name>.safetensors` has the parameters, `models/<name>.json` the rest.
The JSON is the mark of `data_prep.files.done`: it is written last, and a model
without it, or made from other inputs, is trained again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float
from safetensors import numpy as safetensors

from data_prep.files import atomic, done


@dataclasses.dataclass(frozen=True)
class FoldRun:
  """Which model: of a repeat, a fold and a seed."""

  repeat: int
  fold: int
  seed: int

  @property
  def name(self) -> str:
    """Of its files."""
    return f"repeat{self.repeat}_fold{self.fold}_seed{self.seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Predicted:
  """Predictions of some slides."""

  ids: tuple[str, ...]  # the slides
  # Probability of each class or label, a number, or a log risk, [n y].
  values: Float[np.ndarray, "n y"]
  status: tuple[str, ...]  # 'ok', or why the prior stands there


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """A trained model and what it predicted."""

  run: FoldRun  # which one
  epoch: int  # the best one
  # (training loss, validation loss) of each epoch.
  history: tuple[tuple[float, float], ...]
  # Mean and std of the numbers learned; for survival of the log risk of
  # validation slides.
  scale: tuple[float, float]
  prior: Float[np.ndarray, " y"]  # what a failed slide is given, [y]
  # Of each column of predictions; NaN where there is none.
  threshold: Float[np.ndarray, " y"]
  # Whether validation chose the thresholds; where it has one class only they
  # are 0.5.
  is_chosen: bool
  predicted: Mapping[str, Predicted]  # by split, 'val' and 'test'
  # Slides that could not be used, and why.
  failures: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _files(
  folder: pathlib.Path, run: FoldRun
) -> tuple[pathlib.Path, pathlib.Path]:
  return folder / f"{run.name}.safetensors", folder / f"{run.name}.json"


def save(
  folder: pathlib.Path, result: Result, params: Any, inputs: Any
) -> None:
  """Writes both files."""
  folder.mkdir(parents=True, exist_ok=True)
  weights, text = _files(folder, result.run)
  mark = done.Done(text, inputs)
  mark.clear()
  flat = traverse_util.flatten_dict(params, sep="/")
  flat = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
  with atomic.replacing(weights) as draft:
    safetensors.save_file(flat, draft)
  mark.write(_plain(result), [weights])


def _plain(result: Result) -> dict[str, Any]:
  return {
    **dataclasses.asdict(result.run),
    "epoch": result.epoch,
    "history": result.history,
    "scale": result.scale,
    "prior": result.prior.tolist(),
    "threshold": result.threshold.tolist(),
    "is_chosen": result.is_chosen,
    "failures": dict(result.failures),
    "predicted": {
      split: {
        "ids": one.ids,
        "values": one.values.tolist(),
        "status": one.status,
      }
      for split, one in result.predicted.items()
    },
  }


def is_done(folder: pathlib.Path, run: FoldRun, inputs: Any) -> bool:
  """Whether there is a model that was made from these inputs."""
  return done.Done(_files(folder, run)[1], inputs).read() is not None


def load(folder: pathlib.Path, run: FoldRun) -> Result:
  """Reads everything but the parameters.

  Raises:
    ValueError: there is no such model.
  """
  path = _files(folder, run)[1]
  if not path.is_file():
    raise ValueError(f"no finished model {run.name} in {folder}")
  values = json.loads(path.read_text())
  predicted = {
    split: Predicted(
      tuple(one["ids"]),
      np.array(one["values"], np.float64).reshape(len(one["ids"]), -1),
      tuple(one["status"]),
    )
    for split, one in values["predicted"].items()
  }
  return Result(
    run=run,
    epoch=values["epoch"],
    history=tuple(tuple(pair) for pair in values["history"]),
    scale=tuple(values["scale"]),
    prior=np.array(values["prior"]),
    threshold=np.array(values["threshold"], np.float64),
    is_chosen=values["is_chosen"],
    predicted=predicted,
    failures=values["failures"],
  )


def inputs_of(folder: pathlib.Path, run: FoldRun) -> str:
  """The hash of what a finished model was made from."""
  return json.loads(_files(folder, run)[1].read_text())["inputs"]


def load_params(folder: pathlib.Path, run: FoldRun) -> dict[str, Any]:
  """The parameters as a nested dict."""
  flat = safetensors.load_file(_files(folder, run)[0])
  return traverse_util.unflatten_dict(flat, sep="/")


def find(folder: pathlib.Path) -> list[FoldRun]:
  """The finished models of a folder, in order."""
  found = []
  for path in folder.glob("repeat*_fold*_seed*.json"):
    values = json.loads(path.read_text())
    found.append(FoldRun(values["repeat"], values["fold"], values["seed"]))
  if not found:
    raise ValueError(
      f"config.predict.models: there are no finished models in {folder}"
    )
  return sorted(found, key=dataclasses.astuple)
