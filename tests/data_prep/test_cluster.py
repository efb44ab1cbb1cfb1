"""Workers that die, clusters of others, and clusters that cannot be used."""

import contextlib
import pathlib
import signal

import distributed
import pytest

from configs import prep_wsi
from data_prep import cluster, schedulers
from data_prep.sequences import prepare
from tests.data_prep import outputs
from tests.data_prep.sequences import test_prepare

KILL = "__import__('os').kill(__import__('os').getpid(), 11)"
# Takes a gigabyte and keeps it.
GREEDY = "len([b'x' * 2**20 for _ in range(1000)])"


def config_of(**changes):
  config = prep_wsi.get_config("smoke").unlock()
  config.workers, config.memory_gb = 2, 1.0
  for key, value in changes.items():
    config[key] = value
  return config.to_dict()


def values(events):
  """What became of each item, and how often one was started."""
  events = list(events)
  done = {e.index: e.value for e in events if isinstance(e, cluster.Done)}
  died = {e.index: e.reason for e in events if isinstance(e, cluster.Died)}
  started = [e.index for e in events if isinstance(e, cluster.Started)]
  return done, died, started


@contextlib.contextmanager
def other_cluster(**options):
  """A scheduler that somebody else has started."""
  with distributed.LocalCluster(
    n_workers=1,
    threads_per_worker=1,
    host="127.0.0.1",
    dashboard_address=None,
    worker_dashboard_address=None,
    **options,
  ) as found:
    yield found.scheduler_address


@pytest.mark.multiprocess
@pytest.mark.slow
def test_an_item_that_kills_costs_itself_alone(tmp_path):
  items = ["1 + 1", KILL, "2 + 2", "3 + 3", KILL, "4 + 4"]
  done, died, started = values(cluster.run(eval, items, config_of(), tmp_path))
  assert done == {0: 2, 2: 4, 3: 6, 5: 8}
  assert sorted(died) == [1, 4]
  assert sorted(started) == [0, 1, 1, 2, 3, 4, 4, 5]
  assert "2 workers were lost over it" in died[1]
  # The file by which workers show that they see the folder is gone.
  assert not list(tmp_path.iterdir())


@pytest.mark.multiprocess
@pytest.mark.slow
def test_an_item_that_takes_too_much_memory(tmp_path):
  config = config_of(memory_gb=0.4, workers=1)
  items = [GREEDY + " and __import__('time').sleep(9)", "1 + 1"]
  done, died, _ = values(cluster.run(eval, items, config, tmp_path))
  assert done == {1: 2}
  assert "a worker may take 0.4 GB" in died[0]


@contextlib.contextmanager
def at_most(seconds):
  """An error where something waits for ever."""

  def late(*_):
    raise TimeoutError(f"not finished after {seconds} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_workers_that_dask_gives_up_are_replaced(tmp_path, monkeypatch):
  impatient = {"distributed.deploy.lost-worker-timeout": "1 ms"}
  monkeypatch.setattr(
    schedulers, "_WORKER_CONFIG", schedulers._WORKER_CONFIG | impatient
  )
  with at_most(seconds=120):
    events = cluster.run(eval, [KILL, "1 + 1"], config_of(workers=1), tmp_path)
    done, died, _ = values(events)
  assert done == {1: 2} and sorted(died) == [0]


@pytest.mark.multiprocess
def test_a_bug_is_not_swallowed(tmp_path):
  config = config_of(workers=1)
  with pytest.raises(RuntimeError, match="ZeroDivisionError"):
    list(cluster.run(eval, ["1 / 0"], config, tmp_path))


def test_no_workers_is_this_process(tmp_path):
  config = config_of(workers=0)
  me = "__import__('os').getpid()"
  done, _, _ = values(cluster.run(eval, [me], config, tmp_path))
  assert done == {0: eval(me)}
  assert list(cluster.run(eval, [], config, tmp_path)) == []


@pytest.mark.multiprocess
@pytest.mark.slow
def test_shards_do_not_depend_on_the_cluster(tmp_path):
  slides = tmp_path / "slides"
  test_prepare.synthetic.make_cohort(
    slides, slides=3, patients=3, size_px=(768, 640)
  )
  with other_cluster() as address:
    kinds = {
      "none": {"workers": 0},
      "two": {"workers": 2},
      "theirs": {"cluster": address, "workers": -1},
    }
    found = {}
    for name, changes in kinds.items():
      out = tmp_path / name
      config = test_prepare.config_of(slides, out, **changes)
      assert prepare.prepare(config).exit_code == 0
      found[name] = outputs.contents(out / "shards")
  assert found["none"] == found["two"] == found["theirs"]


@pytest.mark.multiprocess
def test_no_scheduler_at_the_address(tmp_path, monkeypatch):
  monkeypatch.setattr(schedulers, "CONNECT_SECONDS", 1)
  config = config_of(cluster="tcp://127.0.0.1:9")
  with pytest.raises(ValueError, match="tcp://127.0.0.1:9.*no Dask scheduler"):
    list(cluster.run(eval, ["1"], config, tmp_path))


@pytest.mark.multiprocess
def test_workers_must_have_the_same_libraries(tmp_path, monkeypatch):
  here = {**cluster.environment(), "numpy": "0.1"}
  monkeypatch.setattr(cluster, "environment", lambda: here)
  with other_cluster() as address:
    config = config_of(cluster=address)
    with pytest.raises(ValueError, match="has numpy .*this process has 0.1"):
      list(cluster.run(eval, ["1"], config, tmp_path))


@pytest.mark.multiprocess
def test_workers_must_have_this_package(tmp_path):
  without = "import sys; sys.modules['data_prep'] = None"
  with other_cluster(preload=[without]) as address:
    config = config_of(cluster=address)
    with pytest.raises(ValueError, match="cannot run data_prep.*PYTHONPATH="):
      list(cluster.run(eval, ["1"], config, tmp_path))


@pytest.mark.multiprocess
def test_workers_must_see_the_output(tmp_path, monkeypatch):
  monkeypatch.setattr(pathlib.Path, "touch", lambda self: None)
  with pytest.raises(ValueError, match="does not see .*config.out must be on"):
    list(cluster.run(eval, ["1"], config_of(workers=1), tmp_path))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"cluster": "kubernetes"}, "config.cluster is 'kubernetes'"),
    ({"cluster": "tcp://host:1", "workers": 0}, "config.workers is 0"),
    ({"workers": -2}, "config.workers is -2"),
    ({"cluster": "slurm", "workers": -1}, "number of workers that Slurm"),
    ({"memory_gb": 0.0}, "config.memory_gb is 0.0"),
  ],
)
def test_settings_that_make_no_sense(changes, words):
  with pytest.raises(ValueError, match=words):
    schedulers.check_config(config_of(**changes))


def test_slurm_needs_sbatch(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  config = config_of(cluster="slurm")
  with pytest.raises(ValueError, match="there is no sbatch here"):
    list(cluster.run(eval, ["1"], config, tmp_path))


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
  with schedulers.slurm_cluster(config) as found:
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
