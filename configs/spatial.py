r"""Who sits where: cells, regions, and whether they have to do with each other.

    python main.py --config=configs/spatial.py --config.workdir=SPATIAL \
        --config.data.slides=SLIDES --config.data.cells=CELLS \
        --config.data.regions=REGIONS

CELLS is a folder with a file for each slide, named after it: detections of
QuPath (GeoJSON, or measurements as TSV), JSON of HoVer-Net or CellViT, label
images of StarDist or Cellpose, tables of HALO, points of ASAP, or any CSV or
Parquet with x and y; or it is one table with the cells of all slides. Without
CELLS nuclei are looked for on the slides, without types and without weights
(`config.detector`). REGIONS is a folder of annotations or masks, or the workdir
of a MIL job, whose maps are cut at `regions.threshold`. The window, in which
everything is counted, is the tissue of the slide, within
`--config.data.windows` if that is given. Read `docs/spatial.md` first: one page
on what the numbers say and what they do not.

All keys with their defaults are in wsiseq_jax/spatial/settings.py. Written to
the workdir:

  index.html                 the cohort: groups of patients, every slide
  slides.csv                 every slide: state, cells, area, seconds
  errors.csv                 what could not be used, or was changed, and why
  scores.csv, .parquet       a row for each slide, statistic and pair of types
  curves.parquet             each curve with its envelope
  patients.csv, .parquet     the same, pooled over the slides of a patient
  groups.csv                 patients compared by `groups.by`
  slides/<slide_id>/
    index.html               the slide's page, one file
    cells.parquet            every cell: x, y, type, score, distance to regions
    regions.parquet          window and regions as WKB
    cells.geojson            cells with significant neighbours, for QuPath
    scores.csv, curves.parquet
    map.jpg                  cells over the slide, with bands of distance
    done.json                what all this was made from

Stop it at any moment and start it again: finished slides are skipped. A slide
is done again if its files or a setting that shapes its numbers changed.

Exit code: 0 all slides fine; 3 finished, but errors.csv has rows of slides that
could not be used; 1 no slide could be used, or the call is wrong.

Presets:

  default  --
  demo     twelve synthetic patients; immune cells sit at the border of tumour
           in six of them: the page has to find which (two minutes)
  smoke    four of them, few simulations, seconds
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.spatial.settings import SYNTHETIC, Settings

PRESETS = ("default", "demo", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(Settings)
  if preset in ("demo", "smoke"):
    config.data.slides = SYNTHETIC
  if preset == "smoke":
    config.data.update({"workers": 0, "patients": 4})
    config.statistics.update(
      {
        "simulations": 39,
        "reach_um": 60.0,
        "step_um": 10.0,
        "border_um": 80.0,
      }
    )
    config.groups.permutations = 99
  return config.lock()
