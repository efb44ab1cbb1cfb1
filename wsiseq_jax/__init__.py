"""Sharded JAX/Flax learning from sequences of histopathology images.

Read in this order: `configs/videomae.py`, `main.py`, `train.py`,
`tasks/videomae/`, `models/videomae.py`, `data/loader.py`, `parallel.py`,
`checkpoint.py`; for labels of slides, `configs/mil.py`, `mil/job.py`,
`models/mil.py`. Shards come from the sibling package `data_prep`, which knows
slides; of this package only `embed_tiles.py` and the pages of `mil/` open any.
"""

__version__ = "0.1.0"
