r"""Which method finds tumour from labels of pictures? A table over seeds.

    python benchmarks/segment_table.py
    python benchmarks/segment_table.py --table

Every seed draws a cohort of its own (`data_prep/synthetic/pictures.py`: 17
patients with tumour, 32 without, a stain for each, truth known), prepares it,
and trains every variant on it through main.py, one process at a time. A line of
`<work>/runs.jsonl` is one finished run; it is not repeated, and a run that was
killed goes on where it stood. `--config...` is handed on to every run; runs
that differ in any setting lie side by side.

Methods (all in `METHODS` of `wsiseq_jax/segment/methods.py` can be asked for):
every stage of a chain has its own rows. Beside them stand, in every run, all
tissue and a stain threshold; `full` is the same student taught by masks.

Why a plain recipe fails: six hypotheses, each one setting against another.

    1 colour tells pictures apart,     stains of training pictures as they are,
      so that nothing else is learned  and varied: `cam`, `varied`
    2 maximum of each picture          readings `per image` and `absolute` of
                                       the very same maps of `cam`
    3 normal pictures have no class    their labels withheld in training, and
                                       given: `unlabelled`, `cam`
    4 the optimiser                    momentum 0.9 at a rate of 0.1, as the
                                       flags say; none, as it was: `momentum`,
                                       `plain`; and AdamW: `adamw`
    5 fixed batch-norm                 ResNet-50 with fixed statistics and with
                                       a group-norm that learns: `fixed`,
                                       `group`; asks for --weights
    6 pairs need both in sight         what `irn` adds to class maps, learned
                                       from whole pictures and from crops of
                                       half a side: `near`, `crops`, both with
                                       pairs of a radius of 4

`plain` is the recipe of the group whose classifier did not train, as near as
the small backbone allows: the deepest map, SGD at 0.1, ten times that in the
head.

Stains of training pictures are as they are where labels of pictures teach, and
varied by 0.2 where pixels do, but for `varied` and `as_it_is`.

`--table` prints mean, std and 95 % intervals (Student's t) over seeds; paired
differences at the same seed, of all rows from four that have to be beaten, and
those of the hypotheses; and writes
`benchmarks/results/<name>.json`. Seeds differ in patients, pictures and first
parameters, so that intervals hold for another cohort of this kind.
"""

import argparse
import csv
import dataclasses
import functools
import pathlib
import shutil

import harness
import pretrain_table
import segment_runs
from segment_runs import ALL_TISSUE, STAIN

from data_prep.files import tables
from wsiseq_jax.segment.methods import METHODS

# What has to be beaten; class maps of the plain recipe, and of ours.
PLAIN_RECIPE, PLAIN_MAPS = "plain/cam/per image", "student/cam/per image"
BARS = (ALL_TISSUE, STAIN, PLAIN_RECIPE, PLAIN_MAPS)
SCORES = ("miou", "dice", "precision", "recall", "boundary_f1", "ap50")


@dataclasses.dataclass(frozen=True)
class Variant:
  """A method with settings."""

  method: str
  settings: dict = dataclasses.field(default_factory=dict)
  is_labelled: bool = True  # whether training knows that normals are normal
  needs_weights: bool = False  # of a ResNet-50


def _sgd(name):
  """IRN's flags, with an optimiser."""
  values = {
    "optimizer": name,
    "lr": 0.1,
    "head_lr_factor": 10.0,
    "clip_norm": 0.0,
    "warmup_epochs": 0,
  }
  return {f"stages.cam.optim.{k}": v for k, v in values.items()}


_DEEP = {"stages.cam.level": 5}
_RESNET = {"backbone.name": "resnet50", **_DEEP}
_QUANTILE = {
  "stages.lattice.rules": "('quantile',)",
  "stages.lattice.rounds": 0,
}
_VARIED = {"stages.student.optim.stain_jitter": 0.2}
_CLICKS = {"stages.clicks.optim.stain_jitter": 0.2}
# Nobody asks for the student of these.
_NEAR = {
  "stages.irn.radius": 4,
  "stages.student.optim.epochs": 1,
  "stages.student.optim.warmup_epochs": 0,
}
# `student` has `cam` as its first stage: plain class maps are its rows.
VARIANTS = {
  "student": Variant("student", _VARIED),
  "rpnet": Variant("rpnet", _VARIED),
  "published": Variant("rpnet", {"stages.rpnet.mask": "published"} | _VARIED),
  "negatives": Variant(
    "rpnet", {"stages.rpnet.negatives": "prototypes"} | _VARIED
  ),
  "patches": Variant("patches", _VARIED),
  "camel": Variant(
    "patches",
    {
      "stages.lattice.rules": "('max_max','max_min')",
      "stages.lattice.round_rules": "()",
      "stages.lattice.bag_weight": 0.0,
    },
  ),
  "hardest": Variant("patches", {"stages.lattice.rounds": 0}),
  "quantile": Variant("patches", _QUANTILE),
  "lerousseau": Variant(
    "patches", _QUANTILE | {"stages.lattice.bag_weight": 0.0}
  ),
  "irn": Variant("irn", _VARIED),
  # A point for every nucleus, and three clicks of each class of a picture.
  "points": Variant("points", _CLICKS),
  "three": Variant("points", _CLICKS | {"stages.clicks.most": 3}),
  "full": Variant("full", _VARIED),
  "plain": Variant("cam", _DEEP | _sgd("irn_sgd")),
  "momentum": Variant("cam", _DEEP | _sgd("sgd")),
  "adamw": Variant("cam", _DEEP),
  "varied": Variant("cam", {"stages.cam.optim.stain_jitter": 0.2}),
  "as_it_is": Variant("student", {"stages.student.optim.stain_jitter": 0.0}),
  "unlabelled": Variant("cam", is_labelled=False),
  "fixed": Variant("cam", _RESNET | {"backbone.norm": "fixed"}, True, True),
  "group": Variant("cam", _RESNET | {"backbone.norm": "group"}, True, True),
  "near": Variant("irn", _NEAR),
  "crops": Variant("irn", _NEAR | {"data.crops.crop_px": "half"}),
}

# What is added and what is subtracted, by hypothesis; rows as `key_of` names
# them.
_CHOSEN = "absolute, chosen"
HYPOTHESES = {
  "1 stain varied - as it is": (
    (f"varied/cam/{_CHOSEN}",),
    (f"student/cam/{_CHOSEN}",),
  ),
  "stain of a student varied - as it is": (
    ("student/student/0.5",),
    ("as_it_is/student/0.5",),
  ),
  "2 absolute - per image": ((f"student/cam/{_CHOSEN}",), (PLAIN_MAPS,)),
  "3 normals labelled - withheld": (
    (f"student/cam/{_CHOSEN}",),
    (f"unlabelled/cam/{_CHOSEN}",),
  ),
  "4 no momentum - momentum": (
    (f"plain/cam/{_CHOSEN}",),
    (f"momentum/cam/{_CHOSEN}",),
  ),
  "4 AdamW - no momentum": (
    (f"adamw/cam/{_CHOSEN}",),
    (f"plain/cam/{_CHOSEN}",),
  ),
  "5 group-norm - fixed batch-norm": (
    (f"group/cam/{_CHOSEN}",),
    (f"fixed/cam/{_CHOSEN}",),
  ),
  "6 gain of the walk: whole pictures - crops": (
    (f"near/walk/{_CHOSEN}", f"crops/cam/{_CHOSEN}"),
    (f"near/cam/{_CHOSEN}", f"crops/walk/{_CHOSEN}"),
  ),
}


def key_of(variant, name):
  """How a row of a run is called; baselines are the same in all variants."""
  return name if name in (ALL_TISSUE, STAIN) else f"{variant}/{name}"


def cohort(args, seed, is_labelled):
  """Prepared pictures of a seed, drawn where they are not there."""
  text = f"{args.pictures}_{args.px}_{seed}"
  drawn = args.work / "data" / f"{text}_drawn"
  harness.call(
    "-m", "data_prep.synthetic.pictures", f"--out={drawn}",
    f"--pictures={args.pictures}", f"--px={args.px}", f"--seed={seed}",
    log=args.work / "data.txt",
  )  # fmt: skip
  table, kind = drawn / "pictures.csv", "labelled"
  if not is_labelled:
    table, kind = withheld(table), "unlabelled"
  out = args.work / "data" / f"{text}_{kind}"
  harness.call(
    "-m", "data_prep", "--config=configs/prep_pictures.py:demo",
    f"--config.csv={table}", f"--config.out={out}",
    log=args.work / "data.txt", good=harness.SOME_REFUSED,
  )  # fmt: skip
  return out


def withheld(table):
  """The same table without the labels of normal training pictures."""
  with table.open(newline="") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    if row["split"] == "train" and row["tumour"] == "0":
      row["tumour"] = ""
  path = table.with_name("pictures_withheld.csv")
  tables.write(path, list(rows[0]), rows)
  return path


def settings_of(args, name, seed):
  """All settings of a run beside its preset and its data."""
  variant = VARIANTS[name]
  values = {"seed": seed, **variant.settings}
  if variant.needs_weights:
    values["backbone.weights"] = str(args.weights)
  if values.get("data.crops.crop_px") == "half":
    values["data.crops.crop_px"] = args.px // 2
  return values


def identity(args, name, seed):
  """Folder of a run; tells it from runs of other settings."""
  about = [
    settings_of(args, name, seed),
    dataclasses.asdict(VARIANTS[name]),
    [args.pictures, args.px, args.size, args.more],
  ]
  return segment_runs.name_of(f"{name}_{seed}", about)


def carry_out(args, name, seed, folder):
  """Trains and scores one run; returns its row."""
  variant = VARIANTS[name]
  has_maps = "cam" in METHODS[variant.method]
  maps = args.work / identity(args, "student", seed) / "cam"
  if has_maps and maps.is_dir() and not folder.exists():
    # Class maps of equal settings are not learned again; of others they are:
    # the job sees what a stage was made from.
    shutil.copytree(maps, folder / "cam")
  found = segment_runs.segment(
    folder,
    f"{variant.method},{args.size}",
    cohort(args, seed, variant.is_labelled),
    settings_of(args, name, seed),
    args.more,
  )
  scores = {key_of(name, k): v for k, v in found["scores"].items()}
  return {**found, "scores": scores}


def study(args):
  """Carries out what is missing, seed by seed."""
  for seed in args.seeds:
    for name in args.variants:
      if VARIANTS[name].needs_weights and not args.weights:
        continue
      about = {"variant": name, "seed": seed, "size": args.size}
      about |= {"pictures": args.pictures, "px": args.px, "more": args.more}
      segment_runs.once(
        args.work,
        identity(args, name, seed),
        about,
        functools.partial(carry_out, args, name, seed),
      )


def summary(rows):
  """Means, intervals and paired differences of runs of the same settings.

  Args:
    rows: lines of `runs.jsonl`.

  Returns:
    `results`, `differences` (by what is subtracted) and `hypotheses`, each by
    row: scores by name, see `pretrain_table.over_seeds`; `clearly_better`.
  """
  of_seed = {}
  for row in rows:
    for key, one in row["scores"].items():
      of_seed.setdefault(key, {})[row["seed"]] = one

  def scores(pick, seeds, names=SCORES):
    return segment_runs.over_seeds({s: pick(s) for s in seeds}, names)

  def paired(added, taken):
    every = [of_seed.get(key, {}) for key in (*added, *taken)]
    signs = [1.0] * len(added) + [-1.0] * len(taken)

    def gap(seed):
      names = set.intersection(*(set(of[seed]) for of in every))
      return {
        k: sum(s * of[seed][k] for s, of in zip(signs, every, strict=True))
        for k in names
      }

    return scores(gap, sorted(set.intersection(*map(set, every))), ("miou",))

  found = {
    "results": {
      key: scores(mine.__getitem__, sorted(mine))
      for key, mine in of_seed.items()
    },
    "differences": {
      other: {key: paired((key,), (other,)) for key in of_seed if key != other}
      for other in BARS
      if other in of_seed
    },
    "hypotheses": {name: paired(*keys) for name, keys in HYPOTHESES.items()},
  }
  found["clearly_better"] = {
    other: clearly_better(found["results"], other) for other in BARS
  }
  return found


def clearly_better(results, other):
  """Rows whose interval of mIoU lies above that of another row."""

  def interval(key):
    # One seed has no interval, and shows nothing.
    whole = [float("-inf"), float("inf")]
    return results.get(key, {}).get("miou", {}).get("interval", whole)

  return [key for key in results if interval(key)[0] > interval(other)[1]]


def auroc_over_seeds(rows):
  """AUROC of each classifier: hypothesis 1 is of those near 1."""
  found = {}
  for row in rows:
    for stage, value in row["auroc"].items():
      found.setdefault(f"{row['variant']}/{stage}", []).append(value)
  return {k: pretrain_table.over_seeds(v) for k, v in found.items()}


def arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  known = [n for n, v in VARIANTS.items() if v.method in METHODS]
  parser.add_argument("--work", type=pathlib.Path, default="out/segment_table")
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--name", default="segment_table")
  parser.add_argument("--variants", nargs="+", choices=known, default=known)
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
  parser.add_argument("--pictures", type=int, default=1300)
  parser.add_argument("--px", type=int, default=128, help="side of a picture")
  parser.add_argument("--size", choices=("demo", "smoke"), default="demo")
  parser.add_argument("--weights", help="ResNet-50, for hypothesis 5")
  args, args.more = parser.parse_known_args()
  if wrong := [m for m in args.more if not m.startswith("--config.")]:
    parser.error(f"unknown: {' '.join(wrong)}")
  args.work = args.work.resolve()
  return args


def main():
  args = arguments()
  args.work.mkdir(parents=True, exist_ok=True)
  if not args.table:
    study(args)
    return
  wanted = {
    identity(args, name, seed) for name in args.variants for seed in args.seeds
  }
  rows = segment_runs.table_rows(args.work, wanted)
  found = {**summary(rows), "auroc": auroc_over_seeds(rows), "runs": rows}
  for key, scores in found["results"].items():
    pretrain_table.show([key], scores)
  for other, of in found["differences"].items():
    for key, scores in of.items():
      pretrain_table.show([key, "-", other], scores, sign="+")
  for name, scores in found["hypotheses"].items():
    note = "" if scores else "(not run)"
    pretrain_table.show(["hypothesis", name, note], scores, sign="+")
  for key, one in found["auroc"].items():
    pretrain_table.show([key], {"AUROC": one})
  for other, keys in found["clearly_better"].items():
    print(f"clearly above {other} by mIoU: {keys}")
  harness.write_result(harness.RESULTS / f"{args.name}.json", found)


if __name__ == "__main__":
  main()
