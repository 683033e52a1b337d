"""Pooled vectors to stored ones: projections, then slicing, then the norm, then the cast; all in float32.

Slicing comes before the norm, so that a sliced vector has unit length too (Matryoshka models are trained so).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.errors import EncoderError, ModelNotFoundError, UnsupportedModelError
from encoders.modules import Dense, LayerNorm, Normalize, Standardize, Step
from encoders.protocol import Protocol


class Finisher:
    """The steps after the pooling, with their weights.

    Raises:
        ModelNotFoundError: A step's weights are not in the repository.
        UnsupportedModelError: They are not of the shape that the step's configuration says.
    """

    def __init__(self, protocol: Protocol, device: torch.device) -> None:
        self._steps = [_load_step(protocol, step).to(device).requires_grad_(False) for step in protocol.steps]
        self._dim = protocol.dim
        self._normalize = protocol.normalize

    def __call__(self, pooled: Tensor) -> Tensor:
        """float32 `[num_texts, dim]` from float32 `[num_texts, pooled_dim]`."""
        for step in self._steps:
            pooled = step(pooled)
        pooled = pooled[:, : self._dim]
        return nn.functional.normalize(pooled, dim=-1) if self._normalize else pooled


class _L2Norm(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class _Standardization(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.layer_norm(vectors, vectors.shape[-1:])


def _load_step(protocol: Protocol, step: Step) -> nn.Module:
    match step:
        case Normalize():
            return _L2Norm()
        case Standardize():
            return _Standardization()
        case LayerNorm(folder, dimension):
            module = nn.ModuleDict({"norm": nn.LayerNorm(dimension)})
            _load_weights(protocol, folder, module)
            return module["norm"]
        case Dense(folder, in_features, out_features, bias, activation):
            module = nn.ModuleDict({"linear": nn.Linear(in_features, out_features, bias=bias)})
            _load_weights(protocol, folder, module)
            return nn.Sequential(module["linear"], getattr(nn, activation)())


def _load_weights(protocol: Protocol, folder: str, module: nn.Module) -> None:
    path = protocol.repository.path / folder / "model.safetensors"
    if not path.is_file():
        raise ModelNotFoundError(
            f"{protocol.repository.name}: {folder} has no model.safetensors; weights in pickle files are never loaded "
            "(convert them with sentence-transformers' save_pretrained)"
        )
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(
            f"{protocol.repository.name}: {path.name} of {folder} does not fit: {error}"
        ) from error
    module.float()


def unstorable(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.int64]:
    """int64 `[num_bad]`; the vectors of `[num_texts, dim]` that are not finite, or not in that precision."""
    return _not_finite(_as_stored(vectors, precision))


def cast(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.floating]:
    """The stored form of float32 vectors `[num_texts, dim]`.

    Raises:
        EncoderError: A vector is not finite, or does not fit the precision.
    """
    stored = _as_stored(vectors, precision)
    bad = _not_finite(stored)
    if len(bad):
        cause = "is not finite" if not np.isfinite(vectors[bad[0]]).all() else f"does not fit {precision}"
        raise EncoderError(
            f"{len(bad)} of {len(stored)} vectors cannot be stored, the first one (row {bad[0]}) {cause}; "
            "compute in float32 or bfloat16 (encoder.dtype), store float32 (encoder.precision)"
        )
    return stored


def _not_finite(stored: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(~np.isfinite(stored).all(axis=1)).astype(np.int64)


def _as_stored(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.floating]:
    with np.errstate(over="ignore"):
        return vectors.astype(np.dtype(precision), copy=False)
