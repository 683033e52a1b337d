"""An S3 server that answers some requests with errors, and passes the others on."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from jobs.storage import Location

# Of a request, whose content is in `BODY`: status, and the code of an error or the whole answer; None to pass it on.
Fault = Callable[[dict[str, Any]], tuple[str, str] | None]
BODY = "test.body"


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def faulty(s3: str) -> Iterator[tuple[Location, list[Fault]]]:
    """A fresh bucket behind such a server, and its faults, of which there are none yet."""
    moto = DomainDispatcherApplication(create_backend_app)
    faults: list[Fault] = []

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[BODY] = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        for fault in faults:
            if (found := fault(environ)) is not None:
                status, said = found
                start_response(status, [("Content-Type", "application/xml")])
                error = f"<Error><Code>{said}</Code><Message>told so</Message></Error>"
                return [(said if said.startswith("<") else error).encode()]
        environ["wsgi.input"] = io.BytesIO(environ[BODY])
        return moto(environ, start_response)  # type: ignore[no-any-return]

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Location(s3, endpoint_url=f"http://127.0.0.1:{server.server_port}"), faults
    server.shutdown()
    thread.join()
    server.server_close()


def times(count: int, method: str, answer: tuple[str, str]) -> Fault:
    """A fault of so many requests of one kind."""
    left = iter(range(count))

    def fault(environ: dict[str, Any]) -> tuple[str, str] | None:
        return answer if environ["REQUEST_METHOD"] == method and next(left, None) is not None else None

    return fault
