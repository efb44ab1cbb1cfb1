"""What embeddings and checkpoints are good for: clusters, neighbours, pictures.

Everything here is NumPy, scikit-learn, OpenCV, and Matplotlib; nothing imports
JAX, so a report can be rebuilt on a machine without an accelerator.
"""
