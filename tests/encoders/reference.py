"""Vectors of the same repository from sentence-transformers and from our code, and how close the two are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from encoders.encoder import Encoder
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenizer import Tokenizer

Vectors = npt.NDArray[np.float32]


def theirs(folder: Path, texts: Sequence[str], *prompts: str, **settings: Any) -> Vectors:
    """What sentence-transformers gives, one text at a time, so that nothing of its batching shows."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, **settings)
    return np.stack(
        [
            model.encode(text, prompt=prompt, show_progress_bar=False)
            for prompt in prompts or ("",)
            for text in texts
        ]
    )


def ours(
    folder: Path,
    texts: Sequence[str],
    *prompts: str,
    options: EncoderOptions | None = None,
    **settings: Any,
) -> Vectors:
    """What our code gives, in one call for each prompt."""
    protocol = resolve_protocol(str(folder), options=options)
    encoder, tokenizer = Encoder.load(protocol, device="cpu", **settings), Tokenizer(protocol)
    return np.concatenate(
        [encoder.encode(tokenizer.prepare(texts, prompt)).vectors for prompt in prompts or ("",)]
    )


def unit(vectors: Vectors) -> Vectors:
    """The same directions, with length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(ours: Vectors, theirs: Vectors) -> Vectors:
    """Cosine of each pair of rows, computed in float64."""
    return (unit(ours.astype(np.float64)) * unit(theirs.astype(np.float64))).sum(axis=1)


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    """The same vectors, length included."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    assert cosines(ours, theirs).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1), rtol=1e-4)
