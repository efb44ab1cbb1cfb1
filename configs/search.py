r"""Finds tissue that looks alike: builds an index of a cohort, and asks it.

    python main.py --config=configs/search.py --config.workdir=INDEX \
        --config.index.features=TILES/features \
        --config.index.slides=SLIDES --config.index.table=TABLE.csv \
        --config.encoder.name=vit_large_16 --config.encoder.weights=WEIGHTS

    python main.py --config=configs/search.py --config.job=search \
        --config.query.index=INDEX --config.workdir=HITS \
        --config.query.images="('picture.png',)" --config.query.mpp=0.5

The first command is the job `index`. Features are a folder of one HDF5 file a
slide (`embed_tiles`, TRIDENT, CLAM, STAMP); with `index.source=sequences` the
`embeddings` of the job `embed`. `index.mil=MIL` takes them through the first
layer of a trained MIL model, which is what HERE retrieves by;
`index.region_um=500` averages tiles into regions. TABLE.csv may have the
columns slide_id (or file), patient_id, label (or `index.label`), cohort, organ,
mpp; slides whose rows contradict each other are left out. `index.slides` are
the files, for pictures and regions. The encoder is the one that made the
features, and is checked by its fingerprint; without one the index can be asked
by its own rows only.

Run the same command again: slides that are new or changed are added, corrected
labels are written, nothing else is touched. `index.remove="('S1',)"` takes a
slide out. All of it counts at once, at the end; a run that is killed leaves the
old index in use.

The second command is the job `search`. It asks by one of

  query.images  one to five files, sides of 128 to 4096 px; query.mpp is their
                scale, 0 assumes that of the index
  query.slide, query.region   a slide's file, and x, y, width, height
  query.rows    rows of the index

and leaves out what `query.where` excludes (slide_id, patient_id, cohort, organ,
label, score; values that no slide has are refused), the query's own slide
(`query.exclude`), and hits beside a nearer one (`query.apart`). How near a hit
is, is told by its distance, by its z-score and by the share of 10,000 random
rows of its cohort that are as near.

The job `retrieval` scores the index in `query.index`: do hits in other patients
have the label (`scores.labels`: label, organ, cohort) of the row asked with?

Presets: `default`; `demo` (slides are drawn and embedded by a small random
encoder, seconds); `smoke` (the same, and the job `search` asks it).

All keys with their defaults are in wsiseq_jax/search/settings.py. What many
vectors cost is in docs/search.md. Written to the workdir of `index`:

  index.sqlite   slides, labels, settings; see wsiseq_jax/search/store.py
  parts/         vectors, places, codes
  errors.csv     slides that could not be used, and why

to that of `retrieval`: retrieval.csv, scores by class with intervals; and to
that of `search`:

  hits.csv       query, rank, row, slide, patient, cohort, label, place,
                 distance, z, background_share
  index.html     query and hits as pictures, by slide
  errors.csv     pictures that could not be read

Exit code: 0; 3 when errors.csv has rows; 1 when nothing came of it. Hardware: a
CPU; several machines by `config.cluster` (docs/cluster.md).
"""

from ml_collections import ConfigDict

from configs import common
from wsiseq_jax.search.settings import SYNTHETIC, SearchSettings

PRESETS = ("default", "demo", "smoke")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(SearchSettings)
  if preset in ("demo", "smoke"):
    config.index.update(
      {"features": SYNTHETIC, "cohort": "synthetic", "mpp": 2.0}
    )
    config.encoder.update(
      {"name": "resnet50_trunc", "random_weights": True, "tile_px": 64}
    )
  if preset == "smoke":
    config.query.rows, config.query.k = (0,), 4
  return config.lock()
