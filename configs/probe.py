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
probe, 1 and 100 %); `all` (every probe); `smoke` (a tiny encoder is trained on
synthetic sequences first; no data needed, two minutes on two CPU cores).

TFDS picture sets, prepared with `tfds build NAME --data_dir=DIR
--file_format=array_record`:

    ... --config.data.tfds=patch_camelyon --config.data.tfds_dir=DIR \
        --config.data.val_split=validation
    ... --config.data.tfds=colorectal_histology --config.data.tfds_dir=DIR \
        --config.data.train_split='train[:70%]' \
        --config.data.val_split='train[70%:80%]' \
        --config.data.test_split='train[80%:]'

Written to the workdir:

  probe.csv          target, probe, fraction, seed, metric, value
  probe_summary.csv  mean and deviation over seeds, interval
  probe.md           the same as a table
  probe.png          the same as a picture
  labels.csv         sequences, patients and unknown labels by target and split
  features/          frozen features, computed once
  runs/              predictions of every row, with the patients
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = ("default", "quick", "reference", "all", "smoke")
KINDS = ("linear", "knn", "attentive", "pooling", "fine_tune", "supervised")


def get_config(arg: str = "") -> ConfigDict:
  """The probes of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  training = {
    # For 256 sequences a step; `lr_of` has other rates for single targets,
    # such as ("age=5e-3",).
    "lr_per_256": 1e-3,
    "lr_of": (),
    "weight_decay": 0.05,
    "batch_size": 256,
    "epochs": 100,
    "warmup_epochs": 10,
    "patience": 15,  # epochs without a better validation; 0 is never
  }
  config = ConfigDict(
    {
      "job": "probe",
      "workdir": "",
      "data": {
        "path": "",  # shards, or the folder that preparation wrote
        "tfds": "",  # instead: a TFDS picture set ...
        "tfds_dir": "",  # ... and where TFDS keeps it
        "train_split": "train",
        "val_split": "val",
        "test_split": "test",
        "batch_size": 64,  # sequences encoded at once
        "threads": 8,
        "worker_processes": 0,
      },
      "mesh": {"fsdp": 1},
      "checkpoint": {"path": ""},  # '' is <workdir>/checkpoints
      "probe": {
        "targets": (),  # () is all
        "kinds": ("linear", "knn", "attentive"),
        "fractions": (0.01, 0.1, 1.0),
        "seeds": (0, 1, 2, 3, 4),
        "resamples": 1000,
      },
      # How heads on frozen tokens are trained, and whole encoders.
      "head": dict(training),
      "fine_tune": {**training, "batch_size": 64},
    }
  )
  if preset == "quick":
    config.probe.update({"kinds": ("linear", "knn"), "resamples": 200})
  if preset == "reference":
    config.probe.update({"kinds": ("pooling",), "fractions": (0.01, 1.0)})
  if preset == "all":
    config.probe.kinds = KINDS
  if preset == "smoke":
    _smoke(config)
  return config.lock()


def _smoke(config: ConfigDict) -> None:
  config.data.update({"path": "synthetic", "batch_size": 8, "threads": 2})
  config.probe.update(
    {
      "kinds": KINDS,
      "targets": ("kind", "level"),
      "fractions": (0.5, 1.0),
      "seeds": (0,),
      "resamples": 50,
    }
  )
  short = {"lr_per_256": 0.3, "batch_size": 8, "epochs": 2, "warmup_epochs": 0}
  config.head.update(short)
  config.fine_tune.update(short)
