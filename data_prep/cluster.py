"""Runs one function over many items on a Dask cluster whose workers may die.

  for index, result in cluster.run(function, items, config): ...

`config.cluster` says where the workers are: `local` starts them on this
machine, `slurm` as Slurm jobs through dask-jobqueue, and an address
(`tcp://host:port`) uses a scheduler that somebody has started.
`docs/cluster.md` shows each of them.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dask
import distributed
import tqdm
from distributed.comm import CommClosedError

LOCAL, SLURM = "local", "slurm"
ADDRESSES = ("tcp://", "tls://")
# Packages whose version may show in the bytes of a shard.
PACKAGES = (
  *("array_record", "av", "imagecodecs", "numpy", "opencv-python-headless"),
  *("openslide-bin", "openslide-python", "pillow", "protobuf", "pydicom"),
  *("scipy", "simplejpeg", "tensorflow-datasets"),
)
CONNECT_SECONDS = 10
WORKER_SETTINGS = {
  # Results are a few kilobytes: there is nothing to spill. What image libraries
  # keep never shrinks, so that a worker which pauses would never go on.
  "distributed.worker.memory.target": False,
  "distributed.worker.memory.spill": False,
  "distributed.worker.memory.pause": False,
}
SETTINGS = {
  **WORKER_SETTINGS,
  # A worker may have left with its machine: its item has a second try.
  "distributed.scheduler.allowed-failures": 1,
  # Workers come back later than after 15 s on a busy machine.
  "distributed.deploy.lost-worker-timeout": "10 minutes",
}


@dataclasses.dataclass(frozen=True)
class Died:
  """Every worker that was given the item died; `reason` says how."""

  reason: str


def run(
  function: Callable[[Any], Any],
  items: Sequence[Any],
  config: Mapping[str, Any],
) -> Iterator[tuple[int, Any]]:
  """Calls `function(item)` for each item.

  Close the iterator (`contextlib.closing`) to stop before the end.

  Args:
    function: importable by its name on the workers; what it raises stops all.
    items: picklable arguments.
    config: of a preparation, checked; `workers` = 0 calls the function in this
      process, without Dask.

  Yields:
    Index and result of each item as it ends; `Died` where native code crashed
    or took more memory than a worker may have.

  Raises:
    ValueError: `config.cluster` cannot be used.
    OSError: the scheduler is gone.
  """
  if config["workers"] == 0:
    for index, item in enumerate(items):
      yield index, function(item)
    return
  if not items:
    return
  with connect(config, len(items)) as client:
    # Batches keep the messages that describe the items small.
    futures = client.map(function, items, pure=False, batch_size=1000)
    numbers = {future.key: index for index, future in enumerate(futures)}
    done = distributed.as_completed(futures)
    del futures  # or workers would keep all results to the end
    suspects, count = [], len(client.nthreads())
    for future in done:
      result = _result(future, config)
      if isinstance(result, Died):
        suspects.append(numbers[future.key])
      else:
        yield numbers[future.key], result
    # An item may have waited on a worker that another one killed: alone there
    # is no doubt.
    for index in sorted(suspects):
      future = client.submit(function, items[index], pure=False)
      yield index, _result(future, config)
    with contextlib.suppress(TimeoutError):
      # A worker that is stopped while it starts prints tracebacks.
      client.wait_for_workers(count, timeout=10)


def _result(future: distributed.Future, config: Mapping[str, Any]) -> Any:
  try:
    return future.result()
  except distributed.KilledWorker as error:
    return Died(
      f"{error.allowed_failures + 1} workers died over it, the last one "
      f"{error.last_worker.address}; a worker may take "
      f"{config['memory_gb']:g} GB"
    )
  except (distributed.CancelledError, CommClosedError) as error:
    raise OSError(
      f"the Dask scheduler of config.cluster={config['cluster']!r} is gone; "
      "the same command goes on from here"
    ) from error


@contextlib.contextmanager
def connect(
  config: Mapping[str, Any], items: int
) -> Iterator[distributed.Client]:
  """Connects to the scheduler of `config.cluster`, or starts and stops one."""
  address = config["cluster"]
  with contextlib.ExitStack() as stack:
    stack.enter_context(dask.config.set(SETTINGS))
    if address == LOCAL:
      cores = len(os.sched_getaffinity(0))
      count = cores if config["workers"] < 0 else config["workers"]
      address = stack.enter_context(
        distributed.LocalCluster(
          n_workers=min(count, items),
          threads_per_worker=1,  # a crash must cost one item only
          memory_limit=int(config["memory_gb"] * 1e9),
          host="127.0.0.1",
          dashboard_address=":0",
          silence_logs=logging.CRITICAL,
        )
      )
    elif address == SLURM:
      address = stack.enter_context(slurm_cluster(config))
      _check_job(address.job_script())
      per_job = config["slurm"]["workers_per_job"]
      jobs = -(-min(config["workers"], items) // per_job)
      # Not `scale`: jobs that end at their time limit are followed by new ones.
      address.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    try:
      client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
      raise ValueError(
        f"config.cluster is {address!r}: no Dask scheduler answers there "
        f"within {CONNECT_SECONDS} s"
      ) from error
    stack.enter_context(client)
    if not client.nthreads():
      tqdm.tqdm.write(
        f"config.cluster={config['cluster']!r} has no worker yet: waiting",
        file=sys.stderr,
      )
      client.wait_for_workers(1)
    _check_versions(client, config)
    yield client


def _check_versions(
  client: distributed.Client, config: Mapping[str, Any]
) -> None:
  """Equal bytes need equal libraries."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # that is how Dask reports a difference
      client.get_versions(check=True, packages=PACKAGES)
  except Warning as error:
    raise ValueError(
      f"config.cluster={config['cluster']!r}: start scheduler and workers from "
      f"the environment of this process, or shards could differ. {error}"
    ) from error


def slurm_cluster(config: Mapping[str, Any]) -> Any:
  """Makes the cluster whose workers are Slurm jobs; none is submitted yet.

  Settings that are empty come from dask-jobqueue's own configuration
  (`~/.config/dask/jobqueue.yaml`), which many computing centres provide.
  """
  if importlib.util.find_spec("dask_jobqueue") is None:
    raise ValueError(
      "config.cluster is 'slurm', which needs dask-jobqueue: "
      "pip install dask-jobqueue"
    )
  import dask_jobqueue

  settings = config["slurm"]
  count = settings["workers_per_job"]
  names = {"log_folder": "log_directory", "directives": "job_extra_directives"}
  given = {
    names.get(key, key): list(value) if key == "directives" else value
    for key, value in settings.items()
    if value and key not in ("workers_per_job", "prologue")
  }
  root = pathlib.Path(__file__).resolve().parents[1]
  variables = [
    f"export DASK_{key.upper().replace('.', '__')}={value}"
    for key, value in WORKER_SETTINGS.items()
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
    scheduler_options={"dashboard_address": ":0"},
    silence_logs=logging.CRITICAL,
    **given,
  )


def _check_job(script: str) -> None:
  """Has Slurm look at a job: dask-jobqueue would submit a bad one for ever."""
  if shutil.which("sbatch") is None:
    raise ValueError(
      "config.cluster is 'slurm', but there is no sbatch here: start this on a "
      "machine from which jobs are submitted"
    )
  with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
    file.write(script)
    file.flush()
    command = ["sbatch", "--test-only", file.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise ValueError(
      "config.slurm: Slurm refuses the jobs of the workers: "
      f"{done.stderr.strip() or done.stdout.strip()}"
    )
