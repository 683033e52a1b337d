"""The example's scores are those of the vectors that were stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.protocol import resolve_protocol
from encoders.quantization import Ranges, quantize
from encoders.tasks import view_of
from examples.minilm import minilm_folder
from examples.search import score
from jobs.config import load_encoder
from jobs.protocols import resolve

DEMO = Path(__file__).parents[2] / "examples" / "demo.yaml"


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_scores_of_quantised_vectors_are_near_the_cosines(precision: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 256)).astype(np.float32)
    questions = vectors[:5] + np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32) / 2
    ranges = Ranges.calibrated(vectors) if precision == "int8" else None
    stored = [quantize(one, precision, ranges) for one in (questions, vectors)]
    scores = score(*stored, ranges)
    lengths = np.linalg.norm(questions, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    tolerance = {"float32": 1e-6, "int8": 0.02, "binary": 0.4}[precision]
    np.testing.assert_allclose(scores, questions @ vectors.T / lengths, atol=tolerance)
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_the_demo_knows_its_model_and_its_questions_are_in_the_space_of_its_documents() -> None:
    model = str(minilm_folder())
    documents = resolve(load_encoder(str(DEMO), [("encoder.model", model)]))
    assert not documents.prompts.is_raw(view_of("retrieval", "document"))
    questions = resolve_protocol(model)  # as the example embeds them
    assert questions.prompts.is_raw(view_of("retrieval", "query"))
    assert questions.space("retrieval", "float32").id == documents.space("retrieval", "float32").id
