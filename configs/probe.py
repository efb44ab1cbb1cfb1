r"""What a trained encoder knows: probes with few and with all labels.

    python main.py --config=configs/probe.py --config.workdir=PROBE \
        --config.checkpoint.path=RUN --config.data.path=DATA \
        --config.probe.targets="('grade', 'age')"

Needs a folder of checkpoints and shards with labels, nothing else: the model is
rebuilt from the config inside the checkpoint. Without probe.targets all labels
of the data are used. Run the same command again after an interruption: rows
that are done are not computed again.

Probes (`probe.kinds`):

  linear      strict: standardised frozen features; logistic or ridge regression
  knn         nearest neighbours by cosine similarity
  attentive   one learned query over frozen tokens, linear head
  pooling     the reference's "linear probe" of time series: the frozen temporal
              encoder with one new class token, linear head (contrastive tasks)
  fine_tune   everything is trained, starting from the checkpoint
  supervised  everything is trained, starting from nothing: the baseline. Knows
              of time what the checkpoint's architecture knows

Labels are taken at 1, 10 and 100 %, by patient, stratified, nested. Everything
that can be chosen (regularisation, k, epoch) is chosen on validation, and the
test split is predicted once, by what was chosen. Five seeds change which
patients have labels, and where training starts; at 100 % of the labels
`linear` and `knn` have nothing random and run once. Intervals (95 %) come from
resampling the patients of the test split.

Presets: none; `quick` (linear and knn, 200 resamples); `reference` (the pooling
probe, 1 and 100 %); `all` (every probe); `smoke` (every probe of a tiny encoder
on synthetic sequences, two minutes on two CPU cores), after

    python main.py --config=configs/contrastive.py:smoke \
        --config.data.path=synthetic:labelled --config.workdir=PROBE

TFDS picture sets, prepared with `tfds build NAME --data_dir=DIR
--file_format=array_record`:

    ... --config.data.path=tfds:DIR/patch_camelyon \
        --config.data.val_split=validation
    ... --config.data.path=tfds:DIR/colorectal_histology \
        --config.data.train_split='train[:70%]' \
        --config.data.val_split='train[70%:80%]' \
        --config.data.test_split='train[80%:]'

All keys with their defaults are in wsiseq_jax/probe/settings.py. Written to the
workdir:

  probe.csv          target, probe, fraction, seed, metric, value
  probe_summary.csv  mean and std over seeds, interval
  probe.md           the same as a table
  probe.png          the same as a picture
  labels.csv         sequences, patients and unknown labels by target and split
  features/          frozen features, computed once
  runs/              predictions of every row, with the patients; a folder for
                     each trained one with metrics.jsonl and tensorboard/
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.probe import settings

PRESETS = ("default", "quick", "reference", "all", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The probes of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(settings.ProbeConfig)
  if preset == "quick":
    config.probe.update({"kinds": ("linear", "knn"), "resamples": 200})
  if preset == "reference":
    config.probe.update({"kinds": ("pooling",), "fractions": (0.01, 1.0)})
  if preset == "all":
    config.probe.kinds = settings.KINDS
  if preset == "smoke":
    _smoke(config)
  return config.lock()


def _smoke(config: ConfigDict) -> None:
  config.data.update(
    {"path": "synthetic:labelled", "batch_size": 8, "threads": 2}
  )
  config.probe.update(
    {
      "kinds": settings.KINDS,
      "targets": ("kind", "level"),
      "fractions": (0.5, 1.0),
      "seeds": (0,),
      "resamples": 50,
    }
  )
  short = {"lr_per_256": 0.3, "batch_size": 8, "epochs": 2, "warmup_epochs": 0}
  config.head.update(short)
  config.fine_tune.update(short)
