"""Corpora to datasets of embeddings, on one core or a thousand GPUs."""
