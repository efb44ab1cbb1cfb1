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

What comes out, under `--config.out`:

  shards/      the TFDS data set; splits train, val, test by patient
  slides.csv   every slide: its state, sequences, scale, tissue area, seconds
  errors.csv   every slide that could not be used, where and why; what
               nobody expected has its traceback in errors.log
  splits.json  patient to split; extended by later runs, never reshuffled
  qc/          a picture of each slide with its tissue and its centres
  parts/       the finished work of each slide, which `shards/` links to

Stop it at any moment and start it again: finished slides are skipped, and the
shards are byte for byte those of an undisturbed run. A slide is done again if
its file or a setting that shapes its sequences changed. One slide that cannot
be used never stops the others. Labels are beside the records, in
`shards/targets.json`: correcting one cuts nothing again.

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

from ml_collections import config_dict

from configs import prep_common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the settings of a preset, locked: unknown keys are errors."""
  presets = {
    "": _reference,
    "demo": _demo,
    "walk": _walk,
    "zoom": _zoom,
    "smoke": _smoke,
  }
  if arg not in presets:
    raise ValueError(
      f"configs/prep_wsi.py has no preset {arg!r}, choose one of "
      f"{[name for name in presets if name]} or none"
    )
  config = _reference()
  presets[arg](config)
  return config.lock()


def _reference(
  config: config_dict.ConfigDict | None = None,
) -> config_dict.ConfigDict:
  config = config or config_dict.ConfigDict()
  config.source = "slides"
  # What goes in and out; none of these shapes a pixel.
  config.slides = ""
  config.table = ""  # a CSV that describes slides named in `slides`
  config.out = ""
  prep_common.add_cluster(config)
  config.splits = config_dict.ConfigDict(
    {"train": 0.8, "val": 0.1, "test": 0.1}
  )
  # Class names in the order of their numbers; () = those found, sorted.
  config.labels = ()

  config.seed = 0
  config.mpp = 0.25  # um per pixel of the frames, met exactly
  config.mpp_tolerance = 0.02  # how much finer than the scan `mpp` may be
  config.allow_upsampling = False
  config.default_mpp = 0.0  # for slides that state none; 0 = refuse them
  config.reader = "auto"  # "openslide": read everything through OpenSlide

  config.sequence = config_dict.ConfigDict()
  config.sequence.geometry = "drift"  # drift, walk or zoom
  config.sequence.window_um = (84.0, 84.0)  # height, width of a frame
  config.sequence.step_um = 2.0  # between frames; walk: 0 = side by side
  config.sequence.frames = 96
  # Counter-clockwise, 0 = to the right, 90 = up.
  config.sequence.headings_deg = (
    -180.0, -135.0, -90.0, -45.0, 0.0, 45.0, 90.0, 135.0,
  )  # fmt: skip
  config.sequence.serpentine_columns = 0  # walk: 0 = along headings
  config.sequence.zoom_factor = 16.0  # zoom: last over first field of view
  config.sequence.spacing_um = 0.0  # of the grid of centres; 0 = strip length
  config.sequence.max_centres = 128  # a slide; 0 = all
  config.sequence.min_tissue = 0.25  # smallest share of tissue in any frame
  config.sequence.all_headings = True  # drop centres where not all are valid

  config.tissue = config_dict.ConfigDict()
  config.tissue.method = "guarded"  # guarded, hsd or hsv_otsu
  config.tissue.thumbnail_px = 2048  # longest side of what the mask is made of

  # 4:2:0 halves the colour resolution: at 224 px, where models look, that
  # costs 2.4 dB of 46.7 and saves 16 % of the bytes and 28 % of the decoding.
  config.jpeg = config_dict.ConfigDict({"quality": 90, "subsampling": "420"})
  return config


def _demo(config: config_dict.ConfigDict) -> None:
  config.mpp = 1.06
  config.sequence.window_um = (50.88, 50.88)  # 48 px
  config.sequence.step_um = 4.24  # 4 px
  config.sequence.frames = 24
  config.sequence.spacing_um = 130.0
  config.sequence.max_centres = 24
  # 5 um/px on these small slides; finer only makes the mask slower.
  config.tissue.thumbnail_px = 1024
  config.splits = {"train": 0.7, "val": 0.15, "test": 0.15}


def _walk(config: config_dict.ConfigDict) -> None:
  config.mpp = 0.5
  config.sequence.geometry = "walk"
  config.sequence.window_um = (112.0, 112.0)  # 224 px
  config.sequence.step_um = 0.0
  config.sequence.frames = 16
  config.sequence.headings_deg = (0.0, 90.0, -180.0, -90.0)
  config.sequence.spacing_um = 448.0
  config.sequence.all_headings = False


def _zoom(config: config_dict.ConfigDict) -> None:
  config.mpp = 0.5
  config.sequence.geometry = "zoom"
  config.sequence.window_um = (112.0, 112.0)  # 224 px
  config.sequence.frames = 8
  config.sequence.spacing_um = 224.0
  config.sequence.max_centres = 512


def _smoke(config: config_dict.ConfigDict) -> None:
  _demo(config)
  config.workers = 1
  config.sequence.window_um = (33.92, 33.92)  # 32 px
  config.sequence.step_um = 4.24
  config.sequence.frames = 8
  config.sequence.spacing_um = 100.0
  config.sequence.max_centres = 4
