"""Prepares real slides beside slides as the field has them, in one run.

  python benchmarks/field_cases.py --cases=DIR --data=DIR [--kills=10]

`--data` has the real slides, `--cases` scripts that make the others: they are
run without the commands they would start, and what they wrote is taken. All go
into one folder and one table. Every slide has to be done or to have a row of
errors.csv, every real one has to be done. With `--kills` the same preparation
is killed at random moments and repeated; its shards have to be the same bytes.
"""

import argparse
import collections
import csv
import importlib.util
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import harness
from kill_preparation import digest

from data_prep.files import names, tables
from data_prep.wsi import dicom_series

_NO_MPP = "tubular_adenoma_flat_nompp"  # the table says its scale
_SCRIPT_S = 120
_RESULT = harness.ROOT / "benchmarks/results/field_cases.json"


class _TooLong(Exception):
  pass


def _stop(*unused) -> None:
  raise _TooLong


def make_inputs(cases: pathlib.Path, out: pathlib.Path) -> dict[str, str]:
  """Runs the scripts without their commands; returns where each stopped."""
  sys.path.insert(0, str(cases))
  common = importlib.import_module("common")
  common.BUGS = out
  nothing = subprocess.CompletedProcess([], 0, "", "")
  common.run = common.prep = lambda *args, **kwargs: nothing
  common.show = lambda *args, **kwargs: None
  stopped = {}
  signal.signal(signal.SIGALRM, _stop)
  for path in sorted(cases.glob("case_*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    signal.alarm(_SCRIPT_S)
    try:
      with open(os.devnull, "w") as quiet:
        sys.stdout, kept = quiet, sys.stdout
        try:
          spec.loader.exec_module(importlib.util.module_from_spec(spec))
        finally:
          sys.stdout = kept
    except (Exception, SystemExit) as error:
      # It looks for what its commands would have made.
      stopped[path.stem] = type(error).__name__
    finally:
      signal.alarm(0)
  return stopped


def masks_of(folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
  """The masks that tables of the cases name, by slide."""
  masks = {}
  for path in folder.rglob("*.csv"):
    try:
      rows = tables.rows_of(path)
    except ValueError:  # other encodings are a case of their own
      continue
    for row in rows:
      mask = path.parent / (row.get("mask") or "")
      if row.get("filename") and mask.is_file():
        masks[path.parent / row["filename"]] = mask
  return masks


def write_table(data: pathlib.Path, made: pathlib.Path, cohort: pathlib.Path):
  """Links all slides into a folder and lists them in a table."""
  rows = []
  for path in sorted((data / "slides").glob("*.tiff")):
    os.symlink(path, cohort / path.name)
    mpp = "1.0" if path.stem == _NO_MPP else ""
    rows.append((path.stem, path.name, path.stem, mpp, ""))
  masks, folders = masks_of(made), set()
  for path in sorted(p for p in made.rglob("*") if p.is_file()):
    is_dicom = path.suffix == ".dcm" or dicom_series.is_dicom(path)
    if not is_dicom and not path.name.lower().endswith(names.SLIDE_EXTENSIONS):
      continue
    target = cohort / path.relative_to(made)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(path.resolve(), target)
    case = "_".join(path.relative_to(made).parts).replace(" ", "_")
    if is_dicom:  # its instances are found in its folder
      if target.parent not in folders:
        folders.add(target.parent)
        rows.append(("", str(target.parent.relative_to(cohort)), "", "", ""))
      continue
    mask = os.path.relpath(masks[path], cohort) if path in masks else ""
    name = case.replace(".", "_")
    rows.append((name, str(target.relative_to(cohort)), name, "", mask))
  with open(cohort / "cohort.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("slide_id", "filename", "patient_id", "mpp", "mask"))
    writer.writerows(rows)
  return rows


def start(cohort: pathlib.Path, out: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "data_prep"),
      "--config=configs/prep_wsi.py:smoke",
      *(f"--config.slides={cohort / 'cohort.csv'}", f"--config.out={out}"),
    ],
    cwd=harness.ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def kill_and_repeat(cohort, out, seconds: float, kills: int) -> bool:
  """Kills a run again and again; whether its shards are whole at the end."""
  rng = random.Random(0)
  for _ in range(kills):
    process = start(cohort, out)
    time.sleep(rng.uniform(0.3, 1.0) * seconds / 2)
    try:
      os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass  # it was done
    process.wait()
  return start(cohort, out).wait() in (0, 3)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--cases", type=pathlib.Path, required=True)
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--kills", type=int, default=0)
  options = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="field_cases_"))
  made, cohort, out = (folder / n for n in ("made", "cohort", "out"))
  cohort.mkdir()
  # One script compares what another one, which is not here, makes of this.
  source = next((options.data / "dicom").glob("level-0-*.dcm"))
  (made / "c07b/cat").mkdir(parents=True)
  shutil.copy(source, made / "c07b/cat/level-0-part-1.dcm")
  stopped = make_inputs(options.cases.resolve(), made)
  rows = write_table(options.data.resolve(), made, cohort)
  begin = time.monotonic()
  code = start(cohort, out).wait()
  seconds = time.monotonic() - begin
  done = {row["slide_id"]: row for row in tables.rows_of(out / "slides.csv")}
  codes = collections.defaultdict(list)
  for row in tables.rows_of(out / "errors.csv"):
    codes[row["slide_id"]].append(f"{row['stage']}: {row['code']}")
  fate = {
    name: {"status": done[name]["status"] if name in done else "", "codes": c}
    for name in sorted({*done, *codes, *(row[0] for row in rows if row[0])})
    for c in [codes.get(name, [])]
  }
  real = [p.stem for p in (options.data / "slides").glob("*.tiff")]
  lost = [n for n in real if fate[n]["status"] != "done"]
  silent = [
    name
    for name, one in fate.items()
    if one["status"] in ("", "failed") and not one["codes"]
  ]
  result = {
    "statuses": dict(collections.Counter(v["status"] for v in fate.values())),
    "exit_code": code,
    "seconds": round(seconds, 1),
    "real_slides_not_done": lost,
    "without_a_word": silent,
    "fate": fate,
    "scripts_stopped": stopped,
  }
  if options.kills:
    again = folder / "again"
    whole = kill_and_repeat(cohort, again, seconds, options.kills)
    same = whole and digest(out / "shards") == digest(again / "shards")
    result |= {"kills": options.kills, "same_bytes_after_kills": same}
  print(harness.write_result(_RESULT, result))
  shutil.rmtree(folder)


if __name__ == "__main__":
  main()
