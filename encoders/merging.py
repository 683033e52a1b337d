"""One backbone that takes the form of any of its adapters: the pristine weights, plus what the adapter adds.

    name -> pristine weights of the target modules in float32 -> peft's own merge -> one cast -> working weights

A merged adapter costs nothing in the forward pass. Each switch starts from the pristine weights again, since what
16-bit weights lose in a merge no unmerge brings back; so A, B, A gives the very weights of A. A process that serves one
adapter merges once and keeps nothing aside. One that serves several keeps the pristine weights of the modules that any
of them touches: at most two backbones in memory, however many there are, and the narrow matrices themselves in float32
(80 MB, reckoned, for rank 32 on all linear layers of Qwen3-0.6B). Weights that are stored wider than they are computed
with are kept as stored; packed layers (`encoders.linear`) have theirs in that layout alone.

Source: peft 0.21, whose layers hold the matrices and do the sum (rsLoRA's scale and DoRA's magnitudes included).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders.adapters import HONOURED, WEIGHTS_FILE, AdapterFolder, read_config
from encoders.errors import EncoderError, UnsupportedModelError
from encoders.linear import PackedLinear
from encoders.loading import load_backbone, stored_dtype
from encoders.protocol import Protocol

# Under which peft knows whatever is being read; no module of a backbone is called so.
_NAME = "taskvec_adapter"
_PREFIX = "base_model.model."
_PROBE_TOKENS = 64


class AdaptedBackbone:
    """A backbone whose weights are those of one adapter, or its own, at a time.

    Attributes:
        module: The backbone; the same object, and but for packed layers the same storage, whatever is active.
        active: The adapter whose weights are in it now; None is none of them.
        changes: Whether there are several, so that its weights will change.
        is_chosen: Whether they are there because somebody asked for them.
    """

    def __init__(self, protocol: Protocol, backbone: Any, names: Sequence[str | None]) -> None:
        """Read the adapters, and see of each that it changes what comes out.

        Args:
            protocol: What has the adapters.
            backbone: As `load_backbone` gave it, on the device where it is used.
            names: Those that will be asked for, as `Protocol.adapter` says; None is the backbone without any.

        Raises:
            ModelNotFoundError: An adapter's files are not on this machine.
            UnsupportedModelError: An adapter does not fit the backbone, or changes nothing.
        """
        self.module = backbone
        self.active: str | None = None
        self.is_chosen = False
        self.changes = len(set(names)) > 1
        self._model = protocol.repository.name
        self._max_seq_length = protocol.max_seq_length
        self._layers: dict[str | None, Mapping[str, Any]] = {
            None: {}
        }  # the backbone's own weights add nothing
        self._folders: dict[str | None, AdapterFolder] = {}
        for name in dict.fromkeys(names):
            if name is not None:
                self._folders[name] = protocol.adapters.folder(name).on_this_machine()
                self._layers[name] = read_adapter(self._folders[name], backbone)
        self._pristine: dict[str, Tensor] = {}
        if self._folders:
            self._pristine = self._pristine_weights(protocol, keep=self.changes)
            self._check_effects()
        self.is_chosen = False
        if not self.changes:
            self.activate(names[0])
            self._layers, self._pristine = {names[0]: {}}, {}

    @torch.no_grad()
    def activate(self, name: str | None) -> None:
        """Give the backbone the weights of an adapter, or its own; nothing is done where they are in it.

        Raises:
            EncoderError: It was not among the names at the start.
        """
        if name not in self._layers:
            known = ", ".join(map(str, self._layers))
            raise EncoderError(
                f"{self._model} was loaded for the adapters {known}, and {name} is asked for; name it when loading"
            )
        self.is_chosen = True
        if name == self.active:
            return
        wanted, present = self._layers[name], self._layers[self.active]
        for path in present.keys() - wanted.keys():
            self._give(path, self._pristine[path])
        for path, layer in wanted.items():
            self._give(path, self._merge(path, layer))
        self.active = name

    def _merge(self, path: str, layer: Any) -> Tensor:
        """Merged weights of a module, float32; what the layer stands on is left as it was, be it empty."""
        weight = layer.get_base_layer().weight
        storage = weight.data
        weight.data = self._pristine[path].to(torch.float32, copy=True)
        try:
            merge(layer)
            merged: Tensor = weight.data
        finally:
            weight.data = storage
        return merged

    def _give(self, path: str, weight: Tensor) -> None:
        """Put weights into a module: the one cast."""
        module = self.module.get_submodule(path)
        if isinstance(module, PackedLinear):
            module.repack(weight.to(self.module.dtype))
        else:
            module.weight.copy_(weight)

    def _pristine_weights(self, protocol: Protocol, *, keep: bool) -> dict[str, Tensor]:
        """Weights of all target modules as the repository stores them, where the working ones lack some of it."""
        paths = sorted({path for layers in self._layers.values() for path in layers})
        working = {path: self.module.get_submodule(path).weight for path in paths}
        stored = stored_dtype(protocol)
        if all(weight.dtype in (stored, torch.float32) for weight in working.values()):
            return {path: weight.data.clone() if keep else weight.data for path, weight in working.items()}
        source = load_backbone(protocol, stored)
        return {path: source.get_submodule(path).weight.data.to(working[path].device) for path in paths}

    def _check_effects(self) -> None:
        """Merge each once: files that fit in every shape may still hold an adapter that was never trained."""
        bare = self._probe()
        for name, folder in self._folders.items():
            self.activate(name)
            for path in self._layers[name]:
                if not self.module.get_submodule(path).weight.isfinite().all():
                    raise UnsupportedModelError(
                        f"the adapter {folder.name} makes {path} infinite or not a number; its weights are broken"
                    )
            if torch.equal(self._probe(), bare):
                raise UnsupportedModelError(
                    f"the adapter {folder.name} changes nothing: {self._model} gives the same states with and without "
                    "it (matrices of zeros, or on modules whose output is not used); give one that was trained, or "
                    "say none for its task: encoder.adapters"
                )

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """Token states of a text that is spread over the vocabulary."""
        table = self.module.get_input_embeddings()
        num_tokens = min(_PROBE_TOKENS, self._max_seq_length)
        tokens = torch.linspace(0, table.num_embeddings - 1, num_tokens, device=table.weight.device)
        token_ids = tokens.long()[None, :]
        states: Tensor = self.module(
            input_ids=token_ids, attention_mask=torch.ones_like(token_ids)
        ).last_hidden_state
        return states


def merge(layer: Any) -> None:
    """Add what a layer of `read_adapter` holds to the weight that its module has now, in that weight's format."""
    try:
        layer.merge(adapter_names=[_NAME])
    finally:
        layer.merged_adapters.clear()


def read_adapter(adapter: AdapterFolder, backbone: Any, device: torch.device | None = None) -> dict[str, Any]:
    """Peft's layers with an adapter's matrices in float32, by the path of the module that each is for.

    peft puts them into the backbone; they are taken out again, so that it is what it was.

    Args:
        adapter: Its files, on this machine.
        backbone: What it is for.
        device: Where the matrices go; None is where the backbone is.

    Raises:
        UnsupportedModelError: The adapter does not fit the backbone.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import Embedding, Linear, LoraLayer

    said = read_config(adapter.repository, adapter.folder)
    _check_targets(adapter, said["target_modules"], backbone)
    weights = _read_weights(adapter, backbone)
    config = LoraConfig(**{key: value for key, value in said.items() if key in HONOURED})
    try:
        inject_adapter_in_model(config, backbone, _NAME)
        layers = {path: layer for path, layer in backbone.named_modules() if isinstance(layer, LoraLayer)}
        for layer in layers.values():
            for part in layer.children():
                if part is not layer.base_layer:
                    # peft took the backbone's format, which may be narrower than the file's.
                    part.to(device, torch.float32)
        report = set_peft_model_state_dict(backbone, weights, _NAME)
    except (ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"the adapter {adapter.name} does not fit {type(backbone).__name__}: {_shortly(error)}; give the adapter "
            "of this very backbone, with the rank and the modules of its own configuration"
        ) from error
    _check_complete(
        adapter, report.unexpected_keys, [key for key in report.missing_keys if _NAME in key.split(".")]
    )
    for path, layer in layers.items():
        if type(layer) not in (Linear, Embedding):
            raise UnsupportedModelError(
                f"the adapter {adapter.name} is for {path}, a {type(layer.get_base_layer()).__name__}; only linear "
                "layers and embeddings are done"
            )
        parent, _, leaf = path.rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, layer.get_base_layer())
    del backbone.peft_config
    return layers


def _read_weights(adapter: AdapterFolder, backbone: Any) -> dict[str, Tensor]:
    """Matrices by the name that peft gives them on a bare backbone, on whatever head the adapter was trained."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(adapter.path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UnsupportedModelError(
            f"the adapter {adapter.name}: {WEIGHTS_FILE} cannot be read ({error}); fetch the file again"
        ) from error
    below_head = f"{_PREFIX}{backbone.base_model_prefix}."
    has_head = all(key.startswith(below_head) for key in weights) and not hasattr(
        backbone, backbone.base_model_prefix
    )
    return {
        _PREFIX + key.removeprefix(below_head) if has_head else key: value for key, value in weights.items()
    }


def _check_targets(adapter: AdapterFolder, targets: str | list[str], backbone: Any) -> None:
    """Peft takes the names that it finds and is silent on the others."""
    paths = [f".{path}" for path, _ in backbone.named_modules()]
    listed = [] if isinstance(targets, str) else targets
    absent = [target for target in listed if not any(path.endswith(f".{target}") for path in paths)]
    if absent:
        leaves = dict.fromkeys(
            path.rpartition(".")[2]
            for path, module in backbone.named_modules()
            if isinstance(module, nn.Linear)
        )
        raise UnsupportedModelError(
            f"the adapter {adapter.name} is for modules that {type(backbone).__name__} does not have: "
            f"{', '.join(sorted(absent))}; its linear layers are {', '.join(leaves)}; give the adapter of this backbone"
        )


def _check_complete(adapter: AdapterFolder, unexpected: Sequence[str], missing: Sequence[str]) -> None:
    wrong = [f"{len(unexpected)} match no module ({unexpected[0]}, ...)"] if unexpected else []
    wrong += [f"{len(missing)} are missing ({missing[0].replace(f'.{_NAME}', '')}, ...)"] if missing else []
    if wrong:
        raise UnsupportedModelError(
            f"the adapter {adapter.name}: of the matrices of {WEIGHTS_FILE} {' and '.join(wrong)}; give the adapter of "
            "this very backbone, as peft's save_pretrained writes it"
        )


def _shortly(error: Exception) -> str:
    """The first thing that is wrong; torch lists every tensor, a line each."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0]).rstrip(".")
