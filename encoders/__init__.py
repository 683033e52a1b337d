"""Texts to vectors: each the one that the model's authors would get.

    repository   where a model's files are, and which revision they are
    modules      what they say of the steps after the backbone: pooling, projection, normalisation
    transformer  what they say of the backbone: length, case, and what is not done
    protocol     the whole of it: the two above, prompts, truncation, and what the configuration changed
    tasks        what a vector is for, and on which side of the comparison its text stands
    adapters     which adapter a task has, and what of its files can be honoured
    native       repositories whose own code need not run
    space        where vectors may be compared, as one id
    tokenizer    texts -> ragged token ids                               (CPU; overlaps with what follows)
    batching     ragged token ids -> padded batches within a token budget
    pooling      token states -> one vector a text
    finishing    projection, slicing, normalisation, cast
    loading      weights -> backbone
    merging      the backbone with one of its adapters at a time
    encoder      the six above around one backbone on one device

The first eight read small JSON files and import neither torch nor transformers, so a driver that only plans
starts at once. This package knows nothing of Ray, Parquet or storage.
"""
