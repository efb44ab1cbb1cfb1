"""Offline preparation: slides in, shards of image sequences out; CPU only.

Nothing here imports JAX or `wsiseq_jax`. `python -m data_prep` runs it; the
manual is the docstring of `configs/prep_wsi.py`.
"""
