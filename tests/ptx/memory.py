"""Global and shared memory, and what must not happen in them.

Both keep, beside the data, who has written and read what. An access that a GPU would carry out without a word, with
luck even with the right result, is a `FaultError` here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class FaultError(Exception):
    """What a kernel must not do."""


# The process's own memory, read and written at the addresses that a kernel computes, once these are checked.
_FIRST = 1 << 16
_PROCESS = np.frombuffer((ctypes.c_uint8 * ((1 << 47) - _FIRST)).from_address(_FIRST), np.uint8)
_WORDS = {size: _PROCESS.view(of) for size, of in _UNSIGNED.items()}

_SEVERAL = -1


class Access(NamedTuple):
    """Who touches global memory: a program of the launch, its threads [n], and the number of its last barrier."""

    program: int
    thread: Array
    barrier: int


class GlobalMemory:
    """The tensors that one launch may touch. Each element of them, and nothing between or around them.

    Several programs may read one element, and one program may write it once. No program may read an element that
    another one writes in this launch, because nothing orders them; nor may a thread touch what another thread of its
    program touches, if one of them writes and no barrier is between.
    """

    def __init__(self, tensors: Iterable[Tensor], unset: Callable[[Tensor], Array | None] = lambda _: None) -> None:
        """
        Args:
            tensors: the arguments of the launch; several may view one storage.
            unset: a tensor → for each byte of its storage whether nothing has written it since it was allocated, or
                None if all of it is written. The array is updated by stores.
        """
        views = [x for x in tensors if x.numel()]
        storages = {x.untyped_storage().data_ptr(): x for x in views}
        self._starts = np.array(sorted(storages), np.int64)
        sizes = np.array([storages[start].untyped_storage().nbytes() for start in self._starts], np.int64)
        self._ends = self._starts + sizes
        #: All the maps have an entry for each unit, the size of the smallest element.
        self._unit = min((x.element_size() for x in views), default=4)
        counts = -(-sizes // self._unit)
        self._first = np.concatenate([[0], np.cumsum(counts)])[:-1]
        # Pages of zeros are not backed by memory before they are written, so that sparse tensors stay sparse.
        total = int(counts.sum())
        self._owned, self._writer, self._reader = (np.zeros(total, of) for of in (np.bool_, np.int32, np.int32))
        #: Of the last writer and reader: the thread, or `_SEVERAL`, and the last barrier before.
        self._writers, self._readers = ((np.zeros(total, np.int16), np.zeros(total, np.int32)) for _ in range(2))
        self._unset = [unset(storages[start]) for start in self._starts]
        for x in views:
            self._own(x)

    def _own(self, x: Tensor) -> None:
        region = int(np.searchsorted(self._starts, x.untyped_storage().data_ptr()))
        units = x.element_size() // self._unit
        owned = torch.from_numpy(self._owned[self._first[region] :])
        owned.as_strided(
            (*x.shape, units), (*(step * units for step in x.stride()), 1), x.storage_offset() * units
        ).fill_(True)

    def load(self, address: Array, element: int, count: int, by: Access) -> Array:
        """``count`` adjacent elements from each address → [len(address), count]."""
        units, region = self._units(address, element * count)
        self._check_set(address, element * count, region)
        writer, (program, thread, barrier) = self._writer[units], by
        if ((writer != 0) & (writer != program)).any():
            raise FaultError("reads what another program of the launch has written")
        thread = np.broadcast_to(thread[:, None], units.shape)
        if ((writer != 0) & _unordered(self._writers, units, thread, barrier)).any():
            raise FaultError("race: reads what another thread has written since the last barrier")
        reader = self._reader[units]
        self._reader[units] = np.where((reader == 0) | (reader == program), program, _SEVERAL)
        others = (reader == program) & _unordered(self._readers, units, thread, barrier)
        readers, barriers = self._readers
        readers[units], barriers[units] = np.where(others, _SEVERAL, thread), barrier
        together = readers[units] != thread  # another thread of this access, or of one before
        readers[units[together]] = _SEVERAL
        found: Array = _WORDS[element][_word(address, element, count)]
        return found

    def store(self, address: Array, values: Array, by: Access) -> None:
        """``values`` [len(address), count], adjacent from each address."""
        element, count = values.dtype.itemsize, values.shape[1]
        program, thread, barrier = by
        units, region = self._units(address, element * count)
        if self._writer[units].any() or np.unique(units).size < units.size:
            raise FaultError("writes what has been written in this launch")
        if ((reader := self._reader[units]) != 0).any() and (reader != program).any():
            raise FaultError("writes what another program of the launch has read")
        thread = np.broadcast_to(thread[:, None], units.shape)
        if ((reader != 0) & _unordered(self._readers, units, thread, barrier)).any():
            raise FaultError("race: writes what another thread has read since the last barrier")
        self._writer[units] = program
        writers, barriers = self._writers
        writers[units], barriers[units] = thread, barrier
        for place in np.unique(region):
            unset = self._unset[place]
            if unset is not None:
                first = (address[region == place] - self._starts[place])[:, None]
                unset[first + np.arange(element * count)] = False
        _WORDS[element][_word(address, element, count)] = values

    def _units(self, address: Array, size: int) -> tuple[Array, Array]:
        """The units that each access of ``size`` bytes touches, [len(address), n], and its storage."""
        region = np.searchsorted(self._starts, address, "right") - 1
        inside = (region >= 0) & (address + size <= self._ends[region])
        if not inside.all():
            raise FaultError(f"touches memory of no argument, at {_where(address, inside, self._starts, self._ends)}")
        if (address % size).any():
            raise FaultError(f"is not aligned to its {size} bytes")
        if size < self._unit:
            raise FaultError(f"touches {size} bytes, less than an element")
        first = (address - self._starts[region]) // self._unit + self._first[region]
        units = first[:, None] + np.arange(size // self._unit)
        if not self._owned[units].all():
            raise FaultError("touches elements between those of the arguments")
        return units, region

    def _check_set(self, address: Array, size: int, region: Array) -> None:
        for place in np.unique(region):
            unset = self._unset[place]
            if unset is not None:
                first = (address[region == place] - self._starts[place])[:, None]
                if unset[first + np.arange(size)].any():
                    raise FaultError("reads memory that nothing has written")


def _unordered(last: tuple[Array, Array], units: Array, thread: Array, barrier: int) -> Array:
    """Whether another thread than these was the last, since the program's last barrier."""
    threads, barriers = last
    found: Array = (threads[units] != thread) & (barriers[units] == barrier)
    return found


def _where(address: Array, inside: Array, starts: Array, ends: Array) -> str:
    """How far the first address outside lies from the nearest argument, and how many there are."""
    at, outside = int(address[~inside][0]), int((~inside).sum())
    edges = [(abs(at - int(x)), name) for xs, name in ((starts, "start"), (ends, "end")) for x in xs]
    distance, name = min(edges, default=(0, "start"))
    return f"{distance} bytes from the {name} of one ({outside} threads)"


def _word(address: Array, element: int, count: int) -> Array:
    word: Array = ((address - _FIRST) // element)[:, None] + np.arange(count)
    return word


def of_warp(warp: Array) -> Array:
    """The reader or writer that stands for all threads of a warp."""
    code: Array = -1 - warp.astype(np.int32)
    return code


_ANYONE = -(1 << 20)


def _warp(who: Array) -> Array:
    """The warp of a reader or writer: a thread, the threads of a warp, or anyone."""
    return np.where(who >= 0, who // 32, np.where(who == _ANYONE, -1, -1 - who))


class SharedMemory:
    """The shared memory of one program, and the order that barriers and waits give to accesses.

    Two threads may not touch the same place without a barrier between, if one of them writes: a race. Time is counted
    in accesses. A copy (cp.async) writes between its start and its wait, a matrix product (wgmma) reads between its
    start and its wait: in that time nobody may touch, or write, the place.
    """

    def __init__(self, size: int, unit: int) -> None:
        """``size`` in bytes; ``unit`` is the size of the smallest access."""
        count = -(-size // unit)
        self.size, self._unit = size, unit
        self.data = np.full(count * unit, 0xFF, np.uint8)
        # Everything up to the barrier is ordered against everything after; up to the warp's, within each warp.
        self._now, self._barrier, self._warp_barrier, self._fence = 1, 0, 0, 0
        self._written = np.zeros(count, np.int64)  # when; 0 is never
        self._writer = np.zeros(count, np.int32)
        self._read = np.zeros(count, np.int64)
        self._reader = np.zeros(count, np.int32)
        self._copied = np.zeros(count, np.bool_)
        self._multiplied = np.zeros(count, np.int16)
        self._groups: list[list[tuple[Array, Array, Array, Array]]] = [[]]

    @property
    def last_barrier(self) -> int:
        """A number that each barrier changes."""
        return self._barrier

    def barrier(self) -> None:
        self._barrier = self._tick()

    def warp_barrier(self) -> None:
        self._warp_barrier = self._tick()

    def proxy_fence(self) -> None:
        """Show what was written to the asynchronous proxy, by which wgmma reads."""
        self._fence = self._tick()

    def read(self, address: Array, size: int, who: Array) -> Array:
        """``size`` bytes from each address, by the thread or warp beside it → [len(address), size]."""
        units, who = self._units(address, size), who[:, None]
        self._check_read(units)
        if self._unordered(self._written[units], self._writer[units], who).any():
            raise FaultError("race: reads what another thread has written since the last barrier")
        recent = self._read[units] > self._barrier
        readers = np.where(recent, _together(self._reader[units], who), who) if recent.any() else who
        self._read[units], self._reader[units] = self._tick(), readers
        # Of several threads that share a place in this access, one is noted so far.
        shared = self._reader[units] != readers
        if shared.any():
            at = units[shared]
            joined = _together(self._reader[at], np.broadcast_to(readers, units.shape)[shared])
            np.minimum.at(self._reader, at, joined)  # anyone is less than any warp, and a warp than any thread
        found: Array = self.data[address[:, None] + np.arange(size)]
        return found

    def write(self, address: Array, values: Array, who: Array) -> None:
        """``values`` [len(address), bytes] as uint8, by the thread or warp beside them."""
        units = self._units(address, values.shape[1])
        self._check_write(units, who[:, None])
        self._written[units], self._writer[units] = self._tick(), who[:, None]
        places = address[:, None] + np.arange(values.shape[1])
        self.data[places] = values
        if (self.data[places] != values).any():
            raise FaultError("race: two threads write different values to one place")

    def start_copy(self, address: Array, values: Array, thread: Array) -> None:
        """cp.async: ``values`` arrive when the group is waited for."""
        units = self._units(address, values.shape[1])
        self._check_write(units, thread[:, None])
        self._copied[units] = True
        self.data[address[:, None] + np.arange(values.shape[1])] = 0xFF
        self._groups[-1].append((address, values, units, thread))

    def commit_copies(self) -> None:
        self._groups.append([])

    def wait_copies(self, pending: int) -> None:
        """Wait until at most ``pending`` committed groups have not arrived."""
        now = self._tick()
        while len(self._groups) - 1 > pending:
            for address, values, units, thread in self._groups.pop(0):
                self.data[address[:, None] + np.arange(values.shape[1])] = values
                self._copied[units] = False
                self._written[units], self._writer[units] = now, thread[:, None]

    def start_product(self, address: Array) -> Array:
        """wgmma: it reads the units at ``address``, of any shape, until `end_product` is given what this returns."""
        if ((address < 0) | (address >= self.size)).any():
            raise FaultError(f"touches shared memory beyond its {self.size} bytes")
        units = np.unique(address // self._unit)
        self._check_read(units)
        if (self._written[units] > self._barrier).any():
            raise FaultError("race: a wgmma reads what has been written since the last barrier")
        if (self._written[units] > self._fence).any():
            raise FaultError("a wgmma reads what has been written since the last fence.proxy.async")
        self._multiplied[units] += 1
        return units

    def end_product(self, units: Array) -> None:
        self._multiplied[units] -= 1
        self._read[units], self._reader[units] = self._tick(), _ANYONE

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _units(self, address: Array, size: int) -> Array:
        if ((address < 0) | (address + size > self.size)).any():
            raise FaultError(f"touches shared memory beyond its {self.size} bytes")
        if (address % size).any():
            raise FaultError(f"is not aligned to its {size} bytes")
        units: Array = (address // self._unit)[:, None] + np.arange(size // self._unit)
        return units

    def _unordered(self, when: Array, by: Array, who: Array) -> Array:
        """Whether nothing orders an access in the past, by another thread, against one of ``who`` now."""
        recent = (when > self._barrier) & (by != who)
        if not recent.any():
            return recent
        in_warp = (_warp(by) == _warp(who)) & (when <= self._warp_barrier)
        return recent & ~in_warp

    def _check_read(self, units: Array) -> None:
        if self._copied[units].any():
            raise FaultError("race: reads shared memory before the copy to it has been waited for")
        if (self._written[units] == 0).any():
            raise FaultError("reads shared memory that nothing has written")

    def _check_write(self, units: Array, who: Array) -> None:
        if self._copied[units].any():
            raise FaultError("race: writes shared memory before the copy to it has been waited for")
        if self._multiplied[units].any():
            raise FaultError("race: writes shared memory that a wgmma reads, before the wgmma has been waited for")
        if self._unordered(self._written[units], self._writer[units], who).any():
            raise FaultError("race: writes what another thread has written since the last barrier")
        if self._unordered(self._read[units], self._reader[units], who).any():
            raise FaultError("race: writes what another thread has read since the last barrier")


def _together(one: Array, other: Array) -> Array:
    """Who stands for two readers."""
    joined: Array = np.where(one == other, one, np.where(_warp(one) == _warp(other), of_warp(_warp(one)), _ANYONE))
    return joined
