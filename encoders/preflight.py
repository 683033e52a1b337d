"""Does this very encoder, on this very machine, give the vectors that the model gives?

Before an encoder's first texts a few of them go three ways: together as they will, each alone as it will, and each
alone by the plain path: no packing, no padding, transformers' own attention, float32. All three must agree. What
this catches is what tests cannot know: another release of a library, a GPU that computes wrong, a number format that
overflows in this model. It does not check the protocol itself; both sides speak it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.tokenized import TokenizedTexts

_NUM_TEXTS = 3
# Short enough to take no time that counts, long enough to see each other if anything lets them.
_MOST_TOKENS = 128
# float32 differs in the order of sums; 16 bits were seen at 0.9999 and leave room for deep models.
_LOWEST_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.99, torch.float16: 0.99}


def preflight(encoder: Encoder, texts: TokenizedTexts) -> float:
    """The worst cosine between what is encoded and the plain path; 1.0 where there are no texts.

    Raises:
        EncoderError: They differ by more than rounding.
    """
    few = texts.take(_choose(texts.lengths))
    if not len(few):
        return 1.0
    expected = encoder.reference(few)
    alone = [encoder.encode(few.take(np.array([row]))).vectors for row in range(len(few))]
    ways = {"together": encoder.encode(few).vectors, "alone": np.concatenate(alone)}
    cosines = {way: float(_cosines(vectors, expected).min()) for way, vectors in ways.items()}
    lowest = _LOWEST_COSINE[encoder.dtype]
    for way, cosine in cosines.items():
        if not cosine >= lowest:  # NaN is no agreement
            raise EncoderError(
                f"{encoder.protocol.repository.name}: texts encoded {way} in {encoder.dtype} have a cosine of "
                f"{cosine:.5f} to the plain path (one text, no padding, float32), and {lowest} is the least; try "
                "encoder.dtype=float32 and other releases of torch and transformers; compute.preflight=false goes on"
            )
    return min(cosines.values())


def _choose(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A few texts of different lengths, none long unless all are."""
    _, first = np.unique(lengths, return_index=True)  # the shortest first
    short = first[lengths[first] <= _MOST_TOKENS]
    if not len(short):
        return first[:1].astype(np.int64)
    places = np.unique(np.linspace(0, len(short) - 1, _NUM_TEXTS).round().astype(np.int64))
    return short[places].astype(np.int64)


def _cosines(ours: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    one, two = ours.astype(np.float64), expected.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (one * two).sum(1) / (
        np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    )
    return cosines
