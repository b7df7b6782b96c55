"""Sending KV to another server without a device: SGLang's mooncake, prefill side.

Where it waits for a device it asks CUDA by name, for events and for pinned memory. Here a step has
ended when its function returns, so there is nothing to wait for.
"""

from __future__ import annotations

import functools
from typing import Any

from jenga_sglang.platform.late import after_import


def install() -> None:
    after_import("sglang.srt.disaggregation.mooncake.conn", index_on_host)
    after_import("sglang.srt.disaggregation.prefill", send_early)


def index_on_host(module: Any) -> None:
    """Page numbers are made on the host, not copied there from a device as it computes."""
    module.MooncakeKVSender.supports_host_tensor_indices = False


def send_early(module: Any) -> None:
    """A cached prefix is sent before the rest is computed, and waits for no event."""
    mixin = module.SchedulerDisaggregationPrefillMixin
    original = mixin.maybe_send_cached_prefix_chunk

    @functools.wraps(original)
    def send(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        overlap, scheduler.enable_overlap = scheduler.enable_overlap, False
        try:
            original(scheduler, *args, **kwargs)
        finally:
            scheduler.enable_overlap = overlap

    mixin.maybe_send_cached_prefix_chunk = send
