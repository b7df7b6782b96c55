"""Two schedulers, one of which computes prompts and sends them to the other, over a transfer engine
of a hundred lines: SGLang's own queues, bootstrap and workers, with only the wire replaced.

`LoopbackEngine` stands where SGLang has Mooncake's engine: it writes from registered memory of one
process into registered memory of another, through a socket. It refuses what lies outside, and
counts what it sends.
"""

import contextlib
import ctypes
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from e2e.engine import Job
from e2e.stream import Request

HEADER = struct.Struct("<QQ")
START_SECONDS = 300
# What SGLang reads of the environment, on either side.
ENVIRONMENT = {"SGLANG_HOST_IP": "127.0.0.1", "MC_FORCE_TCP": "1"}


class LoopbackEngine:
    """SGLang's `MooncakeTransferEngine`, over a socket of this machine."""

    engines: ClassVar[list["LoopbackEngine"]] = []

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
        host, port = session.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), timeout=60) as peer:
                for source, target, length in zip(sources, targets, lengths, strict=True):
                    if not self._is_registered(source, length):
                        return -1
                    peer.sendall(HEADER.pack(target, length) + ctypes.string_at(source, length))
                    if peer.recv(1) != b"y":
                        return -1
                    self.sent.append((source, length))
        except OSError:
            return -1
        return 0

    def sent_bytes(self, address: int, length: int) -> int:
        """Of what was sent, the bytes out of one region."""
        return sum(n for at, n in self.sent if address <= at < address + length)

    def _is_registered(self, address: int, length: int) -> bool:
        return any(at <= address and address + length <= at + n for at, n in self.regions)

    def _accept(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(EOFError, OSError):
            while True:
                address, length = HEADER.unpack(_receive(peer, HEADER.size))
                data = _receive(peer, length)
                if not self._is_registered(address, length):
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


def replace_wire() -> None:
    """In a scheduler's process, before it is built."""
    from sglang.srt.distributed.device_communicators import mooncake_transfer_engine

    mooncake_transfer_engine.MooncakeTransferEngine = LoopbackEngine


def prepare_prefill(port: int) -> None:
    """Also starts what a prefill server's HTTP process starts."""
    from sglang.srt.disaggregation.mooncake import MooncakeKVBootstrapServer

    replace_wire()
    MooncakeKVBootstrapServer(host="127.0.0.1", port=port)


def await_prefill(scheduler: Any, *, port: int) -> None:
    """A router sends nobody to a prefill server that has not registered."""
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
    **job: Any,
) -> dict[str, Job]:
    """A prefill and a decode server of the same ``flags``, both sent the same ``requests``."""
    port = free_port()
    both = {
        **flags,
        "disaggregation_transfer_backend": "mooncake_tcp",
        "disaggregation_bootstrap_port": port,
    }
    job["env"] = {**ENVIRONMENT, **job.get("env", {})}
    lengths = [len(request.prompt) for request in requests]
    return {
        "prefill": Job(
            {**both, "disaggregation_mode": "prefill", **(prefill or {})},
            requests,
            prepare=partial(prepare_prefill, port),
            after=partial(traffic, lengths=lengths),
            bootstrap_port=port,
            logprobs=False,
            **job,
        ),
        "decode": Job(
            {**both, "disaggregation_mode": "decode", **(decode or {})},
            requests,
            prepare=replace_wire,
            before=partial(await_prefill, port=port),
            bootstrap_port=port,
            logprobs=False,
            **job,
        ),
    }
