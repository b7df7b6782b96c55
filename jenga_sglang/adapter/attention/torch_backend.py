"""Attention in plain torch over group page tables: any number of groups, on any device.

The reference for the kernels, and the backend of machines without a GPU. Page tables are read on
the host when a batch is launched and travel with it, so a later batch may change them freely.

Nothing outside a request's own written tokens is ever multiplied: rows of a gathered page that
hold no token of the history may be another tenant's bits, and 0 · NaN is NaN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from torch.nn.functional import scaled_dot_product_attention

from jenga_sglang import flags
from jenga_sglang.adapter.attention.drafts import Tree, trees_of
from jenga_sglang.adapter.attention.latent_rows import attend_over_rows, has_latent_rows
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.whole_images import images_of_batch
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.ranges import Range
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

# Queries of one prefill that share a gather and a mask. The most bounds the mask's size; fewer
# are taken where each reads little, since a block computes every query against all its keys.
MOST_QUERIES = 512
FEWEST_QUERIES = 128


@dataclass(frozen=True)
class Row:
    """One request of a batch: tokens ``[start, stop)`` are new, their queries run now. Drafts that
    do not follow one another, as tokens do, are a ``tree``. ``images`` are those of the text, in
    order, whose tokens read one another."""

    virtual: Ids
    start: int
    stop: int
    tree: Tree | None = None
    images: tuple[Range, ...] = ()


@dataclass(frozen=True)
class QueryBlock:
    """Queries ``[q_start, q_stop)`` of the batch against the tokens in some pages.

    ``pages`` (n,) int64 small pages; ``skip`` and ``keep`` cut the gathered tokens to
    ``[skip, skip + keep)``; ``mask`` (queries, keep) bool, or None for plain causal order.
    """

    q_start: int
    q_stop: int
    pages: torch.Tensor
    skip: int
    keep: int
    mask: torch.Tensor | None


class DecodeMember(NamedTuple):
    """One request of a bucket: its number in the batch, the small pages that hold its tokens
    ``[base, stop)``, and which of those tokens its query reads."""

    number: int
    pages: Ids
    visible: tuple[Range, ...]
    base: int
    stop: int


@dataclass(frozen=True)
class DecodeBucket:
    """Requests with histories of like length, padded to one: ``rows`` (B,), ``pages`` (B, n),
    ``mask`` (B, 1, 1, n * page_size) bool, ``unwritten`` flat token positions to blank."""

    rows: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor
    unwritten: torch.Tensor


@dataclass(frozen=True)
class Part:
    """The text of a batch's requests, or what an encoder made of their images, and where the new
    tokens of it go: ``virtual`` (tokens,) pages and ``slots`` (tokens,) places in them."""

    rows: list[Row]
    virtual: Ids
    slots: torch.Tensor
    of_encoder: bool = False

    @property
    def num_queries(self) -> int:
        return sum(row.stop - row.start for row in self.rows)


@dataclass
class BatchPlan:
    """What one forward pass reads and writes; built once, used by every layer. ``encoder`` is
    there for models with cross-attention."""

    text: Part
    encoder: Part | None
    decode: bool
    pages: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    blocks: dict[tuple[int, int], list[QueryBlock]] = field(default_factory=dict)
    buckets: dict[tuple[int, int], list[DecodeBucket]] = field(default_factory=dict)

    def part(self, layer: RadixAttention) -> Part:
        """What ``layer`` attends to."""
        if not layer.is_cross_attention:
            return self.text
        return present(self.encoder, "cross-attention in a batch that no encoder has a part in")


class JengaTorchBackend(AttentionBackend):
    """`--attention-backend jenga_torch`. One that serves a step of a draft model reads ``drafted``
    tokens behind those that there are for good, the step's own among them."""

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        super().__init__()
        self.drafted = drafted
        pool = runner.token_to_kv_pool
        if not isinstance(pool, JengaKVPool):
            raise refuse(
                f"--attention-backend {flags.TORCH_BACKEND}",
                f"reads Jenga pages only; add {flags.FLAG} jenga, or choose another",
            )
        self.pool = self.token_to_kv_pool = pool
        self.device = runner.device
        self.page_size = pool.page_size
        self._plan: BatchPlan | None = None
        if has_latent_rows(pool):
            attend_over_rows(flags.TORCH_BACKEND)

    def support_triton(self) -> bool:
        return False

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        # What ranks of data-parallel attention are padded to each other with. As in the kernels'
        # backends; what a request that is padding reads is nobody's.
        return 1

    # Where SGLang runs on its own engine for CPUs it asks by this name.
    get_cpu_graph_seq_len_fill_value = get_cuda_graph_seq_len_fill_value

    # -- once a batch -------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        self.pool.poison_freed()
        if forward_batch.forward_mode.is_idle():
            self._plan = None
            return
        decode = forward_batch.forward_mode.is_decode()
        starts, stops = self._new_tokens(forward_batch)
        indices = _host_list(forward_batch.req_pool_indices_cpu, forward_batch.req_pool_indices)
        trees: Sequence[Tree | None] = [None] * len(indices)
        if forward_batch.forward_mode.is_target_verify():
            trees = trees_of(forward_batch.spec_info, starts)
        images = images_of_batch(self.pool.whole_images, forward_batch, starts, stops)
        batch = list(zip(indices, starts, stops, trees, images, strict=True))
        # Without a request is padding, or everything: a warm-up.
        requests = [entry for entry in batch if entry[0] in self.pool.running_of_row]
        rows = [
            Row(self._virtual(index, stop), start, stop, tree, seen)
            for index, start, stop, tree, seen in requests or batch
        ]
        encoder = None
        if forward_batch.encoder_lens is not None:
            encoder = self._part(self._encoder_rows(forward_batch, indices), of_encoder=True)
        self._plan = BatchPlan(self._part(rows), encoder, decode)

    def _new_tokens(self, forward_batch: ForwardBatch) -> tuple[list[int], list[int]]:
        """From where and to where the batch computes each request. Of drafts that are verified,
        and while a draft model makes them, SGLang gives the lengths without them."""
        lengths = _host_list(forward_batch.seq_lens_cpu, forward_batch.seq_lens)
        if forward_batch.forward_mode.is_target_verify():
            drafts = forward_batch.spec_info.draft_token_num
            return lengths, [length + drafts for length in lengths]
        if forward_batch.forward_mode.is_decode():
            stops = [length + self.drafted for length in lengths]
            return [stop - 1 for stop in stops], stops
        prefixes = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_prefix_lens
        return _host_list(*prefixes), lengths

    def _encoder_rows(self, forward_batch: ForwardBatch, indices: Sequence[int]) -> list[Row]:
        """What layers with cross-attention read; new where it is not cached."""
        lengths = _host_list(forward_batch.encoder_lens_cpu, forward_batch.encoder_lens)
        cached = forward_batch.encoder_cached or [True] * len(lengths)
        return [
            Row(self._virtual(index, length, of_encoder=True), length if known else 0, length)
            for index, length, known in zip(indices, lengths, cached, strict=True)
        ]

    def _part(self, rows: list[Row], *, of_encoder: bool = False) -> Part:
        positions = [np.arange(r.start, r.stop) for r in rows]
        virtual = [r.virtual[p // self.page_size] for r, p in zip(rows, positions, strict=True)]
        slots = np.concatenate(positions) % self.page_size
        return Part(rows, np.concatenate(virtual), self._to_device(slots), of_encoder)

    def _virtual(self, row: int, length: int, *, of_encoder: bool = False) -> Ids:
        """The pages of ``length`` tokens of a request's text, or of an encoder's before it."""
        pages = -(-length // self.page_size)
        running = self.pool.running_of_row.get(row)
        # Dummy batches (warm-up) have no request: they write to and read from the null page.
        if running is None:
            return np.zeros(pages, np.int64)
        first = 0 if of_encoder else running.encoder_pages
        return running.row[first : first + pages]

    # -- once a layer -------------------------------------------------------------------------

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        return self._forward(q, k, v, layer, save_kv_cache, kwargs.get("sinks"))

    forward_decode = forward_extend

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        save_kv_cache: bool,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        plan = present(self._plan, "init_forward_metadata has not run for this batch")
        place = self.pool.place[layer.layer_id]
        key = (place.group, place.stripe)
        part = plan.part(layer)
        if save_kv_cache and k is not None and v is not None:
            if key not in plan.pages:
                small = self.pool.small_pages(*key, part.virtual)
                plan.pages[key] = self._to_device(small)
            count = len(part.slots)
            self.pool.write(layer.layer_id, plan.pages[key], part.slots, k[:count], v[:count])
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        # Zeros for what reads nothing: padding, and a request without an image in cross-attention.
        is_padded = len(q) > plan.text.num_queries
        new = q.new_zeros if layer.is_cross_attention or is_padded else q.new_empty
        out = new((q.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        self._attend(q, out, layer, plan, sinks)
        return out.view(q.shape[0], -1)

    def _attend(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: RadixAttention,
        plan: BatchPlan,
        sinks: torch.Tensor | None,
    ) -> None:
        """Fill out (tokens, Hq, Dv) with the attention of q (tokens, Hq, D), but for padding."""
        place = self.pool.place[layer.layer_id]
        key = (place.group, place.stripe)
        part = plan.part(layer)
        if plan.decode:
            if key not in plan.buckets:
                plan.buckets[key] = self._decode_buckets(part, key)
            self._run_decode(q, out, layer, plan.buckets[key], sinks)
        else:
            if key not in plan.blocks:
                plan.blocks[key] = self._query_blocks(plan.text, part, key)
            self._run_extend(q, out, layer, plan.blocks[key], sinks)

    def _run_extend(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: RadixAttention,
        blocks: Sequence[QueryBlock],
        sinks: torch.Tensor | None,
    ) -> None:
        k_pages, v_pages = self.pool.get_kv_buffer(layer.layer_id)
        for block in blocks:
            window = slice(block.skip, block.skip + block.keep)
            k = k_pages.index_select(0, block.pages).flatten(0, 1)[window].to(q.dtype)
            v = v_pages.index_select(0, block.pages).flatten(0, 1)[window].to(q.dtype)
            queries = q[block.q_start : block.q_stop]
            attended = attend(
                queries.transpose(0, 1).unsqueeze(0),
                k.transpose(0, 1).unsqueeze(0),
                v.transpose(0, 1).unsqueeze(0),
                block.mask,
                scale=layer.scaling,
                logit_cap=layer.logit_cap,
                sinks=sinks,
            )
            out[block.q_start : block.q_stop] = attended.squeeze(0).transpose(0, 1)

    def _query_blocks(self, text: Part, read: Part, key: tuple[int, int]) -> list[QueryBlock]:
        """The queries of ``text`` against what they read of the text or of an encoder."""
        dependency = self.pool.manager.dependencies[key[0]]
        blocks: list[QueryBlock] = []
        offset = 0
        for row, keys in zip(text.rows, read.rows, strict=True):
            if read is text:
                blocks += self._row_blocks(row, offset, dependency, key)
            elif keys.stop:
                blocks.append(self._cross_block(row, keys, offset, key))
            offset += row.stop - row.start
        return blocks

    def _cross_block(self, row: Row, encoder: Row, offset: int, key: tuple[int, int]) -> QueryBlock:
        """All queries of a request against all that an encoder made of its images."""
        pages = self._to_device(self.pool.small_pages(*key, encoder.virtual))
        mask = self._to_device(np.ones((1, encoder.stop), np.bool_))
        return QueryBlock(offset, offset + row.stop - row.start, pages, 0, encoder.stop, mask)

    def _tree_block(
        self, row: Row, tree: Tree, offset: int, dependency: Dependency, key: tuple[int, int]
    ) -> QueryBlock:
        """All drafts of a request at once: each reads history by its place in the text, and those
        drafts that it follows."""
        first, seen = visible(dependency, range(row.start, row.stop))
        page = first // self.page_size
        pages = row.virtual[page : -(-row.stop // self.page_size)]
        return QueryBlock(
            offset,
            offset + row.stop - row.start,
            self._to_device(self.pool.small_pages(*key, pages)),
            first - page * self.page_size,
            row.stop - first,
            self._to_device(tree.of_nodes(seen, row.start - first)),
        )

    def _row_blocks(
        self, row: Row, offset: int, dependency: Dependency, key: tuple[int, int]
    ) -> list[QueryBlock]:
        if row.tree is not None:
            return [self._tree_block(row, row.tree, offset, dependency, key)]
        how = self.pool.whole_images
        images = row.images if how is not None and how.are_seen_by(dependency) else ()
        whole = row.start == 0 and not images and is_causal(dependency, row.stop)
        reach = row.stop - 1 - dependency.visible(row.stop - 1)[0].start
        step = row.stop if whole else min(max(reach, FEWEST_QUERIES), MOST_QUERIES)
        blocks = []
        for start in range(row.start, row.stop, step):
            stop = min(start + step, row.stop)
            first, last, mask = 0, stop, None
            if not whole:
                first, seen = visible(dependency, range(start, stop), images)
                last = first + seen.shape[1]
                mask = self._to_device(seen)
            page = first // self.page_size
            pages = row.virtual[page : -(-last // self.page_size)]
            q_start = offset + start - row.start
            blocks.append(
                QueryBlock(
                    q_start,
                    q_start + stop - start,
                    self._to_device(self.pool.small_pages(*key, pages)),
                    first - page * self.page_size,
                    last - first,
                    mask,
                )
            )
        return blocks

    def _run_decode(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: RadixAttention,
        buckets: Sequence[DecodeBucket],
        sinks: torch.Tensor | None,
    ) -> None:
        k_pages, v_pages = self.pool.get_kv_buffer(layer.layer_id)
        heads = layer.tp_k_head_num
        for bucket in buckets:
            k = self._gather(k_pages, bucket, q.dtype)
            v = self._gather(v_pages, bucket, q.dtype)
            # Query heads that share a KV head run as rows of one query block.
            queries = q[bucket.rows].unflatten(1, (heads, -1))
            attended = attend(
                queries,
                k,
                v,
                bucket.mask,
                scale=layer.scaling,
                logit_cap=layer.logit_cap,
                sinks=None if sinks is None else sinks.view(heads, -1),
            )
            out[bucket.rows] = attended.flatten(1, 2)

    def _gather(
        self, pages: torch.Tensor, bucket: DecodeBucket, dtype: torch.dtype
    ) -> torch.Tensor:
        """(B, heads, tokens, head dim) of the bucket's histories, unwritten tokens zero."""
        # Copies page by page; indexing with a tensor takes twice as long on a CPU.
        gathered = pages.index_select(0, bucket.pages.flatten()).to(dtype)
        gathered = gathered.view(len(bucket.pages), -1, *pages.shape[2:])
        gathered.flatten(0, 1).index_fill_(0, bucket.unwritten, 0.0)
        return gathered.transpose(1, 2)

    def _decode_buckets(self, part: Part, key: tuple[int, int]) -> list[DecodeBucket]:
        dependency = self.pool.manager.dependencies[key[0]]
        members: dict[int, list[DecodeMember]] = defaultdict(list)
        for index, row in enumerate(part.rows):
            if not row.stop:
                continue
            ranges = (Range(0, row.stop),) if part.of_encoder else dependency.visible(row.stop - 1)
            page = ranges[0].start // self.page_size
            pages = self.pool.small_pages(*key, row.virtual[page:])
            # Padding to the next power of two at most doubles the work of a bucket.
            bucket = (len(pages) - 1).bit_length()
            members[bucket].append(
                DecodeMember(index, pages, ranges, page * self.page_size, row.stop)
            )
        return [self._bucket(members[size]) for size in sorted(members)]

    def _bucket(self, members: list[DecodeMember]) -> DecodeBucket:
        longest = max(len(m.pages) for m in members)
        table = np.zeros((len(members), longest), np.int64)
        mask = np.zeros((len(members), longest * self.page_size), np.bool_)
        for row, seen, member in zip(table, mask, members, strict=True):
            row[: len(member.pages)] = member.pages
            for start, stop in member.visible:
                seen[start - member.base : stop - member.base] = True
        stops = np.array([m.stop - m.base for m in members])[:, None]
        position = np.arange(longest * self.page_size)
        # Page 0 is zero throughout, so only the end of the last page can hold foreign bits.
        last_page_ends = -(-stops // self.page_size) * self.page_size
        unwritten = np.flatnonzero((position >= stops) & (position < last_page_ends))
        return DecodeBucket(
            self._to_device(np.array([m.number for m in members])),
            self._to_device(table),
            self._to_device(mask)[:, None, None, :],
            self._to_device(unwritten),
        )

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """``array`` on the device; integers as int64, which torch indexes with."""
        if array.dtype != np.bool_:
            array = array.astype(np.int64)
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def is_causal(dependency: Dependency, length: int) -> bool:
    """Whether each of the first ``length`` queries reads all tokens up to its own."""
    # Late ones first, at which a window is known at once.
    queries = reversed(range(length))
    return all(dependency.visible(position) == (Range(0, position + 1),) for position in queries)


def visible(
    dependency: Dependency, queries: range, images: Sequence[Range] = ()
) -> tuple[int, NDArray[np.bool_]]:
    """The first token that any of ``queries`` reads, and a mask (queries, keys) bool: which of the
    tokens from there on each of them reads. Keys go to ``queries.stop``, or to the end of one of
    ``images``, whose tokens read it to its end."""
    read = [dependency.visible(position) for position in queries]
    first = min([ranges[0].start for ranges in read])
    seen = [r for r in images if r.start < queries.stop and r.stop > queries.start]
    last = max([queries.stop, *(r.stop for r in seen)])
    mask = np.zeros((len(queries), last - first), np.bool_)
    for row, ranges in zip(mask, read, strict=True):
        for start, stop in ranges:
            row[start - first : stop - first] = True
    for image in seen:
        for position in range(max(image.start, queries.start), min(image.stop, queries.stop)):
            mask[position - queries.start, position - first : image.stop - first] = True
    return first, mask


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    logit_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q (B, Hq, Q, D) over k (B, Hk, T, D) and v (B, Hk, T, Dv) → (B, Hq, Q, Dv).

    ``mask`` broadcasts to (B, Hq, Q, T), True where visible; None means causal with Q == T.
    ``sinks`` (Hq,) or (Hq, Q) are logits of a token without a value. All in q's dtype.
    """
    if not logit_cap and sinks is None:
        gqa = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa
        )
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    logits = (q @ k.transpose(-1, -2)) * scale
    if logit_cap:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    logits = logits.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return torch.softmax(logits, -1) @ v
    sink = sinks.to(logits.dtype).reshape(1, q.shape[1], -1, 1).expand(*logits.shape[:3], 1)
    return torch.softmax(torch.cat((logits, sink), -1), -1)[..., :-1] @ v


def _host_list(host: Any, device: torch.Tensor) -> list[int]:
    """Plain integers, from the host's copy where SGLang kept one."""
    source = device if host is None else host
    values: list[int] = source if isinstance(source, list) else source.tolist()
    return values
