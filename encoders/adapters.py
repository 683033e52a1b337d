"""A task's adapter: LoRA weights in peft's files, where they are and what of them can be honoured.

    adapter_config.json          rank, scale, which modules
    adapter_model.safetensors    two narrow matrices for each of these modules

An adapter that is left off, or half applied, still returns plausible unit vectors. So whatever a configuration asks
for beside low-rank matrices on modules that are there is refused by name, before any weights are fetched: values that
are neither known here nor peft's way to say nothing. `encoders.merging` holds the weights to what is said here.

Source: peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoders.errors import ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.native import own_adapters
from encoders.repository import Repository, open_repository
from encoders.tasks import Role, View

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"

# What decides the merged weights; `encoders.merging` hands these, and only these, to peft.
HONOURED = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
    }
)
# Book-keeping, training, and settings of methods that have a switch of their own, which is not among these.
_WITHOUT_EFFECT = frozenset(
    {
        "peft_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    }
)
# The others (pissa, olora, corda, loftq, ...) also change the backbone's weights when training begins.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
_NOTHING: tuple[Any, ...] = (None, False, "none", [], {})


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter on this machine.

    Attributes:
        repository: What holds it: the model's own repository, another one on the Hub, or just the folder.
        folder: Where in the repository; "" is its root.
        digest: `sha256:` and a digest of its two files; "" on the Hub, where the commit says it.
    """

    repository: Repository
    folder: str
    digest: str

    @property
    def path(self) -> Path:
        """The folder on this machine."""
        return self.repository.path / self.folder

    @property
    def name(self) -> str:
        """How people call it."""
        return _named(self.repository, self.folder)

    @property
    def id(self) -> str:
        """Equal for equal adapters: the digest of the files, or what a commit on the Hub pins."""
        return self.digest or f"{self.name}@{self.repository.revision}"

    def __str__(self) -> str:
        return f"{self.name}@{(self.digest or self.repository.revision).removeprefix('sha256:')[:12]}"

    def on_this_machine(self) -> AdapterFolder:
        """The same files, weights too, in a process that may run on another machine than the one that found them.

        Raises:
            ModelNotFoundError: They are not there, or differ.
        """
        if not self.digest:
            fetched = AdapterFolder(self.repository.on_this_machine(weights=True), self.folder, "")
            _require_weights(fetched.name, fetched.path)
            return fetched
        if not self.path.is_dir():
            raise ModelNotFoundError(
                f"the adapter's folder {self.path} is not on this machine ({platform.node()}); "
                "put it on a shared filesystem or into every node's image, or give a Hub repository"
            )
        _require_weights(self.name, self.path)
        if (digest := _digest(self.path)) != self.digest:
            raise ModelNotFoundError(
                f"the adapter's folder {self.path} differs on this machine ({platform.node()}): {digest} here, "
                f"{self.digest} where the run started; copy the same files to every node"
            )
        return self


@dataclass(frozen=True)
class Adapters:
    """Which adapter each task has; no task has one where there are none at all.

    Attributes:
        folders: By task, or by `task/role` where the sides of a task differ; None is the bare backbone, on purpose.
    """

    folders: Mapping[str, AdapterFolder | None] = field(default_factory=dict)

    def name(self, model: str, view: View) -> str | None:
        """The key under which a view's adapter is; None where it is the bare backbone.

        Raises:
            TaskError: Other tasks have adapters, and nothing is said of this one.
        """
        if not self.folders:
            return None
        for key in (str(view), view.task):
            if key in self.folders:
                return self._first(self.folders[key])
        raise TaskError(
            f"{model} has adapters for {', '.join(self.folders)}, and none for {view}; choose one of these tasks, or "
            f"say which adapter it takes: encoder.adapters={{{view.task}: a folder or a Hub repository}}, or none for "
            "the backbone without adapter"
        )

    def _first(self, folder: AdapterFolder | None) -> str | None:
        """Tasks that share an adapter share its name, so that it is merged once for them."""
        return None if folder is None else next(key for key, other in self.folders.items() if other == folder)

    def ids(self, model: str, task: str) -> dict[str, str | None] | None:
        """What the adapters of a task's two sides are, for its space; None where the model has no adapters."""
        if not self.folders:
            return None
        names = {role: self.name(model, View(task, role)) for role in Role}
        return {str(role): name and self.folder(name).id for role, name in names.items()}

    def folder(self, name: str) -> AdapterFolder:
        """The adapter of a name that `name` gave."""
        folder = self.folders[name]
        assert folder is not None
        return folder

    @property
    def names(self) -> tuple[str | None, ...]:
        """All that tasks can ask for, each adapter once."""
        return tuple(dict.fromkeys(map(self._first, self.folders.values()))) or (None,)


def resolve_adapters(
    repository: Repository, config: Mapping[str, Any], configured: Mapping[str, str | None]
) -> Adapters:
    """The adapters of a model's own repository, and in their place those that the configuration names.

    Args:
        repository: The model.
        config: Its config.json.
        configured: Of each task that it names, a folder, or `org/name[/folder][@revision]` on the Hub, or None.

    Raises:
        ModelNotFoundError: There is no such adapter.
        UnsupportedModelError: It asks for something that is not done.
    """
    folders: dict[str, AdapterFolder | None] = {
        key: _checked(repository, folder)
        for key, folder in own_adapters(repository.name, config).items()
        if key.partition("/")[0] not in configured
    }
    opened = {given: _open(given) for given in dict.fromkeys(configured.values()) if given is not None}
    folders |= {task: None if given is None else opened[given] for task, given in configured.items()}
    return Adapters(folders if any(folders.values()) else {})


def read_config(repository: Repository, folder: str) -> dict[str, Any]:
    """An adapter's configuration, once it is sure that all of it can be honoured.

    Raises:
        ModelNotFoundError: There is none.
        UnsupportedModelError: It asks for something that is not done.
    """
    name = _named(repository, folder)
    config = repository.json_object(folder, CONFIG_FILE)
    if not config:
        raise ModelNotFoundError(
            f"the adapter {name} has no {CONFIG_FILE} in {repository.path / folder}; give a folder as peft's "
            "save_pretrained writes it"
        )
    if config.get("peft_type") != "LORA":
        raise UnsupportedModelError(
            f"the adapter {name} is of the type {config.get('peft_type')!r} ({CONFIG_FILE}); only 'LORA' is done"
        )
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        raise UnsupportedModelError(
            f"the adapter {name} began with init_lora_weights={config['init_lora_weights']!r}, which changes the "
            "backbone's own weights; save it as a plain LoRA (peft: "
            "save_pretrained(path_initial_model_for_weight_conversion=...))"
        )
    unknown = [
        f"{key}={value!r}"
        for key, value in config.items()
        if key not in HONOURED | _WITHOUT_EFFECT and value not in _NOTHING
    ]
    if unknown:
        raise UnsupportedModelError(
            f"the adapter {name}: {CONFIG_FILE} asks for {', '.join(unknown)}, which is not done, only low-rank "
            "matrices on the backbone's modules; or merge it (peft's merge_and_unload) and give the merged model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UnsupportedModelError(
            f"the adapter {name}: {CONFIG_FILE} says r={rank!r} and lora_alpha={alpha!r}; a rank from 1 up and a "
            "number are needed"
        )
    if not config.get("target_modules"):
        raise UnsupportedModelError(
            f"the adapter {name}: {CONFIG_FILE} names no target_modules; write down which modules its weights are for"
        )
    return config


def _open(given: str) -> AdapterFolder:
    path = Path(given).expanduser()
    if path.is_dir():
        resolved = path.resolve()
        adapter = _checked(Repository(resolved.name, "sha256:", resolved), "")
        return replace(adapter, repository=replace(adapter.repository, revision=adapter.digest))
    hub = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)(?:@([\w./-]+))?", given)
    if hub is None or Path(hub[1]).is_dir():
        raise ModelNotFoundError(
            f"no adapter {given!r}: give a folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}, or a Hub repository as "
            "org/name[/folder][@revision]"
        )
    return _checked(open_repository(hub[1], revision=hub[3]), hub[2].strip("/"))


def _checked(repository: Repository, folder: str) -> AdapterFolder:
    path = repository.path / folder
    if not path.is_dir():
        raise ModelNotFoundError(
            f"the adapter {_named(repository, folder)} is not there: {repository.name} has no folder {folder!r}; fetch "
            "the repository again"
        )
    read_config(repository, folder)
    if not repository.is_local:  # small files only, the weights come with `on_this_machine`
        return AdapterFolder(repository, folder, "")
    _require_weights(_named(repository, folder), path)
    return AdapterFolder(repository, folder, _digest(path))


def _named(repository: Repository, folder: str) -> str:
    return "/".join(filter(None, [repository.name, folder]))


def _require_weights(name: str, path: Path) -> None:
    if (path / WEIGHTS_FILE).is_file():
        return
    pickled = f", only {_PICKLE_FILE}, and weights in pickle files are never loaded"
    raise ModelNotFoundError(
        f"the adapter {name} has no {WEIGHTS_FILE} in {path}{pickled if (path / _PICKLE_FILE).exists() else ''}; "
        "save it with peft's save_pretrained"
    )


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        with (path / file).open("rb") as content:
            total.update(f"{file}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"
