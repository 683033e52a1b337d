"""A byte or a bit a dimension: the same as sentence-transformers', and never more than half a step off."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter
from sentence_transformers.util.quantization import quantize_embeddings

from encoders.errors import EncoderError
from encoders.quantization import Ranges, check_dim, merge, quantize, restore, sign_cosines
from encoders.space import Space
from tests.imports import printed_without

values = st.floats(-4, 4, width=32)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)
matrices = hnp.arrays(np.float32, shapes, elements=values).filter(lambda it: np.ptp(it, axis=0).max() > 1e-6)


def random_vectors(num_texts: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors whose dimensions differ in mean and width."""
    generator = np.random.default_rng(seed)
    wide = generator.normal(size=(num_texts, dim)) * np.linspace(0.1, 3, dim) + np.linspace(-1, 1, dim)
    vectors: np.ndarray = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def as_matrix(ranges: Ranges) -> np.ndarray:
    return np.array([ranges.low, ranges.high], np.float32)


@given(matrices, st.floats(0.5, 4, width=32))
def test_int8_is_that_of_sentence_transformers_for_the_same_ranges(sample: np.ndarray, scale: float) -> None:
    ranges = Ranges.calibrated(sample)
    vectors = sample[::-1] * np.float32(scale)  # some of them outside
    reference = quantize_embeddings(vectors, "int8", ranges=as_matrix(ranges))
    np.testing.assert_array_equal(ranges.quantize(vectors), reference)


def test_calibrated_ranges_are_those_of_sentence_transformers() -> None:
    sample, vectors = random_vectors(500), random_vectors(50, seed=1)
    ranges = Ranges.calibrated(sample)
    np.testing.assert_array_equal(as_matrix(ranges), [sample.min(axis=0), sample.max(axis=0)])
    reference = quantize_embeddings(vectors, "int8", calibration_embeddings=sample)
    np.testing.assert_array_equal(quantize(vectors, "int8", ranges), reference)
    assert {-128, 127} <= set(ranges.quantize(sample).ravel().tolist())


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([8, 16, 64])), elements=values))
def test_binary_is_that_of_sentence_transformers(vectors: np.ndarray) -> None:
    stored = quantize(vectors, "binary", None)
    np.testing.assert_array_equal(stored, quantize_embeddings(vectors, "ubinary"))
    assert (stored.dtype, stored.shape) == (np.uint8, (len(vectors), vectors.shape[1] // 8))


def test_the_first_dimension_is_the_highest_bit_and_zero_is_not_positive() -> None:
    vectors = np.array([[0.1, -1, 0, -0.0, 2, -3, -3, 1e-30]], np.float32)
    assert quantize(vectors, "binary", None).tolist() == [[0b10001001]]


@given(matrices)
def test_inside_the_ranges_a_value_comes_back_within_half_a_step(sample: np.ndarray) -> None:
    ranges = Ranges.calibrated(sample)
    low, high = as_matrix(ranges).astype(np.float64)
    step = (high - low) / 255
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    error = np.abs(ranges.restore(ranges.quantize(sample)).astype(np.float64) - sample)
    assert (error <= 0.5001 * step + rounding).all()


@given(matrices, st.floats(1, 2.0**60, width=32))
def test_what_lies_outside_is_clipped_to_the_end_and_never_wrapped(
    sample: np.ndarray, distance: float
) -> None:
    ranges = Ranges.calibrated(sample)
    low, high = as_matrix(ranges)
    outside = np.stack([low - np.float32(distance), high + np.float32(distance)])
    assert (ranges.quantize(outside) == [[-128], [127]]).all()


@given(matrices, st.randoms(use_true_random=False))
def test_neither_order_nor_batches_change_a_vector(sample: np.ndarray, random: Any) -> None:
    ranges = Ranges.calibrated(sample)
    together = ranges.quantize(sample)
    order = list(range(len(sample)))
    random.shuffle(order)
    for row in order:
        np.testing.assert_array_equal(ranges.quantize(sample[row : row + 1])[0], together[row])


@given(matrices, st.data())
def test_ranges_do_not_depend_on_how_the_sample_was_split(sample: np.ndarray, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, len(sample) - 1))
    pieces = data.draw(st.permutations([sample[:place], sample[place:]]))
    bounds = [(piece.min(axis=0), piece.max(axis=0)) for piece in pieces]
    assert merge(bounds) == Ranges.calibrated(sample)


@given(matrices)
def test_every_range_holds_its_sample_and_has_a_width(sample: np.ndarray) -> None:
    low, high = as_matrix(Ranges.calibrated(sample))
    eps = np.finfo(np.float32).eps
    assert (low <= sample.min(axis=0) + eps * np.abs(low)).all()
    assert (high >= sample.max(axis=0) - eps * np.abs(high)).all()
    assert ((high - low) / np.float32(255) > 0).all()


def test_noise_of_a_constant_dimension_is_not_blown_up() -> None:
    sample = random_vectors(100)
    sample[:, 3] = 0.25 + 1e-7 * random_vectors(100, seed=2)[:, 3]
    ranges = Ranges.calibrated(sample)
    widths = np.subtract(ranges.high, ranges.low)
    assert widths[3] == pytest.approx(np.mean(np.ptp(sample.astype(np.float64), axis=0)) / 255, rel=1e-4)
    assert set(ranges.quantize(sample)[:, 3].tolist()) <= {-1, 0}
    np.testing.assert_allclose(ranges.restore(ranges.quantize(sample))[:, 3], 0.25, atol=widths[3] / 255)


@given(matrices)
def test_ranges_survive_json_to_the_bit(sample: np.ndarray) -> None:
    ranges = Ranges.calibrated(sample)
    adapter = TypeAdapter(Ranges)
    back = adapter.validate_json(adapter.dump_json(ranges))
    assert back == ranges
    assert back.digest == ranges.digest
    np.testing.assert_array_equal(as_matrix(back), as_matrix(ranges))
    assert Ranges(**asdict(ranges)) == ranges


@given(matrices, matrices)
def test_digests_are_equal_only_of_equal_ranges(one: np.ndarray, other: np.ndarray) -> None:
    left, right = Ranges.calibrated(one), Ranges.calibrated(other)
    assert (left.digest == right.digest) == (left == right)
    assert Ranges((-0.0,), (1.0,)).digest == Ranges((0.0,), (1.0,)).digest


def test_other_ranges_are_another_space() -> None:
    base = Space("5" * 32, "m@1/retrieval/24/int8")
    one, other = (Ranges.calibrated(random_vectors(100, seed=seed)) for seed in (1, 2))
    assert len({base.id, base.quantized(one.digest).id, base.quantized(other.digest).id}) == 3
    assert base.quantized(one.digest) == base.quantized(replace(one).digest)
    assert base.quantized(one.digest).name == f"m@1/retrieval/24/int8-{one.digest[:8]}"


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((0.0,), (0.0,)),
        ((1.0,), (0.5,)),
        ((0.0,), (float("inf"),)),
        ((float("nan"),), (1.0,)),
        ((0.1,), (1.0,)),  # which float32 does not hold
        ((-3.0e38,), (3.0e38,)),
        ((0.0, 0.0), (1.0,)),
        ((), ()),
    ],
)
def test_ranges_that_cannot_be_used_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(EncoderError, match="ranges"):
        Ranges(low, high)


@pytest.mark.parametrize(
    ("fill", "cause"), [(0.5, "all equal"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_a_sample_that_gives_no_ranges_is_refused(fill: float, cause: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(EncoderError, match=cause):
        Ranges.calibrated(np.full((3, 8), fill, np.float32))


def test_binary_wants_whole_bytes() -> None:
    with pytest.raises(EncoderError, match=r"packs 8 .* of m have 30 .* keep 24"):
        check_dim("m", 30, "binary")
    check_dim("m", 32, "binary")
    check_dim("m", 30, "int8")


def test_restored_vectors_are_nearly_as_near_as_they_were() -> None:
    vectors = random_vectors(200, dim=64)
    ranges = Ranges.calibrated(vectors)
    restored = restore(quantize(vectors, "int8", ranges), ranges)
    np.testing.assert_allclose(restored @ restored.T, vectors @ vectors.T, atol=0.01)
    np.testing.assert_array_equal(restore(vectors.astype(np.float16), None), vectors.astype(np.float16))


def test_signs_are_compared_by_the_bits_in_which_they_differ() -> None:
    vectors = random_vectors(20, dim=64)
    stored = quantize(vectors, "binary", None)
    signs = np.where(vectors > 0, 1.0, -1.0)
    np.testing.assert_allclose(sign_cosines(stored[:5], stored), signs[:5] @ signs.T / 64, atol=1e-6)
    opposite = sign_cosines(stored[:1], ~stored[:1])
    assert opposite.tolist() == [[-1.0]]


def test_quantising_needs_no_torch() -> None:
    printed_without({"torch", "transformers"}, "import encoders.quantization")
