"""What copies between the tiers on a GPU take for granted about SGLang."""

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path

from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.pool_host.common import HostTensorAllocator, alloc_with_host_register
from sglang.srt.model_executor.model_runner import ModelRunner


def test_the_kernel_takes_pages_of_two_tensors() -> None:
    """Read, not imported: without CUDA it cannot be."""
    package = find_spec("sgl_kernel")
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "kvcacheio.py").read_text()
    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "transfer_kv_per_layer_mla"
    ]
    names = [argument.arg for argument in function.args.args]
    assert names[:6] == [
        *("src", "dst", "src_indices", "dst_indices"),
        *("item_size", "block_quota"),
    ]


def test_host_memory_is_registered_by_sglang() -> None:
    parameters = inspect.signature(alloc_with_host_register).parameters
    assert list(parameters)[:5] == ["dims", "dtype", "device", "pin_memory", "allocator"]
    assert inspect.signature(HostTensorAllocator).parameters == {}


def test_overlapped_steps_run_on_the_forward_stream_and_others_on_the_current_one() -> None:
    assert "self.forward_stream = " in inspect.getsource(ModelRunner)
    source = inspect.getsource(Scheduler.run_batch)
    assert source.count("with self.forward_stream_ctx:") == source.count("if self.enable_overlap:")
    assert "not get_schedule().disable_overlap_schedule" in inspect.getsource(Scheduler)
