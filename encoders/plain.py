"""The plain path: what a model gives when nothing is done for speed, to compare an encoder's vectors with.

One text at a time, without padding, transformers' own attention, float32, and weights that are read from the
repository's files once more: nothing of the encoder is taken for granted, neither weights that were rounded to 16 bits
or merged with an adapter, nor batches.

In float32 a backbone takes twice what there is room for beside one in 16 bits. So its weights stay mapped to the files,
as the repository stores them, and each block of layers has float32 copies on the device while it computes, merged with
the adapter where there is one. In memory is one block at a time: 0.9 GB, reckoned, of a model of 7B. Every text reads
all weights, so this is for few texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from encoders.batching import Batch
from encoders.forward import run_alone
from encoders.loading import load_backbone, stored_dtype
from encoders.merging import merge, read_adapter
from encoders.protocol import Protocol


class PlainPath:
    """One backbone in its files, and the adapter that is merged with it on the way.

    Raises:
        ModelNotFoundError: The files are no longer on this machine.
        UnsupportedModelError: They do not fit the architecture.
    """

    def __init__(self, protocol: Protocol, device: torch.device) -> None:
        self._protocol = protocol
        self._device = device
        self._layers: Mapping[str, Any] = {}  # of the adapter in use
        self._held: tuple[str, Mapping[str, Any]] | None = None  # of the last one
        self._backbone = load_backbone(protocol, stored_dtype(protocol))
        self._paths = {module: path for path, module in self._backbone.named_modules()}
        self._in_files: dict[nn.Parameter, Tensor] = {}
        for module in self._backbone.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, self._in_float32(buffer))
        for unit in dict.fromkeys(_units(self._backbone)):
            unit.register_forward_pre_hook(self._enter, with_kwargs=True)
            unit.register_forward_hook(self._leave)

    def use_adapter(self, name: str | None) -> None:
        """Compute with this adapter from now on; None is the backbone without any.

        Raises:
            ModelNotFoundError: Its files are no longer on this machine.
            UnsupportedModelError: They do not fit the backbone.
        """
        if name is None:
            self._layers = {}
            return
        if self._held is None or self._held[0] != name:
            folder = self._protocol.adapters.folder(name).on_this_machine()
            self._held = name, read_adapter(folder, self._backbone, self._device)
        self._layers = self._held[1]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """float32 token states `[num_tokens, hidden_size]` of a batch's texts, end to end."""
        texts = torch.split(torch.from_numpy(batch.token_ids).to(self._device), batch.lengths.tolist())
        return torch.cat([run_alone(self._backbone, text) for text in texts])

    def _enter(self, unit: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._stays_in_files(unit):  # a look-up rounds nothing, so the widest table need not move
            return tuple(value.cpu() for value in args), kwargs
        prefix = f"{path}." if (path := self._paths[unit]) else ""
        targets = [target for target in self._layers if f"{target}.".startswith(prefix)]
        merged = {f"{target}.weight" for target in targets}
        for name, parameter in unit.named_parameters():
            self._in_files[parameter] = parameter.data
            is_merged = (
                f"{prefix}{name}" in merged
            )  # then it is a copy, or the merge would be in what is mapped
            parameter.data = parameter.data.to(self._device, torch.float32, copy=is_merged)
        for target in targets:
            merge(self._layers[target])
        return self._in_float32(args), self._in_float32(kwargs)

    def _leave(self, unit: nn.Module, _: Any, output: Any) -> Any:
        if self._stays_in_files(unit):
            return self._in_float32(output)
        for parameter in unit.parameters():
            parameter.data = self._in_files.pop(parameter)
        return None

    def _stays_in_files(self, unit: nn.Module) -> bool:
        return type(unit) is nn.Embedding and self._paths[unit] not in self._layers

    def _in_float32(self, value: Any) -> Any:
        """The same on the device, and in float32 where it is no whole number, in whatever containers."""
        match value:
            case Tensor():
                return value.to(self._device, torch.float32 if value.is_floating_point() else None)
            case list() | tuple() if type(value) in (list, tuple):
                return type(value)(map(self._in_float32, value))
            case dict():
                return {key: self._in_float32(one) for key, one in value.items()}
        return value


def _units(module: nn.Module, *, is_block: bool = False) -> Iterator[nn.Module]:
    """What gets its weights at once: each block of a list of layers, and outside of those each module with weights."""
    if is_block or next(module.parameters(recurse=False), None) is not None:
        yield module
        return
    for child in module.children():
        yield from _units(child, is_block=isinstance(module, nn.ModuleList))
