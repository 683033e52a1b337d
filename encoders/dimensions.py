"""How many dimensions a model's vectors have, and which slices of them are vectors of the model's too.

Only Matryoshka models are trained so that the first dimensions alone are a good vector; of any other one a slice is
just a worse vector, and of some it is none at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from encoders.agreement import agree
from encoders.errors import UnsupportedModelError
from encoders.family import Family
from encoders.modules import Dense, Modules, Normalize, Pooling, Standardize, Step
from encoders.options import EncoderOptions
from encoders.repository import Repository


def output_dim(
    repository: Repository,
    modules: Modules,
    hidden_size: int | None,
    stated: int | None,
    options: EncoderOptions,
    family: Family | None,
) -> int:
    """Dimension of the vectors: what the configuration wants, else what the repository states, else all of them.

    Raises:
        UnsupportedModelError: The model does not have as many, or was not trained to be sliced to them.
    """
    full = _full_dim(repository.name, modules, hidden_size)
    wanted = stated if options.truncate_dim is None else options.truncate_dim
    if wanted is not None and not 1 <= wanted <= full:
        raise UnsupportedModelError(
            f"{repository.name} has {full} dimensions; truncate_dim={wanted} must be from 1 to {full}"
        )
    if family is not None:
        _check_dim(repository, family, full)
        if wanted is not None:
            own = "" if options.truncate_dim is not None else " (config_sentence_transformers.json)"
            _check_truncate_dim(
                f"{repository.name}{own}", family, wanted, full, force=options.force_truncate_dim
            )
    return wanted or full


def pooled_dim(pooling: Pooling, steps: Sequence[Step], hidden_size: int | None) -> int | None:
    """Width of the states that are pooled; None where nobody says it.

    The T5 models of sentence-transformers (gtr, sentence-t5, and Instructor from these) state the projected width for
    the pooling too. There it is only a label, and the projection's own says what it is given.
    """
    projection = next((step for step in steps if isinstance(step, Dense)), None)
    if projection is not None and len(pooling.modes) == 1 and projection.in_features == hidden_size:
        return hidden_size
    return pooling.token_dim or hidden_size


def _full_dim(model: str, modules: Modules, hidden_size: int | None) -> int:
    token_dim = pooled_dim(modules.pooling, modules.steps, hidden_size)
    if token_dim is None:
        raise UnsupportedModelError(f"{model}: neither the pooling nor config.json says the hidden size")
    dim = int(token_dim) * len(modules.pooling.modes)
    for step in modules.steps:
        if isinstance(step, Normalize | Standardize):
            continue
        taken = step.in_features if isinstance(step, Dense) else step.dimension
        if taken != dim:
            raise UnsupportedModelError(
                f"{model}: {step.folder} takes {taken} dimensions, but it is given {dim}"
            )
        if isinstance(step, Dense):
            dim = step.out_features
    return dim


def _check_dim(repository: Repository, family: Family, full: int) -> None:
    """A repository of the table has the dimension that its row says."""
    if not repository.is_local and repository.name in family.repositories:
        agree(repository, family, "dimension", full, family.repositories[repository.name])


def _check_truncate_dim(model: str, family: Family, wanted: int, full: int, *, force: bool) -> None:
    """Refuse a dimension that the model was not trained to be sliced to.

    Raises:
        UnsupportedModelError: It is no dimension of the model's, and was not forced.
    """
    if family.never_sliced and wanted != full:
        raise UnsupportedModelError(
            f"{model}: truncate_dim={wanted} is refused: {family.never_sliced}; encoder.truncate_dim={full} is all of "
            "it"
        )
    if force or family.has_dim(wanted, full):
        return
    trained = [str(dim) for dim in family.truncate_dims or () if dim < full]
    trained += [f"any from {family.truncate_from} up"] if family.truncate_from is not None else []
    raise UnsupportedModelError(
        f"{model} was not trained for vectors of {wanted} dimensions; it was for {', '.join([*trained, str(full)])}; "
        "take one of these (encoder.truncate_dim), or slice it all the same: encoder.force_truncate_dim=true"
    )
