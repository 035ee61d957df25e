"""A model's attention weights, read in whatever forward passes happen in a block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.reading.layers import Part, Wanted, arrays_of, bytes_of, dataset_of, read, read_scan
from symground.analysis.reading.observing.flow_probes import with_flow
from symground.analysis.reading.observing.groups import Groups, groups_of, reads_images
from symground.analysis.reading.observing.joining import joined, joined_bytes
from symground.analysis.reading.observing.passing import Past, fitted, named_masks, sizes_in, text_of, words_of
from symground.analysis.reading.requests import Request, check_asked, request_of, rows_of
from symground.analysis.reading.text_reader import readable
from symground.analysis.tracing import group_ids, last_of, most_heads, prefix_of, with_prediction
from symground.errors import choice, flag, integer
from symground.models import Mixer, Tap
from symground.models.hooks import Entry, body, in_backward, inner_stack
from symground.models.trials import check_dropout


def observe(
    model: PreTrainedModel,
    groups: Groups | None = None,
    *,
    source_groups: Mapping[str, Tensor] | None = None,
    rows: str | None = "last",
    received: bool = False,
    summary: bool = False,
    topk: int | None = None,
    block: int | None = None,
    reduce: str = "sum",
    flow: bool = False,
    layers: Sequence[int] | None = None,
    every: int = 1,
    last: int | None = None,
    limit: int | None = None,
) -> Observation:
    """A block that reads the attention weights of every forward pass in it: of generation, training or evaluation.

    Each pass of the model is a step. In generation with a cache, the first one reads the prompt, and each further one
    reads a token: its queries are the last of all positions so far, and position j of the text is key j, whichever kind
    of cache keeps the keys. The passes compute what they compute without the block, dropout included; docs/models.md
    says where this holds within rounding alone. The attention weights are those before dropout. Only passes of the
    thread that entered the block are read (in asyncio: of the task, and of tasks that it starts within the block), and
    a recompute of activation checkpointing is no pass. Blocks may be nested. Nothing of a block stays in the model.

    Args:
        model: made traceable by :func:`symground.attach`; as in :func:`symground.attention`. Of Mamba-2's layers only
            the keys of the pass itself are read, since its state keeps no single positions; others are NaN. Of an
            encoder-decoder, the layers of the decoder are read: those of cross-attention have variables that begin with
            "cross_", as in :func:`symground.attention`, which also reads the encoder's.
        groups: names → [B,P] masks of the first P positions of each text, which do not overlap; later positions are in
            no group. Where ``generate`` reads a second text beside the first (classifier-free guidance, a draft), they
            hold for that too: the coordinate text tells them apart.
            Or a function of the inputs of a pass, by their names, that returns [B,T] masks of the positions of the
            pass; where a cache has earlier ones, these keep their groups. Asks for mass. None takes the parts of a text
            with images: "system", "image", "question", and "answer", which is what follows the first pass of a text.
        source_groups: names → [B,S] masks of the positions that cross-attention reads, likewise.
        rows: whose rows of A are read: "last", each example's last valid query of the pass; "all"; or None.
        received, summary, topk, block, reduce, layers: as in :func:`symground.attention`; a pass that has fewer keys
            than ``topk`` gives 0 and -1 for the rest.
        flow: whether to return the flow between groups too, of the loss whose backward pass follows a pass, as
            :func:`symground.trace` defines it; NaN where none follows that accumulates gradients (``backward()``), and
            the sum over several that do. It is computed in that backward pass. It needs groups, an attention dropout of
            0, and a pass without a cache.
        every: read the first of each so many passes; the others run as without the block.
        last: keep the last so many of the passes that were read; None keeps all.
        limit: the most bytes that the passes kept may have in host memory; None is any number.

    Returns:
        An `Observation`, entered by ``with``: its ``dataset()`` has what was read so far.

    Raises:
        ValueError: an argument has a wrong type or is out of its range. A pass within the block also raises it: masks
            of another number of examples, more memory than ``limit``, a cache from which keys were dropped.

    Source: as in :func:`symground.attention`.

    Example:
        >>> with sg.observe(model, {"prompt": mask}, rows=None) as seen:  # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=20)
        >>> seen.dataset().mass.sel(query_group="prediction", key_group="prompt").dims  # doctest: +SKIP
        ('step', 'example', 'layer', 'head')
    """
    choice("rows", rows, ("last", "all", None))
    asked, flow = request_of(rows, received, summary, topk, block, reduce), flag("flow", flow)
    if isinstance(groups, Mapping) or not (groups is None or callable(groups)):
        groups = named_masks(groups)
        group_ids(groups, next(iter(groups.values()), torch.zeros(0, 0)).long())  # refuses masks that overlap
    read = readable(model, layers, crosses=True)
    of_source = {} if source_groups is None else named_masks(source_groups, "source_groups")
    if of_source and all(mixer.kind != "cross" for mixer in read):
        raise ValueError("source_groups: expected None, since no layer that is read has other keys than the text's")
    if flow and (not groups or of_source or any(mixer.kind == "cross" for mixer in read)):
        wrong = "got none" if not groups else f"of a text alone, got {type(model).__name__} with cross-attention"
        raise ValueError(f"flow: expected groups between which the flow is summed, {wrong}")
    last = None if last is None else integer("last", last, 1)
    limit = None if limit is None else integer("limit", limit, 0)
    if asked.is_empty and not (groups or of_source or (groups is None and reads_images(model))):
        check_asked(())
    return Observation(model, read, asked, groups, of_source, flow, integer("every", every, 1), last, limit)


class _Pass:
    """A pass that is read, and what was read of it."""

    def __init__(self, number: int, inputs: Mapping[str, Any], past: int, text_number: int) -> None:
        self.number, self.inputs, self.past, self.text_number = number, inputs, past, text_number
        self.parts: dict[str, Part] = {}
        """By the prefixes of their kinds."""
        self.text: tuple[Tensor, dict[str, Tensor]] | None = None
        """Which queries are words [B,T], and the groups of the text."""
        self.queries = 0
        self.layers: set[int] = set()
        """The numbers of the layers that were read."""


def _always() -> bool:
    return True


class Observation(AbstractContextManager["Observation"]):
    """What :func:`symground.observe` reads, pass by pass."""

    def __init__(
        self, model: PreTrainedModel, layers: tuple[Mixer, ...], asked: Request, groups: Groups | None,
        source_groups: Mapping[str, Tensor], flow: bool, every: int, last: int | None, limit: int | None,
    ) -> None:  # fmt: skip
        self._model, self._asked, self._groups, self._flow = model, asked, groups_of(model, groups), flow
        self._source_groups, self._every, self._limit = source_groups, every, limit
        self.only: Callable[[], bool] = _always
        """Whether a pass that begins is read, of those that ``every`` chooses."""
        kinds = dict.fromkeys(prefix_of(mixer) for mixer in layers)
        self._of_kind = {kind: tuple(m for m in layers if prefix_of(m) == kind) for kind in kinds}
        self._heads = most_heads(layers)
        self._kept: deque[_Pass] = deque(maxlen=last)
        self._passes, self._past = 0, Past()
        self._now: _Pass | None = None
        self._of_body = False
        """Whether the body of the model has begun the pass whose layers come."""
        self._entry: Entry | None = None
        self._taps = dict(self._taps_of())

    def __enter__(self) -> Observation:
        if self._entry is not None:
            raise ValueError("symground.observe: expected a block that is entered once at a time")
        self._entry = Entry(self._asks({}))
        self._entry.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        entry, self._entry, self._now = self._entry, None, None
        if entry is not None:
            entry.__exit__(*error)

    def __reduce__(self) -> Any:
        raise TypeError("an Observation belongs to its model and process; pickle what its dataset() returns")

    def __repr__(self) -> str:
        return f"Observation: {len(self)} passes of {type(self._model).__name__}"

    def __len__(self) -> int:
        """How many passes are kept."""
        return len(self._kept)

    @property
    def passes(self) -> tuple[xr.Dataset, ...]:
        """One Dataset for each pass that is kept, with the sizes of that pass; see `dataset`."""
        return tuple(self._dataset_of(one) for one in self._kept)

    def dataset(self) -> xr.Dataset:
        """All passes that are kept, as one Dataset.

        Its variables are those of :func:`symground.attention` with a first dimension step. A pass with fewer examples,
        queries or keys than others is filled up with NaN, and with -1 where the numbers are integers; `passes` has each
        at its own size. The coordinates of step are its number (among all passes of the block, from 0), ``text``, the
        number of the text (a pass goes on with the text that its cache holds; any other pass begins one), ``past``, the
        positions before those of the pass, ``queries``, how many positions it has (query i is position past + i), and
        ``complete``, 1 or 0: whether all layers ran, which they do not where a pass raises or skips some.

        The result may be many times as large as the passes are, if one of them is much longer than the others.

        Raises:
            ValueError: no pass was read, or the result is larger than the ``limit``.
        """
        if not self._kept:
            raise ValueError("symground.observe: expected at least one pass of the model in the block, got none")
        passes = self.passes
        if self._limit is not None and joined_bytes(passes) > self._limit:
            raise ValueError(
                f"limit: the passes as one Dataset need {joined_bytes(passes)} bytes in host memory, since each is "
                f"filled up to the largest, got a limit of {self._limit}; .passes has each at its own size"
            )
        return joined(passes)

    def _taps_of(self) -> Iterator[tuple[Any, Tap]]:
        for kind, layers in self._of_kind.items():
            for n, mixer in enumerate(layers):
                reader, scans = partial(self._read, kind, n, mixer), mixer.kind == "mamba2"
                yield mixer.module, Tap(read_scan=(reader,)) if scans else Tap(read=(reader,), apart=True)

    def _asks(self, taps: Mapping[Any, Tap]) -> dict[Any, Any]:
        asks: dict[Any, Any] = {body(self._model): self._begin, **taps}
        inner = inner_stack(self._model)
        if inner is not None:
            asks[inner] = self._begin_stack
        return asks

    def _begin_stack(self, inputs: Mapping[str, Any]) -> None:
        of_body, self._of_body = self._of_body, False
        if not of_body:
            self._start(inputs)

    def _begin(self, inputs: Mapping[str, Any]) -> None:
        self._start(text_of(self._model, inputs), inputs)
        self._of_body = True

    def _start(self, text: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> None:
        """A pass begins, with the inputs of its text by the names of a decoder alone."""
        if in_backward() or self._entry is None:
            return
        number, self._passes = self._passes, self._passes + 1
        past, only = self._past.before(text), self.only()
        if only:
            self._groups.follow(text, text if inputs is None else inputs, past)
        taps: Mapping[Any, Tap] = {}
        self._now = None
        if number % self._every == 0 and only:
            self._now = _Pass(number, text, past, self._past.text)
            flows = self._flow and torch.is_grad_enabled()
            taps = self._with_flow(self._now) if flows else self._taps
        self._entry.ask(self._asks(taps))

    def _with_flow(self, now: _Pass) -> dict[Any, Tap]:
        every = (mixer for of_kind in self._of_kind.values() for mixer in of_kind)
        check_dropout({mixer.layer: mixer.module for mixer in every}, "flow")
        sizes = sizes_in(now.inputs)
        if sizes is None or now.past:
            raise ValueError("flow: expected a pass with input_ids or inputs_embeds and without positions in a cache")
        examples, queries = sizes
        return dict(with_flow(self._taps, self._open(now, "", examples, queries, queries)))

    def _read(self, kind: str, n: int, mixer: Mixer, *given: Any) -> None:
        if in_backward():
            return
        now = self._now
        if now is None or mixer.layer in now.layers:
            raise ValueError(
                f"model: layer {mixer.layer} of {type(self._model).__name__} ran "
                + ("outside a forward pass of the model" if now is None else "twice in a forward pass")
                + ", which symground.observe does not read"
            )
        first: Tensor = given[0]  # q [B,H,T,D] or dt [B,T,H]
        scans = mixer.kind == "mamba2"
        queries = first.shape[1 if scans else 2]
        with torch.no_grad():
            part = now.parts.get(kind) or self._open(now, kind, len(first), queries, queries if scans else given[4])
            of = part.wanted, slice(0, part.wanted.examples), part.arrays, n, mixer
            read_scan(*of, *given) if scans else read(*of, *given)
        now.layers.add(mixer.layer)

    def _open(self, now: _Pass, kind: str, examples: int, queries: int, own_keys: int) -> Part:
        """Find out what is read of the layers of a kind in a pass, and keep it."""
        asked, total, crosses = self._asked, now.past + queries, kind == "cross_"
        if now.text is None:
            valid = words_of(now.inputs, now.past, examples, queries)
            now.text = valid, fitted(self._groups.of(valid), examples, total)
        valid, of_text = now.text
        p = last_of(valid)
        keys = fitted(self._source_groups, examples, own_keys, "source_groups") if crosses else of_text
        of_queries = with_prediction({name: mask[:, now.past :] for name, mask in of_text.items()}, p[:, None], queries)
        of_queries = {name: mask & valid for name, mask in of_queries.items()}  # a text may be all padding
        total = own_keys if crosses else total
        wanted = Wanted(
            examples, queries, total, valid, rows_of(asked.rows, p, examples, queries),
            group_ids(of_queries, valid.long()) if keys else None,
            group_ids(keys, torch.zeros(examples, total).long()) if keys else None,
            tuple(of_queries) if keys else (), tuple(keys), asked.received, asked.summary, asked.topk, asked.block,
            asked.largest, self._flow, cached=not crosses, past=now.past,
        )  # fmt: skip
        layers = self._of_kind[kind]
        self._check_limit(now, bytes_of(layers, wanted, self._heads))
        now.parts[kind] = Part(layers, wanted, arrays_of(layers, wanted, self._heads))
        now.queries = queries
        if len(now.parts) == 1:
            self._kept.append(now)
        if len(now.parts) == len(self._of_kind):
            now.inputs = {}  # a pass that is kept keeps no tensor of the model's
        return now.parts[kind]

    def _check_limit(self, now: _Pass, more: int) -> None:
        kept = [one for one in self._kept if one is not now]
        if not now.parts and len(kept) == self._kept.maxlen:
            kept = kept[1:]
        each = [bytes_of(part.layers, part.wanted, self._heads) for one in (*kept, now) for part in one.parts.values()]
        if self._limit is not None and sum(each) + more > self._limit:
            raise ValueError(
                f"limit: the passes kept need {sum(each) + more} bytes in host memory, got a limit of {self._limit}; "
                "every= and last= keep fewer"
            )

    def _dataset_of(self, one: _Pass) -> xr.Dataset:
        found = dataset_of(self._model, one.parts, self._heads)
        complete = len(one.layers) == sum(map(len, self._of_kind.values()))
        return found.assign_attrs(
            step=one.number, text=one.text_number, past=one.past, queries=one.queries, complete=int(complete)
        )
