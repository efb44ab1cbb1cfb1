r"""The viewer: slides in the browser, layers on them, and "find similar".

    make view SLIDES=/data/slides

which is, after OpenSeadragon has been fetched once,

    python main.py --config=configs/view.py --config.data.slides=/data/slides \
        --config.search.index=INDEX --config.layers.mil=MIL

and open the address it prints. `docs/viewer.md` shows how to use the page, and
from another machine.

`data.slides` takes files, a folder, a glob or a CSV (`data_prep/wsi/find.py`).
Nothing else on this machine can be seen, and slides are opened when somebody
looks at them. Everything else is optional:

  search.index        what a job `index` wrote (`configs/search.py`)
  layers.mil          workdir of a job `mil` or `mil_predict`: maps, regions
  layers.sequences    workdir of a job `embed`: clusters of sequences
  layers.cells        workdir of a job `spatial`, or a folder of its tables,
                      <slide_id>.parquet
  layers.segmentation folder of <slide_id>.png or .tif, a class number a pixel
  data.annotations    folder of <slide_id>.geojson (QuPath), .xml (ASAP), masks

All keys with their defaults are in wsiseq_jax/view/settings.py.

Nothing is written. Exit code: 0; with `server.check`, which asks for every
slide and layer once and ends, 3 if one cannot be shown; 1 when the call is
wrong. Hardware: a CPU; an accelerator makes the encoder of a search faster.

Presets: none; `smoke` (two synthetic slides, checked; seconds).
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.view.settings import Settings

PRESETS = ("default", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(Settings)
  if preset == "smoke":
    config.data.slides = "synthetic"
    config.server.update({"port": 0, "check": True})
  return config.lock()
