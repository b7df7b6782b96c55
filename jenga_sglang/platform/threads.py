"""Which cores each rank computes on."""

import logging
import os

logger = logging.getLogger(__name__)

BIND_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"
THREADS_VARIABLE = "OMP_NUM_THREADS"


def share_cores(num_ranks: int) -> None:
    """Share the cores between ranks, through the environment that workers inherit.

    Left alone, SGLang gives every rank one NUMA node and refuses more ranks than nodes, and every
    rank's torch starts a thread per core of the machine. A user's own setting stands.
    """
    if num_ranks <= 1:
        return
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault(BIND_VARIABLE, core_groups(cores, num_ranks))
    os.environ.setdefault(THREADS_VARIABLE, str(max(1, len(cores) // num_ranks)))
    for variable in (BIND_VARIABLE, THREADS_VARIABLE):
        logger.info("%s=%s", variable, os.environ[variable])


def core_groups(cores: list[int], num_ranks: int) -> str:
    """Return the cores cut into equal consecutive groups, written as SGLang reads them.

    Spare cores stay unused and a rank never has none: with fewer cores than ranks they repeat.
    `core_groups([0, 1, 2, 3], 2) == "0,1|2,3"`, `core_groups([0], 2) == "0|0"`.
    """
    share = max(1, len(cores) // num_ranks)
    groups = [
        [cores[(rank * share + index) % len(cores)] for index in range(share)]
        for rank in range(num_ranks)
    ]
    return "|".join(",".join(map(str, group)) for group in groups)
