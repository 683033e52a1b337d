"""Texts to vectors: each the one that the model's authors would get.

    repository   where a model's files are, and which revision they are
    modules      what they say of the steps after the backbone: pooling, projection, normalisation
    transformer  what they say of the backbone: length, case, and what is not done
    families     what they leave unsaid, family by family: rows of data (family is their type, jina has more of them)
    agreement    the row of a repository, and that the two do not contradict each other
    prompts      what goes around a text; dimensions: which slices of a vector are vectors too
    options      what a configuration may change
    protocol     the whole of it
    reference    the table of families as README shows it
    tasks        what a vector is for, and on which side of the comparison its text stands
    adapters     which adapter a task has, and what of its files can be honoured
    native       repositories whose own code need not run; remote_code: which code may
    space        where vectors may be compared, as one id
    tokenizer    texts -> ragged token ids (tokenized); ends: the special tokens    (CPU; overlaps with what follows)
    chunking     long texts -> pieces that fit
    late_chunking, stretches    ... or pieces that are pooled from the whole text's token states
    batching     ragged token ids -> padded batches within a token budget
    pooling      token states -> one vector a text
    finishing    projection, slicing, normalisation, cast
    quantization a byte or a bit a dimension, and how those are compared
    loading      weights -> backbone
    merging      the backbone with one of its adapters at a time
    linear       its linear layers as a CPU likes them best, or in 8 bits (int8)
    devices      device, number format and batch size where nothing is said (memory: when a batch does not fit)
    copies       arrays to the device and back
    encoder      the six above around one backbone on one device
    preflight    whether it gives what the plain path gives (plain: weights from the files, in float32);
                 token_preflight: whether token ids are those of the whole text

Rerankers score (query, document) pairs, in the same steps:

    rerank_families  what yes/no language models are asked, to the byte
    rerank_protocol  what the files of a reranker say, and its family
    pairs            pairs -> ragged token ids
    heads            weights -> one number a pair
    reranker         these around one model on one device

Those above the tokenizer, and the first two for rerankers, read small JSON files and import neither torch nor
transformers, so a driver that only plans starts at once. This package knows nothing of Ray, Parquet or storage.
"""
