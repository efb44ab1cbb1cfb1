r"""Segments tissue from labels of pictures, clicks or slides, not from masks.

    python main.py --config=configs/segment.py:cam --config.workdir=OUT \
        --config.data.path=PICTURES

PICTURES is what `configs/prep_pictures.py` writes: labelled pictures with
patients and splits, some with masks. Run the same command again after an
interruption: stages that are done are not done again, and the result is the
same.

Presets are methods (wsiseq_jax/segment/methods.py), each a chain of stages; the
first is the default:

  cam        a classifier of pictures; its class activation maps
  student    cam, then a segmentation network taught by its labels
  patches    a classifier of small cells, taught by those that stand for their
             picture or slide, then the student
  irn        cam, its scores cleaned by a CRF (`crf`), boundaries and instance
             centres learned from pairs of pixels (`irn`), a random walk that
             boundaries stop (`walk`), then the student; also instances
  rpnet      irn, but for the classifier: its maps agree with what a second
             picture of the class re-activates (region prototypes)
  points     the same network taught by sparse clicks (column `points` of the
             table of pictures), by colours that look alike, by labels
  nuclei     from points of some nuclei: a detector that teaches itself, masks
             of nuclei; nuclei/ and detect/detection.csv
  full       the same network taught by masks: the upper bound

  <method>,plain  as published: ResNet-50 with fixed batch-norm, its last two
                  stages and the head trained by SGD as IRN's code has it; name
                  its weights
  <method>,demo   settings for small pictures on a CPU, minutes
  <method>,smoke  tiny, on pictures that are made on the fly, seconds; `smoke`
                  is `cam,smoke`, `demo` is `student,demo`

Backbones (`config.backbone`, wsiseq_jax/segment/backbone.py): `small` learns
from scratch; `resnet50` with --config.backbone.weights=FILE of torchvision's,
its batch-norm fixed (`norm='fixed'`) or replaced by a group-norm that is
trained; `encoder`, any tile encoder of configs/embed_tiles.py, by
--config.backbone.encoder.name=vit_small_16 --config.backbone.encoder.weights=.

Labels of slides alone: cut tiles by configs/prep_pictures.py:tiles with
--config.tiles.labels=slide, then `patches` with
--config.stages.lattice.bag=slide.
Where features of tiles are there already, configs/mil.py:selection learns from
them, and its maps are tiles.

How it is kept honest. Patients are split in preparation. Labels of training
pictures teach; validation chooses epochs and thresholds; the test split is only
scored. Every threshold says where it comes from: fixed, from certain negatives
without any mask, or from masks of validation. Intervals (95 %) come from
resampling patients. A picture without any positive label is a certain negative;
glass is background.

All keys with their defaults are in wsiseq_jax/segment/settings.py and, of
`config.stages`, in the module of each stage. Written to the workdir:

  segmentation.csv .md       every stage and reading: mIoU, Dice, precision,
                             recall, boundary F1, AP50 of instances, beside all
                             tissue and a stain threshold
  segmentation_patients.csv  the same, a patient each
  index.html                 the table; best and worst pictures with all maps
  <stage>/                   metrics.jsonl, tensorboard/, params.safetensors
  <stage>/maps/<split>/      an NPZ for each picture, see
                             wsiseq_jax/segment/maps.py

Hardware: a GPU; `small` on a CPU.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.segment.methods import METHODS, STAGES
from wsiseq_jax.segment.settings import SegmentSettings
from wsiseq_jax.segment.training import IRN_FIT

# Values of `demo` and `smoke`, wherever a stage has the key.
_DEMO = {
  "level": 3,
  "scales": (1.0, 0.5),
  "region_scales": (1.0, 0.5),
  "width": 32,
  # Pictures are a quarter as wide: a walk spreads as far, of the picture.
  "steps": 16,
}
_SMOKE = {
  "level": 3,
  "scales": (1.0,),
  "region_scales": (1.0,),
  "width": 8,
  "radius": 4,
  "steps": 16,
  "most": 3,
  "rounds": 2,
}


def presets() -> tuple[str, ...]:
  """Every method, in four kinds; the first is the default."""
  kinds = ("plain", "demo", "smoke")
  sized = (f"{name},{kind}" for name in METHODS for kind in kinds)
  return (*METHODS, *sized, "demo", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment of a preset; see the module's docstring."""
  preset = common.choose(arg, presets())
  preset = {"smoke": "cam,smoke", "demo": "student,demo"}.get(preset, preset)
  method, _, size = preset.partition(",")
  stages = {
    name: common.defaults(STAGES[name], **given)
    for name, given in METHODS[method].items()
  }
  config = common.defaults(SegmentSettings, method=method, stages=stages)
  if size == "plain":
    _resize(config, {}, dataclasses.asdict(IRN_FIT))
    config.backbone.update(name="resnet50", norm="fixed", train="late")
  elif size == "demo":
    _resize(config, _DEMO, {"epochs": 12, "warmup_epochs": 1, "lr": 3e-3})
    config.data.crops.update({"batch_size": 16, "crop_px": 128})
    for name, stage in config.stages.items():
      if name in ("cam", "rpnet"):  # labels of pictures teach slowly, ...
        stage.optim.epochs = 20
      elif name == "student":  # ... those of pixels fast
        stage.optim.update({"epochs": 6, "stain_jitter": 0.2})
  elif size == "smoke":
    _resize(config, _SMOKE, {"epochs": 2, "warmup_epochs": 0, "lr": 1e-2})
    config.data.path = "synthetic"
    config.data.crops.update({"batch_size": 8, "crop_px": 64})
    config.backbone.channels = (8, 8, 8, 8, 8)
    config.scores.resamples = 50
  return config.lock()


def _resize(config: ConfigDict, values: dict, optim: dict) -> None:
  for stage in config.stages.values():
    stage.update({k: v for k, v in values.items() if k in stage})
    if "optim" in stage:
      stage.optim.update(optim)
