"""Does this very encoder, on this very machine, give the vectors that the model gives?

Before an encoder's first texts a few of them go three ways: together as they will, each alone as it will, and each
alone by the plain path (`encoders.plain`): no packing, no padding, transformers' own attention, float32, weights and
adapter read from the files once more. All three must agree, and be nearer to the adapter's vectors than to those of the
bare backbone. What this catches is what tests cannot know: another release of a library, a GPU that computes wrong, a
number format that overflows in this model, weights that were damaged on their way. It does not check the protocol
itself, both sides speak it; `encoders.token_preflight` looks at what they speak.

Where there is no memory for the plain path, the encoder's own weights are compared with themselves, in their own
format, and the result says so. Too little memory never stops a run here; it finds the rows that do not fit by itself.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.memory import free_memory, if_it_fits
from encoders.plain import PlainPath
from encoders.tokenized import TokenizedTexts

Vectors = npt.NDArray[np.float32]

PLAIN = "the plain path"
_NUM_TEXTS = 3
_FEWEST_TEXTS = 2  # one alone has none to see
# Short enough to take no time that counts, long enough to see each other if anything lets them.
_MOST_TOKENS = 128
# float32 differs in the order of sums; 16 bits were seen at 0.9999, 8 at 0.9955, and leave room for deep models. Sums
# of 8 bits that were cut off were seen at 0.955.
_LOWEST_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99, "int8": 0.97}


class Preflight:
    """One encoder's proof, a set of texts and an adapter at a time.

    Attributes:
        cosine: The worst so far between what is encoded and what it was compared with; 1.0 where nothing was.
        compared_with: `PLAIN`, or in words what stood in for it; "" where nothing was compared.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.cosine = 1.0
        self.compared_with = ""
        self._encoder = encoder
        self._model = encoder.protocol.repository.name
        self._plain: PlainPath | None = None
        self._fits = True

    def prove(self, texts: TokenizedTexts) -> bool:
        """Compare a few of these texts by the adapter in use.

        Returns:
            Whether there was anything to compare: not where no text fits the memory or gets a vector of numbers. The
            run makes rejects of such texts, which is no matter here.

        Raises:
            EncoderError: They differ by more than rounding, or the adapter has no effect.
        """
        few = texts.take(_choose(texts))
        together = self._encoder.encode_what_fits(few)
        sound = _sound(few, together.vectors)
        if len(sound) < len(few):
            few = few.take(sound)
            together = self._encoder.encode_what_fits(few)
        alone = [self._encoder.encode_what_fits(few.take(np.array([row]))) for row in range(len(few))]
        if not len(few) or any(len(one.lost) for one in (together, *alone)):
            return False
        ways = {"together": together.vectors, "alone": np.concatenate([one.vectors for one in alone])}
        expected = self._plainly(few, self._encoder.adapter)
        compared_with = PLAIN
        if expected is None:
            expected = if_it_fits(functools.partial(self._encoder.reference, few), self._encoder.device)
            compared_with = (
                f"its own weights in {self._encoder.number_format}, for want of memory for float32"
            )
        if expected is None:
            return False
        self.compared_with = compared_with
        for way, vectors in ways.items():
            self._check_cosine(way, float(_cosines(vectors, expected).min()))
        if self._encoder.adapter is not None and compared_with == PLAIN:
            self._check_effect(few, alone[0].vectors, expected)
        return True

    @property
    def is_open(self) -> bool:
        """Whether it holds the plain path's weights."""
        return self._plain is not None

    def close(self) -> None:
        """Let go of the plain path, when there is nothing more to prove."""
        self._plain = None

    def _plainly(self, texts: TokenizedTexts, adapter: str | None) -> Vectors | None:
        """Vectors by the plain path; None where there is no memory for it."""
        if not self._fits:
            return None
        vectors = if_it_fits(lambda: self._by_plain_path(texts, adapter), self._encoder.device)
        if vectors is None:
            self._fits, self._plain = False, None
            free_memory(self._encoder.device)  # once more, now of its weights
        return vectors

    def _by_plain_path(self, texts: TokenizedTexts, adapter: str | None) -> Vectors:
        if self._plain is None:
            self._plain = PlainPath(self._encoder.protocol, self._encoder.device)
        self._plain.use_adapter(adapter)
        return self._encoder.reference(texts, self._plain)

    def _check_cosine(self, way: str, cosine: float) -> None:
        lowest = _LOWEST_COSINE[self._encoder.number_format]
        if not cosine >= lowest:  # NaN is no agreement
            raise EncoderError(
                f"{self._model}: texts encoded {way} in {self._encoder.number_format} have a cosine of {cosine:.5f} to "
                f"{self.compared_with} (one text, no padding), and {lowest} is the least; try encoder.dtype=float32 "
                "and other releases of torch and transformers; compute.preflight=false goes on"
            )
        self.cosine = min(self.cosine, cosine)

    def _check_effect(self, texts: TokenizedTexts, ours: Vectors, expected: Vectors) -> None:
        """The first text's vectors must be the adapter's and not the backbone's own, however little they differ."""
        bare = self._plainly(texts.take(np.array([0])), None)
        if bare is None:
            return
        to_adapted, to_bare = (
            float(np.linalg.norm(ours.astype(np.float64) - other)) for other in (expected[: len(ours)], bare)
        )
        if to_adapted >= to_bare:
            raise EncoderError(
                f"{self._model}: by the adapter {self._encoder.adapter!r} the vectors of a text are {to_adapted:.2e} "
                f"from what the adapter makes of it, and {to_bare:.2e} from what the backbone makes without it, so it "
                f"has no effect in {self._encoder.number_format}; give one that was trained, or say none for its task "
                "(encoder.adapters); compute.preflight=false goes on"
            )


def _sound(texts: TokenizedTexts, vectors: Vectors) -> npt.NDArray[np.int64]:
    """Which texts have all their vectors, and those of numbers."""
    finite = np.isfinite(np.abs(vectors).max(axis=1))  # NaN is the largest of all
    stretches = texts.stretches
    if stretches is None:
        return np.flatnonzero(finite)
    each = (finite[stretches.places(np.array([row]))] for row in range(len(texts)))
    return np.flatnonzero([bool(some.all()) for some in each])


def _choose(texts: TokenizedTexts) -> npt.NDArray[np.int64]:
    """A few texts that differ, by their lengths where they can; long ones only until there are two, the shortest."""
    distinct, _ = replace(texts, stretches=None).distinct()
    lengths = texts.lengths[distinct]
    is_long, is_repeated = lengths > _MOST_TOKENS, np.ones(len(lengths), np.bool_)
    is_repeated[np.unique(lengths, return_index=True)[1]] = False
    order = distinct[np.lexsort((lengths, is_repeated, is_long))]
    num_spread = int((~is_long & ~is_repeated).sum())
    if num_spread < _NUM_TEXTS:
        return order[: max(_FEWEST_TEXTS, min(_NUM_TEXTS, int((~is_long).sum())))]
    places = np.linspace(0, num_spread - 1, _NUM_TEXTS).round().astype(np.int64)
    return order[places]


def _cosines(ours: Vectors, expected: Vectors) -> npt.NDArray[np.float64]:
    one, two = ours.astype(np.float64), expected.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (one * two).sum(1) / (
        np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    )
    return cosines
