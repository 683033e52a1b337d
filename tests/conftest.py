"""No test reaches for the Hub; those that mean S3 have a real server on 127.0.0.1; all compute in float32."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from uuid import uuid4

# Before any test imports a Hugging Face package, which reads them once; commands that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from botocore.loaders import JSONFileLoader
from hypothesis import settings
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from encoders import devices

# botocore reads half a megabyte of JSON anew for each client; that was most of the time of a short test on S3.
_parse = functools.cache(JSONFileLoader().load_file)
JSONFileLoader.load_file = lambda _, path: _parse(path)

# What is drawn fails by what it does, not by the 200 ms that a first call may take on a busy machine.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of one server for the whole session."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket; the environment names its server and its credentials."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid4().hex}"
    S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(autouse=True, scope="session")
def _float32() -> Iterator[None]:
    """Vectors are compared to five digits, so a CPU that has bfloat16 does not take it unless a test says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_has_bfloat16", lambda: False)
        yield
