"""What the pool looks like, for the start-up log and `/server_info`."""

from __future__ import annotations

import hashlib
import logging
from io import StringIO
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sglang.srt.runtime_context import get_schedule

from jenga_sglang.core.admission import longest_prompt, request_pages
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.stats import pool_stats
from jenga_sglang.core.tier_stats import host_stats

if TYPE_CHECKING:
    from jenga_sglang.adapter.kv_pool import JengaKVPool

logger = logging.getLogger(__name__)


def describe(pool: JengaKVPool) -> dict[str, Any]:
    """The facts of the start-up table and the state of every group, as plain values."""
    manager = pool.manager
    stats = pool_stats(manager)
    for group, cut in zip(stats["groups"], manager.geometry.groups, strict=True):
        group["draft_layers"] = len(pool.draft_layers & {*cut.spec.layers})
    return stats | {
        "host": host_stats(manager),
        "storage": pool.storage_stats(),
        "full_length_requests": full_length_requests(manager),
        "longest_request_tokens": longest_prompt(manager, _step_tokens(manager)) + 1,
    }


def digest(manager: Manager) -> str:
    """A hash of every page table, pin and owner, and of what has been learnt of this server: equal
    on ranks that decided alike."""
    books: list[NDArray[Any]] = []
    for memory in manager.memories:
        books += [*memory.table, memory.pins, memory.in_tree, memory.depth, memory.large.owner]
    digest = hashlib.sha256(f"{manager.changes} {manager.prices}".encode())
    for book in books:
        digest.update(book.tobytes())
    return digest.hexdigest()[:16]


def full_length_requests(manager: Manager) -> float:
    """Requests of the model's full length that fit at once while they decode, one decimal."""
    pages = request_pages(manager, manager.max_length, 1, 0)
    return _tenths(manager.geometry, pages)


def _step_tokens(manager: Manager) -> int:
    """The most tokens of one prompt that are computed in one step."""
    chunk: int | None = get_schedule().chunked_prefill_size
    return chunk if chunk and chunk > 0 else manager.max_length


def _tenths(geometry: Geometry, pages: list[int]) -> float:
    large = sum(
        n * cut.stripes / geometry.small_per_large(g)
        for g, (n, cut) in enumerate(zip(pages, geometry.groups, strict=True))
    )
    return int(10 * geometry.num_large_pages / large) / 10


def log_start(pool: JengaKVPool, *, stock_pages_bytes: int) -> None:
    """Log the table of groups and what the pool holds, next to stock pools of the same bytes.

    ``stock_pages_bytes`` is what one page of tokens takes in SGLang's pool of all layers.
    """
    facts = describe(pool)
    logger.info("Jenga memory pool\n%s", _render(facts, pool.manager, stock_pages_bytes))
    # Tools look for this line of SGLang's.
    logger.info(
        "KV Cache is allocated. dtype: %s, #tokens: %d, KV size: %.2f GB "
        "(#tokens is the most that could ever be cached; what fits is in the table above)",
        pool.dtype,
        pool.size,
        facts["pool_bytes"] / (1 << 30),
    )
    longest = facts["longest_request_tokens"]
    if longest < pool.manager.max_length:
        logger.warning(
            "The pool cannot hold one request of the model's full length (%d tokens). The longest "
            "request that fits has %d tokens, prompt and output together: longer prompts are "
            "refused, longer answers cut short. "
            "Give the pool more memory, or lower --context-length.",
            pool.manager.max_length,
            longest,
        )


def _layers(group: dict[str, Any]) -> str:
    """How many layers, and how many of them draft."""
    layers, drafting = group["layers"], group["draft_layers"]
    return f"{layers}, {drafting} of the draft" if drafting else str(layers)


def _render(facts: dict[str, Any], manager: Manager, stock_pages_bytes: int) -> str:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("group", "layers", "bytes/token", "tables", "small page", "large page", "pages"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group in facts["groups"]:
        table.add_row(
            group["name"],
            _layers(group),
            f"{group['bytes_per_token']:,}",
            str(group["stripes"]),
            human_bytes(group["small_page_bytes"]),
            human_bytes(facts["large_page_bytes"]),
            f"{group['max_pages']:,}",
        )
    text = StringIO()
    console = Console(file=text, width=100, color_system=None)
    console.print(table)
    stock_bytes = -(-manager.max_length // manager.page_size) * stock_pages_bytes
    stock = ""
    if stock_bytes:
        fits = int(10 * facts["pool_bytes"] / stock_bytes) / 10
        stock = f"; in a stock pool of the same bytes: {fits}"
    console.print(
        f"pool {facts['pool_bytes']:,} bytes ({human_bytes(facts['pool_bytes'])}), "
        f"{facts['num_large_pages']:,} large pages, pages of {facts['page_size']} tokens\n"
        f"requests of full length ({manager.max_length:,} tokens) that fit: "
        f"{facts['full_length_requests']}{stock}",
        highlight=False,
    )
    return text.getvalue().rstrip()
