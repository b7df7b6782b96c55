"""The hash that seeds a draw, against SGLang's kernel."""

import torch
from sglang.kernels.ops.sampling.murmur_hash import murmur_hash32_kernel

from jenga_sglang.platform.seeded_draws import murmur_hash32


def test_the_hash_is_that_of_the_kernel() -> None:
    seeds = torch.tensor([0, 7, 42, (1 << 32) + 5, (1 << 63) - 1], dtype=torch.int64)
    positions = torch.tensor([0, 1, 150, 9, 131_071])
    columns = torch.arange(300)
    expected = torch.empty((5, 300), dtype=torch.int64)
    murmur_hash32_kernel[(5, 1)](seeds, positions, columns, expected, 5, 300, BLOCK_SIZE=512)
    assert murmur_hash32(seeds.to(torch.uint64), positions, columns).tolist() == [
        [value & 0xFFFFFFFF for value in row] for row in expected.tolist()
    ]
