"""Synthetic lymph nodes with metastases that are known."""
