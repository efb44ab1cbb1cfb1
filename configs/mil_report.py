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

PRESETS = ("default", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = ConfigDict(
    {
      "job": "mil_report",
      "workdir": "",  # of a finished job mil or mil_predict
      "data": {
        # '' shows no pictures of slides; 'synthetic' makes up everything.
        "slides": "",
        "table": "",  # a CSV that describes slides named in `slides`
        # A folder of what people drew, to compare: <slide_id>.xml (ASAP),
        # .geojson (QuPath), .png or .tif (masks); '' has none.
        "annotations": "",
        # Groups of polygons; () are those of Camelyon and 'tumour'.
        "annotation_include": (),
        "annotation_exclude": (),  # cut out again
        "annotation_ignore": (),  # left alone; any other is an error
        "default_mpp": 0.0,  # where neither map nor slide say it
        "reader": "auto",  # 'openslide': read everything through OpenSlide
        "threads": 2,  # slides at once
      },
      "report": {
        "out": "",  # '' is <workdir>/report
        # A page of the job `report`, or its run's folder, to link to; '' looks
        # in the folders beside the workdir.
        "sequence_report": "",
        "um_per_px": 0.0,  # of maps; 0 makes them `longest_px` long
        "longest_px": 1200,  # of pictures on a page
        "card_px": 260,  # of the two pictures of each slide of the cohort
        # Where colours are painted: the tissue method of
        # data_prep/wsi/tissue.py, or 'none' for whole tiles.
        "tissue": "guarded",
        "smooth_um": 0.0,  # Gaussian over the map, for maps and regions
        "threshold_from": "validation",  # of slides; or 'given', then it is
        "threshold": 0.5,
        "tile_threshold": 0.5,  # of regions and detections
        "close_um": 0.0,
        "open_um": 0.0,
        "min_area_um2": 0.0,  # smaller regions are counted, not outlined
        "max_hole_um2": 0.0,
        "radius_um": 373.0,  # between detections
        "tiles": 6,  # highest and lowest tiles shown
        "tiles_by": "probability",  # or contribution, attention
        "tiles_apart_um": 150.0,
        "tile_px": 256,  # of a tile's picture, at most
        "context": 2.0,  # side of what is shown around a tile, in tiles
        "geojson": True,
        "tiles_geojson": True,
        "resamples": 1000,  # for the intervals of the charts
        "bins": 10,  # of the calibration chart
      },
    }
  )
  if preset == "smoke":
    config.data.slides = "synthetic"
    config.report.update(
      {"longest_px": 400, "tiles": 2, "tile_px": 64, "resamples": 50}
    )
  return config.lock()
