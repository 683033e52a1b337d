"""Python imports this by itself when its folder is on PYTHONPATH: certain texts then end the process that has them.

A text of U+2620 alone ends a reader; one that is nothing but a token that the tokenizer does not know ends an encoder.
A shard `deadly.parquet` ends who reads its pages. All go the way that the kernel's out-of-memory killer takes, without
a word.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm_encoder(module: ModuleType) -> None:
    original = module.Encoder.encode_what_fits

    def encode(self: Any, texts: Any, *args: Any) -> Any:
        unknown = texts.token_ids == 1
        if any(unknown[start:end].sum() == end - start - 2 for start, end in _pairs(texts.offsets)):
            _kill()
        return original(self, texts, *args)

    module.Encoder.encode_what_fits = encode


def _pairs(offsets: Any) -> zip[tuple[int, int]]:
    return zip(offsets.tolist(), offsets[1:].tolist(), strict=False)


def _arm_tokenizer(module: ModuleType) -> None:
    original = module.Tokenizer.prepare

    def prepare(self: Any, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        if "\N{SKULL AND CROSSBONES}" in texts:
            _kill()
        return original(self, texts, *args, **kwargs)

    module.Tokenizer.prepare = prepare


def _arm_rows(module: ModuleType) -> None:
    original = module.read_rows

    def read_rows(store: Any, fragment: Any, *args: Any, **kwargs: Any) -> Any:
        if fragment.shard.path.endswith("/deadly.parquet"):
            _kill()
        return original(store, fragment, *args, **kwargs)

    module.read_rows = read_rows


_ARMS = {"encoders.encoder": _arm_encoder, "encoders.tokenizer": _arm_tokenizer, "jobs.rows": _arm_rows}


class _Arming(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _ARMS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _ARMS[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Arming())
