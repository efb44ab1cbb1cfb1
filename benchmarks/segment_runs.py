"""Runs of the job `segment` for a table: each is made once, and read.

A line of `<work>/runs.jsonl` is a finished run. It is not repeated; a run that
was killed goes on where it stood.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import harness
import pretrain_table

from data_prep.files import tables
from wsiseq_jax import writers

ALL_TISSUE, STAIN = "all tissue/", "stain/chosen"


def name_of(title: str, about: Any) -> str:
  """Name of a run; tells it from runs of other settings, which are JSON."""
  text = json.dumps(about, sort_keys=True)
  return f"{title}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def finished(work: pathlib.Path) -> list[dict[str, Any]]:
  """Lines of finished runs."""
  return writers.read_metrics(work / "runs.jsonl")


def table_rows(
  work: pathlib.Path, wanted: Collection[str]
) -> list[dict[str, Any]]:
  """Lines of the finished runs that are wanted; ends where there are none."""
  rows = [row for row in finished(work) if row["name"] in wanted]
  if not rows:
    raise SystemExit(f"no finished run of these settings in {work}")
  return rows


def once(
  work: pathlib.Path,
  name: str,
  about: Mapping[str, Any],
  carry_out: Callable[[pathlib.Path], Mapping[str, Any]],
) -> None:
  """Makes a run that is not there yet, and prints its scores.

  Args:
    work: folder of the table.
    name: of the run, and of its folder.
    about: what is written beside its result.
    carry_out: folder → the result, `scores` among it.
  """
  # Read again each time: another process may share the folder.
  if any(row["name"] == name for row in finished(work)):
    return
  print(name, flush=True)
  row = {"name": name, **about, **carry_out(work / name)}
  with (work / "runs.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")
  for key, one in row["scores"].items():
    text = "  ".join(f"{k} {v:.3f}" for k, v in list(one.items())[:3])
    print(f"  {key:<34}{text}", flush=True)


def segment(
  folder: pathlib.Path,
  preset: str,
  data: pathlib.Path,
  values: Mapping[str, Any],
  more: Sequence[str] = (),
) -> dict[str, Any]:
  """One run of `configs/segment.py`.

  Args:
    folder: its workdir.
    preset: of the config.
    data: prepared pictures.
    values: settings by key, without `config.`.
    more: further settings, as on the command line.

  Returns:
    `seconds`; `auroc` of each classifier on validation; `scores` by
    `<stage>/<reading>`, and those of `detection.csv` by `detect/`.
  """
  start = time.monotonic()
  harness.call(
    "main.py",
    f"--config=configs/segment.py:{preset}",
    f"--config.workdir={folder}",
    f"--config.data.path={data}",
    *(f"--config.{k}={v}" for k, v in values.items()),
    *more,
    log=folder / "log.txt",
  )
  return {
    "seconds": round(time.monotonic() - start),
    "auroc": auroc(folder),
    "scores": scores(folder),
  }


def scores(folder: pathlib.Path) -> dict[str, dict[str, float]]:
  """Scores of a finished run by row, see `segment`."""
  rows = [
    (f"{row['stage']}/{row['reading']}", row)
    for row in tables.rows_of(folder / "segmentation.csv")
  ]
  points = folder / "detect" / "detection.csv"
  if points.is_file():
    rows += [("detect/", row) for row in tables.rows_of(points)]
  found: dict[str, dict[str, float]] = {}
  for key, row in rows:
    value = float(row["value"]) if row["value"] else float("nan")
    found.setdefault(key, {})[row["metric"]] = value
  return found


def auroc(folder: pathlib.Path) -> dict[str, float]:
  """AUROC of validation pictures at the best epoch, by classifier."""
  found = {}
  for path in sorted(folder.rglob("metrics.jsonl")):
    log = [x for x in writers.read_metrics(path) if "val/auroc" in x]
    if log:
      best = min(log, key=lambda x: x["val/loss"])
      found[str(path.parent.relative_to(folder))] = best["val/auroc"]
  return found


def over_seeds(
  of_seed: Mapping[int, Mapping[str, float]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Means and intervals of the scores that seeds have; see `pretrain_table`."""
  found = {}
  for name in names:
    values = [of_seed[s].get(name, float("nan")) for s in sorted(of_seed)]
    values = [v for v in values if v == v]
    if values:
      found[name] = pretrain_table.over_seeds(values)
  return found
