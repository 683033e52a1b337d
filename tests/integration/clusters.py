"""A Ray cluster on this machine, its nodes as `ray start` makes them, with a Jobs API that wants a token.

`ray stop` ends every Ray of a machine, so it is not for a test. Here all that a cluster has started, directly or not,
is known by a mark in its environment and ended by its process id.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil

from tests.integration.commands import REPOSITORY, Outcome, Room, finish, room, start

RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
NUM_NODES = 2
_MARK = "TASKVEC_TEST_CLUSTER"
_START_SECONDS = 180.0
# Ray refuses more; a single one of the folders that stay behind would be too much.
_MOST_UPLOADED_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and all that a client needs.

    Attributes:
        address: Of the Jobs API.
        gcs_address: What a driver connects to.
        token: What the cluster lets in.
        working_dir: A copy of the project; no process of the cluster finds its code without a job that brings it.
        environment: Of the cluster and of its clients.
        room: Folders of all of them.
    """

    address: str
    gcs_address: str
    token: str
    working_dir: Path
    environment: Mapping[str, str]
    room: Room
    nodes: list[subprocess.Popen[bytes]]
    _stack: ExitStack

    def ray(self, *arguments: str, cwd: Path | None = None, timeout: float = 280) -> Outcome:
        """Run Ray's own command line; it has ended when this returns."""
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        return finish(start([RAY, *arguments], cwd or self.room.elsewhere[2], environment), timeout)

    def submit(self, submission_id: str, command: list[str], *options: str) -> Outcome:
        """`ray job submit --working-dir .`; waits for the job's end unless the options say otherwise."""
        upload = ["--submission-id", submission_id, "--working-dir", "."]
        return self.ray("job", "submit", *upload, *options, "--", *command, cwd=self.working_dir)

    def job(self, submission_id: str) -> dict[str, Any]:
        """What the Jobs API says of a job."""
        found: dict[str, Any] = self.get(f"/api/jobs/{submission_id}")
        return found

    def get(self, path: str) -> Any:
        """An answer of the dashboard's HTTP API."""
        request = Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def listed(self, what: str, **only: str) -> list[dict[str, Any]]:
        """What the state API lists: `actors`, `tasks` or `nodes`, those that have these values."""
        query = [("detail", "1"), ("limit", "10000")]
        for key, value in only.items():
            query += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
        found: list[dict[str, Any]] = self.get(f"/api/v0/{what}?{urlencode(query)}")["data"]["result"][
            "result"
        ]
        return found

    def join(self, name: str, num_cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start one more node, and wait until it is there."""
        num_nodes = len(self.alive_nodes())
        node = _start(self, name, ["--address", self.gcs_address], num_cpus)
        _wait(lambda: len(self.alive_nodes()) == num_nodes + 1, self)
        return node

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node's raylet: with it go its workers and its objects. The cluster finds out by itself."""
        raylets = [one for one in psutil.Process(node.pid).children(recursive=True) if one.name() == "raylet"]
        assert len(raylets) == 1
        raylets[0].kill()

    def workers(self, title: str) -> list[psutil.Process]:
        """The worker processes whose title holds a text, of all nodes."""
        found = []
        for node in self.nodes:
            with suppress(psutil.Error):
                found += psutil.Process(node.pid).children(recursive=True)
        return [one for one in found if title in title_of(one)]

    def alive_nodes(self) -> set[str]:
        """Ids of the nodes that are up."""
        return {node["node_id"] for node in self.listed("nodes") if node["state"] == "ALIVE"}


@contextmanager
def cluster_of(num_cpus: int, more: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start a cluster of one node, which others may join, and end all of it afterwards.

    Its processes find no code but that which a job brings, unless `more` of an environment says where.
    """
    mark = secrets.token_hex(16)
    with ExitStack() as stack:
        where = stack.enter_context(room())
        stack.callback(_end_marked, mark)
        gcs_port, dashboard_port, client_port = _free_ports(3)
        environment = where.environment({"RAY_AUTH_MODE": "token", _MARK: mark})
        del environment["PYTHONPATH"]
        environment |= more or {}
        cluster = Cluster(
            address=f"http://127.0.0.1:{dashboard_port}",
            gcs_address=f"127.0.0.1:{gcs_port}",
            token=_token(where),
            working_dir=_working_dir(where),
            environment=environment,
            room=where,
            nodes=[],
            _stack=stack,
        )
        head = ["--head", "--port", str(gcs_port), "--ray-client-server-port", str(client_port)]
        head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
        _start(cluster, "head", head, num_cpus)
        _wait(lambda: len(cluster.alive_nodes()) == 1, cluster)
        yield cluster


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Start a cluster of two nodes with a core each, and end all of it afterwards."""
    with cluster_of(num_cpus=1) as cluster:
        cluster.join("other")
        yield cluster


def title_of(process: psutil.Process) -> str:
    """What a process calls itself, "" once it has ended: Ray's workers by their class, and by their method at work."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _token(where: Room) -> str:
    """As `ray get-auth-token --generate` makes it, but for nobody else to read."""
    token = secrets.token_hex(32)
    path = where.elsewhere[0] / ".ray" / "auth_token"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(token)
    return token


def _working_dir(where: Room) -> Path:
    """The files of a clone, and beside them what lies there once it was worked with, more than Ray would take."""
    path = where.path / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():  # not one that was removed and not committed
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, path / name)
    for folder in (".git", ".venv", "demo", "corpus", "vectors", "jobs/__pycache__"):
        (path / folder).mkdir(parents=True, exist_ok=True)
        with (path / folder / "large.bin").open("wb") as file:
            file.truncate(_MOST_UPLOADED_BYTES)
    return path


def _start(cluster: Cluster, name: str, options: list[str], num_cpus: int) -> subprocess.Popen[bytes]:
    """Start one node; `--block` keeps it in the foreground, so it ends with its process."""
    (agent_port,) = _free_ports(1)
    node = ["--block", "--node-ip-address", "127.0.0.1", "--num-cpus", str(num_cpus), "--disable-usage-stats"]
    node += ["--object-store-memory", str(100 * 2**20)]
    # Ray's fixed numbers would meet those of the other node, or of another Ray.
    node += [
        "--dashboard-agent-listen-port",
        str(agent_port),
        "--min-worker-port",
        "0",
        "--max-worker-port",
        "0",
    ]
    log = cluster._stack.enter_context((cluster.room.path / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        [RAY, "start", *options, *node],
        cwd=cluster.room.elsewhere[2],
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    cluster._stack.callback(_end, process)
    cluster.nodes.append(process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_marked(mark: str) -> None:
    """End what is left of a cluster: its jobs, its workers, and what did not end with its node."""
    while left := _marked(mark):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def _marked(mark: str) -> list[int]:
    """Ids of the processes that carry the mark (where there is a /proc to look at)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that a kernel hands out to whoever asks for any.

    The Ray of a test beside this one asks for many, and would get one of these before its node listens there.
    """
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("", port)):
            found += [port] if port not in found else []
    return found


def _wait(is_ready: Callable[[], bool], cluster: Cluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if is_ready():
                return
        except OSError:  # nobody listens yet
            pass
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text()[-2000:] for path in cluster.room.path.glob("*.log")}
            raise TimeoutError(f"the cluster did not start in {_START_SECONDS} s: {logs}")
        time.sleep(0.5)
