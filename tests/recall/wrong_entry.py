"""A deliberate fault: the full group reads one page of every history from elsewhere."""

from collections.abc import Callable
from typing import Any

# The entry that is wrong, and the one whose page it names instead.
WRONG_PAGE, OTHER_PAGE = 6, 1


def misread_one_page(scheduler: Any) -> None:
    """Make entry ``WRONG_PAGE`` of every page table of the full group name another page.

    Only what is read: new tokens still go where they belong, so that nothing but the entry is
    wrong.
    """
    from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend

    for name in ("_row_blocks", "_decode_buckets"):
        setattr(JengaTorchBackend, name, _reads_wrongly(getattr(JengaTorchBackend, name)))


def _reads_wrongly(method: Callable[..., Any]) -> Callable[..., Any]:
    def read(backend: Any, *args: Any) -> Any:
        pool, real = backend.pool, backend.pool.small_pages

        def small_pages(group: int, stripe: int, virtual: Any) -> Any:
            small = real(group, stripe, virtual)
            if str(pool.manager.dependencies[group]) == "full" and len(small) > WRONG_PAGE:
                small = small.copy()
                small[WRONG_PAGE] = small[OTHER_PAGE]
            return small

        pool.small_pages = small_pages
        try:
            return method(backend, *args)
        finally:
            del pool.small_pages

    return read
