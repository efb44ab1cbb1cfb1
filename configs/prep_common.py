"""Settings that all preparations share: where the work is done."""

from ml_collections import config_dict


def add_cluster(config: config_dict.ConfigDict) -> None:
  """Adds the settings of `data_prep/cluster.py`; see `docs/cluster.md`."""
  # 'i/n': do the i-th of n parts of the work and do not put the data set
  # together; 'slurm': the place of this task in its job array.
  config.part = "1/1"
  # local: workers on this machine; slurm: Slurm jobs; or the address of a Dask
  # scheduler that runs already, tcp://host:port.
  config.cluster = "local"
  # Processes; -1 = one a core (local) or all there are (address), 0 = none:
  # everything in this process, without Dask (for debugging).
  config.workers = -1
  config.memory_gb = 4.0  # a worker that takes more is stopped
  # What is empty here comes from dask-jobqueue's own configuration.
  config.slurm = config_dict.ConfigDict(
    {
      "queue": "", "account": "", "walltime": "", "interface": "",
      "workers_per_job": 1, "log_folder": "", "directives": (), "prologue": (),
    }
  )  # fmt: skip
