"""Two schedulers, one of which computes prompts and sends them to the other, over a transfer engine
of a hundred lines: SGLang's own queues, bootstrap and workers, with only the wire replaced.

`LoopbackEngine` stands where SGLang has Mooncake's engine: it writes from registered memory of one
process into registered memory of another, through a socket. It refuses what lies outside, and
counts what it sends.
"""

import contextlib
import ctypes
import http.client
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from e2e.engine import Job
from e2e.stream import Request

logger = logging.getLogger(__name__)

HEADER = struct.Struct("<QQ")
START_SECONDS = 300
# What SGLang reads of the environment, on either side.
ENVIRONMENT = {"SGLANG_HOST_IP": "127.0.0.1", "MC_FORCE_TCP": "1"}


class LoopbackEngine:
    """SGLang's `MooncakeTransferEngine`, over a socket of this machine."""

    engines: ClassVar[list["LoopbackEngine"]] = []
    # A wire that takes so long for every call, and dies in the middle of an item, its process with
    # it, when so many have been sent or received.
    seconds: ClassVar[float] = 0
    items_to_death: ClassVar[int | None] = None

    def __init__(self, hostname: str, gpu_id: int | None = None, ib_device: str | None = None):
        self.hostname, self.gpu_id, self.ib_device = hostname, gpu_id, ib_device
        self.regions: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []  # source addresses and lengths
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        self.engines.append(self)

    def get_session_id(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def get_ib_device(self) -> str | None:
        return self.ib_device

    def batch_register(self, ptrs: list[int], lengths: list[int]) -> int:
        self.regions += zip(ptrs, lengths, strict=True)
        return 0

    def batch_deregister(self, ptrs: list[int]) -> int:
        self.regions = [region for region in self.regions if region[0] not in ptrs]
        return 0

    def send_probe(self, session: str) -> int:
        return 0

    def batch_transfer_sync(
        self, session: str, sources: list[int], targets: list[int], lengths: list[int]
    ) -> int:
        """Write to the peer of ``session``; 0, or -1 where it did not take all of it."""
        time.sleep(self.seconds)
        host, port = session.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), timeout=60) as peer:
                for source, target, length in zip(sources, targets, lengths, strict=True):
                    if not self._is_registered(source, length):
                        logger.error("not registered to be sent: %d bytes at %d", length, source)
                        return -1
                    item = HEADER.pack(target, length) + ctypes.string_at(source, length)
                    if self._is_last():
                        peer.sendall(item[: len(item) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    peer.sendall(item)
                    if peer.recv(1) != b"y":
                        return -1
                    self.sent.append((source, length))
        except OSError:
            logger.exception("nothing is taken by %s", session)
            return -1
        return 0

    def sent_bytes(self, address: int, length: int) -> int:
        """Of what was sent, the bytes out of one region."""
        return sum(n for at, n in self.sent if address <= at < address + length)

    def _is_registered(self, address: int, length: int) -> bool:
        return any(at <= address and address + length <= at + n for at, n in self.regions)

    @classmethod
    def _is_last(cls) -> bool:
        if cls.items_to_death is None:
            return False
        cls.items_to_death -= 1
        return cls.items_to_death < 0

    def _accept(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(EOFError, OSError):
            while True:
                address, length = HEADER.unpack(_receive(peer, HEADER.size))
                if self._is_last():
                    _receive(peer, length // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                data = _receive(peer, length)
                if not self._is_registered(address, length):
                    logger.error("not registered to be received: %d bytes at %d", length, address)
                    peer.sendall(b"n")
                    return
                ctypes.memmove(address, data, length)
                peer.sendall(b"y")


def _receive(peer: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = peer.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


@dataclass(frozen=True)
class Wire:
    """What of `LoopbackEngine` may be otherwise."""

    seconds: float = 0
    items_to_death: int | None = None


def replace_wire(wire: Wire = Wire()) -> None:
    """In a scheduler's process, before it is built."""
    from sglang.srt.distributed.device_communicators import mooncake_transfer_engine

    mooncake_transfer_engine.MooncakeTransferEngine = LoopbackEngine
    LoopbackEngine.seconds, LoopbackEngine.items_to_death = wire.seconds, wire.items_to_death


def prepare_prefill(port: int, wire: Wire = Wire()) -> None:
    """Also starts what a prefill server's HTTP process starts."""
    from sglang.srt.disaggregation.mooncake import MooncakeKVBootstrapServer

    replace_wire(wire)
    MooncakeKVBootstrapServer(host="127.0.0.1", port=port)


def await_prefills(scheduler: Any, *, ports: Sequence[int]) -> None:
    """A router sends nobody to a prefill server that has not registered."""
    for port in ports:
        await_prefill(port)


def await_prefill(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    path = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.2)
    raise AssertionError("the prefill server never registered")


@dataclass(frozen=True)
class Traffic:
    """Bytes out of the pool that a prefill server sent, and what `needed` says that they are."""

    sent_bytes: int
    needed_bytes: int


def traffic(scheduler: Any, *, lengths: list[int]) -> Traffic:
    """Of a prefill server that has sent prompts of these ``lengths``."""
    from jenga_sglang.adapter.kv_pool import JengaKVPool
    from jenga_sglang.core.ranges import page_ranges

    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    (engine,) = LoopbackEngine.engines
    if not isinstance(pool, JengaKVPool):
        ptrs, lens, _ = pool.get_contiguous_buf_infos()
        regions = zip(ptrs, lens, strict=True)
        return Traffic(sum(engine.sent_bytes(*region) for region in regions), 0)
    needed = 0
    geometry = pool.manager.geometry
    for cut, dependency in zip(geometry.groups, pool.manager.dependencies, strict=True):
        for length in lengths:
            ranges = page_ranges(dependency.needed(length), geometry.page_size)
            needed += sum(r.size for r in ranges) * cut.page_bytes
    return Traffic(engine.sent_bytes(pool.buffer.data_ptr(), pool.buffer.numel()), needed)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def pair_jobs(
    flags: dict[str, Any],
    requests: list[Request],
    *,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    wire: Wire = Wire(),
    aborts_in: Mapping[str, Mapping[int, str]] | None = None,
    **job: Any,
) -> dict[str, Job]:
    """A prefill and a decode server of the same ``flags``, both sent the same ``requests``.
    ``aborts_in`` are those of one of the two, by name."""
    port, aborts_in = free_port(), aborts_in or {}
    lengths = [len(request.prompt) for request in requests]
    both = _flags(flags, port)
    job["env"] = {**ENVIRONMENT, **job.get("env", {})}
    return {
        "prefill": Job(
            {**both, "disaggregation_mode": "prefill", **(prefill or {})},
            requests,
            prepare=partial(prepare_prefill, port, wire),
            after=partial(traffic, lengths=lengths),
            bootstrap_ports=[port],
            logprobs=False,
            aborts_in=aborts_in.get("prefill", {}),
            **job,
        ),
        "decode": Job(
            {**both, "disaggregation_mode": "decode", **(decode or {})},
            requests,
            prepare=replace_wire,
            before=partial(await_prefills, ports=[port]),
            bootstrap_ports=[port],
            logprobs=False,
            aborts_in=aborts_in.get("decode", {}),
            **job,
        ),
    }


# Servers that wait for one that is gone give up soon.
IMPATIENT = {
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "1",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "40",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "40",
    "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT": "5",
}


def jobs_of_which_one_dies(
    flags: dict[str, Any], requests: list[Request], *, mode: str, items: int
) -> dict[str, Job]:
    """Two servers of one ``mode``, "doomed" and "spare", with every other request each, and "other"
    that serves both. The doomed one is killed in the middle of an item, after so many."""
    env = ENVIRONMENT | IMPATIENT
    dying, wire = Wire(items_to_death=items), Wire()
    halves = {"doomed": range(0, len(requests), 2), "spare": range(1, len(requests), 2)}
    ports = {"doomed": free_port(), "spare": free_port()}
    jobs = {}
    if mode == "prefill":
        for name, numbers in halves.items():
            prepare = partial(prepare_prefill, ports[name], dying if name == "doomed" else wire)
            jobs[name] = _job(flags, requests, numbers, "prefill", [ports[name]], prepare, env)
        everything, both = range(len(requests)), list(ports.values())
        jobs["other"] = _job(flags, requests, everything, "decode", both, replace_wire, env)
        return jobs
    port = ports["doomed"]
    for name, numbers in halves.items():
        prepare = partial(replace_wire, dying if name == "doomed" else wire)
        jobs[name] = _job(flags, requests, numbers, "decode", [port], prepare, env)
    prepare = partial(prepare_prefill, port)
    everything = range(len(requests))
    jobs["other"] = _job(flags, requests, everything, "prefill", [port], prepare, env)
    return jobs


def _job(
    flags: dict[str, Any],
    requests: Sequence[Request],
    numbers: Sequence[int],
    mode: str,
    ports: Sequence[int],
    prepare: Callable[[], None],
    env: dict[str, str],
) -> Job:
    return Job(
        {**_flags(flags, ports[0]), "disaggregation_mode": mode},
        [requests[number] for number in numbers],
        prepare=prepare,
        before=partial(await_prefills, ports=ports) if mode == "decode" else None,
        bootstrap_ports=ports,
        rooms=numbers,
        logprobs=False,
        env=env,
    )


def _flags(flags: dict[str, Any], port: int) -> dict[str, Any]:
    return {
        **flags,
        "disaggregation_transfer_backend": "mooncake_tcp",
        "disaggregation_bootstrap_port": port,
    }
