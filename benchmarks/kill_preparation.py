"""Kills preparation at random moments and compares what the next run leaves.

  python benchmarks/kill_preparation.py            (20 kills, about 3 minutes)

One undisturbed run says what the shards must be and how long a run takes. Then
every trial starts with an empty folder, sends SIGKILL at a random moment,
starts the same command again, and compares every file of `shards/`. Half of the
trials kill the whole process group, as a power cut does, half only the parent,
whose workers then have to end by themselves. Every trial's moment is drawn from
the seed.
"""

import argparse
import hashlib
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


def digest(folder: pathlib.Path) -> str:
  """Returns one sha256 of the names and bytes of all files in a folder."""
  total = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    total.update(f"{path.relative_to(folder)}\0".encode())
    if path.is_file():
      total.update(hashlib.sha256(path.read_bytes()).digest())
  return total.hexdigest()


def start(slides: pathlib.Path, out: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "data_prep"),
      "--config=configs/prep_wsi.py:smoke",
      *(f"--config.slides={slides}", f"--config.out={out}"),
      *("--config.workers=2", "--config.sequence.max_centres=64"),
    ],
    cwd=harness.ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def trial(
  slides: pathlib.Path,
  out: pathlib.Path,
  moment: float,
  whole_group: bool,
) -> dict:
  """Runs once with a kill, once without, and says what is there."""
  process = start(slides, out)
  time.sleep(moment)
  finished = process.poll() is not None
  if not finished and whole_group:
    os.killpg(process.pid, signal.SIGKILL)
  elif not finished:
    process.kill()
  process.wait()
  parts = len(list((out / "parts").glob("*/slide.json")))
  left = len(list(out.rglob("*.tmp-*")))
  code = start(slides, out).wait()
  return {
    "moment_s": round(moment, 3),
    "killed": "whole group" if whole_group else "parent",
    "finished_before_kill": finished,
    "slides_done_at_kill": parts,
    "temporary_files_at_kill": left,
    "exit_code_of_second_run": code,
    "temporary_files_after": len(list(out.rglob("*.tmp-*"))),
    "digest": digest(out / "shards") if (out / "shards").exists() else "",
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--slides", type=int, default=6)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--from-share",
    type=float,
    default=0.25,
    help="earliest moment as a share of a run; before it, libraries load",
  )
  parser.add_argument("--result", default="", help="JSON file to write")
  args = parser.parse_args()
  from data_prep.synthetic import slides as synthetic

  generator = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    slides = base / "slides"
    synthetic.make_cohort(slides, slides=args.slides, size_px=(1024, 768))
    begin = time.perf_counter()
    code = start(slides, base / "whole").wait()
    whole_s = time.perf_counter() - begin
    want = digest(base / "whole" / "shards")
    print(f"undisturbed: exit code {code}, {whole_s:.1f} s")
    trials = []
    redrawn = 0
    while len(trials) < args.kills:
      number = len(trials)
      out = base / "trial"
      moment = generator.uniform(args.from_share, 1.0) * whole_s
      item = trial(slides, out, moment, number % 2 == 0)
      shutil.rmtree(out)
      item["identical"] = item.pop("digest") == want
      if item.pop("finished_before_kill"):
        # The run was over: no kill. It also was faster than thought.
        whole_s, redrawn = min(whole_s, moment), redrawn + 1
        continue
      trials.append(item)
      print({"trial": number, **item}, flush=True)
  good = sum(item["identical"] for item in trials)
  result = {
    "identical": good,
    "kills": args.kills,
    "seed": args.seed,
    "drawn_too_late_and_drawn_again": redrawn,
    "undisturbed_exit_code": code,
    "trials": trials,
  }
  print(f"{good} of {args.kills} identical to the undisturbed run")
  if args.result:
    harness.write_result(args.result, result)
  return 0 if good == args.kills and code == 0 else 1


if __name__ == "__main__":
  sys.exit(main())
