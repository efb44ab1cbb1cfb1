r"""Whole slides through a trained segmentation network: masks, outlines, areas.

    python main.py --config=configs/segment_slides.py --config.workdir=MASKS \
        --config.model.workdir=OUT --config.data.slides=SLIDES

OUT is the workdir of a finished job `segment` (`configs/segment.py`) with a
network: a method that ends in `student`, or `points`, `nuclei` or `full`.
SLIDES is a file, a folder, a glob or a CSV, as in `configs/embed_tiles.py`.

Slides are read at `tiles.mpp` micrometres a pixel, by default the scale of the
pictures that the network learned from, in tiles as large as the crops of its
training (`tiles.tile_px`); they overlap by a quarter (`tiles.overlap_px`) and
are blended there. Glass is background by the tissue mask. The threshold is the
one that masks of validation chose, if `model.threshold` does not say another.

All keys with their defaults are in wsiseq_jax/segment/slide_settings.py.
Written to the workdir:

  masks/<slide_id>.tif       tiled pyramid of class numbers, 0 background, four
                             pixels of the network each; viewers show colours
  png/<slide_id>.png         the same numbers as a grey picture, made smaller if
                             it has more than `output.png_px`
  overlays/<slide_id>.jpg    the slide with the mask in colours, for the eye
  geojson/<slide_id>.geojson outlines to drag onto the slide in QuPath, and to
                             correct there
  cells/<slide_id>.parquet   centres of nuclei, with the method `nuclei`; the
                             job `spatial` reads them (--config.data.cells)
  areas.csv                  mm² of each class of each slide, share of tissue
  slides.csv errors.csv      every slide; what could not be used, and why
  done/ thumbnails/ qc/      as in `configs/embed_tiles.py`

Look at a mask on its slide in the browser: `configs/view.py` with
--config.layers.segmentation=MASKS/masks.

Stop it at any moment and start it again: finished slides are skipped. A slide
is done again if its file, the network or a setting that shapes its mask
changed. Memory does not grow with the slide; the workdir needs room for its
scores while it is made (`4 (1 + classes)` bytes for each pixel of the mask).

Exit code: 0 all slides fine; 3 finished, but errors.csv has rows; 1 no slide
could be used, or the call is wrong. Many machines: --config.data.part=3/8.

Presets: none; `smoke` (two synthetic slides; needs --config.model.workdir).
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.segment.slide_settings import SegmentSlides

PRESETS = ("default", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(SegmentSlides)
  if preset == "smoke":
    config.model.threshold = 0.5
    config.data.update({"slides": "synthetic", "batch_size": 8, "threads": 2})
    config.tiles.update({"tile_px": 128, "overlap_px": 32})
    config.tissue.thumbnail_px = 256
  return config.lock()
