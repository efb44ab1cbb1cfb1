"""Sweeps: which runs there are, and what becomes of them.

The runs are given to a program of a few lines in place of main.py;
`test_readme.py` has a sweep of real ones.
"""

import os
import signal
import threading
import time

import pandas as pd
import pytest

from configs import sweep as sweep_configs
from data_prep.files import schema
from wsiseq_jax import sweep

# Takes main.py's flags, and writes what training would leave behind.
FAKE = """
import json, pathlib, signal, sys, time
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(flags["config.workdir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as file:
  file.write("x\\n")
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
(folder / "checkpoints").write_text("")
"""


@pytest.fixture(autouse=True)
def trained(monkeypatch):
  """The fake writes no checkpoint but a file of that name."""
  monkeypatch.setattr(
    sweep.SweepRun,
    "is_trained",
    lambda run: (run.folder / "checkpoints").exists(),
  )


@pytest.fixture
def fake(tmp_path):
  path = tmp_path / "fake.py"
  path.write_text(FAKE)
  return path


def make(tmp_path, repo_root, **more):
  config = sweep_configs.get_config()
  config.out = str(tmp_path / "out")
  config.experiment = f"{repo_root}/configs/videomae.py:smoke"
  config.grid = (("optim.lr_per_256", (0.1, 0.2)), ("seed", (0, 1)))
  for key, value in more.items():
    config[key] = value
  return config


def plan(config):
  return sweep.plan(schema.build(sweep.Settings, config))


def run(config, fake):
  """Exit code, and the rows of sweep.csv."""
  code = sweep.sweep(config, fake)
  table = pd.read_csv(
    sweep.pathlib.Path(config.out) / "sweep.csv", keep_default_na=False
  )
  return code, table


def calls(config):
  return sum(
    path.read_text().count("\n")
    for path in sweep.pathlib.Path(config.out).glob("runs/*/calls")
  )


def test_a_grid_is_every_combination(tmp_path, repo_root):
  runs = plan(make(tmp_path, repo_root))
  assert [tuple(r.varied.values()) for r in runs] == [
    (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1),
  ]  # fmt: skip
  assert len({r.folder for r in runs}) == 4
  assert runs[0].folder.name.startswith("lr_per_256=0.1-seed=0-")
  assert "--config.optim.lr_per_256=0.1" in runs[0].stages[0]


def test_names_follow_all_settings(tmp_path, repo_root):
  a = plan(make(tmp_path, repo_root))
  b = plan(make(tmp_path, repo_root, fixed=(("optim.total_steps", 7),)))
  assert not {r.folder for r in a} & {r.folder for r in b}
  assert all("--config.optim.total_steps=7" in r.stages[0] for r in b)


def test_random_draws(tmp_path, repo_root):
  entries = (
    ("optim.lr_per_256", "log", 1e-4, 1e-2),
    ("mask.ratio", "uniform", 0.5, 0.9),
    ("optim.total_steps", "int", 3, 5),
  )
  config = make(
    tmp_path, repo_root, grid=(("seed", (0, 1)),), random=entries, draws=200
  )
  runs = plan(config)
  assert len(runs) == 400
  rates = [r.varied["optim.lr_per_256"] for r in runs[:200]]
  assert all(1e-4 <= x <= 1e-2 for x in rates)
  # As many below the geometric mean as above.
  assert 70 < sum(x < 1e-3 for x in rates) < 130
  assert {r.varied["optim.total_steps"] for r in runs} == {3, 4, 5}
  assert all(0.5 <= r.varied["mask.ratio"] <= 0.9 for r in runs)
  # Both seeds get the same draws, more draws keep the first, seeds differ.
  assert rates == [r.varied["optim.lr_per_256"] for r in runs[200:]]
  few = sweep.draw(entries, 3, seed=0)
  assert few == sweep.draw(entries, 9, seed=0)[:3]
  assert few != sweep.draw(entries, 3, seed=1)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"grid": (("optim.lr_256", (1.0,)),)}, "config.grid = .*lr_256"),
    ({"grid": (("mask.ratio", (0.5, 2.0)),)}, "mask.ratio = 2.0: must be a"),
    ({"grid": (("seed", ("a",)),)}, "config.grid = .*seed"),
    ({"grid": (("seed", 3),)}, "config.grid = .*seed.*must be a tuple"),
    ({"fixed": (("seed", 3),)}, r"\['seed'\] are set twice"),
    ({"draws": 3}, "config.draws = 3"),
    ({"random": (("seed", "log", 0, 3),), "draws": 1}, "above 0 for 'log'"),
    ({"experiment": "configs/none.py"}, "there is no configs/none.py"),
    ({"goal": "least"}, "config.goal = 'least': .*'min', 'max'"),
    ({"out": ""}, "config.out = ''"),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(
  tmp_path, repo_root, change, words
):
  with pytest.raises(ValueError, match=words):
    plan(make(tmp_path, repo_root, **change))


def test_runs_are_done_once(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root)
  code, table = run(config, fake)
  assert code == 0 and list(table["state"]) == ["done"] * 4
  assert list(table["val/loss"]) == [0.1, 1.1, 0.2, 1.2]
  run(config, fake)
  assert calls(config) == 4
  # More values: only they are new.
  config.grid = (("optim.lr_per_256", (0.1, 0.2)), ("seed", (0, 1, 2)))
  _, table = run(config, fake)
  assert calls(config) == 6 and len(table) == 6


def test_a_failure_is_told_and_tried_again(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (13, 0)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  code, table = run(config, fake)
  assert code == 1 and list(table["state"]) == ["failed", "done"]
  assert table["error"][0] == "exit code 1: error: unlucky"
  fake.write_text(FAKE.replace("seed == 13", "seed == 14"))
  code, table = run(config, fake)
  assert code == 0 and calls(config) == 3 and table["error"][0] == ""


@pytest.mark.parametrize("ending", ["sys.exit()", "sys.exit(75)"])
def test_a_run_that_stopped_early_is_not_done(
  tmp_path, repo_root, fake, ending
):
  fake.write_text(
    FAKE.replace('(folder / "checkpoints").write_text("")', ending)
  )
  config = make(tmp_path, repo_root, grid=(("seed", (0,)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  code, table = run(config, fake)
  assert code == 3 and list(table["state"]) == ["stopped"]
  fake.write_text(FAKE)
  code, table = run(config, fake)
  assert code == 0 and list(table["state"]) == ["done"]


def test_sigterm_stops_the_run_and_starts_no_more(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (99, 0)),))
  config.fixed = (("optim.lr_per_256", 0.5),)
  first = plan(config)[0].folder

  def tell():
    while not (first / "ready").exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=tell).start()
  code, table = run(config, fake)
  assert code == 3 and list(table["state"]) == ["stopped", "waiting"]
  assert calls(config) == 1


def test_probes_follow_their_run(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, grid=(("seed", (0, 1)),))
  config.fixed = (("optim.lr_per_256", 0.5), ("data.path", "DATA"))
  config.probe = f"{repo_root}/configs/probe.py:quick"
  config.probe_fixed = (("probe.kinds", ("linear",)),)
  config.metric = "age/linear/1/r2"
  _, table = run(config, fake)
  assert list(table["age/linear/1/r2"]) == [0.25, 0.25]
  stage = plan(config)[0].stages[1]
  assert "--config.probe.kinds=('linear',)" in stage
  assert "--config.data.path=DATA" in stage
  # Another probe needs no other training.
  config.probe_fixed = (("probe.kinds", ("knn",)),)
  config.table_only = True
  assert list(run(config, fake)[1]["state"]) == ["waiting"] * 2
  config.table_only = False
  code, _ = run(config, fake)
  assert code == 0 and calls(config) == 2


def test_tasks_of_a_slurm_array_share_the_runs(
  tmp_path, repo_root, fake, monkeypatch
):
  config = make(tmp_path, repo_root)
  monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
  monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
  done = []
  for task in "345":
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    code, table = run(config, fake)
    done.append(list(table["state"]).count("done"))
    assert code == 0
  assert done == [2, 3, 4] and calls(config) == 4


def test_tables(tmp_path, repo_root, fake, capsys):
  config = make(tmp_path, repo_root, goal="max")
  _, table = run(config, fake)
  assert list(table["val/loss"]) == [0.1, 1.1, 0.2, 1.2]
  assert table["state"][0] == "done" and table["step"][0] == 4
  out = tmp_path / "out"
  summary = pd.read_csv(out / "sweep_summary.csv")
  # 0.1 and 1.1: mean 0.6, std 0.707. The best comes first.
  assert list(summary["optim.lr_per_256"]) == [0.2, 0.1]
  assert summary["mean"][1] == pytest.approx(0.6)
  assert summary["std"][1] == pytest.approx(0.5**0.5)
  assert list(summary["count"]) == [2, 2]
  assert (out / "sweep.png").read_bytes()[:4] == b"\x89PNG"
  assert "optim.lr_per_256" in capsys.readouterr().out
  assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_metric_that_no_run_has(tmp_path, repo_root, fake):
  config = make(tmp_path, repo_root, metric="val/los")
  with pytest.raises(ValueError, match="metric = 'val/los'.*'val/loss'"):
    run(config, fake)
  assert (tmp_path / "out" / "sweep.csv").exists()


@pytest.mark.parametrize("preset", sweep_configs.PRESETS)
def test_presets(tmp_path, repo_root, monkeypatch, preset):
  monkeypatch.chdir(repo_root)
  config = sweep_configs.get_config(preset)
  config.out = str(tmp_path)
  if preset != "smoke":
    with pytest.raises(ValueError, match="data.path is not set"):
      plan(config)
    config.fixed = (("data.path", "DATA"),)
  runs = plan(config)
  assert len(runs) == {"default": 1, "methods": 35, "smoke": 4}[preset]
