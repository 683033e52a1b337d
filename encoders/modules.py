"""What a sentence-transformers repository does after its backbone: pooling, projections, normalisation.

`modules.json` lists the steps; each has a folder with its own `config.json`. Unknown steps and unknown settings of
known ones are refused: a skipped step still returns plausible unit vectors.

Source: sentence-transformers 6.2, `sentence_transformer/modules` and `base/modules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoders.errors import UnsupportedModelError
from encoders.native import own_pooling
from encoders.repository import Repository

# Legacy switch -> mode, in the order in which several modes are concatenated.
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_LEGACY_POOLING.values())

# torch.nn classes that a Dense may name. The path is data from a repository, so it is never imported.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
_OURS = "sentence_transformers."
_INPUTS = ("module_input_name", "module_output_name")


@dataclass(frozen=True)
class Pooling:
    """How token states become one vector; several modes are concatenated."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    token_dim: int | None = None


@dataclass(frozen=True)
class Dense:
    """A linear projection with an activation; weights in `{folder}/model.safetensors`."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of the pooled vector; weights in `{folder}/model.safetensors`."""

    folder: str
    dimension: int


@dataclass(frozen=True)
class Standardize:
    """Layer normalisation without weights, over the whole vector."""


@dataclass(frozen=True)
class Normalize:
    """Division by the L2 norm."""


Step = Dense | LayerNorm | Standardize | Normalize


@dataclass(frozen=True)
class Modules:
    """The whole list: where the transformer is, how its states are pooled, and what follows."""

    transformer_folder: str
    pooling: Pooling
    steps: tuple[Step, ...]
    states_include_prompt: bool = False


def own_classes(repository: Repository) -> tuple[str, ...]:
    """The classes in `modules.json` that the repository brings itself."""
    listed = repository.json("modules.json")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    paths = [str(entry.get("type")) for entry in entries]
    return tuple(path for path in paths if not path.startswith(_OURS))


def read_modules(repository: Repository, transformers: Sequence[str] = ()) -> Modules:
    """Read `modules.json` and the configuration of every module that it lists.

    Without the file: mean pooling, or the last token for a causal language model, as sentence-transformers does.

    Args:
        repository: The model's files.
        transformers: Classes of its own code that are known to be a Transformer.

    Raises:
        UnsupportedModelError: A module or a setting that is not known, or an order that is not.
    """
    if own := own_pooling(repository.json_object("config.json")):
        return Modules("", Pooling(modes=(own,)), (Normalize(),))
    listed = repository.json("modules.json")
    if listed is None:
        return _default_modules(repository)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UnsupportedModelError(f"{repository.name}: modules.json is not a list of modules")
    transformer_folder: str | None = None
    pooling: Pooling | None = None
    steps: list[Step] = []
    states_include_prompt = False
    for place, entry in enumerate(listed):  # in the file's order; `idx` only says it again
        path, folder = str(entry.get("type")), str(entry.get("path", ""))
        kind = path.rpartition(".")[2]
        if path in transformers:
            kind = "Transformer"
        elif not path.startswith(_OURS):
            kind = "code of the repository's own"
        config = repository.json_object(folder, "config.json")
        match kind:
            case "Transformer" if transformer_folder is None:
                transformer_folder = folder
            case "Pooling" if transformer_folder is not None and pooling is None:
                pooling = _read_pooling(repository.name, folder, config)
                states_include_prompt = "include_prompt" in config
            case "Dense" if pooling is not None:
                steps.append(_read_dense(repository.name, folder, config))
            case "LayerNorm" if pooling is not None:
                _check_settings(repository.name, folder, config, needed=("dimension",))
                steps.append(LayerNorm(folder, int(config["dimension"])))
            case "Normalize" if pooling is not None:
                _check_settings(repository.name, folder, config, known=_INPUTS)
                _check_default_inputs(repository.name, folder, config)
                steps.append(Normalize())
            case "Dropout" if pooling is not None:
                pass  # does nothing outside training
            case _:
                raise UnsupportedModelError(
                    f"{repository.name}: modules.json asks for {path!r} ({kind}) at place {place}; "
                    "known: Transformer, then Pooling, then any of Dense, LayerNorm, Normalize, Dropout"
                )
    if transformer_folder is None or pooling is None:
        raise UnsupportedModelError(
            f"{repository.name}: modules.json lists no Transformer followed by a Pooling"
        )
    return Modules(transformer_folder, pooling, tuple(steps), states_include_prompt)


def _default_modules(repository: Repository) -> Modules:
    has_template = any((repository.path / f"chat_template.{end}").is_file() for end in ("jinja", "json"))
    if has_template or repository.json_object("tokenizer_config.json").get("chat_template"):
        raise UnsupportedModelError(
            f"{repository.name} has no modules.json, and sentence-transformers would put its tokenizer's chat template "
            "around every text, which is not done; give a repository that says how it embeds"
        )
    return Modules("", Pooling(modes=("lasttoken",) if _is_causal(repository) else ("mean",)), ())


def _is_causal(repository: Repository) -> bool:
    config = repository.json_object("config.json")
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True) is not False


def _read_pooling(model: str, folder: str, config: Mapping[str, Any]) -> Pooling:
    if not config:
        raise UnsupportedModelError(f"{model}: {folder}/config.json is missing, so how to pool is not known")
    settings = dict(config)
    older = settings.pop("word_embedding_dimension", None)
    token_dim = settings.pop("embedding_dimension", older)
    include_prompt = bool(settings.pop("include_prompt", True))
    legacy = tuple(mode for switch, mode in _LEGACY_POOLING.items() if settings.pop(switch, False))
    modes = settings.pop("pooling_mode", None) or legacy or ("mean",)
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if unknown := [mode for mode in modes if mode not in POOLING_MODES] + sorted(settings):
        raise UnsupportedModelError(
            f"{model}: the pooling asks for {', '.join(map(repr, unknown))}; known modes: {', '.join(POOLING_MODES)}"
        )
    return Pooling(modes, include_prompt, int(token_dim) if token_dim is not None else None)


def _read_dense(model: str, folder: str, config: Mapping[str, Any]) -> Dense:
    known = ("bias", "activation_function", "use_residual", *_INPUTS)
    _check_settings(model, folder, config, needed=("in_features", "out_features"), known=known)
    _check_default_inputs(model, folder, config)
    if config.get("use_residual"):
        raise UnsupportedModelError(
            f"{model}: {folder} asks for a residual projection (use_residual), which is not done"
        )
    path = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = path.rpartition(".")[2]
    if not path.startswith("torch.nn.") or activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{model}: {folder} asks for the activation {path!r}; known: torch.nn's {', '.join(ACTIVATIONS)}"
        )
    return Dense(
        folder,
        int(config["in_features"]),
        int(config["out_features"]),
        bool(config.get("bias", True)),
        activation,
    )


def _check_settings(
    model: str,
    folder: str,
    config: Mapping[str, Any],
    *,
    needed: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
) -> None:
    missing = [f"{key} is missing" for key in needed if key not in config]
    unknown = [f"{key} is not known" for key in config if key not in (*needed, *known)]
    if missing or unknown:
        raise UnsupportedModelError(
            f"{model}: {folder}/config.json: {', '.join(missing + unknown)}; "
            f"known: {', '.join((*needed, *known))}"
        )


def _check_default_inputs(model: str, folder: str, config: Mapping[str, Any]) -> None:
    """Modules may be told to work on other features than the pooled vector (multi-vector models do)."""
    for key in _INPUTS:
        if config.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedModelError(
                f"{model}: {folder} works on {config[key]!r} ({key}); only 'sentence_embedding' is done"
            )
