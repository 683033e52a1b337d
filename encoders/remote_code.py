"""Python code that a model asks for: it runs only if the configuration names the very commit that it is in.

config.json and tokenizer_config.json name classes (`auto_map`): `module.Class` in the repository itself, or
`org/other--module.Class` in another one, of which transformers would take whatever its default branch holds on that
day. So every repository whose code would run must be on the list `encoder.trust_remote_code`, as `org/name@commit`, and
another repository's code is taken from that commit. A folder's commit is its revision, a digest, which then covers
its Python files too.

Source: transformers 5.23, dynamic_module_utils.get_class_from_dynamic_module (`code_revision`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from encoders.errors import UnsupportedModelError
from encoders.repository import Repository

FILES = ("config.json", "tokenizer_config.json")
_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForTextEncoding", "AutoTokenizer")


def check_code(
    repository: Repository, folder: str, allowed: Sequence[str], files: Sequence[str] = FILES
) -> str | None:
    """Refuse code that is not allowed; returns the commit of the other repository that some of it is in.

    Args:
        repository: The model's files.
        folder: Where in the repository the backbone is.
        allowed: Repositories whose code may run, each `org/name@commit`.
        files: That may ask for code.

    Raises:
        UnsupportedModelError: Code would run that is not on that list, or that is in several other repositories.
    """
    others = {}
    for file, name in _asked_for(repository, folder, files):
        found = [entry for entry in allowed if entry.rpartition("@")[0] == name]
        if name == repository.name:
            if f"{name}@{repository.revision}" not in found:
                _refuse(repository, file, f"its own, at {repository.revision}", allowed)
        elif len(found) != 1:
            _refuse(repository, file, f"{name!r}, another repository", allowed)
        else:
            others[name] = found[0].rpartition("@")[2]
    if len(others) > 1:
        raise UnsupportedModelError(
            f"{repository.name} asks for Python code of {len(others)} other repositories "
            f"({', '.join(sorted(others))}); of one it can be pinned"
        )
    return next(iter(others.values()), None)


def _asked_for(repository: Repository, folder: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each file that names code, and the repository that it is in."""
    for file in files:
        classes = repository.json_object(folder, file).get("auto_map") or {}
        if not isinstance(classes, dict):  # of tokenizers, as older files have it
            classes = {"AutoTokenizer": classes}
        for name in _CLASSES:
            references = classes.get(name) or ()
            for reference in [references] if isinstance(references, str) else references:
                if reference is not None:
                    other, is_elsewhere, _ = str(reference).partition("--")
                    yield file, other if is_elsewhere else repository.name


def _refuse(repository: Repository, file: str, whose: str, allowed: Sequence[str]) -> None:
    raise UnsupportedModelError(
        f"{repository.name}: {file} asks for Python code (auto_map) of {whose}, and allowed is that of "
        f"{', '.join(allowed) or 'none'}; read that code, then allow it with its commit (encoder.trust_remote_code: "
        "[org/name@commit]), or give a repository that needs none"
    )
