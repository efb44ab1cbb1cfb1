"""Where the Dask workers of a preparation come from: `config.cluster`.

`local` starts them on this machine, `slurm` as Slurm jobs through
dask-jobqueue, and an address (`tcp://host:port`) uses a scheduler that somebody
has started. `docs/cluster.md` shows each of them.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import distributed
import tqdm

LOCAL, SLURM = "local", "slurm"
ADDRESSES = ("tcp://", "tls://")
# The settings that are read here. None of them shapes what is written.
KEYS = ("cluster", "workers", "memory_gb", "slurm")
CONNECT_SECONDS = 10

_WORKER_CONFIG = {
  # Items return a few kilobytes: there is nothing to spill, and a worker that
  # pauses because libraries hold memory would never go on.
  "distributed.worker.memory.target": False,
  "distributed.worker.memory.spill": False,
  "distributed.worker.memory.pause": False,
  # The limit is the limit, not 95 % of it.
  "distributed.worker.memory.terminate": 1.0,
  # The death of a worker is reported at once: we decide who tries again.
  "distributed.scheduler.allowed-failures": 0,
  # A worker that is started anew on a busy machine takes longer than the 15 s
  # after which Dask would give it up.
  "distributed.deploy.lost-worker-timeout": "10 minutes",
  # Sampling every 10 ms what the worker is doing costs it time.
  "distributed.worker.profile.enabled": False,
}


def check_config(config: Mapping[str, Any]) -> None:
  """Checks the settings that say where the work is done.

  Args:
    config: holds `KEYS`.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """
  cluster, workers = config["cluster"], config["workers"]
  if cluster not in (LOCAL, SLURM) and not cluster.startswith(ADDRESSES):
    raise ValueError(
      f"config.cluster is {cluster!r}, want 'local', 'slurm' or the address of "
      "a Dask scheduler: tcp://host:port"
    )
  if workers < -1 or (workers == 0 and cluster != LOCAL):
    allowed = "-1, 0 or more" if cluster == LOCAL else "-1, 1 or more"
    raise ValueError(f"config.workers is {workers!r}, want {allowed}")
  if cluster == SLURM and workers == -1:
    raise ValueError(
      "config.workers is -1, want the number of workers that Slurm shall start"
    )
  if config["memory_gb"] <= 0:
    raise ValueError(
      f"config.memory_gb is {config['memory_gb']!r}, want a positive number"
    )
  per_job = config["slurm"]["workers_per_job"]
  if per_job < 1:
    raise ValueError(
      f"config.slurm.workers_per_job is {per_job!r}, want at least 1"
    )


@contextlib.contextmanager
def connect(
  config: Mapping[str, Any], items: int
) -> Iterator[distributed.Client]:
  """Connects to the scheduler of `config.cluster`, or starts one.

  Args:
    config: holds `KEYS`, checked.
    items: how many there are: more workers are not started.

  Yields:
    The client. What was started here is stopped afterwards; in the middle of
    an item too, if the body raises.

  Raises:
    ValueError: there is no such scheduler, or Slurm refuses.
  """
  kind = config["cluster"]
  start = {LOCAL: _local, SLURM: _slurm}.get(kind, _existing)
  # Dask sets thread counts for its workers in *this* process's environment.
  environment = dict(os.environ)
  with contextlib.ExitStack() as stack:
    stack.callback(_restore, environment)
    stack.enter_context(_quiet())
    stack.enter_context(dask.config.set(_WORKER_CONFIG))
    yield stack.enter_context(start(config, items))


def waiting_text(config: Mapping[str, Any]) -> str:
  """Says what there is to wait for while a cluster has no worker.

  Args:
    config: holds `KEYS`.

  Returns:
    A sentence; empty where nobody can do anything about it.
  """
  if config["cluster"] == SLURM:
    return "no worker yet: waiting for Slurm to start the jobs"
  if config["cluster"] == LOCAL:
    return ""
  address = config["cluster"]
  return (
    f"no worker yet at {address}: start some with `dask worker {address} "
    "--nthreads 1 --nworkers CORES`"
  )


def replace_lost(client: distributed.Client, config: Mapping[str, Any]) -> None:
  """Starts others for workers of our own that Dask has given up.

  Those that it is starting anew, as it does when one dies, are left alone.

  Args:
    client: as `connect` yields it.
    config: holds `KEYS`.
  """
  if config["cluster"] == LOCAL:
    client.cluster.scale(len(client.cluster.worker_spec))


def refusal(
  config: Mapping[str, Any], who: str, error: BaseException
) -> ValueError:
  """Makes the error of a process that cannot even run our code.

  Args:
    config: holds `KEYS`.
    who: names the process.
    error: what it answered.

  Returns:
    An error that says what to do.
  """
  remedy = ""
  if isinstance(error, ImportError):
    root = pathlib.Path(__file__).resolve().parents[1]
    remedy = (
      ": start scheduler and workers from an environment that has this "
      f"package, or with PYTHONPATH={root}"
    )
  return ValueError(
    f"config.cluster is {config['cluster']!r}: {who} cannot run data_prep "
    f"({type(error).__name__}: {error}){remedy}"
  )


@contextlib.contextmanager
def _local(
  config: Mapping[str, Any], items: int
) -> Iterator[distributed.Client]:
  """A scheduler and workers of our own on this machine."""
  count = config["workers"]
  if count < 0:
    count = len(os.sched_getaffinity(0))
  cluster = distributed.LocalCluster(
    n_workers=min(count, items),
    threads_per_worker=1,
    processes=True,
    memory_limit=int(config["memory_gb"] * 1e9),
    host="127.0.0.1",
    dashboard_address="127.0.0.1:8787",
    worker_dashboard_address=None,
    silence_logs=logging.CRITICAL,
  )
  try:
    with distributed.Client(cluster) as client:
      _tell(cluster, config)
      yield client
  except BaseException:
    # In the middle of an item: not asked, killed. Nothing a worker is writing
    # counts before its rename.
    for nanny in list(cluster.workers.values()):
      nanny.close_gracefully()  # or it would start another
      if nanny.pid:
        os.kill(nanny.pid, signal.SIGKILL)
    raise
  finally:
    cluster.close()


@contextlib.contextmanager
def _existing(
  config: Mapping[str, Any], items: int
) -> Iterator[distributed.Client]:
  """A scheduler that somebody else has started."""
  del items
  address = config["cluster"]
  try:
    client = distributed.Client(
      address, timeout=CONNECT_SECONDS, set_as_default=False
    )
  except (OSError, ValueError) as error:
    raise ValueError(
      f"config.cluster is {address!r}: no Dask scheduler answers there within "
      f"{CONNECT_SECONDS} s"
    ) from error
  with client:
    versions = client.get_versions()
    theirs = versions["scheduler"]["packages"]["distributed"]
    if theirs != distributed.__version__:
      raise ValueError(
        f"config.cluster is {address!r}: its scheduler is distributed {theirs},"
        f" this process has {distributed.__version__}; start it from the same "
        "environment"
      )
    try:
      # As text, so that it can be read there; all else that is sent needs this.
      client.run_on_scheduler(eval, "bool(__import__('data_prep.series'))")
    except ImportError as error:
      raise refusal(config, "its scheduler", error) from error
    yield client


@contextlib.contextmanager
def _slurm(
  config: Mapping[str, Any], items: int
) -> Iterator[distributed.Client]:
  """A scheduler in this process, and workers that are Slurm jobs."""
  if shutil.which("sbatch") is None:
    raise ValueError(
      "config.cluster is 'slurm', but there is no sbatch here: start this on a "
      "machine from which jobs are submitted"
    )
  per_job = config["slurm"]["workers_per_job"]
  jobs = -(-min(config["workers"], items) // per_job)
  with slurm_cluster(config) as cluster:
    _check_job(cluster.job_script())
    # Not `scale`: jobs that end at their time limit shall be followed by new
    # ones.
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    with distributed.Client(cluster) as client:
      _tell(cluster, config)
      yield client


def slurm_cluster(config: Mapping[str, Any]) -> Any:
  """Makes the cluster whose workers are Slurm jobs; none is submitted yet.

  Settings that are empty come from dask-jobqueue's own configuration
  (`~/.config/dask/jobqueue.yaml`), which many computing centres provide.

  Args:
    config: holds `KEYS`.

  Returns:
    A `dask_jobqueue.SLURMCluster`; `job_script()` shows what it would submit.

  Raises:
    ValueError: dask-jobqueue is not installed.
  """
  if importlib.util.find_spec("dask_jobqueue") is None:
    raise ValueError(
      "config.cluster is 'slurm', which needs dask-jobqueue: "
      "pip install dask-jobqueue"
    )
  import dask_jobqueue

  settings = config["slurm"]
  count = settings["workers_per_job"]
  root = pathlib.Path(__file__).resolve().parents[1]
  given = {
    key: settings[key]
    for key in ("queue", "account", "walltime", "interface")
    if settings[key]
  }
  if settings["log_folder"]:
    given["log_directory"] = settings["log_folder"]
  if settings["directives"]:
    given["job_extra_directives"] = list(settings["directives"])
  variables = [
    f"export DASK_{key.upper().replace('.', '__')}={value}"
    for key, value in _WORKER_CONFIG.items()
  ]
  return dask_jobqueue.SLURMCluster(
    cores=count,
    processes=count,
    memory=f"{int(config['memory_gb'] * count * 1e9)}B",
    python=sys.executable,
    job_name="data_prep",
    job_script_prologue=[
      *settings["prologue"],
      f'export PYTHONPATH="{root}:$PYTHONPATH"',
      *variables,
    ],
    scheduler_options={"dashboard_address": ":8787"},
    silence_logs=logging.CRITICAL,
    **given,
  )


def _check_job(script: str) -> None:
  """Has Slurm look at a job before it is submitted.

  A refusal at submission happens in the background, where dask-jobqueue would
  try again and again.
  """
  with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
    file.write(script)
    file.flush()
    done = subprocess.run(
      ["sbatch", "--test-only", file.name],
      capture_output=True,
      text=True,
      check=False,
    )
  if done.returncode:
    raise ValueError(
      "config.slurm: Slurm refuses the jobs of the workers: "
      f"{done.stderr.strip() or done.stdout.strip()}"
    )


def _tell(cluster: Any, config: Mapping[str, Any]) -> None:
  """Says what was started, above the progress bar."""
  tqdm.tqdm.write(
    f"{len(cluster.worker_spec) or 'Slurm'} workers of up to "
    f"{config['memory_gb']:g} GB each; dashboard: {cluster.dashboard_link}",
    file=sys.stderr,
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Leaves it to us to say what happened to a worker."""
  logger = logging.getLogger("distributed")
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    with warnings.catch_warnings():
      # Versions are compared in `cluster.py`; a second dashboard gets its
      # own port, and the printed address has it.
      warnings.filterwarnings("ignore", module="distributed")
      yield
  finally:
    logger.setLevel(level)


def _restore(environment: Mapping[str, str]) -> None:
  os.environ.clear()
  os.environ.update(environment)
