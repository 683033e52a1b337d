"""Texts to vectors: each the one that the model's authors would get.

    repository   where a model's files are, and which revision they are
    protocol     what those files say: prompts, truncation, pooling, projection, normalisation
    tasks        what a vector is for, and on which side of the comparison its text stands
    space        where vectors may be compared, as one id
    tokenizer    texts -> ragged token ids                               (CPU; overlaps with what follows)
    batching     ragged token ids -> padded batches within a token budget
    pooling      token states -> one vector a text
    finishing    projection, slicing, normalisation, cast
    encoder      the four above around one loaded backbone

The first four read small JSON files and import neither torch nor transformers, so a driver that only plans
starts at once. This package knows nothing of Ray, Parquet or storage.
"""
