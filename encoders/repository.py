"""Where a model's files are, and which revision they are.

A model is a folder on disk or a repository on the Hugging Face Hub. A Hub revision is a commit hash. A folder has
none, so its revision is a digest of the files that decide a vector: two copies of a folder are the same model,
and an edited folder is another one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from encoders.errors import HubError, ModelNotFoundError, UnsupportedModelError

# What decides a vector; everything else in a repository (onnx, openvino, pictures, read-mes) is left out.
_CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHT_FILES = ("*.safetensors",)
# One of them is in every folder that transformers and sentence-transformers take weights from.
_NAMES_OF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SECONDS_FOR_A_LIST = 10
_CODE_FILES = ("*.py",)
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
        if weights and (revision := _revision_of(self.path, code=remote_code)) != self.revision:
            raise ModelNotFoundError(
                f"the model's folder {self.path} differs on this machine ({platform.node()}): {revision} "
                f"here, {self.revision} where the run started; copy the same files to every node"
            )
        return self

    def check_weights(self, folders: Sequence[str]) -> None:
        """Refuse a repository without safetensors in one of these folders, before anything is started for them.

        Of a repository on the Hub whose weights are not here yet the list of files is asked for; where that cannot be
        had, loading will tell.

        Raises:
            ModelNotFoundError: There are none.
        """
        for folder in folders:
            names = {path.name for path in (self.path / folder).glob("*")}
            if not self.is_local and names.isdisjoint(_NAMES_OF_WEIGHTS):
                listed = self._names_on_hub(folder)
                if listed is None:
                    return
                names = listed
            if names.isdisjoint(_NAMES_OF_WEIGHTS):
                pickles = sorted(name for name in names if name.endswith(_PICKLES))
                raise ModelNotFoundError(
                    no_safetensors("/".join(filter(None, (self.name, folder))))
                    + (f" (there is {', '.join(pickles)})" if pickles else "")
                )

    def _names_on_hub(self, folder: str) -> set[str] | None:
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(self.name, revision=self.revision, timeout=_SECONDS_FOR_A_LIST)
        except (
            Exception
        ):  # offline, or of one of the HTTP libraries that the Hub's has had: all say the same here
            return None
        files = [PurePosixPath(sibling.rfilename) for sibling in info.siblings or ()]
        return {file.name for file in files if file.parent == PurePosixPath(folder)}

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


def no_safetensors(where: str) -> str:
    """What to say of a folder without weights that can be loaded."""
    return (
        f"{where}: no safetensors weights, and weights in pickle files are never loaded; give a revision that has them "
        "(often a pull request on the Hub: revision=refs/pr/N), or convert them: load the model where you trust it, "
        "save_pretrained it, and give that folder"
    )


def open_repository(
    model: str, *, revision: str | None = None, weights: bool = False, remote_code: bool = False
) -> Repository:
    """Find a model's files, fetching them from the Hub where they are not on this machine.

    Args:
        model: A folder, or a Hub id such as `intfloat/e5-base-v2`.
        revision: Branch, tag or commit of a Hub repository; a folder has none.
        weights: Fetch the weights too; without them the small files are enough to plan with.
        remote_code: Fetch the repository's Python files too; a folder's are part of its revision then.

    Raises:
        ModelNotFoundError: There is no such folder, repository or revision, or it may not be had.
        HubError: The Hub cannot be reached, or it or its cache on this disk fails.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _open_folder(model, folder, revision, code=remote_code)
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFoundError(
            f"no folder {model!r}; give a folder that holds a model, or a Hub id such as org/name"
        )
    return _open_hub(model, revision, weights=weights, remote_code=remote_code)


def _open_folder(model: str, folder: Path, revision: str | None, *, code: bool) -> Repository:
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
    return Repository(resolved.name, _revision_of(resolved, code=code), resolved)


def _revision_of(folder: Path, *, code: bool) -> str:
    """Digest of names and contents; 0.1 s for 90 MB with the processor's SHA instructions."""
    total = hashlib.sha256()
    patterns = (*_CONFIG_FILES, *_WEIGHT_FILES, *(_CODE_FILES if code else ()))
    for path in sorted(path for pattern in patterns for path in folder.rglob(pattern)):
        name = path.relative_to(folder)
        if name.parts[0] in _OTHER_BACKENDS or any(part.startswith(".") for part in name.parts):
            continue
        with path.open("rb") as file:
            total.update(f"{name.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _open_hub(model: str, revision: str | None, *, weights: bool, remote_code: bool) -> Repository:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_CONFIG_FILES, *(_WEIGHT_FILES if weights else ()), *(_CODE_FILES if remote_code else ())]
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
