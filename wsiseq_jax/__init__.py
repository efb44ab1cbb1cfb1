"""Sharded JAX/Flax learning from sequences of histopathology images.

Read in this order: `configs/videomae.py`, `main.py`, `train.py`,
`tasks/videomae.py`, `models/videomae.py`, `data/loader.py`, `parallel.py`,
`checkpoint.py`. Shards come from the sibling package `data_prep`, which knows
slides; this package knows only shards.
"""

__version__ = "0.1.0"
