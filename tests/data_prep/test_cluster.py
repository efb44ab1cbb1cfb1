"""Workers that die, clusters of others, and clusters that cannot be used."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import distributed
import pytest

from configs import prep_wsi
from data_prep import cluster
from data_prep.sequences import prepare
from data_prep.synthetic import slides as synthetic_slides
from tests.data_prep import outputs
from tests.data_prep.sequences import small_cohort

KILL = "__import__('os').kill(__import__('os').getpid(), 9)"
# Takes a gigabyte and keeps it.
GREEDY = "len([b'x' * 2**20 for _ in range(1000)])"


def config_of(**changes):
  config = prep_wsi.get_config("smoke").unlock()
  config.workers, config.memory_gb = 2, 1.0
  for key, value in changes.items():
    config[key] = value
  return config.to_dict()


def values(items, config):
  """What became of each item."""
  found = dict(cluster.run(eval, items, config))
  died = {i: r.reason for i, r in found.items() if isinstance(r, cluster.Died)}
  return {i: r for i, r in found.items() if i not in died}, died


@contextlib.contextmanager
def other_cluster(**options):
  """A scheduler that somebody else has started."""
  with distributed.LocalCluster(
    n_workers=1,
    threads_per_worker=1,
    host="127.0.0.1",
    dashboard_address=":0",
    **options,
  ) as found:
    yield found.scheduler_address


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_item_that_kills_costs_itself_alone():
  items = ["1 + 1", KILL, "2 + 2", "3 + 3", KILL, "4 + 4"]
  done, died = values(items, config_of())
  assert done == {0: 2, 2: 4, 3: 6, 5: 8}
  assert sorted(died) == [1, 4]
  assert "2 workers died over it" in died[1]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_an_item_that_takes_too_much_memory():
  config = config_of(memory_gb=0.4, workers=1)
  items = [GREEDY + " and __import__('time').sleep(9)", "1 + 1"]
  done, died = values(items, config)
  assert done == {1: 2}
  assert "a worker may take 0.4 GB" in died[0]


@pytest.mark.multiprocess
def test_a_bug_is_not_swallowed():
  with pytest.raises(ZeroDivisionError):
    list(cluster.run(eval, ["1 / 0"], config_of(workers=1)))


def test_no_workers_is_this_process():
  config = config_of(workers=0)
  me = "__import__('os').getpid()"
  assert values([me], config) == ({0: os.getpid()}, {})
  assert list(cluster.run(eval, [], config)) == []


@pytest.mark.multiprocess
@pytest.mark.slow
def test_shards_do_not_depend_on_the_cluster(tmp_path):
  slides = tmp_path / "slides"
  synthetic_slides.make_cohort(slides, slides=3, patients=3, size_px=(768, 640))
  with other_cluster() as address:
    kinds = {
      "none": {"workers": 0},
      "two": {"workers": 2},
      "theirs": {"cluster": address, "workers": -1},
    }
    found = {}
    for name, changes in kinds.items():
      out = tmp_path / name
      config = small_cohort.config_of(slides, out, **changes)
      assert prepare.prepare(config).exit_code == 0
      found[name] = outputs.contents(out / "shards")
  assert found["none"] == found["two"] == found["theirs"]


@pytest.mark.multiprocess
def test_no_scheduler_at_the_address(monkeypatch):
  monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
  config = config_of(cluster="tcp://127.0.0.1:9", workers=-1)
  with pytest.raises(ValueError, match="tcp://127.0.0.1:9.*no Dask scheduler"):
    list(cluster.run(eval, ["1"], config))


@pytest.mark.multiprocess
def test_workers_must_have_the_same_libraries(tmp_path):
  found = tmp_path / "numpy-0.1.dist-info" / "METADATA"
  found.parent.mkdir()
  found.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
  older = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
  with other_cluster(preload=[older]) as address:
    config = config_of(cluster=address, workers=-1)
    with pytest.raises(ValueError, match=r"numpy.*\b0\.1\b"):
      list(cluster.run(eval, ["1"], config))


@pytest.fixture(scope="module")
def six_slides(tmp_path_factory):
  folder = tmp_path_factory.mktemp("slides")
  synthetic_slides.make_cohort(
    folder, slides=6, patients=3, size_px=(1536, 1280)
  )
  return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_soon_and_the_next_run_goes_on(
  six_slides, tmp_path, repo_root, name
):
  out = tmp_path / "out"
  command = [
    *(sys.executable, "-m", "data_prep", "--config=configs/prep_wsi.py:demo"),
    *(f"--config.slides={six_slides}", f"--config.out={out}"),
    "--config.workers=2",
  ]
  running = subprocess.Popen(
    command, cwd=repo_root, stderr=subprocess.PIPE, text=True
  )
  while not list(out.glob("parts/*/slide.json")) and running.poll() is None:
    time.sleep(0.05)
  running.send_signal(getattr(signal, name))
  _, said = running.communicate(timeout=60)
  assert running.returncode == 128 + getattr(signal, name), said
  assert "the same command goes on from here" in said
  assert "Traceback" not in said
  before = {p: p.stat().st_mtime_ns for p in out.glob("parts/*/slide.json")}
  assert 0 < len(before) < 6
  if name == "SIGINT":  # from here on it is the same
    return
  subprocess.run(command, cwd=repo_root, check=True, capture_output=True)
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert len(list(out.glob("parts/*/slide.json"))) == 6
  assert (out / "shards" / "metadata.json").exists()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"cluster": "kubernetes"}, "config.cluster = 'kubernetes'"),
    ({"cluster": "tcp://host:1"}, "config.workers = 2: must be -1"),
    ({"workers": -2}, "config.workers = -2"),
    ({"cluster": "slurm", "workers": -1}, "number of workers that Slurm"),
    ({"memory_gb": 0.0}, "config.memory_gb = 0.0"),
  ],
)
def test_settings_that_make_no_sense(changes, words):
  with pytest.raises(ValueError, match=words):
    prepare.check_config(config_of(slides="x", out="y", **changes))


def test_slurm_needs_sbatch(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  config = config_of(cluster="slurm")
  with pytest.raises(ValueError, match="there is no sbatch here"):
    list(cluster.run(eval, ["1"], config))


@pytest.mark.multiprocess
def test_what_is_submitted_to_slurm():
  config = config_of(cluster="slurm", memory_gb=3.0)
  config["slurm"] |= {
    "queue": "cpu",
    "account": "pathology",
    "walltime": "04:00:00",
    "workers_per_job": 8,
    "directives": ("--qos=low",),
    "prologue": ("module load gcc",),
  }
  with cluster.slurm_cluster(config) as found:
    script = found.job_script()
  for line in (
    "#SBATCH -p cpu",
    "#SBATCH -A pathology",
    "#SBATCH -t 04:00:00",
    "#SBATCH --cpus-per-task=8",
    "#SBATCH --mem=23G",  # 24 GB in the units of Slurm
    "#SBATCH --qos=low",
    "module load gcc",
  ):
    assert line in script, script
  assert "--nworkers 8" in script and "--nthreads 1" in script
