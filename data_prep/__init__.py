"""Offline preparation: images in, shards of image sequences out; CPU only.

Nothing here imports JAX or `wsiseq_jax`. `python -m data_prep` runs it; the
manuals are the docstrings of `configs/prep_wsi.py` (slides) and
`configs/prep_series.py` (folders of images and videos with a table).
"""
