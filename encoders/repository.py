"""Where a model's files are, and which revision they are.

A model is a folder on disk or a repository on the Hugging Face Hub. A Hub revision is a commit hash. A folder has
none, so its revision is a digest of the files that decide a vector: two copies of a folder are the same model,
and an edited folder is another one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.errors import HubError, ModelNotFoundError, UnsupportedModelError

# What decides a vector; everything else in a repository (onnx, openvino, pictures, read-mes) is left out.
_CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHT_FILES = ("*.safetensors",)
_OTHER_BACKENDS = ("onnx", "openvino")
# Statuses by which the Hub does not refuse: it timed out, or was asked too often.
_LATER = (408, 429)


@dataclass(frozen=True)
class Repository:
    """A model's files on this machine.

    Attributes:
        name: How people call the model: its Hub id, or the folder's name.
        revision: The Hub's commit hash, or `sha256:` and a digest of the folder's files.
        path: The folder on this machine.
    """

    name: str
    revision: str
    path: Path

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder rather than a Hub repository."""
        return self.revision.startswith("sha256:")

    def on_this_machine(self, *, weights: bool = False, remote_code: bool = False) -> Repository:
        """The same files in a process that may run on another machine than the one that found them.

        Args:
            weights: Have the weights too, and make sure that a folder's are the same.
            remote_code: Have the repository's Python files too.

        Raises:
            ModelNotFoundError: They are not there, or differ.
            HubError: The Hub or its cache on this disk fails.
        """
        if not self.is_local:
            return open_repository(
                self.name, revision=self.revision, weights=weights, remote_code=remote_code
            )
        if not self.path.is_dir():
            raise ModelNotFoundError(
                f"the model's folder {self.path} is not on this machine ({platform.node()}); "
                "put it on a shared filesystem or into every node's image, or give a Hub id"
            )
        if weights and (revision := f"sha256:{_digest_folder(self.path)}") != self.revision:
            raise ModelNotFoundError(
                f"the model's folder {self.path} differs on this machine ({platform.node()}): {revision} "
                f"here, {self.revision} where the run started; copy the same files to every node"
            )
        return self

    def json(self, *parts: str) -> Any:
        """The content of the JSON file at folders and name, None where the repository has no such file.

        Raises:
            UnsupportedModelError: The file is no JSON.
        """
        path = self.path.joinpath(*parts)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UnsupportedModelError(
                f"{self.name}: {'/'.join(filter(None, parts))} is not valid JSON ({error}); fetch the file again"
            ) from error

    def json_object(self, *parts: str) -> dict[str, Any]:
        """The content of the JSON object at folders and name, empty where the repository has no such file."""
        content = self.json(*parts)
        if content is not None and not isinstance(content, dict):
            raise UnsupportedModelError(
                f"{self.name}: {'/'.join(filter(None, parts))} holds {type(content).__name__}, not an object"
            )
        return content or {}


def open_repository(
    model: str, *, revision: str | None = None, weights: bool = False, remote_code: bool = False
) -> Repository:
    """Find a model's files, fetching them from the Hub where they are not on this machine.

    Args:
        model: A folder, or a Hub id such as `intfloat/e5-base-v2`.
        revision: Branch, tag or commit of a Hub repository; a folder has none.
        weights: Fetch the weights too; without them the small files are enough to plan with.
        remote_code: Fetch the repository's Python files too.

    Raises:
        ModelNotFoundError: There is no such folder, repository or revision, or it may not be had.
        HubError: The Hub cannot be reached, or it or its cache on this disk fails.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _open_folder(model, folder, revision)
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFoundError(
            f"no folder {model!r}; give a folder that holds a model, or a Hub id such as org/name"
        )
    return _open_hub(model, revision, weights=weights, remote_code=remote_code)


def _open_folder(model: str, folder: Path, revision: str | None) -> Repository:
    if revision is not None:
        raise ModelNotFoundError(
            f"revision {revision!r} was given with the folder {model!r}, which has none; "
            "leave it out (a folder's revision is a digest of its files) or give a Hub id"
        )
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelNotFoundError(
            f"folder {model!r} holds no model: neither config.json nor modules.json is in it"
        )
    resolved = folder.resolve()
    return Repository(resolved.name, f"sha256:{_digest_folder(resolved)}", resolved)


def _digest_folder(folder: Path) -> str:
    """Digest of names and contents; 0.1 s for 90 MB with the processor's SHA instructions."""
    total = hashlib.sha256()
    for path in sorted(
        path for pattern in (*_CONFIG_FILES, *_WEIGHT_FILES) for path in folder.rglob(pattern)
    ):
        name = path.relative_to(folder)
        if name.parts[0] in _OTHER_BACKENDS or any(part.startswith(".") for part in name.parts):
            continue
        with path.open("rb") as file:
            total.update(f"{name.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _open_hub(model: str, revision: str | None, *, weights: bool, remote_code: bool) -> Repository:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_CONFIG_FILES, *(_WEIGHT_FILES if weights else ()), *(("*.py",) if remote_code else ())]
    ignored = [f"{backend}/*" for backend in _OTHER_BACKENDS]
    try:
        path = snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
    except GatedRepoError as error:
        raise ModelNotFoundError(f"{model} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"no model {model!r}: neither a folder here nor a repository on the Hub (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{model} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from error
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{model!r} is neither a folder here nor a Hub id such as org/name"
        ) from error
    except Exception as error:  # of the HTTP library, of the disk, of the Hub's own kinds
        # Where the cache lacks the model too, what the Hub said is the cause.
        told = error.__cause__ or error
        if isinstance(told, OfflineModeIsEnabled):
            raise ModelNotFoundError(
                f"{model!r} is no folder here, HF_HUB_OFFLINE forbids to ask the Hub, and its cache "
                f"{constants.HF_HUB_CACHE} does not hold all of it; fetch it first, or give the path of a folder"
            ) from error
        if (status := _status(told)) and 400 <= status < 500 and status not in _LATER:
            raise ModelNotFoundError(
                f"{model!r} is no folder here, and the Hub refuses it with status {status}; check the name and HF_TOKEN"
            ) from error
        what = str(told).strip().partition("\n")[0]
        raise HubError(
            f"{model!r} is no folder here, and cannot be had from the Hub now ({type(told).__name__}: {what}); "
            f"check the network and the disk of {constants.HF_HUB_CACHE}, and run the same command again, or give the "
            "path of a folder that holds the model"
        ) from error
    # The Hub's cache keeps each commit in a folder named by it.
    return Repository(model, Path(path).name, Path(path))


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
