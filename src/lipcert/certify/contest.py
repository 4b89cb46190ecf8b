"""The predicted class of each sample against every other: margins, Lipschitz constants, and what rounding takes off.

What is here is rounded towards smaller radii, once: global radii (:mod:`lipcert.certify.radius`) and local ones
(:mod:`lipcert.certify.local`) are made from the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lipcert.bounds.pairs import pair_bounds
from lipcert.certify.logits import pair_errors
from lipcert.certify.rounding import Account, Rounding

__all__ = ["SPARE", "Contest", "round_down"]

SPARE = 2.0**-10
"""Of what rounding takes off a radius, by how much more is taken off: it is computed in the module's own precision, and
who verifies a radius on another machine, without any tolerance for this, may find a little more."""
_DOUBT = 2.0**-4  # of the width of a margin's enclosure, which is worst cases all over: machines differ by less


def round_down(value: Tensor) -> Tensor:
    """One step down, past the rounding of the one operation that made the value."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


@dataclass(frozen=True, eq=False)
class Contest:
    """Of N samples and C classes, in float64.

    Attributes:
        prediction: (N,), a; −1 where a logit is not finite.
        own: (N, C) bool, where b = a.
        margins: (N, C), y_a − y_b in real arithmetic, from below.
        slopes: (N, C), L_ab from above.
        doubt: (N, C), how far the margins may be below the true ones.
        still, growing: (N, C), e and f of what execution can take off a margin within a ball of radius R: e + f·R.
        first_still, first_growing: (N, C), the same by the first account of rounding alone.
        near_still: (N, C), what will do for e where R is at most ``within``.
        within: (N,).
        reach: (N,), the largest R for which they say so.
    """

    prediction: Tensor
    own: Tensor
    margins: Tensor
    doubt: Tensor
    slopes: Tensor
    still: Tensor
    growing: Tensor
    first_still: Tensor
    first_growing: Tensor
    near_still: Tensor
    within: Tensor
    reach: Tensor

    @staticmethod
    def of(logits: Tensor, pairs: Tensor, errors: Tensor | None, rounding: Rounding | None) -> Contest:
        """From logits (N, C), L_ab (C, C), errors (:func:`pair_errors`), and what execution adds (None: nothing)."""
        classes = logits.shape[1]
        z = logits.detach().double()
        finite = torch.isfinite(z).all(1)
        z = torch.where(finite[:, None], z, torch.zeros_like(z))
        top, prediction = z.max(1)
        margins, doubt = top[:, None] - z, torch.zeros_like(z)
        if errors is not None:
            both = pair_errors(errors.to(z) if errors.ndim == 3 else errors.to(z).expand_as(z), prediction)
            margins, doubt = round_down(round_down(margins) - both), 2 * both
        own = torch.nn.functional.one_hot(prediction, classes).bool()
        slopes = pairs[prediction].clamp_min(torch.finfo(torch.float64).tiny)
        least = first = (torch.zeros_like(z), torch.zeros_like(z))
        near, within, reach = least[0], torch.zeros_like(top), torch.full_like(top, torch.inf)
        if rounding is not None:
            least, first = (_rounded(some, prediction, classes) for some in (rounding.accounts, rounding.accounts[:1]))
            near, reach = least[0], rounding.reach.to(reach)
            if rounding.near is not None:
                account, within = rounding.near
                near = _rounded([*rounding.accounts, account], prediction, classes)[0]
        prediction = torch.where(finite, prediction, torch.full_like(prediction, -1))
        return Contest(prediction, own, margins, doubt, slopes, *least, *first, near, within.to(reach), reach)

    def spared(self, share: float = SPARE) -> Contest:
        """With that much more taken off for rounding."""
        names = ("still", "growing", "first_still", "first_growing", "near_still")
        return replace(self, **{name: getattr(self, name) * (1 + share) for name in names})

    def by_first_account(self) -> Contest:
        """Without what another account says."""
        first = self.first_still
        return replace(self, still=first, growing=self.first_growing, near_still=first)

    def cautious(self) -> Contest:
        """With margins as small as another machine may find them, and what :meth:`spared` takes off."""
        return replace(self.spared(), margins=round_down(self.margins - _DOUBT * self.doubt))

    def real(self) -> Tensor:
        """(N, C): within this distance no b overtakes in real arithmetic; infinite for b = a, 0 if nothing is known."""
        return self._each(self.margins, self.slopes)

    def executed(self) -> Tensor:
        """(N, C): the same of the network that rounds; not beyond :attr:`reach`."""
        slopes = -round_down(-self.slopes - self.growing)
        far, near = (self._each(round_down(self.margins - e), slopes) for e in (self.still, self.near_still))
        each = torch.maximum(far, torch.minimum(near, self.within[:, None]))
        return torch.minimum(each, self.reach[:, None])

    def _each(self, margins: Tensor, slopes: Tensor) -> Tensor:
        each = round_down(margins / slopes)
        each = torch.where(torch.isnan(each), torch.zeros_like(each), each).clamp_min(0.0)
        each = torch.where(self.prediction[:, None] < 0, torch.zeros_like(each), each)
        return each.masked_fill(self.own, float("inf"))

    def left(self, sample: Tensor, other: Tensor, radius: Tensor) -> Tensor:
        """(R,): what is left of the margins of some samples over some classes when rounding in balls is taken off."""
        taken = -round_down(-self.growing[sample, other] * radius)
        near = radius <= self.within[sample]
        still = torch.where(near, self.near_still[sample, other], self.still[sample, other])
        taken = -round_down(-still - taken)
        return round_down(self.margins[sample, other] - taken)

    def part(self, start: int, stop: int) -> Contest:
        """Of some of the samples."""
        return Contest(*(getattr(self, f.name)[start:stop] for f in fields(self)))


def _rounded(accounts: Sequence[Account], prediction: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """``E_ab = e_ab + f_ab·R`` at the predicted class a, the least of each: (N, C) each, rounded up."""
    rows, found = torch.arange(len(prediction), device=prediction.device), []
    for account in accounts:
        last = account.final.double()
        total = last + last[rows, prediction][:, None]
        for j, gained in account.sources.items():
            head = pair_bounds(account.heads[j].double(), classes, upward=True)[prediction]
            total = total + head[..., None] * gained[:, None]
        found.append((total * (1 + 2.0**-40)).nan_to_num(torch.inf, torch.inf))
    least = torch.stack(found).amin(0)
    return least[..., 0], least[..., 1]
