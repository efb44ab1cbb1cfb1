r"""Attention MIL: learns from labels of slides, shows which tiles it came from.

    python main.py --config=configs/mil.py --config.workdir=MIL \
        --config.data.features=FEATURES --config.data.table=TABLE.csv

FEATURES is a folder of one HDF5 file a slide, written by the job `embed_tiles`,
TRIDENT, CLAM or STAMP, any width. TABLE.csv has `slide_id`, `patient_id` and a
column of labels (`data.label`); other names of these columns and file names are
understood too (wsiseq_jax/mil/cohort.py). Run the same command again after an
interruption: models that are trained are not trained again, and the result is
the same.

Presets are models (wsiseq_jax/models/mil); the first is the default:

  gated      gated attention (ABMIL)          attention  without the gate
  additive   gated, with a map for each output: for two outputs or more, since
             with one it is the same function as gated
  clam_sb    one branch, instance loss        clam_mb    a branch for each class
  chowder    smallest and largest scores      dsmil      critical instance
  transmil   Nyström transformer, true tile positions
  mean       mean of tiles, linear            max        best tile
  instance   tile classifier, mean of the top tiles: strong on good features
  selection  tile classifier: the highest tiles of a positive slide are labelled
             positive, its lowest and all of negative slides negative

  <name>,smoke  the same, tiny, on synthetic bags that are made on the fly: no
                data needed, seconds. `smoke` is `gated,smoke`.

Target types (`config.target_type`): binary, multiclass, multilabel
(data.label='er,pr,her2', each 0, 1 or empty), regression, survival
(data.label='time,event'; Cox).

How it is kept honest. Patients, not slides, are split: `folds.k` folds,
validation (`folds.val_share`) inside the training part of each, drawn once and
kept in splits.csv, which you may also bring. Validation alone chooses the epoch
(lowest loss) and the threshold (Youden's J, the highest balanced accuracy).
`seeds` start every fold anew, five times: identical MIL runs differ by up to 10
to 15 points of AUROC (arXiv 2507.00292), and one run shows nothing. Intervals
(95 %) come from resampling patients. A slide without tissue, or whose features
are missing or broken, is a failure: it is predicted by the training prior,
flagged, counted and scored; the reasons are in errors.csv.

Rare classes. `optim.class_weights='balanced'` weighs each slide's loss by
n / (C n_c), from the training labels of each fold alone: all classes (of each
label of several: yes and no) weigh the same. It is for classes and labels, and
of the slide's loss, not of CLAM's and DSMIL's tiles. Probabilities are then
those of a cohort where classes are equally frequent, and not calibrated for
this one; so is the prior of failures. The threshold follows in any case, and
AUROC need not gain: compare with the default, 'none'.

Given splits: data.split_column names a column with train, val and test. There
is one fold then (`folds.k` is of no use), and validation is drawn from train if
it is not given. data.split_column='camelyon16' takes the challenge's official
split by slide name: `normal_*` and `tumor_*` train, `test_*` tests. The table
brings the labels, of the test slides too. Blemishes of that data: two of the
normal training slides are known to be mislabelled (Liu et al. 2017); some 20
tumour slides are annotated in part only, which matters for lesions, not here;
`normal_027` yields no tissue under CLAM's default mask; the 160 normal and 110
tumour slides are in circulation as 159 and 111 too. The literature trains with
all of these, so nothing is left out silently: leave out or relabel in the
table, and say so. Patients are unknown there, each slide is one.

Several devices: batches are sharded over as many devices of a process as divide
`data.batch_size`; several processes share out the models (fold and seed), the
slides of mil_predict and the maps, and need one disk.

All keys with their defaults are in wsiseq_jax/mil/settings.py. Written to the
workdir:

  splits.csv             repeat, fold, slide_id, patient_id, split
  errors.csv             a row for every failure
  models/                parameters, losses and predictions of every model; a
                         folder for each with metrics.jsonl and tensorboard/
  predictions.csv        every model's predictions of its val and test slides
  predictions_slide.csv  a row a slide: mean of the models that tested it
  metrics.csv            repeat, fold, seed, class, metric, value
  summary.csv summary.md mean, std over seeds, interval
  roc.png calibration.png
  maps/<slide_id>.npz    attention, probability, contribution of every tile

Scores of all k folds are computed together, every slide by the model that did
not know it; metrics.csv has those of single folds beside them.

Apply the models of a finished workdir to other slides, all as one ensemble:

    python main.py --config=configs/mil.py --config.job=mil_predict \
        --config.predict.models=MIL --config.workdir=OUT \
        --config.data.features=FEATURES [--config.data.table=TABLE.csv]

Hardware: a GPU or a CPU. 500 slides of 10,000 tiles of width 1024 are 20 GB; up
to `data.cache_gb` of features are kept in memory, the rest is read each epoch.
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.mil.settings import MilSettings
from wsiseq_jax.models import mil


def presets() -> tuple[str, ...]:
  """Every model, each in two sizes; the first is the default."""
  names = tuple(mil.MODELS)
  return (*names, *(f"{name},smoke" for name in names), "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment of a preset; see the module's docstring."""
  preset = common.choose(arg, presets())
  name, _, size = ("gated,smoke" if preset == "smoke" else preset).partition(
    ","
  )
  config = common.defaults(
    MilSettings, model={"name": name, **mil.settings(name)}
  )
  if name == "dsmil":
    # The paper's betas.
    config.optim.update({"b1": 0.5, "b2": 0.9})
  if name == "additive":
    config.target_type = "multiclass"
  if size == "smoke":
    _smoke(config)
  return config.lock()


def _smoke(config: ConfigDict) -> None:
  config.data.features = "synthetic"
  if config.target_type == "multiclass":
    config.data.label = "kind"  # of three classes
  config.data.update({"batch_size": 4, "threads": 2})
  small = {
    "hidden": 32,
    "attention_width": 16,
    "mlp_hidden": (16, 8),
    "top_tiles": 3,
    "extremes": 3,
    "instance_tiles": 2,
    "query_width": 16,
    "heads": 2,
    "landmarks": 8,
    "pinv_iterations": 2,
  }
  config.model.update({k: v for k, v in small.items() if k in config.model})
  config.optim.update({"lr": 2e-2, "epochs": 30, "warmup_epochs": 0})
  config.folds.k = 2
  config.seeds = (0, 1)
  config.scores.resamples = 50
