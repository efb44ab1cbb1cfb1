r"""Pages about attention MIL: one for each slide, and one for the cohort.

    python main.py --config=configs/mil_report.py --config.workdir=MIL \
        --config.data.slides=/data/slides

MIL is the workdir of a finished job `mil` or `mil_predict` (`configs/mil.py`):
its tables and `maps/` are read, no model and no features. `data.slides` takes
files, a folder, a glob or a CSV (`data_prep/wsi/find.py`); without it, or where
a slide's file is missing or damaged, the pages say so and show the map alone.

`data.annotations` names a folder of what people drew, one file a slide: their
outlines lie over the slide and its maps, in other lines than the regions of the
model, with the share of the annotated area that lies in regions. They are for
looking at; nothing is scored by them.

Run the same command again: slides whose map, prediction, file and settings are
the same are left as they are; if all are, it says "up to date".

All keys with their defaults are in wsiseq_jax/reports/slides/settings.py.
Written to `report.out` (<workdir>/report):

  index.html                  the cohort: numbers, ROC, calibration, every slide
  errors.csv                  slides whose picture or map could not be shown
  slides/<slide_id>/
    index.html                the slide's page, one file
    done.json                 what the page was made from
    probability.jpg           maps with colour bar and scale bar; the first two
    contribution.jpg          are comparable between slides, ...
    percentile_display_only.jpg   ... this one is not
    regions.geojson           annotations for QuPath: drag them onto the slide
    tiles.geojson             all tiles as QuPath tiles with their scores
    tiles.csv                 the same scores as a table
    detections.csv            probability, x, y: the Camelyon16 format
    tiles/                    pictures of the highest and lowest tiles

`tiles.geojson` takes some 600 bytes a tile: 60 MB for 100,000 tiles. Switch it
off with `report.tiles_geojson=False`.

Two thresholds, which are not the same: that of the *slide* decides between two
classes and comes from validation (or is given: `threshold_from='given'`); that
of *tiles*, `tile_threshold`, only says where outlines are drawn.

A slide's page carries its pictures, 1 to 2 MB. Those of the cohort's page are
files in `slides/`, loaded when they come into sight: 4 MB for 5,000 slides.

Exit code: 0; 3 when all is written and errors.csv has rows; 1 when the call is
wrong. Hardware: a CPU; a few seconds a slide.

Presets: none; `smoke` (three synthetic slides with made-up predictions, no data
needed, seconds).
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.reports.slides.settings import Settings

PRESETS = ("default", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(Settings)
  if preset == "smoke":
    config.data.slides = "synthetic"
    config.report.update(
      {"longest_px": 400, "tiles": 2, "tile_px": 64, "resamples": 50}
    )
  return config.lock()
