r"""Slides through a tile encoder: one feature file a slide, for attention MIL.

    python main.py --config=configs/embed_tiles.py:resnet50 \
        --config.data.slides=/data/slides --config.workdir=FEATURES \
        --config.encoder.weights=resnet50.safetensors

`--config.data.slides` takes a file, a folder, a glob, a CSV, or several with
commas between them. A CSV has the columns `slide_id, filename, patient_id,
label, mpp`, and if wanted `split`, `mask` and `tissue_<parameter>`; see
`data_prep/wsi/find.py` for the names it also understands.

Tiles are cut at exactly `tiles.mpp` micrometres a pixel (20x is about 0.5, 40x
about 0.25) on a regular grid, kept where at least `tiles.min_tissue` of their
area is tissue, and go from the slide through the encoder with no files in
between. Their side in pixels is the encoder's.

All keys with their defaults are in wsiseq_jax/encoders: settings.py, and for
the block `encoder` encoder.py.

Written to the workdir, which belongs to one encoder:

  features/<slide_id>.h5     in the layout of CLAM and TRIDENT: `features` f32
                             [tiles, width], `coords` int64 [tiles, 2], level-0
                             px, top-left; see wsiseq_jax/data/tile_features.py
  slides.csv                 every slide: case, label, state, tiles, scale,
                             seconds, share of these waiting for the slide
  errors.csv                 every slide or place in a slide that could not be
                             used, and why
  done/<slide_id>.json       what each feature file was made from
  thumbnails/, qc/           each slide; each with its tissue and its tiles

A slide without tissue is a result: a file with no row, `no_tissue` in the
table. A damaged place costs the tiles that touch it, and is listed; a slide
that loses more than `tiles.max_bad_share` of its tiles is refused.

Stop it at any moment and start it again: finished slides are skipped. A slide
is done again if its file, the encoder's weights or a setting that shapes its
features changed; labels and cases may be corrected without.

Exit code: 0 all slides fine ("no tissue" is fine); 3 finished, but errors.csv
has rows; 1 no slide could be used, or the call is wrong.

Many machines: each takes its share with `--config.data.part=3/8` (or `slurm` in
a job array), all in one workdir; then once more without it, which finds
everything finished and writes the tables of all. Several GPUs of one machine
share each batch.

Presets:

  resnet50_trunc  the default: 1024-d, what CLAM's features are
  resnet50        2048-d
  vit             UNI's architecture; any other by --config.encoder.name, such
                  as virchow2, phikon_v2 or h_optimus_0
  run             an encoder of sequences trained here, at its own scale:
                  --config.encoder.checkpoint=RUN
  smoke           a tiny random encoder on three synthetic slides, seconds

Weights are the user's: a `.safetensors` file; a `.pth`, `.pt` or `.bin` where
PyTorch is installed; or `hf:owner/name[@revision][/file]`, which comes from
Hugging Face through its cache (log in with `hf auth login` for gated models).
Encoders look at tiles of the scale they were trained at; most pathology models
want 0.5 um/px. `--config.encoder.layer=6` takes the features after block 6,
with the final LayerNorm: earlier blocks may tell tissue apart better.
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.encoders.settings import Settings

PRESETS = ("resnet50_trunc", "resnet50", "vit", "run", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(Settings)
  config.encoder.name = "resnet50_trunc"
  if preset in ("resnet50", "run"):
    config.encoder.name = preset
  if preset == "vit":
    config.encoder.name = "vit_large_16"
  if preset == "run":
    config.tiles.mpp = 0.0
  if preset == "smoke":
    config.encoder.update({"random_weights": True, "tile_px": 64})
    config.data.update({"slides": "synthetic", "batch_size": 16, "threads": 2})
    config.tiles.mpp = 2.0
    config.tissue.thumbnail_px = 256
  return config.lock()
