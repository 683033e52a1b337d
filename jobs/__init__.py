"""Corpora to datasets of embeddings, on one core or a thousand GPUs."""

__version__ = "0.1.0"
