"""Vectors in one byte or one bit a dimension, and how those are compared.

    binary   the sign of each dimension (1: positive), eight to a byte, the first one the highest bit; packed uint8
    int8     the place of each value between the ends of its dimension's range, in 256 steps from -128 to 127

The ranges of int8 are part of the space: a value means nothing without them, so all vectors that are to be compared,
queries included, are made with the same ones. What lies outside of a range is clipped to its end, never wrapped.
Restoring takes the middle of a step, which is at most half a step from any value inside the range.

int8 is a quarter of float32, binary a thirty-second part; what they lose depends on the model, so measure it. Binary is
not for vectors whose length matters: signs have none.

Source: sentence-transformers 6.2, `util/quantization.py`, `quantize_embeddings` with `int8` and `ubinary`, which
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoders.errors import EncoderError
from encoders.space import digest

FloatVectors = npt.NDArray[np.float32]

QUANTIZED = ("int8", "binary")

_STEPS = 255
_MIDDLE = 128.5  # of the step that -128 names, counted from the low end
# A dimension narrower than one step of the average one holds nothing but noise; it is not blown up to 256 steps.
_NARROWEST = 1 / _STEPS
# ... nor narrower than float32 can tell apart at its distance from zero, 256 times over.
_FINEST = 2.0**-14


@dataclass(frozen=True)
class Ranges:
    """The ends of each dimension's range; equal ones have equal digests and give equal bytes.

    Attributes:
        low: `[dim]`; what becomes -128, as does everything below. Numbers that float32 holds.
        high: `[dim]`; what becomes 127, as does everything above.

    Raises:
        EncoderError: The ends are not finite numbers of float32, not of one length, or a range has no width.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # as plain floats without -0.0, which equals 0.0 and prints otherwise
            object.__setattr__(self, name, tuple(float(end) + 0.0 for end in getattr(self, name)))
        low, high = (np.asarray(ends, np.float64) for ends in (self.low, self.high))
        if low.shape != high.shape or not low.size:
            raise EncoderError(
                f"ranges have {low.size} low and {high.size} high ends; give one of each a dimension"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            exact = (low == low.astype(np.float32)) & (high == high.astype(np.float32))
            steps = self._steps
        bad = np.flatnonzero(~(exact & np.isfinite(steps) & (steps > 0)))
        if len(bad):
            first = bad[0]
            raise EncoderError(
                f"{len(bad)} of {low.size} ranges cannot be used, the first one (dimension {first}) goes from "
                f"{low[first]} to {high[first]}; allowed: finite numbers of float32, the low end below the high one"
            )

    @classmethod
    def around(cls, low: FloatVectors, high: FloatVectors) -> Ranges:
        """Ranges that hold everything between the smallest and largest values seen, `[dim]` each.

        A dimension that is as good as constant gets a narrow range around its value.

        Raises:
            EncoderError: The values are not finite, or no dimension has any width.
        """
        width = high.astype(np.float64) - low
        if not np.isfinite(width).all():
            raise EncoderError("the vectors that ranges were to be calibrated on are not finite")
        if not width.any():
            raise EncoderError(
                "the vectors that ranges were to be calibrated on are all equal, so there is no range; give more "
                "texts, or the ranges of another dataset: encoder.ranges_from"
            )
        middle = low + width / 2
        narrowest = np.maximum(width.mean() * _NARROWEST, np.abs(middle) * _FINEST)
        low = np.where(width < narrowest, middle - narrowest / 2, low).astype(np.float32)
        high = np.where(width < narrowest, middle + narrowest / 2, high).astype(np.float32)
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    @classmethod
    def calibrated(cls, vectors: FloatVectors) -> Ranges:
        """The ranges of a sample of vectors, `[num_texts, dim]`, at least two different ones."""
        return cls.around(vectors.min(axis=0), vectors.max(axis=0))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; part of the space."""
        return digest([self.low, self.high])

    @property
    def _low(self) -> FloatVectors:
        return np.asarray(self.low, np.float32)

    @property
    def _steps(self) -> FloatVectors:
        return (np.asarray(self.high, np.float32) - self._low) / np.float32(_STEPS)

    def quantize(self, vectors: FloatVectors) -> npt.NDArray[np.int8]:
        """int8 `[num_texts, dim]` from float32 of the same shape; each value for itself, so batches do not matter."""
        with np.errstate(over="ignore"):  # far outside of a range that is hardly one
            places = np.floor((vectors - self._low) / self._steps)
        np.clip(places, 0, _STEPS, out=places)
        stored: npt.NDArray[np.int8] = (places - 128).astype(np.int8)
        return stored

    def restore(self, stored: npt.NDArray[np.int8]) -> FloatVectors:
        """float32 from int8, `[num_texts, dim]`: the middles of the steps."""
        restored: FloatVectors = (stored.astype(np.float32) + np.float32(_MIDDLE)) * self._steps + self._low
        return restored


def merge(bounds: Iterable[tuple[FloatVectors, FloatVectors]]) -> Ranges:
    """The ranges of a sample whose pieces' smallest and largest values are known; their order does not matter."""
    lows, highs = zip(*bounds, strict=True)
    return Ranges.around(np.min(lows, axis=0), np.max(highs, axis=0))


def check_dim(model: str, dim: int, precision: str) -> None:
    """Refuse dimensions that do not fill bytes.

    Raises:
        EncoderError: They do not.
    """
    if precision == "binary" and dim % 8:
        raise EncoderError(
            f"precision binary packs 8 dimensions to a byte, and vectors of {model} have {dim} here; "
            f"keep {dim - dim % 8} of them (encoder.truncate_dim) if the model allows that, or choose int8"
        )


def quantize(vectors: FloatVectors, precision: str, ranges: Ranges | None) -> npt.NDArray[Any]:
    """The stored form of float32 vectors `[num_texts, dim]`; float precisions are left as they are.

    Returns:
        int8 `[num_texts, dim]`, or uint8 `[num_texts, dim / 8]` for binary.
    """
    match precision:
        case "int8":
            assert ranges is not None
            return ranges.quantize(vectors)
        case "binary":
            assert vectors.shape[1] % 8 == 0
            return np.packbits(vectors > 0, axis=-1)
        case _:
            return vectors


def restore(stored: npt.NDArray[Any], ranges: Ranges | None) -> FloatVectors:
    """float32 `[num_texts, dim]` from stored floats or int8; packed signs are compared by `sign_cosines` instead."""
    return stored.astype(np.float32) if ranges is None else ranges.restore(stored)


def sign_cosines(queries: npt.NDArray[np.uint8], documents: npt.NDArray[np.uint8]) -> FloatVectors:
    """How near packed signs are, float32 `[num_queries, num_documents]`: 1 - 2 * Hamming distance / dim.

    That is the cosine of the two patterns of signs, so a distance of 0 is 1 and that of all dimensions is -1.
    """
    cosines = np.empty((len(queries), len(documents)), np.float32)
    for row, query in enumerate(queries):
        distances = np.bitwise_count(query ^ documents).sum(axis=1, dtype=np.int64)
        cosines[row] = 1 - distances / (4 * documents.shape[1])
    return cosines
