"""Sweeps: which runs there are, and what becomes of them.

Most tests give the runs to a program of a few lines in place of main.py.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from configs import sweep as sweep_configs
from wsiseq_jax import sweep, sweep_plan, sweep_tables

# Takes main.py's flags, and writes what training would leave behind.
FAKE = """
import json, os, pathlib, signal, sys, time
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(flags["config.workdir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as file:
  file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\\n")
if folder.name == "probe":
  text = "target,probe,fraction,metric,mean\\nage,linear,1,r2,0.25\\n"
  (folder / "probe_summary.csv").write_text(text)
  sys.exit()
seed = int(flags.get("config.seed", 0))
if seed == 13:
  sys.exit("error: unlucky")
if seed == 99:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  (folder / "ready").write_text("")
  time.sleep(60)
loss = seed + float(flags["config.optim.lr_per_256"])
line = json.dumps({"step": 4, "val/loss": loss})
(folder / "metrics.jsonl").write_text(line + "\\n")
(folder / "trained").write_text("")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
  path = tmp_path / "fake.py"
  path.write_text(FAKE)
  monkeypatch.setattr(
    sweep, "is_trained", lambda folder: (folder / "trained").exists()
  )
  return path


def make(tmp_path, repo_root, **more):
  config = sweep_configs.get_config()
  config.out = str(tmp_path / "out")
  config.experiment = f"{repo_root}/configs/videomae.py:smoke"
  config.grid = (("optim.lr_per_256", (0.1, 0.2)), ("seed", (0, 1)))
  for key, value in more.items():
    config[key] = value
  return config


def run(config, fake, environ=None):
  runs = sweep_plan.plan(config)
  environ = dict(os.environ) if environ is None else environ
  sweep.Sweep(config, runs, environ, fake).execute()
  return sweep.collect(config, runs)


def calls(config):
  return sum(
    path.read_text().count("\n")
    for path in sweep.pathlib.Path(config.out).glob("runs/*/calls")
  )


def test_a_grid_is_every_combination(tmp_path, repo_root):
  runs = sweep_plan.plan(make(tmp_path, repo_root))
  assert [tuple(r.varied.values()) for r in runs] == [
    (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1),
  ]  # fmt: skip
  assert len({r.name for r in runs}) == 4
  assert runs[0].name.startswith("lr_per_256=0.1-seed=0-")
  assert "--config.optim.lr_per_256=0.1" in runs[0].arguments()


def test_names_follow_all_settings(tmp_path, repo_root):
  a = sweep_plan.plan(make(tmp_path, repo_root))
  b = sweep_plan.plan(
    make(tmp_path, repo_root, fixed=(("optim.total_steps", 7),))
  )
  assert not {r.name for r in a} & {r.name for r in b}
  assert all("--config.optim.total_steps=7" in r.arguments() for r in b)


def test_random_draws(tmp_path, repo_root):
  entries = (
    ("optim.lr_per_256", "log", 1e-4, 1e-2),
    ("mask.ratio", "uniform", 0.5, 0.9),
    ("optim.total_steps", "int", 3, 5),
  )
  config = make(
    tmp_path, repo_root, grid=(("seed", (0, 1)),), random=entries, draws=200
  )
  runs = sweep_plan.plan(config)
  assert len(runs) == 400
  rates = [r.varied["optim.lr_per_256"] for r in runs[:200]]
  assert all(1e-4 <= x <= 1e-2 for x in rates)
  # As many below the geometric mean as above.
  assert 70 < sum(x < 1e-3 for x in rates) < 130
  assert {r.varied["optim.total_steps"] for r in runs} == {3, 4, 5}
  assert all(0.5 <= r.varied["mask.ratio"] <= 0.9 for r in runs)
  # Both seeds get the same draws, more draws keep the first, seeds differ.
  assert rates == [r.varied["optim.lr_per_256"] for r in runs[200:]]
  few = sweep_plan.draw(entries, 3, seed=0)
  assert few == sweep_plan.draw(entries, 9, seed=0)[:3]
  assert few != sweep_plan.draw(entries, 3, seed=1)


@pytest.mark.parametrize(
  "change, words",
  [
    (
      {"grid": (("optim.lr_256", (1.0,)),)},
      "'optim.lr_256'; did you mean 'opt",
    ),
    ({"grid": (("mask.ratio", (0.5, 2.0)),)}, "mask.ratio = 2.0: must be a"),
    ({"grid": (("seed", ("a",)),)}, "seed = 'a'"),
    ({"grid": (("seed", 3),)}, r"config.grid = .*a tuple of \(key, \(value"),
    ({"fixed": (("seed", 3),)}, r"\['seed'\] are set twice"),
    ({"draws": 3}, "how many draws of what"),
    ({"random": (("seed", "log", 0, 3),), "draws": 1}, "above 0 for 'log'"),
    ({"experiment": "configs/none.py"}, "there is no configs/none.py"),
    ({"goal": "least"}, "'min', 'max'"),
    ({"out": ""}, "name a folder"),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(
  tmp_path, repo_root, change, words
):
  with pytest.raises(ValueError, match=words):
    sweep_plan.plan(make(tmp_path, repo_root, **change))


def test_runs_are_done_once(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, at_once=2)
  rows = run(config, fake)
  assert [row["state"] for row in rows] == ["done"] * 4
  assert [row["val/loss"] for row in rows] == [0.1, 1.1, 0.2, 1.2]
  run(config, fake)
  assert calls(config) == 4
  # More values: only they are new.
  config.grid = (("optim.lr_per_256", (0.1, 0.2)), ("seed", (0, 1, 2)))
  rows = run(config, fake)
  assert calls(config) == 6 and len(rows) == 6


def test_a_failure_is_told_and_tried_again(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (0, 13)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  rows = run(config, fake)
  assert [row["state"] for row in rows] == ["done", "failed"]
  assert rows[1]["error"] == "exit code 1: error: unlucky"
  fake.write_text(FAKE.replace("seed == 13", "seed == 14"))
  rows = run(config, fake)
  assert [row["state"] for row in rows] == ["done", "done"]
  assert calls(config) == 3 and rows[1]["error"] == ""


def test_a_run_that_stopped_early_is_not_done(tmp_path, repo_root, fake):
  """Its exit code is 0: only the checkpoint tells."""
  fake.write_text(FAKE.replace('(folder / "trained")', '(folder / "x")'))
  config = make(tmp_path, repo_root, grid=(("seed", (0,)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  assert run(config, fake)[0]["state"] == "stopped"
  fake.write_text(FAKE)
  assert run(config, fake)[0]["state"] == "done"


def test_sigterm_stops_the_runs_and_starts_no_more(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (99, 0)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  first = sweep.folder_of(config, sweep_plan.plan(config)[0])

  def tell():
    while not (first / "ready").exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=tell).start()
  start = time.monotonic()
  rows = run(config, fake)
  assert time.monotonic() - start < 50
  assert [row["state"] for row in rows] == ["stopped", "waiting"]
  assert calls(config) == 1


def test_probes_follow_their_run(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (0, 1)),))
  config.fixed = (("optim.lr_per_256", 0.5), ("data.path", "DATA"))
  config.probe = f"{repo_root}/configs/probe.py:quick"
  config.probe_fixed = (("probe.kinds", ("linear",)),)
  rows = run(config, fake)
  assert [row["age/linear/1/r2"] for row in rows] == [0.25, 0.25]
  stage = sweep.stages(config, sweep_plan.plan(config)[0])[1]
  assert "--config.probe.kinds=('linear',)" in stage.arguments
  assert "--config.data.path=DATA" in stage.arguments
  # Another probe needs no other training.
  config.probe_fixed = (("probe.kinds", ("knn",)),)
  assert [
    r["state"] for r in sweep.collect(config, sweep_plan.plan(config))
  ] == ["waiting"] * 2
  rows = run(config, fake)
  assert [row["state"] for row in rows] == ["done"] * 2 and calls(config) == 2


def test_slurm_tasks_share_the_runs(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root)
  for task in ("3", "4", "5"):
    environ = dict(os.environ) | {
      "SLURM_ARRAY_TASK_ID": task,
      "SLURM_ARRAY_TASK_MIN": "3",
      "SLURM_ARRAY_TASK_COUNT": "3",
    }
    rows = run(config, fake, environ)
    if task == "3":
      assert [r["state"] for r in rows] == [
        "done",
        "waiting",
        "waiting",
        "done",
      ]
  assert {r["state"] for r in rows} == {"done"} and calls(config) == 4


def test_a_run_that_another_has_is_left_to_it(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root)
  folder = sweep.folder_of(config, sweep_plan.plan(config)[0])
  with sweep.locked(folder) as lock:
    assert lock is not None
    run(config, fake)
  assert calls(config) == 3
  run(config, fake)
  assert calls(config) == 4


def test_the_lock_lives_as_long_as_the_run(tmp_path):
  """Also when the sweep is killed, and the run is not."""
  with sweep.locked(tmp_path) as lock:
    child = subprocess.Popen(
      [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
    )
  with sweep.locked(tmp_path) as lock:
    assert lock is None
  child.communicate(b"\n")
  with sweep.locked(tmp_path) as lock:
    assert lock is not None


def test_every_run_has_gpus_of_its_own(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, at_once=2, gpus_each=2)
  seen = [
    sweep.child_environment({"SLURM_STEP_ID": "0"}, slot, 2, 2)
    for slot in (0, 1)
  ]
  assert seen == [
    {"CUDA_VISIBLE_DEVICES": "0,1"},
    {"CUDA_VISIBLE_DEVICES": "2,3"},
  ]
  with pytest.raises(ValueError, match="needs 4 GPUs"):
    sweep.Sweep(config, [], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, fake)
  run(config, fake, dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
  said = {
    path.read_text().strip()
    for path in sweep.pathlib.Path(config.out).glob("runs/*/calls")
  }
  assert said <= {"4,5", "6,7"} and said


def test_tables(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root)
  rows = run(config, fake)
  varied = ["optim.lr_per_256", "seed"]
  sweep_tables.write(tmp_path, rows, varied, "val/loss", "min")
  with (tmp_path / "sweep.csv").open() as file:
    table = list(csv.DictReader(file))
  assert [r["val/loss"] for r in table] == ["0.1", "1.1", "0.2", "1.2"]
  assert table[0]["state"] == "done" and table[0]["step"] == "4"
  text = (tmp_path / "sweep.md").read_text()
  assert "4 runs: 4 done. Best: least `val/loss`." in text
  # 0.1 and 1.1: mean 0.6, deviation 0.707.
  assert "| 0.1 | 0.6 ± 0.71 | 2 |" in text
  lines = [x for x in text.splitlines() if x.startswith("| 0.")]
  assert [x.split(" | ")[2] for x in lines[2:]] == ["0.1", "0.2", "1.1", "1.2"]
  assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
  best = sweep_tables.ranked(rows, "val/loss", "max")[0]
  assert best["val/loss"] == 1.2


def test_a_metric_that_no_run_has(tmp_path, repo_root, fake):
  rows = run(make(tmp_path, repo_root), fake)
  text = sweep_tables.markdown(rows, ["seed"], "val/los", "min")
  assert "No run has `val/los` (config.metric); there are: `val/loss`." in text
  sweep_tables.draw(tmp_path / "none.png", rows, ["seed"], "val/los")


@pytest.mark.parametrize("preset", sweep_configs.PRESETS)
def test_presets(tmp_path, repo_root, monkeypatch, preset):
  monkeypatch.chdir(repo_root)
  config = sweep_configs.get_config(preset)
  config.out = str(tmp_path)
  if preset != "smoke":
    with pytest.raises(ValueError, match="data.path is not set"):
      sweep_plan.plan(config)
    config.fixed = (("data.path", "DATA"),)
  runs = sweep_plan.plan(config)
  assert len(runs) == {"default": 1, "methods": 35, "smoke": 4}[preset]


@pytest.mark.slow
def test_real_runs(tmp_path, repo_root):
  """Two trainings and their probes, once; the second time nothing."""
  command = [
    sys.executable, "-m", "wsiseq_jax.sweep",
    "--config=configs/sweep.py:smoke",
    f"--config.out={tmp_path}",
    "--config.grid=(('seed', (0, 1)),)",
    "--config.at_once=2",
  ]  # fmt: skip
  first = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
  assert first.returncode == 0, first.stderr
  states = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/run.json")]
  assert [s["state"] for s in states] == ["done", "done"]
  assert "orbax" not in first.stderr.lower()
  logs = [p.read_text() for p in sorted(tmp_path.glob("runs/*/log.txt"))]
  again = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
  assert again.returncode == 0
  assert logs == [
    p.read_text() for p in sorted(tmp_path.glob("runs/*/log.txt"))
  ]
  assert "2 done" in (tmp_path / "sweep.md").read_text()
