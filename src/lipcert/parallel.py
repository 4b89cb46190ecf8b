"""Several processes that work on one run: who is who, and what they tell each other.

Started by ``torchrun``, ``accelerate launch`` or anything else that sets ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
``MASTER_PORT``. All processes run the same program on the same files; what is written, the first of them writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor

from lipcert.errors import ConfigError, ParallelError

__all__ = ["ALONE", "Ranks", "joined", "launched_rank"]

_PATIENCE = timedelta(days=2)  # others wait while one proves a bound
_MEETING = timedelta(minutes=10)  # until all have come
_APART = 1e-6
_LOST = "another process of this run has stopped, or cannot be reached; what it said is above or in its log."


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as seen by one of them. All methods must be called by all of them, in the same order.

    Attributes:
        rank: which one this is, from 0 on.
        size: how many there are. One alone talks to nobody.

    Example:
        >>> ALONE.part(5), ALONE.first
        (slice(0, 5, None), True)
        >>> [Ranks(i, 3).part(5) for i in range(3)]
        [slice(0, 1, None), slice(1, 3, None), slice(3, 5, None)]
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """The share that is this one's of ``count`` things in a row; the shares differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place; all in one exchange for each dtype and device.

        Raises:
            ParallelError: another process is gone.
        """
        if self.size == 1:
            return
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in tensors:
            alike.setdefault((t.dtype, t.device), []).append(t)
        for group in alike.values():
            flat = torch.cat([t.reshape(-1) for t in group])
            with _watched():
                dist.all_reduce(flat)
            for t, new in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
                t.copy_(new.view(t.shape))

    def gather(self, tensor: Tensor, count: int) -> Tensor:
        """The rows of all processes, one after another, where each has those of its :meth:`part` of ``count``.

        Raises:
            ParallelError: another process is gone.
        """
        if self.size == 1:
            return tensor
        parts = [Ranks(i, self.size).part(count) for i in range(self.size)]
        most = max(p.stop - p.start for p in parts)
        mine = tensor.new_zeros((most, *tensor.shape[1:]))
        mine[: len(tensor)] = tensor
        found = [torch.empty_like(mine) for _ in parts]
        with _watched():
            dist.all_gather(found, mine)
        return torch.cat([rows[: p.stop - p.start] for rows, p in zip(found, parts, strict=True)])

    def say(self, text: str | None, device: torch.device) -> str:
        """What the first process says, to all of them.

        Raises:
            ParallelError: another process is gone.
        """
        if self.size == 1:
            assert text is not None
            return text
        sent = (text or "").encode() if self.first else b""
        length = torch.tensor([len(sent)], device=device)
        self.add(length)
        data = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.first:
            data.copy_(torch.frombuffer(bytearray(sent), dtype=torch.uint8)) if sent else None
        with _watched():
            dist.broadcast(data, 0)
        return bytes(data.cpu().numpy()).decode()

    def check_same(self, what: str, text: str, device: torch.device) -> None:
        """Refuse to go on where the processes do not work on the same.

        Args:
            what: that is to be the same, for the message.
            text: what tells it apart from others.
            device: to compute on.

        Raises:
            ParallelError: some process has another, or is gone.
        """
        if self.size == 1:
            return
        other = torch.tensor([int(self.say(text, device) != text)], device=device)
        self.add(other)
        if bool(other):
            raise ParallelError(f"the processes of this run do not have the same {what}: give all of them the same.")

    def wait(self, device: torch.device) -> None:
        """Until all are here.

        Raises:
            ParallelError: another process is gone.
        """
        self.add(torch.zeros(1, device=device))

    @contextmanager
    def first_alone(self, device: torch.device) -> Iterator[None]:
        """The first process goes through the block by itself, then all others: it may leave files for them.

        Raises:
            ParallelError: another process is gone.
        """
        if not self.first:
            self.wait(device)
        yield
        if self.first:
            self.wait(device)

    def agree(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all have the same numbers, but for rounding: by the sums of their sizes, in float64."""
        if self.size == 1:
            return True
        sums = torch.stack([t.detach().abs().sum(dtype=torch.float64) for t in tensors])
        mean = sums / self.size
        self.add(mean)
        apart = ((sums - mean).abs() > _APART * mean).sum()
        self.add(apart)
        return int(apart) == 0


ALONE = Ranks()
"""One process by itself."""


@contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ParallelError(f"{_LOST} ({_first_sentence(error)})") from error


def _first_sentence(error: Exception) -> str:
    """Without the line of torch's source that it begins with, or what it says in general."""
    return re.split(r"\.\s", re.sub(r"^\[[^]]*\]\s*", "", str(error)).splitlines()[0])[0]


def _launched() -> bool:
    """Whether the environment says that this is one of several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def launched_rank() -> int:
    """Which of several processes this is by the environment, from 0 on; 0 if it is alone or that is not said."""
    text = os.environ.get("RANK", "")
    return int(text) if _launched() and text.isdecimal() else 0


def _number(name: str, least: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text!r} in the environment: start the processes by torchrun or accelerate launch.")
    return int(text)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other processes that the environment speaks of, if it does; yields the ranks, and where to compute.

    Where ``torch.distributed`` has a process group already, that is it.

    Args:
        device: what was asked for; of ``cuda`` without a number each process has the GPU of its ``LOCAL_RANK``.

    Raises:
        ConfigError: the environment is not what a launcher leaves, or torch was built without ``distributed``.
        ParallelError: the others do not come.
    """
    available = dist.is_available()
    if available and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
        return
    if not _launched():
        yield ALONE, device
        return
    if not available:
        raise ConfigError("this torch was built without torch.distributed: run one process.")
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK={rank} in the environment, but there are {size} processes, numbered from 0.")
    if str(device) == "cuda":
        local, there = _number("LOCAL_RANK", 0), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(f"process {local} of this machine has no GPU of its own: there are {there}. Start fewer.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Its default arguments keep the group that there is when it is imported, and beyond that group's end.
    import_module("torch.distributed.nn.functional")
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", rank, size, timeout=_MEETING))
        store.set_timeout(_PATIENCE)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ParallelError(f"the {size} processes of this run could not meet: {_first_sentence(error)}.") from error
    try:
        yield Ranks(rank, size), device
    finally:
        dist.destroy_process_group()
