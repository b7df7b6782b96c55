"""Sending KV without a device: no CUDA event, no pinned memory, and the early send still sends."""

from types import SimpleNamespace
from typing import Any

from jenga_sglang.platform.transfer import index_on_host, send_early


def test_page_numbers_are_on_the_host_already() -> None:
    module = SimpleNamespace(MooncakeKVSender=type("S", (), {"supports_host_tensor_indices": True}))
    index_on_host(module)
    assert module.MooncakeKVSender.supports_host_tensor_indices is False


def test_a_cached_prefix_is_sent_as_if_nothing_overlapped() -> None:
    class Mixin:
        enable_overlap = True
        seen: Any = None

        def maybe_send_cached_prefix_chunk(self, req: Any, allow_send: bool = True) -> None:
            self.seen = (req, allow_send, self.enable_overlap)
            if req == "broken":
                raise ValueError

    send_early(SimpleNamespace(SchedulerDisaggregationPrefillMixin=Mixin))
    scheduler = Mixin()
    scheduler.maybe_send_cached_prefix_chunk("req", allow_send=False)
    assert scheduler.seen == ("req", False, False)
    assert scheduler.enable_overlap
    try:
        scheduler.maybe_send_cached_prefix_chunk("broken")
    except ValueError:
        assert scheduler.enable_overlap
    else:
        raise AssertionError
