"""Preparation of whole-slide images: the manual of `python -m data_prep`.

Slides in, a TFDS data set of image sequences out:

  python -m data_prep --config=configs/prep_wsi.py \
    --config.slides=/data/slides --config.out=/data/prep

`--config.slides` takes a file, a folder, a glob, a CSV, or several with commas
between them. A CSV has the columns `slide_id, filename, patient_id, label,
mpp`, and if wanted `split`, `mask` and `tissue_<parameter>`; see
`data_prep/wsi/find.py` for the names it also understands.

Presets, after a colon (`--config=configs/prep_wsi.py:walk`):

  (none)  the reference recipe: drift at 0.25 um/px, a window of 84 um that
          moves 2 um a frame for 96 frames along 8 headings, 128 centres a
          slide. Needs slides scanned at 0.255 um/px or finer (40x).
  demo    drift at 1.06 um/px with a window of 51 um, 24 frames: suits the
          synthetic slides and 10x exports, and a model that two CPU cores
          train in minutes.
  walk    16 neighbouring windows of 112 um along a heading, no overlap, 0.5
          um/px (20x).
  zoom    8 pictures of one place, from 112 um to 1.8 mm wide, 0.5 um/px.
  smoke   a few tiny sequences at 1.06 um/px, for tests.

All keys with their defaults are in data_prep/sequences/prepare.py, data_prep/
sequences/geometries (the block `sequence`) and data_prep/runs.py.

What comes out, under `--config.out`:

  shards/      the TFDS data set; splits train, val, test by patient
  slides.csv   every slide: its state, sequences, scale, tissue area, seconds
  errors.csv   every slide or place in a slide that could not be used, where
               and why, and what is odd about a slide that could; what nobody
               expected has its traceback in errors.log
  splits.json  patient to split; extended by later runs, never reshuffled
  qc/          a picture of each slide with its tissue and its centres
  parts/       the finished work of each slide, which `shards/` links to

Stop it at any moment and start it again: finished slides are skipped, and the
shards are byte for byte those of an undisturbed run. A slide is done again if
its file or a setting that shapes its sequences changed. One slide that cannot
be used never stops the others. A damaged tile costs the sequences that touch
it; a slide that loses more than half of them is not used. Labels are beside the
records, in `shards/targets.json`: correcting one cuts nothing again.

Slides are done side by side, one a core, by Dask workers on this machine. With
`--config.cluster` they are done by Slurm jobs or on a Dask cluster that runs
already, with `--config.part=3/8` by eight commands that know nothing of one
another (`docs/cluster.md`); the bytes that come out are the same.

Exit code: 0 all slides fine ("no tissue" is fine: a result); 3 finished, but
some slides are in errors.csv and everything else is written; 1 no data set
could be written; 2 the call is wrong; 130, 143 stopped by Ctrl-C, SIGTERM.

Speed: 5 to 6 ms a drift sequence at the defaults on one core, tile reading
included, and a second or two a slide for mask and pictures; see
`benchmarks/preparation.py`.
"""

from ml_collections import ConfigDict

from configs import common
from data_prep.sequences.prepare import SlideSettings

PRESETS = ("default", "demo", "walk", "zoom", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(SlideSettings)
  if preset in ("demo", "smoke"):
    _demo(config)
  if preset == "smoke":
    _smoke(config)
  if preset == "walk":
    _walk(config)
  if preset == "zoom":
    _zoom(config)
  return config.lock()


def _demo(config: ConfigDict) -> None:
  config.mpp = 1.06
  config.sequence.window_um = (50.88, 50.88)  # 48 px
  config.sequence.step_um = 4.24  # 4 px
  config.sequence.frames = 24
  config.sequence.spacing_um = 130.0
  config.sequence.max_centres = 24
  # 5 um/px on these small slides; finer only makes the mask slower.
  config.tissue.thumbnail_px = 1024
  config.splits = {"train": 0.7, "val": 0.15, "test": 0.15}


def _walk(config: ConfigDict) -> None:
  config.mpp = 0.5
  config.sequence.geometry = "walk"
  config.sequence.window_um = (112.0, 112.0)  # 224 px
  config.sequence.step_um = 0.0
  config.sequence.frames = 16
  config.sequence.headings_deg = (0.0, 90.0, -180.0, -90.0)
  config.sequence.spacing_um = 448.0
  config.sequence.all_headings = False


def _zoom(config: ConfigDict) -> None:
  config.mpp = 0.5
  config.sequence.geometry = "zoom"
  config.sequence.window_um = (112.0, 112.0)  # 224 px
  config.sequence.frames = 8
  config.sequence.spacing_um = 224.0
  config.sequence.max_centres = 512


def _smoke(config: ConfigDict) -> None:
  config.workers = 0
  config.sequence.window_um = (33.92, 33.92)  # 32 px
  config.sequence.step_um = 4.24
  config.sequence.frames = 8
  config.sequence.spacing_um = 100.0
  config.sequence.max_centres = 4
