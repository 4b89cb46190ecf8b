"""What was checked of a certificate, what was not, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lipcert.errors import LipcertError

__all__ = ["Check", "NotChecked", "Refuted", "Report", "examine"]

Status = Literal["passed", "failed", "not checked"]


class Refuted(Exception):  # noqa: N818 - a finding, not an error
    """Raised by a check that fails, with what it found."""


class NotChecked(Exception):  # noqa: N818 - a finding, not an error
    """Raised by a check that cannot be made, with the reason."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, or was not, and why."""

    name: str
    status: Status
    why: str


@dataclass(frozen=True)
class Report:
    """All checks of one certificate, in order.

    Example:
        >>> report = Report((Check("weights", "passed", "the same"), Check("data", "not checked", "none given")))
        >>> report.accepted, [check.name for check in report.unchecked]
        (True, ['data'])
    """

    checks: tuple[Check, ...]

    @property
    def accepted(self) -> bool:
        """Whether no check failed. What was not checked is in :attr:`unchecked`."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that the certificate did not stand."""
        return tuple(c for c in self.checks if c.status == "failed")

    @property
    def unchecked(self) -> tuple[Check, ...]:
        """What was not looked at."""
        return tuple(c for c in self.checks if c.status == "not checked")

    def __getitem__(self, name: str) -> Check:
        return next(c for c in self.checks if c.name == name)


def examine(name: str, test: Callable[[], str]) -> Check:
    """Make one check: ``test`` returns what it found to be right, or raises.

    What lipcert refuses to compute for this network, because of the certificate's numbers, fails the check too.
    """
    try:
        return Check(name, "passed", test())
    except NotChecked as reason:
        return Check(name, "not checked", str(reason))
    except (Refuted, LipcertError) as reason:
        return Check(name, "failed", str(reason))
