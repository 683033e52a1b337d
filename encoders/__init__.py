"""Texts to vectors: each the one that the model's authors would get.

    repository   where a model's files are, and which revision they are
    modules      what they say of the steps after the backbone: pooling, projection, normalisation
    transformer  what they say of the backbone: length, case, and what is not done
    protocol     the whole of it: the two above, prompts, truncation, and what the configuration changed
    tasks        what a vector is for, and on which side of the comparison its text stands
    space        where vectors may be compared, as one id
    tokenizer    texts -> ragged token ids                               (CPU; overlaps with what follows)
    batching     ragged token ids -> padded batches within a token budget
    pooling      token states -> one vector a text
    finishing    projection, slicing, normalisation, cast
    quantization a byte or a bit a dimension, and how those are compared
    loading      weights -> backbone
    encoder      the five above around one backbone on one device

The first six read small JSON files and import neither torch nor transformers, so a driver that only plans
starts at once. This package knows nothing of Ray, Parquet or storage.
"""
