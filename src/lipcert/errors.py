"""The errors a user can meet, by name.

Every error says what is wrong, where, and what to do instead. All of them derive from
:class:`LipcertError`, so that a program can catch what lipcert refuses without catching bugs; those that
stand for a bad argument are also ``ValueError``.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BoundError",
    "CertificateError",
    "CheckpointError",
    "ConfigError",
    "CounterexampleError",
    "DataError",
    "ImportFileError",
    "LipcertError",
    "ModuleStateError",
    "ParallelError",
    "ShapeError",
    "TraceError",
    "TrainingError",
    "UnsupportedError",
    "out_of_memory",
]

# What torch says where it has no type for it: the CPU's allocator, CUDA's driver, sizes beyond 64 bits.
_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Storage size calculation overflowed")


class LipcertError(Exception):
    """Anything that lipcert refuses to do."""


class TraceError(LipcertError):
    """The module could not be turned into a graph, or the graph is not the module."""


class UnsupportedError(TraceError):
    """The module contains a layer that has no Lipschitz rule (yet, or ever).

    Attributes:
        operation: what was met, for example ``aten.softmax.int``.
        place: the submodule that contains it, as in ``named_modules()``; ``""`` is the module itself.
        reason: why it is refused.
        remedy: what to use instead; may be empty.
    """

    def __init__(self, operation: str, place: str, reason: str, remedy: str = "") -> None:
        self.operation, self.place, self.reason, self.remedy = operation, place, reason, remedy
        where = f"in submodule '{place}'" if place else "in the module's own forward"
        message = f"{operation} ({where}) is not supported: {reason}"
        super().__init__(f"{message} {remedy}" if remedy else message)


class ModuleStateError(LipcertError, ValueError):
    """The module is not in a state that can be bounded: train mode, NaN or infinite weights, no outputs."""


class ImportFileError(LipcertError, ValueError):
    """A network in a file from outside cannot be read, or written for outside."""


class ParallelError(LipcertError):
    """The processes of a run lost each other, or never met."""


class ShapeError(LipcertError, ValueError):
    """An input, a label or a bound has a shape or dtype that does not fit."""


class BoundError(LipcertError, ValueError):
    """A bound could not be computed as asked for, for example because a block is too large to form."""


class DataError(LipcertError):
    """A data set is missing, truncated, altered or not in a layout that lipcert reads."""


class ConfigError(LipcertError, ValueError):
    """A configuration or an argument is wrong; of a configuration the message lists every error at once."""


class CheckpointError(LipcertError):
    """A checkpoint is missing, damaged, or belongs to another model or configuration."""


class TrainingError(LipcertError):
    """Training cannot go on: the loss is not finite, or the network has collapsed to a constant."""


class CertificateError(LipcertError):
    """A certificate cannot be made or read: it is damaged, not in its one form, or no certificate at all."""


class CounterexampleError(LipcertError):
    """A certified radius is wrong: there is an adversarial example inside of it. That is a bug in lipcert.

    Attributes:
        sample: its position.
        distance: ℓ2, of the adversarial example.
        radius: that was certified.
        file: with the two inputs, if one was written.
    """

    def __init__(self, sample: int, distance: float, radius: float, file: Path | None = None) -> None:
        self.sample, self.distance, self.radius, self.file = sample, distance, radius, file
        kept = "" if file is None else f" Both inputs are in {file}."
        super().__init__(
            f"sample {sample} has an adversarial example at a distance of {distance:.9g}, inside of its certified "
            f"radius {radius:.9g}. THIS IS A BUG IN LIPCERT, or the certificate was altered (lipcert verify says); the "
            f"certificate cannot be relied upon.{kept}"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is not enough memory.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA out of memory")), out_of_memory(ValueError())
    (True, True, False)
    """
    # torch.OutOfMemoryError is a RuntimeError
    short = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return short or isinstance(error, MemoryError)
