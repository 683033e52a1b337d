"""A cluster that this machine only pretends to be: real nodes of Ray, GPUs that are numbers, encoders that sleep."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import ray
from ray._private import services
from ray.cluster_utils import Cluster

SPARE_CPUS = 4  # of each node, beside one for each encoder: for readers and writers


@contextlib.contextmanager
def cluster(nodes: int, gpus: int) -> Iterator[Callable[[], str]]:
    """Ray nodes on this machine; gives what adds one more and says its id."""
    started = time.monotonic()
    # Only this machine reaches it: who reaches a Ray without a token runs code there.
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": 150 * 2**20}
    size = {"num_cpus": gpus + SPARE_CPUS, "num_gpus": gpus, **common}
    # Ray would take 127.0.0.1 for the address of its network card.
    services.get_node_ip_address = lambda *_: "127.0.0.1"
    head = {"num_cpus": 0, "include_dashboard": False, **common}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            made.add_node(wait=False, **size)
        made.wait_for_nodes()
        ray.init(
            address=made.address,
            _node_ip_address="127.0.0.1",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        print(f"cluster ready after {time.monotonic() - started:.1f} s", flush=True)
        yield lambda: str(made.add_node(**size).node_id)
    finally:
        ray.shutdown()
        made.shutdown()


def sleeping(seconds_per_token: float, dim: int) -> type:
    """The encoder's actor with a forward pass that sleeps."""

    class Sleeping:
        def __init__(self, run: bytes) -> None:
            self._born = time.time()
            # In this process only, and before the stage imports them: they import torch, of which 64 do not fit here.
            for name, content in stand_ins(seconds_per_token, dim).items():
                sys.modules[name] = content
            from jobs.encode import EncodeFragment

            self._stage = EncodeFragment(pickle.loads(run))
            self._node = ray.get_runtime_context().get_node_id()

        def __call__(self, row: pa.Table) -> pa.Table:
            began = time.time()
            encoded = self._stage(row)
            for name, value in (("node", self._node), ("born", self._born), ("began", began)):
                encoded = encoded.append_column(name, [[value]])
            return encoded

    return Sleeping


def stand_ins(seconds_per_token: float, dim: int) -> dict[str, ModuleType]:
    """What the encoder's stage imports of torch, without torch."""
    import numpy as np

    vectors = np.random.default_rng(0).standard_normal((1, dim), np.float32)
    nothing = np.empty(0, np.int64)

    class Encoder:
        adapter = None
        budget_halved = False
        shares_threads = False
        why_padded = ""
        device = SimpleNamespace(type="cpu")
        number_format = "float32"
        max_batch_tokens = 2048

        @classmethod
        def load(cls, *_: Any, **__: Any) -> Encoder:
            return cls()

        def use_adapter(self, _: str | None) -> None:
            pass

        def encode_what_fits(self, texts: Any) -> Any:
            time.sleep(seconds_per_token * len(texts.token_ids))
            made = np.repeat(vectors, len(texts.lengths), axis=0)
            return SimpleNamespace(vectors=made, num_padding=0, lost=nothing)

    class Proof:
        cosine, compared_with, is_open = 1.0, "", False

        def __init__(self, _: Encoder) -> None:
            pass

    def module(name: str, **members: object) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(members)
        return made

    modules = (
        module("encoders.encoder", Encoder=Encoder, Encoded=SimpleNamespace),
        module(
            "encoders.finishing",
            cast=lambda vectors, precision: vectors.astype(precision),
            unstorable=lambda *_: nothing,
        ),
        module("encoders.preflight", Preflight=Proof),
    )
    return {one.__name__: one for one in modules}
