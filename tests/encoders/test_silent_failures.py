"""What returns plausible unit vectors elsewhere, and wrong ones, ends here in a clear error or in the right vectors.

One test for each known failure, by what is lost: special tokens, what stands around a text, adapters, projections and
dimensions, attention, weights, modules. Rows, adapters and loading have more of their own in test_agreement,
test_adapters, test_merging and test_loading; that comparisons see each of these is shown in test_family_mutations.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from encoders.encoder import Encoder
from encoders.errors import EncoderError, ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.family import Prompt
from encoders.loading import load_backbone
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.repository import Repository
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import write_jina_v5
from tests.encoders.family_repositories import LAYOUTS, recipe, write_family
from tests.encoders.family_rows import CHAT, TEXTS_OF, WEB, Rows, resolve, view
from tests.encoders.reference import assert_same, cosines, ours, theirs, unit
from tests.encoders.repositories import (
    MEAN,
    TEXTS,
    dense,
    edit_json,
    edit_weights,
    write_json,
    write_modules,
    write_repository,
)

MISTRAL, QWEN2 = "intfloat/e5-mistral-7b-instruct", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
QWEN3, ZEMBED = "Qwen/Qwen3-Embedding-0.6B", "zeroentropy/zembed-1"
GEMMA, INSTRUCTOR = "google/embeddinggemma-300m", "hkunlp/instructor-large"
SMALL, NANO = "jinaai/jina-embeddings-v5-text-small", "jinaai/jina-embeddings-v5-text-nano"
NANO_CLUSTERING = "jinaai/jina-embeddings-v5-text-nano-clustering"


def bare(folder: Path, **options: Any) -> Tokenizer:
    """The tokenizer of a folder of which no row says anything, unless the options do."""
    return Tokenizer(resolve_protocol(str(folder), options=EncoderOptions(**options)))


# Special tokens


def test_an_end_that_transformers_drops_is_an_error_without_a_row_and_right_with_a_protocol(
    tmp_path: Path,
) -> None:
    folder = write_family(tmp_path / "model", MISTRAL)
    with pytest.raises(
        UnsupportedModelError,
        match=r"says add_eos_token=true.*no '</s>' behind.*encoder\.protocol=\{pooling: lasttoken, last_token: '</s>'",
    ):
        bare(folder)
    given = {"pooling": "lasttoken", "last_token": "</s>", "ends": "added", "prompts": {"retrieval": ""}}
    protocol = resolve_protocol(str(folder), options=EncoderOptions(protocol=given))
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")
    expected, ids = recipe(folder, TEXTS_OF, MISTRAL)
    prepared = tokenizer.prepare(TEXTS_OF)
    assert prepared.token_ids.tolist() == [number for one in ids for number in one], "<s> is there still"
    assert_same(encoder.encode(prepared).vectors, unit(expected))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"add_bos_token": True, "add_eos_token": None}, None),
        ({"add_bos_token": False, "add_eos_token": None}, r"add_bos_token=false.*puts a '<s>' before"),
        ({"add_bos_token": True, "add_eos_token": False}, None),
        ({"add_bos_token": None, "add_eos_token": None}, None),
    ],
)
def test_what_a_repository_says_of_its_tokens_is_compared_with_what_its_tokenizer_does(
    said: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "model", MISTRAL, tokenizer_config=said)
    if message is None:
        bare(folder)
        return
    with pytest.raises(UnsupportedModelError, match=message):
        bare(folder)
    row = {"pooling": "lasttoken", "first_token": "<s>", "prompts": {"retrieval": ""}}
    assert bare(folder, protocol=row).prepare(["Paris"]).token_ids[0] == 1, "where a row speaks it decides"


@pytest.mark.parametrize(
    ("row", "changed", "message"),
    [
        (QWEN3, {"around": "$A"}, r"puts the special tokens \[\] around.*<\|endoftext\|> last"),
        (NANO_CLUSTERING, {"around": "$A"}, r"special tokens \[\] around.*<\|end_of_text\|> last"),
        (
            "jinaai/jina-embeddings-v5-text-small-retrieval",
            {"around": "$A <|endoftext|>"},
            r"special tokens \['<\|endoftext\|>'\] around.*none at all",
        ),
        (ZEMBED, {"around": "$A <|endoftext|>"}, "none at all"),
        (NANO_CLUSTERING, {"named": {}, "around": "$A"}, "has none such"),
        ("Alibaba-NLP/gte-modernbert-base", {"around": "$A [SEP]"}, r"\['\[SEP\]'\] around.*\[CLS\] first"),
    ],
)
def test_a_tokenizer_with_other_ends_than_the_row_says_is_refused(
    row: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    protocol = resolve(write_family(tmp_path / "model", row, **changed), row)
    with pytest.raises(UnsupportedModelError, match=message):
        Tokenizer(protocol)


def test_an_end_token_at_another_id_than_the_familys_is_another_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "8a7f00aac812071b69403df470f1038ec85f8925"
    root = tmp_path / "hub" / f"models--{NANO.replace('/', '--')}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = write_jina_v5(root / "snapshots" / commit, "nano")
    edit_json(folder / "config.json", hidden_size=768)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    with pytest.raises(UnsupportedModelError, match=r"the id \d+, and the row says 128001"):
        Tokenizer(resolve_protocol(NANO))


def test_the_last_token_of_a_padded_text_is_its_own_on_either_side(tmp_path: Path) -> None:
    """Whatever side the tokenizer names; test_families compares every row, packed and padded."""
    vectors = []
    for side in ("left", "right"):
        folder = write_repository(
            tmp_path / side,
            "qwen3",
            modules=[("Pooling", {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True})],
            tokenizer={"padding_side": side},
        )
        vectors.append(ours(folder, TEXTS))
        assert_same(vectors[-1], theirs(folder, TEXTS))
    assert_same(*vectors)


# What stands around a text


def test_a_repository_that_leaves_its_suffix_to_its_own_code_is_refused_without_a_row(
    rows: Rows, tmp_path: Path
) -> None:
    folder = rows[ZEMBED].folder
    with pytest.raises(
        UnsupportedModelError, match=r"modeling_zembed\.ZembedTransformer.*of the repository's own"
    ):
        resolve_protocol(str(folder))
    saved = copytree(folder, tmp_path / "model")  # as a fine-tuned copy may list it
    listed = (saved / "modules.json").read_text()
    plain = listed.replace("modeling_zembed.ZembedTransformer", "sentence_transformers.models.Transformer")
    (saved / "modules.json").write_text(plain)
    with pytest.raises(
        UnsupportedModelError, match=r"'<\|im_end\|>\\n' stands behind every text.*encoder\.protocol"
    ):
        resolve_protocol(str(saved))
    assert resolve(saved, ZEMBED).prompt(view("retrieval/query")).suffix == "<|im_end|>\n"


def test_a_repository_with_another_suffix_than_its_row_is_refused(tmp_path: Path) -> None:
    settings = {**(LAYOUTS[ZEMBED].settings or {}), "suffix": "<|im_end|>"}
    folder = write_family(tmp_path / "model", ZEMBED, settings=settings)
    message = r"say suffix for retrieval/query '<\|im_end\|>', and the row of .* says '<\|im_end\|>\\n'"
    with pytest.raises(UnsupportedModelError, match=message):
        resolve(folder, ZEMBED)


def test_own_code_that_no_row_knows_is_refused_beside_that_which_one_does(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", ZEMBED, transformer="modeling_zembed.ZembedProjecting")
    with pytest.raises(UnsupportedModelError, match=r"ZembedProjecting' \(code of the repository's own\)"):
        resolve(folder, ZEMBED)


def test_a_tokenizer_that_splits_the_control_tokens_of_the_prompts_is_refused(tmp_path: Path) -> None:
    protocol = resolve(write_family(tmp_path / "model", ZEMBED, extra=()), ZEMBED)
    with pytest.raises(
        UnsupportedModelError, match=r"does not know <\|im_start\|>, <\|im_end\|>, and the prompts"
    ):
        Tokenizer(protocol)
    written_out = {"prompts": {"retrieval": CHAT.format("query")}, "pooling": "lasttoken", "ends": "none"}
    folder = write_family(tmp_path / "other", ZEMBED, extra=(), modules=None, settings=None)
    with pytest.raises(UnsupportedModelError, match=r"does not know <\|im_start\|>"):
        bare(folder, protocol=written_out)


def test_a_repository_that_declares_another_prompt_than_its_row_is_refused(tmp_path: Path) -> None:
    """`Query: ` and `Query:` differ by one byte."""
    declared = {"prompts": {"query": WEB + " ", "document": ""}}
    folder = write_family(tmp_path / "model", QWEN3, settings=declared)
    with pytest.raises(
        UnsupportedModelError, match=r"the prompt 'Instruct.*Query: ', and the row of .*Query:'"
    ):
        resolve(folder, QWEN3)
    mine = {"retrieval": {"query": WEB, "document": ""}}
    assert (
        resolve(folder, QWEN3, instruction=None, prompts=mine).prompt(view("retrieval/query")).prefix == WEB
    )


def test_the_repositorys_default_prompt_never_replaces_that_of_a_view(rows: Rows) -> None:
    loaded = rows[SMALL]  # its default is the document's
    assert loaded.protocol.default_prompt_name == "document"
    assert loaded.protocol.prompt(view("retrieval/query")) == Prompt("Query: ")


def test_whitespace_is_the_texts_own_unless_the_authors_cut_it(rows: Rows) -> None:
    """sentence-transformers cut it off up to 5.3, and does not from 5.4 on; Instructor's own code does."""
    spaced = ["  the capital of France \n", "\tParis  "]
    cut = [text.strip() for text in spaced]
    for row in (QWEN3, INSTRUCTOR):
        loaded, of = rows[row], view("retrieval/query")
        prompt = loaded.protocol.prompt(of)
        vectors, stripped = (
            loaded.encode(loaded.tokenizer.prepare(texts, prompt), of).vectors for texts in (spaced, cut)
        )
        if row == INSTRUCTOR:
            assert_same(vectors, stripped)
            continue
        expected = unit(recipe(loaded.folder, [prompt.prefix + text for text in spaced], row)[0])
        assert_same(vectors, expected)
        assert cosines(vectors, stripped).max() < 0.99999


def test_a_repository_that_pools_the_prompt_where_its_row_leaves_it_out_is_refused(tmp_path: Path) -> None:
    modules = [("Pooling", MEAN | {"include_prompt": True}), *(LAYOUTS[INSTRUCTOR].modules or ())[1:]]
    folder = write_family(tmp_path / "model", INSTRUCTOR, modules=modules)
    with pytest.raises(UnsupportedModelError, match=r"say include_prompt True.*says False"):
        resolve(folder, INSTRUCTOR)


@pytest.mark.parametrize("row", [row for row in LAYOUTS if LAYOUTS[row].modules])
def test_a_repository_that_pools_otherwise_than_its_row_is_refused(row: str, tmp_path: Path) -> None:
    mode = "mean" if LAYOUTS[row].pooling != "mean" else "cls"
    modules = [("Pooling", {"pooling_mode": mode}), *(LAYOUTS[row].modules or ())[1:]]
    folder = write_family(tmp_path / "model", row, modules=modules)
    with pytest.raises(UnsupportedModelError, match=rf"say pooling '{mode}', and the row of .* says"):
        resolve(folder, row)


# Adapters


def test_a_view_without_its_adapter_is_refused_and_never_the_bare_backbone(tmp_path: Path) -> None:
    """A single-task model's folder under the row of the one with adapters."""
    folder = write_family(tmp_path / "model", f"{SMALL}-retrieval")
    of = view("retrieval/query")
    with pytest.raises(
        TaskError, match=r"wants its adapter 'retrieval' for retrieval/query.*encoder\.adapters"
    ):
        resolve(folder, SMALL).adapter(of)
    on_purpose = resolve(folder, SMALL, adapters={"retrieval": None})
    assert on_purpose.adapter(of) is None


@pytest.mark.parametrize("lost", ["adapters/clustering", "adapters/clustering/adapter_model.safetensors"])
def test_an_adapter_that_is_not_there_or_cannot_be_read_is_an_error(
    lost: str, rows: Rows, tmp_path: Path
) -> None:
    folder = copytree(rows[SMALL].folder, tmp_path / "model")
    (rmtree if (folder / lost).is_dir() else Path.unlink)(folder / lost)
    with pytest.raises(ModelNotFoundError, match=r"adapters/clustering (is not there|has no adapter_model)"):
        resolve(folder, SMALL)


# Projections and dimensions


@pytest.mark.parametrize("row", [GEMMA, INSTRUCTOR])
@pytest.mark.parametrize("lost", ["modules.json", "a projection", "its place in modules.json"])
def test_a_projection_that_is_left_out_is_an_error(row: str, lost: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", row)
    match lost:
        case "modules.json":
            (folder / "modules.json").unlink()
        case "a projection":
            rmtree(folder / "2_Dense")
        case _:
            listed = json.loads((folder / "modules.json").read_text())
            write_json(folder / "modules.json", [one for one in listed if one["path"] != "2_Dense"])
    with pytest.raises(
        UnsupportedModelError, match=r"\(Dense\) behind the pooling|2_Dense/config\.json: in_features"
    ):
        resolve(folder, row)


@pytest.mark.parametrize(
    "changed", [{"bias": True}, {"activation_function": "torch.nn.modules.activation.Tanh"}]
)
def test_a_projection_that_does_more_than_the_row_says_is_an_error(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    kind, config = dense(32, 24, "linear.Identity", bias=False)
    modules = [("Pooling", MEAN), (kind, config | changed), ("Normalize", {})]
    folder = write_family(tmp_path / "model", INSTRUCTOR, modules=modules)
    with pytest.raises(
        UnsupportedModelError, match=r"lists 32 to 24 \(bias=\w+, \w+\) \(Dense\).*without bias"
    ):
        resolve(folder, INSTRUCTOR)


def test_a_projection_of_another_width_than_the_models_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / f"models--{GEMMA.replace('/', '--')}"
    folder = root / "snapshots" / ("0123456789" * 4)
    widths = [
        dense(768, 1024, "linear.Identity", bias=False),
        dense(1024, 768, "linear.Identity", bias=False),
    ]
    write_modules(folder, [("Pooling", MEAN | {"word_embedding_dimension": 768}), *widths, ("Normalize", {})])
    write_json(folder / "config.json", {"model_type": "gemma3_text", "hidden_size": 768})
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(folder.name)
    with pytest.raises(UnsupportedModelError, match=r"lists 768 to 1024 .*, 1024 to 768 .*, to 3072, 768"):
        resolve_protocol(GEMMA)


@pytest.mark.parametrize("force", [False, True])
def test_a_slice_of_a_vector_that_has_none_is_refused(force: bool, rows: Rows) -> None:
    with pytest.raises(UnsupportedModelError, match="learned projections of the vector, not slices"):
        resolve(rows[ZEMBED].folder, ZEMBED, truncate_dim=16, force_truncate_dim=force)


@pytest.mark.parametrize(
    ("row", "message"), [(ZEMBED, "learned projections"), (MISTRAL, "not trained for vectors of 16")]
)
def test_a_slice_that_the_repository_itself_asks_for_is_held_against_its_row(
    row: str, message: str, tmp_path: Path
) -> None:
    settings = {**(LAYOUTS[row].settings or {}), "truncate_dim": 16}
    folder = write_family(tmp_path / "model", row, settings=settings)
    with pytest.raises(UnsupportedModelError, match=rf"\(config_sentence_transformers\.json\).*{message}"):
        resolve(folder, row)
    assert resolve(folder, row, truncate_dim=32).dim == 32


# Attention and number formats


def test_a_model_that_only_its_own_code_computes_is_refused_without_it(rows: Rows, tmp_path: Path) -> None:
    """Transformers has a class of that name, whose attention is causal."""
    with pytest.raises(
        UnsupportedModelError, match=r"nothing but code of its own gives the vectors.*may not run"
    ):
        resolve(rows[QWEN2].folder, QWEN2, trust_remote_code=())
    without = write_family(tmp_path / "model", QWEN2, changes={}, code=None)
    with pytest.raises(UnsupportedModelError, match=r"config\.json names none"):
        resolve(without, QWEN2)


def test_own_code_whose_attention_is_not_the_rows_is_an_error(tmp_path: Path) -> None:
    causal = LAYOUTS[QWEN2].code or ""
    causal = causal.replace(".expand(-1, 1, length, -1)", ".expand(-1, 1, length, -1).tril()")
    folder = write_family(tmp_path / "model", QWEN2, code=causal)
    with pytest.raises(
        UnsupportedModelError, match=r"attention of Qwen2Model is causal, and the row of .* says both"
    ):
        load_backbone(resolve(folder, QWEN2), torch.float32)


@pytest.mark.parametrize("flag", [False, None])
def test_a_gemma_that_is_not_told_to_look_both_ways_is_an_error(flag: bool | None, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", GEMMA)
    edit_json(folder / "config.json", use_bidirectional_attention=flag)
    with pytest.raises(
        UnsupportedModelError, match=r"is causal, and the row of .* says both.*use_bidirectional"
    ):
        load_backbone(resolve(folder, GEMMA), torch.float32)


def test_a_backbone_that_looks_both_ways_under_a_causal_row_is_an_error(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", QWEN3)
    edit_json(folder / "config.json", is_causal=False)
    with pytest.raises(UnsupportedModelError, match=r"Qwen3Model is both, and the row of .* says causal"):
        load_backbone(resolve(folder, QWEN3), torch.float32)


@pytest.mark.parametrize(("size", "row"), [("nano", SMALL), ("small", NANO)])
def test_one_size_of_jinas_under_the_row_of_the_other_is_refused(size: str, row: str, tmp_path: Path) -> None:
    folder = write_jina_v5(tmp_path / "model", size)
    with pytest.raises(
        UnsupportedModelError, match=r"config\.json is that of a '(eurobert|qwen3)'.*row of jinaai"
    ):
        resolve(folder, row)


def test_a_number_format_in_which_a_model_overflows_is_refused(rows: Rows) -> None:
    protocol = rows[GEMMA].protocol
    protocol.check_dtype("bfloat16")
    with pytest.raises(
        EncoderError, match=r"overflows in float16; take encoder\.dtype auto, bfloat16 or float32"
    ):
        protocol.check_dtype("float16")


# Weights and modules


def test_a_missing_tensor_is_an_error_and_never_a_random_one(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    edit_weights(folder, **{"encoder.layer.1.output.dense.weight": None})
    with pytest.raises(
        UnsupportedModelError, match=r"do not fill BertModel.*encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_backbone(resolve_protocol(str(folder)), torch.float32)


@pytest.mark.parametrize("pickled", ["", "2_Dense"])
def test_weights_in_a_pickle_are_never_loaded_and_missed_before_anything_starts(
    pickled: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "model", INSTRUCTOR)
    resolve(folder, INSTRUCTOR).check_weights()
    torch.save(load_file(folder / pickled / "model.safetensors"), folder / pickled / "pytorch_model.bin")
    (folder / pickled / "model.safetensors").unlink()
    protocol = resolve(folder, INSTRUCTOR)
    message = (
        r"no safetensors weights.*never loaded.*refs/pr/N.*save_pretrained.*\(there is pytorch_model\.bin\)"
    )
    with pytest.raises(ModelNotFoundError, match=message):
        protocol.check_weights()
    with pytest.raises(ModelNotFoundError, match="never loaded"):
        Encoder.load(protocol, device="cpu")


class _Hub(BaseHTTPRequestHandler):
    """A Hub that lists the files of one repository."""

    files: tuple[str, ...] = ()

    def do_GET(self) -> None:
        listed = {"id": "org/name", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in self.files]}
        body = json.dumps(listed).encode()
        self.send_response(200 if self.path.startswith("/api/models/org/name") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield _Hub
    server.shutdown()
    server.server_close()


def test_a_repository_on_the_hub_without_safetensors_is_refused_by_its_list_of_files(
    hub: type[_Hub], tmp_path: Path
) -> None:
    repository = Repository("org/name", "0" * 40, tmp_path)
    hub.files = ("config.json", "model.safetensors", "2_Dense/pytorch_model.bin")
    repository.check_weights([""])
    with pytest.raises(ModelNotFoundError, match=r"org/name/2_Dense: no safetensors.*pytorch_model\.bin"):
        repository.check_weights(["", "2_Dense"])
    hub.files = (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "projections.safetensors",
    )
    repository.check_weights([""])
    hub.files = ("projections.safetensors", "onnx/model.safetensors")
    with pytest.raises(ModelNotFoundError, match="org/name: no safetensors"):
        repository.check_weights([""])


def test_a_list_of_files_that_cannot_be_had_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    Repository("org/name", "0" * 40, tmp_path).check_weights([""])


@pytest.mark.parametrize("path", ["custom_st.Transformer", "pylate.models.Dense.Dense", "modeling.Pooling"])
def test_a_module_of_the_repositorys_own_code_is_refused(path: str, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    entries = json.loads((folder / "modules.json").read_text())
    entries[0 if path.endswith("Transformer") else 1]["type"] = path
    write_json(folder / "modules.json", entries)
    with pytest.raises(UnsupportedModelError, match="code of the repository's own"):
        resolve_protocol(str(folder))


def test_a_model_whose_files_cannot_be_read_is_named_with_the_repository_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--jinaai--jina-embeddings-v3"
    write_json(root / "snapshots" / ("0" * 40) / "config.json", {"model_type": "xlm-roberta"})
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for allowed in ((), ("jinaai/jina-embeddings-v3@" + "0" * 40,)):
        with pytest.raises(
            UnsupportedModelError, match=r"same model without it is jinaai/jina-embeddings-v3-hf"
        ):
            resolve_protocol("jinaai/jina-embeddings-v3", options=EncoderOptions(trust_remote_code=allowed))


def test_a_width_that_the_pooling_only_labels_changes_nothing(rows: Rows) -> None:
    """As of gtr-t5, sentence-t5 and Instructor: the pooling states the width behind the projection."""
    loaded = rows[INSTRUCTOR]
    assert (
        json.loads((loaded.folder / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"]
        == 24
    )
    plain = resolve_protocol(str(loaded.folder))
    assert (plain.dim, loaded.protocol.dim) == (24, 24)
    vectors = Encoder.load(plain, device="cpu").encode(Tokenizer(plain).prepare(TEXTS)).vectors
    assert_same(vectors, theirs(loaded.folder, TEXTS))
