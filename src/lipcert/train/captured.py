"""Steps of training as one CUDA graph: recorded once, and sent to the GPU as a whole from then on.

A step is some thousand small operations (the bound's pass above all), and a GPU is done with each sooner than Python
has asked for the next. A graph keeps what was asked for, with the addresses in memory that it was asked of. So all that
changes between two steps lies at fixed places: the batch, and the numbers that schedules give (:class:`Numbers`).
Nothing in a step may wait for the GPU, nor choose by a value on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.graph.capture import first_line

__all__ = ["CapturedSteps", "Numbers"]

_BEFORE = 3  # steps as they are, for libraries to choose their kernels, and the optimizer to make its state
_WAITS = "called a synchronizing CUDA operation"


class Numbers:
    """Numbers on a device, by name, each at an address that stays.

    >>> numbers = Numbers(torch.device("cpu"))
    >>> place = numbers.put("rate", 0.5)
    >>> numbers.put("rate", 0.25) is place, float(place)
    (True, 0.25)
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._known = device, dict[str, Tensor]()

    def put(self, name: str, value: float) -> Tensor:
        """The tensor of that name (), which has the value from now on."""
        if name not in self._known:
            self._known[name] = torch.empty((), dtype=torch.float32, device=self._device)
        return self._known[name].fill_(value)


class CapturedSteps:
    """Makes steps of training: some as they are, then one that is recorded, then by replaying that.

    Args:
        work: the step, of a batch (x, y). It always does the same operations at the same addresses.
        device: a CUDA device.
        tell: is told if the step cannot be recorded; it is then made as it is, which is slower and as right.
    """

    def __init__(
        self, work: Callable[[Tensor, Tensor], None], device: torch.device, tell: Callable[[str], None]
    ) -> None:
        self._work, self._tell, self.possible, self.recordings = work, tell, True, 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Record anew: something is not where it was, or the step is to be another one."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: tuple[Tensor, Tensor] | None = None
        self._made = 0

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Make one step."""
        if self._graph is None and self.possible and self._made >= _BEFORE:
            self._record(x, y)
        if self._graph is None or self._batch is None or self._batch[0].shape != x.shape:
            self._as_it_is(x, y)
            return
        for place, value in zip(self._batch, (x, y), strict=True):
            place.copy_(value)
        self._graph.replay()

    def _as_it_is(self, x: Tensor, y: Tensor) -> None:
        """On a stream of its own, as what is recorded must not begin on the one that everything else uses."""
        self._made += 1
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            if self._made == _BEFORE and self.possible:
                self._watched(x, y)
            else:
                self._work(x, y)
        torch.cuda.current_stream(x.device).wait_stream(self._stream)

    def _watched(self, x: Tensor, y: Tensor) -> None:
        """The last step before the recording, in which torch says what waits: a recording that fails leaves traces."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._work(x, y)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if any(_WAITS in str(w.message) for w in said):
            self._give_up("something in it waits for the GPU (.item(), an if on a value, a tensor from the CPU)")

    def _give_up(self, why: str) -> None:
        self.possible = False
        self._tell(f"The steps of this network cannot be made one CUDA graph, which is slower: {why}")

    def _record(self, x: Tensor, y: Tensor) -> None:
        graph, batch = torch.cuda.CUDAGraph(), (torch.empty_like(x), torch.empty_like(y))
        before = torch.cuda.current_stream(x.device)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._work(*batch)
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # what failed may not have come so far as to leave its own
            cause = error.__context__ or error  # that a recording cannot be ended hides why
            if not isinstance(cause, Exception):
                raise cause from None
            self._give_up(first_line(cause))
        else:
            self._graph, self._batch = graph, batch
            self.recordings += 1
