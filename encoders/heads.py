"""What stands behind the backbone of a reranker: a pair's one number, from the weights of the repository.

A sequence-classification model is run whole. Of a language model, the backbone is run as encoders run theirs, and only
the words that make the score are computed of its vocabulary, at the last position of each pair; the rest of the output
layer is dropped where the model does not share it with its input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.batching import Batch
from encoders.errors import UnsupportedModelError
from encoders.forward import Forward
from encoders.loading import check_positions, load_model, look_both_ways
from encoders.pairs import TokenizedPairs
from encoders.pooling import pool
from encoders.rerank_families import YesNoFamily
from encoders.rerank_protocol import RerankProtocol


def load_head(protocol: RerankProtocol, dtype: torch.dtype, device: torch.device) -> Classifier | Words:
    """The model of a protocol, with every weight from its repository.

    Raises:
        ModelNotFoundError: There are no safetensors weights.
        UnsupportedModelError: They do not fill the architecture, or it is not one that is done.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if protocol.family is None else AutoModelForCausalLM
    repository = protocol.repository.on_this_machine(weights=True)
    model, _ = load_model(repository.name, repository.path, dtype, auto)
    _check_fit(protocol, model)
    if getattr(model.config, "is_causal", None) is False:
        look_both_ways(protocol.repository.name, model.base_model)
    model.to(device)
    return Classifier(model) if protocol.family is None else Words(model, protocol.family)


class Words:
    """The logits of a language model's words at the last position of each pair."""

    def __init__(self, model: Any, family: YesNoFamily) -> None:
        self._forward = Forward(model.base_model)
        self.packed = self._forward.packed
        self.device: torch.device = model.device
        self._temperature = family.temperature
        weight, bias = model.lm_head.weight, model.lm_head.bias
        assert bias is None
        self._direction = weight[family.yes.token_id].float().clone()
        if family.no is not None:
            self._direction -= weight[family.no.token_id].float()

    def __call__(self, batch: Batch, _: TokenizedPairs) -> Tensor:
        """float32 `[num_pairs]`: the logit of yes, less that of no, by the temperature."""
        states = self._forward(batch)
        lengths = torch.from_numpy(batch.lengths).to(states.device)
        last = pool(states, lengths, torch.zeros_like(lengths), ("lasttoken",))
        logits: Tensor = last @ self._direction
        return logits / self._temperature


class Classifier:
    """The one logit of a sequence-classification head."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pad_token_id = model.config.pad_token_id
        self.packed = False
        self.device: torch.device = model.device

    def __call__(self, batch: Batch, pairs: TokenizedPairs) -> Tensor:
        """float32 `[num_pairs]`."""
        inputs = {"input_ids": batch.padded(batch.token_ids, self._pad_token_id)}
        if pairs.type_ids is not None:
            offsets = pairs.texts.offsets
            types = [pairs.type_ids[offsets[row] : offsets[row + 1]] for row in batch.rows]
            inputs["token_type_ids"] = batch.padded(np.concatenate(types), 0)
        inputs["attention_mask"] = batch.is_token.astype(np.int64)
        tensors = {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}
        logits: Tensor = self._model(**tensors).logits
        return logits[:, 0].float()


def _check_fit(protocol: RerankProtocol, model: Any) -> None:
    """What the small files said must hold for the real model."""
    name, kind, config = protocol.repository.name, type(model).__name__, model.config
    check_positions(name, model, protocol.max_seq_length)
    if protocol.family is not None:
        words = [word.token_id for word in (protocol.family.yes, protocol.family.no) if word is not None]
        if len(model.lm_head.weight) <= max(words):
            raise UnsupportedModelError(
                f"{name}: {kind} has logits for {len(model.lm_head.weight)} tokens, and the family "
                f"{protocol.family.name!r} reads those of {words}; name the model's own family"
            )
        return
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name}: {kind} is an encoder-decoder, which is not done for rerankers")
    if config.pad_token_id is None:
        raise UnsupportedModelError(
            f"{name}: config.json names no pad_token_id, so {kind} cannot tell a pair's last token from padding; "
            "add it to config.json"
        )
