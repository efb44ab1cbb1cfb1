r"""Many runs that differ in some settings: a grid, random draws, or both.

    python -m wsiseq_jax.sweep --config=configs/sweep.py \
        --config.out=SWEEP --config.experiment=configs/videomae.py:demo \
        --config.fixed="(('data.path', 'DATA'),)" \
        --config.grid="(('optim.lr_per_256', (1e-3, 3e-3)), ('seed', (0, 1)))"

Any key of the experiment's config can be varied or fixed; all values are
checked before the first run starts. Better than a long command line is a copy
of this file with your values: it then says what was run.

  experiment   what follows `--config=` of main.py; itself a key of the grid:
               (("experiment", ("configs/contrastive.py:tvrl,demo",
                                "configs/contrastive.py:cvrl,demo")),)
  fixed        (key, value) pairs, the same in all runs
  grid         (key, values) pairs; every combination is run
  random       (key, how, low, high), how being 'uniform', 'log' or 'int';
               `draws` of them at each point of the grid. More draws later keep
               the ones that were made
  probe        a config of probes, such as configs/probe.py:quick, for each
               run's checkpoint; `probe_fixed` are (key, value) pairs for it
  metric       what the table is sorted by, `goal` says whether the least
               ('min') or the greatest ('max') is best: a name in metrics.jsonl
               ('val/loss'), or of a probe, 'target/probe/fraction/score'
               ('age/linear/1/r2')

Run the same command again after an interruption, or with more values: runs that
are done are skipped, those that were stopped go on from their checkpoint, those
that failed are tried again. At SIGTERM and Ctrl-C the run at hand saves first.

Runs come one after the other. Under Slurm each task of an array takes its
share:

    sbatch --array=0-7 --gpus=1 --signal=B:TERM@120 --wrap "exec python -m \
        wsiseq_jax.sweep --config=my_sweep.py --config.out=SWEEP"

Presets: none; `methods`, the seven methods of the reference at demo size, five
seeds each, each with a linear probe (`configs/prep_series.py:demo` makes the
data, their place is `fixed`: data.path); `smoke`, four runs of seconds.

Written to `out`:

  runs/NAME/          workdir of a run, log.txt, stages/, probe/
  sweep.csv           a row a run: settings, state, last values
  sweep_summary.csv   mean and std of the metric over seeds, best first
  sweep.png           the metric over each setting that varies

`--config.table_only=True` writes tables of what is there and runs nothing.

Exit code: 0 all done; 1 some failed (the table and their log.txt say why), or
the config is wrong; 3 stopped.
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.sweep import Settings

PRESETS = ("default", "methods", "smoke")
_METHODS = ("cvrl", "ltn", "csimclr", "csimclr_te", "tvrl", "clm")


def get_config(arg: str = "") -> ConfigDict:
  """The sweep of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(Settings)
  if preset == "methods":
    names = [f"configs/contrastive.py:{name},demo" for name in _METHODS]
    experiments = (*names, "configs/videomae.py:series,demo")
    config.grid = (("experiment", experiments), ("seed", (0, 1, 2, 3, 4)))
    config.probe = "configs/probe.py:quick"
    config.probe_fixed = (
      ("probe.kinds", ("linear",)),
      ("probe.fractions", (1.0,)),
      ("probe.seeds", (0,)),
    )
    config.update({"metric": "growth_rate/linear/1/r2", "goal": "max"})
  if preset == "smoke":
    config.experiment = "configs/videomae.py:smoke"
    config.fixed = (("optim.total_steps", 4), ("eval_every_steps", 4))
    config.grid = (("optim.lr_per_256", (0.003, 0.03)), ("seed", (0, 1)))
  return config.lock()
