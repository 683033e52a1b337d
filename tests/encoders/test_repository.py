"""Folders and Hub ids: found, named by their content, or refused at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from threading import Thread

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import HubError, ModelNotFoundError, UnsupportedModelError
from encoders.repository import open_repository
from tests.encoders.repositories import write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "model" / "config.json", {"model_type": "bert"})
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def test_a_folder_is_named_by_its_name_and_its_revision_is_its_content(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = open_repository(str(folder))
    assert (repository.name, repository.path, repository.is_local) == ("model", folder, True)
    monkeypatch.chdir(folder.parent)
    assert open_repository("model") == open_repository("./model/") == repository
    monkeypatch.chdir(folder)
    assert open_repository(".") == repository
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert open_repository(str(link)) == repository


@given(
    file=st.sampled_from(["vocab.txt", "1_Pooling/config.json", "a.model", "b.jinja", "model-2.safetensors"])
)
def test_every_file_that_decides_a_vector_is_in_the_revision(
    tmp_path_factory: pytest.TempPathFactory, file: str
) -> None:
    folder = tmp_path_factory.mktemp("model")
    write_json(folder / "config.json", {})
    revisions = [open_repository(str(folder)).revision]
    (folder / file).parent.mkdir(exist_ok=True)
    for content in ("", "1", "2"):
        (folder / file).write_text(content)
        revisions.append(open_repository(str(folder)).revision)
    (folder / file).rename((folder / file).with_stem("renamed"))
    revisions.append(open_repository(str(folder)).revision)
    assert len(set(revisions)) == len(revisions)


@pytest.mark.parametrize(
    "file",
    ["README.md", "onnx/model.safetensors", "openvino/config.json", ".cache/a.json", "pytorch_model.bin"],
)
def test_files_that_decide_no_vector_are_not_in_the_revision(file: str, folder: Path) -> None:
    before = open_repository(str(folder)).revision
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("anything")
    assert open_repository(str(folder)).revision == before


def test_a_folder_has_no_revision_to_choose(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="revision 'main' was given with the folder"):
        open_repository(str(folder), revision="main")


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "a/b/c"])
def test_a_path_that_is_no_folder_is_an_error(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        open_repository(model)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither config\.json nor modules\.json"):
        open_repository(str(tmp_path))


@pytest.mark.parametrize("model", ["no spaces allowed", "-org/name", "org/na..me"])
def test_a_name_that_the_hub_cannot_have_is_an_error(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder here nor a Hub id"):
        open_repository(model)


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "ModelNotFoundError", "HF_HUB_OFFLINE forbids to ask the Hub"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "HubError", "cannot be had from the Hub now (ConnectError: "),
    ],
)
@pytest.mark.parametrize("model", ["org/no-such-model", "no-such-model"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(
    model: str, settings: dict[str, str], kind: str, told: str, tmp_path: Path
) -> None:
    script = (
        "import sys, time\n"
        "import huggingface_hub\n"
        "from encoders.errors import TaskvecError\n"
        "from encoders.repository import open_repository\n"
        "started = time.monotonic()\n"
        "try:\n"
        "    open_repository(sys.argv[1])\n"
        "except TaskvecError as error:\n"
        "    print(time.monotonic() - started, type(error).__name__, error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", script, model],
        env=environment | settings | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, raised, message = done.stdout.split(" ", 2)
    assert float(seconds) < 5
    assert raised == kind
    assert f"'{model}' is no folder here" in message
    assert told in message
    assert str(tmp_path) in message


class Hub(BaseHTTPRequestHandler):
    """A Hub that answers everything with one status, and with 200 that it has a repository of one file."""

    status = 200

    def do_GET(self) -> None:
        file = {"type": "file", "path": "config.json", "oid": "0" * 40, "size": 2}
        answers = {"/api/models/org/name/revision/main": {"id": "org/name", "sha": "1" * 40}}
        answer = json.dumps(answers.get(self.path, [file])).encode()
        self.send_response(self.status)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", '"0"')
        if self.status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not on the tests' stderr."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a process whose Hub is a server here."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "hub"
        server.shutdown()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (500, HubError, "HfHubHTTPError.*500"),
        (503, HubError, "HfHubHTTPError.*503"),
        (429, HubError, "HfHubHTTPError.*429"),
        (403, ModelNotFoundError, "refuses it with status 403"),
        (404, ModelNotFoundError, "no model 'org/name'.*HF_TOKEN"),
    ],
)
def test_a_hub_that_fails_is_not_one_that_refuses(
    status: int, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "status", status)
    with pytest.raises(kind, match=told):
        open_repository("org/name")


def test_a_cache_that_cannot_be_written_says_nothing_of_the_model(hub: Path) -> None:
    hub.write_text("no folder")
    with pytest.raises(HubError, match=rf"NotADirectoryError.*the disk of {hub}"):
        open_repository("org/name")


def test_a_folder_is_found_again_if_it_is_the_same(folder: Path) -> None:
    repository = open_repository(str(folder))
    assert repository.on_this_machine(weights=True) == repository
    started = time.monotonic()
    assert repository.on_this_machine() == repository
    assert time.monotonic() - started < 1
    elsewhere = replace(repository, path=folder.parent / "elsewhere")
    with pytest.raises(ModelNotFoundError, match="is not on this machine"):
        elsewhere.on_this_machine()
    copytree(folder, elsewhere.path)
    assert elsewhere.on_this_machine(weights=True) == elsewhere
    (elsewhere.path / "model.safetensors").write_bytes(b"other weights")
    assert elsewhere.on_this_machine() == elsewhere
    with pytest.raises(
        ModelNotFoundError, match=r"differs on this machine.*copy the same files to every node"
    ):
        elsewhere.on_this_machine(weights=True)


def test_a_file_is_its_content_or_nothing_or_an_error(folder: Path) -> None:
    repository = open_repository(str(folder))
    assert repository.json("config.json") == repository.json("", "config.json") == {"model_type": "bert"}
    assert repository.json("absent.json") is None
    assert repository.json_object("1_Pooling", "config.json") == {}
    write_json(folder / "1_Pooling" / "config.json", [1])
    with pytest.raises(
        UnsupportedModelError, match=r"model: 1_Pooling/config\.json holds list, not an object"
    ):
        repository.json_object("1_Pooling", "config.json")
    for broken in (b'{"a": ', b"\xff\xfe{}", b""):
        (folder / "config.json").write_bytes(broken)
        with pytest.raises(UnsupportedModelError, match=r"model: config\.json is not valid JSON"):
            repository.json("config.json")
