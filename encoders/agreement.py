"""A repository and its row: the row is found, what the repository says is compared with it, the rest is the row's.

Libraries disagree about what to do where a repository says nothing; here the table speaks, and where both speak and
say different things, nothing is embedded before somebody has decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from encoders.errors import EncoderError, UnsupportedModelError
from encoders.families import FAMILIES
from encoders.family import Family, read_family
from encoders.modules import Dense, Modules, Normalize, Pooling, Standardize, Step, own_classes, read_modules
from encoders.native import native_architecture
from encoders.repository import Repository

_BY_ID = {repository: family for family in FAMILIES for repository in family.repositories}
_UNREADABLE = {repository: family for family in FAMILIES for repository in family.unreadable}


def find_family(repository: Repository, given: str | Mapping[str, Any] | None) -> Family | None:
    """The row of a repository: by its exact id, or as the configuration names or writes it; None where there is none.

    Args:
        repository: The model's files.
        given: What the configuration says: an id of the table, a row of its own, or nothing.

    Raises:
        EncoderError: The table has no such id, or another row for this very repository.
        UnsupportedModelError: The same model is to be had in another repository only.
    """
    own = None if repository.is_local else _BY_ID.get(repository.name)
    if not repository.is_local and repository.name in _UNREADABLE:
        readable = ", ".join(_UNREADABLE[repository.name].repositories)
        raise UnsupportedModelError(
            f"{repository.name}: nothing but code of its own reads these files; the same model without it is {readable}"
        )
    if given is None:
        return own
    if own is not None:
        raise EncoderError(
            f"encoder.protocol was given, but {repository.name} has a row of its own; leave it out, or change single "
            "things (encoder.prompts, encoder.max_seq_length, ...)"
        )
    if not isinstance(given, str):
        return read_family(given)
    if given not in _BY_ID:
        raise EncoderError(
            f"encoder.protocol: no row for {given!r}; rows: {', '.join(_BY_ID)}; or write the protocol out: "
            "encoder.protocol={pooling: ..., prompts: ...}"
        )
    return _BY_ID[given]


def native_type(repository: Repository, family: Family | None, *, trust_remote_code: bool) -> str | None:
    """The transformers class (by its `model_type`) that stands in for the repository's own code, None where none does.

    Raises:
        UnsupportedModelError: The row knows a class, but not for this repository's configuration.
    """
    if family is None:
        return None
    config = repository.json_object("config.json")
    if family.own_code and not (trust_remote_code and config.get("auto_map")):
        raise UnsupportedModelError(
            f"{repository.name}: nothing but code of its own gives the vectors of {family.name}, and "
            + ("config.json names none (auto_map)" if trust_remote_code else "it may not run")
            + "; read that code, then allow it for a pinned revision (encoder.trust_remote_code)"
        )
    if family.native is None or trust_remote_code:
        return None
    if config.get("model_type") not in family.native_of:
        if not config.get("auto_map"):
            return None
        raise UnsupportedModelError(
            f"{repository.name}: config.json is of the model_type {config.get('model_type')!r}, for code of the "
            f"repository's own; transformers' {family.native!r} is known to give the same for "
            f"{', '.join(map(repr, family.native_of))} only; give such a repository, or read that code and allow it "
            "for a pinned revision (encoder.trust_remote_code)"
        )
    hidden = native_architecture(repository.name, config)
    if hidden not in (None, family.native):
        raise UnsupportedModelError(
            f"{repository.name}: config.json is that of a {hidden!r} behind code of the repository's own, and the row "
            f"of {family.name} is for a {family.native!r}; name the model's own row (encoder.protocol)"
        )
    for key, needed in family.native_if.items():
        if config.get(key, needed) != needed:
            raise UnsupportedModelError(
                f"{repository.name}: config.json says {key}={config[key]!r}; transformers' {family.native!r} is known "
                f"to give the same as the repository's own code for {needed!r} only"
            )
    return family.native


def agreed_modules(repository: Repository, family: Family | None) -> Modules:
    """What follows the backbone, as repository and row say it together.

    Raises:
        UnsupportedModelError: They contradict each other, or a module is unknown.
    """
    if family is None:
        return read_modules(repository)
    more = tuple(Standardize() for _ in family.steps)
    last: tuple[Step, ...] = (Normalize(),) if family.normalize else ()
    own = own_classes(repository)
    done = bool(own) and set(own) <= set(family.own_modules)
    listed = repository.json("modules.json")
    if listed is None or (done and len(own) == len(listed)):
        _check_dense(repository, family, ())
        return Modules("", Pooling((family.pooling,), family.include_prompt), (*more, *last))
    modules = read_modules(repository, family.own_modules)
    _check_dense(repository, family, modules.steps)
    agree(repository, family, "pooling", "+".join(modules.pooling.modes), family.pooling)
    if modules.states_include_prompt:
        agree(repository, family, "include_prompt", modules.pooling.include_prompt, family.include_prompt)
    steps, normalizes = modules.steps, bool(modules.steps) and isinstance(modules.steps[-1], Normalize)
    if normalizes:
        agree(repository, family, "normalize", True, family.normalize)
        steps = steps[:-1]
    pooling = replace(modules.pooling, include_prompt=family.include_prompt)
    return replace(modules, pooling=pooling, steps=(*steps, *more, *last))


def _check_dense(repository: Repository, family: Family, steps: tuple[Step, ...]) -> None:
    """A projection that is left out leaves plausible vectors, of another space."""
    found = [step for step in steps if isinstance(step, Dense)]
    plain = all(not step.bias and step.activation == "Identity" for step in found)
    widths = tuple(step.out_features for step in found)
    # A folder may hold a smaller sister of the model.
    same = len(widths) == len(family.dense) if repository.is_local else widths == family.dense
    if family.dense and not (plain and same):
        stated = ", ".join(
            f"{step.in_features} to {step.out_features} (bias={step.bias}, {step.activation})"
            for step in found
        )
        raise UnsupportedModelError(
            f"{repository.name}: modules.json lists {stated or 'no projection'} (Dense) behind the pooling, and "
            f"the row of {family.name} says {len(family.dense)} without bias and activation, to "
            f"{', '.join(map(str, family.dense))}; fetch modules.json and every folder that it names"
        )


def check_suffix(repository: Repository, family: Family | None, stated: object) -> None:
    """Refuse a repository whose code puts something behind every text that nobody else would put there.

    Args:
        repository: The model's files.
        family: Its row.
        stated: `suffix` in config_sentence_transformers.json, which only code of the repository's own reads.

    Raises:
        UnsupportedModelError: No row puts the same there.
    """
    if not stated:
        return
    if family is None:
        raise UnsupportedModelError(
            f"{repository.name}: config_sentence_transformers.json says that {stated!r} stands behind every text, and "
            "leaves that to code of the repository's own; say it in a protocol: encoder.protocol={prompts: {retrieval: "
            f"{{query: {{prefix: ..., suffix: {stated!r}}}, ...}}}}, ...}}"
        )
    for task, roles in family.prompts.items():
        for role, prompt in roles.items():
            agree(repository, family, f"suffix for {task}/{role}", stated, prompt.suffix)


def check_length(model: str, family: Family | None, stated: int | None) -> None:
    """Refuse a repository that takes longer texts than its row says that the model was made for.

    Raises:
        UnsupportedModelError: Both are named.
    """
    longest = family.max_seq_length if family else None
    if family is not None and longest is not None and stated is not None and stated > longest:
        raise UnsupportedModelError(
            f"{model}: its own files take texts of {stated} tokens, and the row of {family.name} says {longest}; "
            "find out which is right, then say it: encoder.max_seq_length"
        )


def agree(repository: Repository, family: Family, what: str, stated: object, row: object) -> None:
    """Refuse a repository that says one thing where its row says another.

    Raises:
        UnsupportedModelError: Both are named.
    """
    if stated != row:
        raise UnsupportedModelError(
            f"{repository.name}: its own files say {what} {stated!r}, and the row of {family.name} says {row!r}; "
            "mend the one that is wrong, or write the protocol out for a folder of your own (encoder.protocol={...})"
        )
