"""Questions about the machine, as they are answered on one with an NVIDIA GPU or none."""

import torch


def is_cuda() -> bool:
    return torch.cuda.is_available()


def is_hip() -> bool:
    return False


is_gfx95_supported = is_gfx1250_supported = is_hip


def get_device_core_count(device_id: int = 0) -> int:
    if not torch.cuda.is_available():
        return 0
    count: int = torch.cuda.get_device_properties(device_id).multi_processor_count
    return count


def get_cuda_graph_max_batch_size(max_batch_size: int) -> int:
    return max_batch_size
