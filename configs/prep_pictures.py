"""Preparation of labelled pictures: images and a table, or tiles of slides.

  python -m data_prep --config=configs/prep_pictures.py \
    --config.csv=/data/pictures.csv --config.out=/data/prep

The table has a row for each image; relative names start at its folder, or at
`--config.images`:

  filename    JPEG, PNG, BMP or TIFF, 8 bits a channel
  patient_id  splits never divide a patient
  label       the classes that the picture shows, `;` between; or a column for
              each class with 1, 0, or nothing = unknown. A picture of which
              every class is 0, or whose label is one of `--config.negatives`
              (normal, benign, ...), is a certain negative
  mask        PNG, BMP or TIFF of the same size: 0 background, 1, 2, ... the
              classes, 255 not known. Other values: --config.mask_values
  points      a CSV with x, y, class; or `12 30 tumour; 4 8 normal`
  split       train, val, test; without it patients are dealt out
  slide_id    where the picture was cut from

What columns may be called is in data_prep/files/aliases.py. The classes, in the
order of their numbers in masks, are those of the table, sorted, or
`--config.classes="('tumour=malignant|Tumor', 'stroma')"`, where words after
`=` mean the same.

Tiles of slides, with masks drawn from polygons (ASAP XML, QuPath GeoJSON):

  python -m data_prep --config=configs/prep_pictures.py:tiles \
    --config.tiles.slides=/data/slides --config.tiles.annotations=/data/drawn \
    --config.classes="('tumour=_0|_1|Tumor',)" --config.out=/data/prep

  region   a tile has the classes drawn on it; a slide with annotations is
           annotated all over, and one whose label is in `negatives` needs none
  slide    (--config.tiles.labels=slide) a tile has the labels of its slide

Presets, after a colon (`--config=configs/prep_pictures.py:demo`):

  (none)   as above
  tiles    0.5 um/px, 512 px, labels by region
  demo     the set of `python -m data_prep.synthetic.pictures`: 1 um/px
  smoke    the same in one process, for tests

All keys with their defaults are in data_prep/pictures/settings.py and
data_prep/runs.py.

What comes out, under `--config.out`:

  shards/       the TFDS data set; splits train, val, test by patient
  pictures.csv  every picture: labels, share of each class, tissue, points
  errors.csv    what could not be used, where and why; rows of stage `note` say
                what was changed or is unknown, and are no failure
  splits.json   patient to split; extended by later runs, never reshuffled
  qc/contact_sheet.jpg  pictures of the finished data set, outlines, points
  parts/        the finished work, which `shards/` links to

Stop it at any moment and start it again: finished parts are skipped, and the
shards are byte for byte those of an undisturbed run. An image that cannot be
read costs itself alone; one whose mask or points are wrong stays, without them.

Exit code: 0 all fine; 3 finished, but something is in errors.csv (other than
notes) and everything else is written; 1 no data set could be written; 2 the
call is wrong; 130, 143 stopped by Ctrl-C, SIGTERM.
"""

from ml_collections import ConfigDict

from configs import common
from data_prep.pictures.settings import PictureSettings

PRESETS = ("default", "tiles", "demo", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(PictureSettings)
  if preset in ("demo", "smoke"):
    config.update({"mpp": 1.0, "parts": 4})
  if preset == "smoke":
    config.update({"workers": 0, "parts": 2})
  return config.lock()
