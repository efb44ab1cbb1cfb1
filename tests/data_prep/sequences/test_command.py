"""Preparation as a program: workers, crashes, wrong calls, kills."""

import json
import os
import subprocess
import sys

import pytest

from data_prep import runs
from tests.data_prep import outputs
from tests.data_prep.sequences.small_cohort import config_of

CRASH = """
import ast, os, sys
sys.path.insert(0, sys.argv[1])
from data_prep import shards
from data_prep.sequences import prepare
write_part = shards.write_part
def crashing(path, *more):
  if path.parent.name == sys.argv[3]:
    os.kill(os.getpid(), 11)
  return write_part(path, *more)
shards.write_part = crashing
if __name__ == "__main__":
  config = ast.literal_eval(sys.argv[2])
  sys.exit(prepare.prepare(config).exit_code)
"""


@pytest.mark.multiprocess
def test_a_crashing_library_costs_one_slide(cohort, tmp_path, repo_root):
  script = tmp_path / "crash.py"
  script.write_text(CRASH)
  victim = sorted(p.stem for p in cohort.glob("*.tiff"))[1]
  out = tmp_path / "out"
  config = repr(config_of(cohort, out, workers=2))
  command = [sys.executable, script, repo_root, config, victim]
  done = subprocess.run(
    [str(part) for part in command], cwd=repo_root, check=False, timeout=300
  )
  assert done.returncode == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(out / "errors.csv")
  assert (row["slide_id"], row["code"]) == (victim, "worker_died")
  assert "2 workers died over it" in row["message"]
  states = {
    r["slide_id"]: r["status"] for r in outputs.rows(out / "slides.csv")
  }
  assert sorted(states.values()) == ["done", "done", "done", "failed"]


def call(repo_root, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "data_prep", *arguments],
    cwd=repo_root,
    env={**os.environ, "COLUMNS": "80"},
    capture_output=True,
    text=True,
    check=False,
  )


# The command several times in one process: starting takes longest.
CALLS = """
import json, sys
from absl import flags
from data_prep.__main__ import main
calls = json.loads(sys.argv[1])
for arguments in calls:
  flags.FLAGS.unparse_flags()
  sys.argv = ["data_prep", *arguments]
  print(main(sys.argv), file=sys.stderr)
"""


@pytest.mark.multiprocess
def test_wrong_calls_are_exit_code_2(repo_root):
  config = "--config=configs/prep_wsi.py"
  wrong = [
    ([f"{config}", "--config.slidez=x"], 'Did you mean "slides"'),
    ([f"{config}", "--config.sequence.frame=8"], 'Did you mean "frames"'),
    ([f"{config}:demmo"], "demo"),
    ([f"{config}", "--config.mpp=x"], "mpp"),
    ([f"{config}"], "config.slides"),
    ([f"{config}", "stray"], "stray"),
    (["--config=configs/nothing.py"], "nothing.py"),
  ]
  calls = json.dumps([arguments for arguments, _ in wrong])
  done = subprocess.run(
    [sys.executable, "-c", CALLS, calls],
    cwd=repo_root,
    capture_output=True,
    text=True,
    check=True,
  )
  said = done.stderr.strip().removesuffix("\n2").split("\n2\n")
  for text, (_, words) in zip(said, wrong, strict=True):
    assert words in text and "Traceback" not in text, text


@pytest.mark.multiprocess
def test_command_line_with_workers(whole, cohort, repo_root, tmp_path):
  done = call(
    repo_root,
    "--config=configs/prep_wsi.py:smoke",
    f"--config.slides={cohort}",
    f"--config.out={tmp_path / 'out'}",
    "--config.workers=2",
    "--config.sequence.max_centres=2",
  )
  assert done.returncode == 0, done.stderr
  assert "4 slides done" in done.stdout
  assert "syn_00" in done.stderr  # the progress bar names the slide
  assert outputs.contents(tmp_path / "out" / "shards") == outputs.contents(
    whole[0] / "shards"
  )


@pytest.mark.multiprocess
@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(repo_root, tmp_path):
  result = tmp_path / "result.json"
  script = repo_root / "benchmarks" / "kill_preparation.py"
  done = subprocess.run(
    [sys.executable, script, "--kills=2", "--seed=1", "--slides=3"]
    + [f"--result={result}"],
    cwd=repo_root,
    check=False,
  )
  assert done.returncode == 0
  trials = json.loads(result.read_text())["trials"]
  assert [trial["identical"] for trial in trials] == [True] * 2
  assert all(trial["temporary_files_after"] == 0 for trial in trials)
