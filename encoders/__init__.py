"""Texts to vectors: each the one that the model's authors would get."""
