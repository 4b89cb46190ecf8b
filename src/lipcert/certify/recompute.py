"""The checks of a certificate that compute with the network: its norms, its bound, its margins and radii.

How claims are compared where two machines round differently:

* a margin, and a radius in real arithmetic, against the lower end of an *enclosure* of the true value: what is accepted
  was proved here, but for 1e-9 of a radius. Whoever certifies encloses less closely (in batches), and takes a little
  more off (:meth:`lipcert.certify.contest.Contest.cautious`), so that no honest claim is above it.
* the bound against the one that its norms give, within 1e-9 of it.
* a radius in another precision in the same way. What rounding takes off it is computed in the module's precision, which
  differs from machine to machine; so whoever certifies takes off a thousandth more.
* a local radius without any tolerance: it is proved here again, as it is.

Claims that are too *small* are true, but they are not what was proved, so they are refused as altered; except local
radii, of which nobody knows how large they could be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.bounds import UpperBound
from lipcert.bounds.evidence import fits
from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.rows import row
from lipcert.certify.certificate import evidence_of, further_of, norms_of, restated, together_of
from lipcert.certify.claimed import TOLERANCE, Claimed
from lipcert.certify.contest import SPARE, Contest
from lipcert.certify.identity import Samples
from lipcert.certify.local import reproved
from lipcert.certify.logits import exact_logits, pair_errors
from lipcert.certify.network import BATCH, contested
from lipcert.certify.radius import Radii
from lipcert.certify.report import Check, NotChecked, Refuted, examine
from lipcert.certify.schema import Certificate
from lipcert.graph import Graph
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap

__all__ = ["ALTERED", "CONFIRM_LIMIT", "TOLERANCE", "Recomputed", "claimed_pairs", "recomputed"]

CONFIRM_LIMIT = 2048
"""The largest smaller side of a matrix that is formed to confirm a norm, unless told otherwise."""
ALTERED = 1e-6  # a claim that is smaller than the truth by more is not what was computed


def enclosed_margins(
    graph: Graph, samples: Samples, chosen: Tensor, bound: UpperBound | None = None
) -> tuple[Tensor, Tensor]:
    """``z_a − z_b`` of the real-arithmetic network for the class a chosen for each sample and every class b.

    ``bound`` is as in :func:`lipcert.certify.exact_logits`: where its norms are used, what is enclosed is so on their
    word, which other checks look into.

    Returns:
        a lower and an upper bound, (N, C) each, float64 on the CPU. Whoever computes them, on whichever machine, the
        true difference lies between the two.
    """
    logits, errors = (v.cpu() for v in exact_logits(graph, samples.batches(BATCH), each=True, bound=bound))
    rows = torch.arange(len(logits))
    margins = logits[rows, chosen][:, None] - logits
    both = pair_errors(errors, chosen)
    far = torch.full_like(margins, torch.inf)
    # a step for the rounding of each of the two differences, at the number that it could have rounded away from
    lower = torch.nextafter(torch.nextafter(margins, -far) - both, -far)
    upper = torch.nextafter(torch.nextafter(margins, far) + both, far)
    return torch.where(torch.isnan(lower), -far, lower), torch.where(torch.isnan(upper), far, upper)


def bound_pairs(value: Tensor, classes: int) -> Tensor:
    """L_ab for each pair of classes, (C, C) on the CPU, rounded up; infinite between a class and itself."""
    pairs = pair_bounds(value.detach().double().cpu(), classes, upward=True)
    return pairs.masked_fill(torch.eye(classes, dtype=torch.bool), torch.inf)


def real_radii(lower: Tensor, pairs: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """``min_b margin_b/L_ab`` over the other classes b, rounded down and not below 0, and the class b it is that of."""
    down = torch.nextafter(lower / pairs[prediction], torch.full_like(lower, -torch.inf))
    own = torch.nn.functional.one_hot(prediction, lower.shape[1]).bool()
    least = down.masked_fill(own, torch.inf).min(1)
    return least.values.clamp_min(0.0), least.indices


def _claimed_value(c: Certificate) -> Tensor:
    value = torch.tensor(c.bound.value, dtype=torch.float64)
    return {"pairwise": value, "class": value[0], "global": value[0, 0]}[c.bound.scope]


def claimed_pairs(c: Certificate) -> Tensor:
    """L_ab for each pair of classes as the certificate's bound gives them."""
    return bound_pairs(_claimed_value(c), len(c.model.classes))


def recomputed(network: Recomputed | None, data: Samples | None, *, norms: bool, local: bool) -> list[Check]:
    """All checks that need the network, by name; without it, or without data, they say that they were not made.

    Args:
        network: what is computed again, if the network is known.
        data: the samples, if there are any.
        norms: whether to confirm the norms.
        local: whether there are local radii to check.
    """

    def wanted(test: Callable[[Recomputed], str]) -> str:
        if network is None:
            raise NotChecked("the module is not known to be the network that this certificate speaks of")
        return test(network)

    def confirmed(found: Recomputed) -> str:
        if not norms:
            raise NotChecked("not asked for")
        return found.confirmed()

    checks = [
        examine("norms, from below", lambda: wanted(Recomputed.below)),
        examine("norms, by another method", lambda: wanted(confirmed)),
        examine("bound", lambda: wanted(Recomputed.bounded)),
    ]
    same = examine("data", lambda: wanted(lambda found: found.same_data(data)))
    checks.append(same)

    def with_data(test: Callable[[Recomputed, Samples], str]) -> Callable[[], str]:
        def run() -> str:
            if data is None or network is None or same.status != "passed":
                raise NotChecked("not compared with data" if data is None else "these are other samples")
            return test(network, data)

        return run

    checks += [
        examine("labels", with_data(Recomputed.labels)),
        examine("margins", with_data(Recomputed.enclosed)),
        examine("radii", with_data(Recomputed.radii)),
    ]
    if local:
        checks.append(examine("local radii", with_data(Recomputed.local)))
    return checks


class Recomputed:
    """What is computed again of the network that a certificate speaks of."""

    def __init__(self, c: Certificate, graph: Graph, *, dense_limit: int, failure: float) -> None:
        self.c, self.graph, self.dense_limit, self.failure = c, graph, dense_limit, failure
        self.claims = norms_of(c.bound)
        self.pairs = claimed_pairs(c)
        self.prediction = torch.tensor(c.samples.prediction)
        with ordinary_mode():
            self.loop = LoopMap(graph, graph.resolve(torch.float64), centred=c.bound.method != "product")
        self.claimed = [Claimed("", self.loop, self.claims, evidence_of(c.bound))]
        self.claimed += [
            Claimed(f" of further evidence {i}", self.loop, {}, one, self.claims)
            for i, one in enumerate(further_of(c.bound), start=1)
        ]
        if c.bound.parts:
            pieces = row(self.loop)  # as many as are claimed, or making the bound refuses them
            for i, (piece, one) in enumerate(zip(pieces, c.bound.parts, strict=False), start=1):
                self.claimed.append(Claimed(f" of part {i}", piece.loop, norms_of(one), evidence_of(one)))
                behind, until = together_of(one)
                if behind is not None:
                    self.claimed.append(Claimed(f" of all behind part {i}", piece.behind(), {}, behind))
                if until is not None:
                    self.claimed.append(Claimed(f" of all up to the end of part {i}", piece.until(), {}, until))
        self._bound: UpperBound | None = None
        self._margins: tuple[Tensor, Tensor] | None = None
        self._contested: tuple[Radii, Contest] | None = None
        self._doubt: Tensor | None = None

    @property
    def bound(self) -> UpperBound:
        """What the claimed norms give."""
        if self._bound is None:
            c = self.c.bound
            for one in self.claimed:
                if one.evidence is not None and not fits(one.loop, one.evidence):
                    raise Refuted(
                        f"the weights of the small-gain bound{one.of} are not those of this network's activations"
                    )
            self._bound = restated(self.graph, c)
        return self._bound

    def margins(self, data: Samples) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds on every ``z_a − z_b``, a the claimed prediction."""
        if self._margins is None:
            self._margins = enclosed_margins(self.graph, data, self.prediction, self.bound)
        return self._margins

    def doubt(self, data: Samples) -> Tensor:
        """How far below ``z_a − z_b`` a certificate's margins may lie: by float64's errors as it takes them.

        These are of the largest input of a batch, and of two logits by themselves, where :meth:`margins` looks at each
        sample and at differences: far more, where a network's weights cancel. Looked at only where margins are low.
        """
        if self._doubt is None:
            errors = exact_logits(self.graph, data.batches(BATCH), bound=self.bound)[1].cpu()
            self._doubt = 2 * pair_errors(errors, self.prediction.clamp_min(0))
        return self._doubt

    def contested(self, data: Samples) -> tuple[Radii, Contest]:
        """The radii by the bound alone, as they are made, and what local ones are made from."""
        if self._contested is None:
            arithmetic = self.c.precision.arithmetic
            batches = data.batches(BATCH)
            self._contested = contested(self.graph, self.bound, batches, data.labels, arithmetic, each=True)
        return self._contested

    # --- norms and bound ----------------------------------------------------------------------------------
    def below(self) -> str:
        """No claimed norm is below what a Lanczos iteration reaches."""
        self._require_blocks()
        for one in self.claimed:
            one.below()
        count, scaled = (
            sum(n) for n in zip(*((len(one.norms), one.evidence is not None) for one in self.claimed), strict=True)
        )
        also = ("", ", nor that of the scaled map", f", nor those of {scaled} scaled maps")[min(scaled, 2)]
        return f"a Lanczos iteration reaches none of the {count} claimed norms{also}"

    def confirmed(self) -> str:
        """Each claimed norm is confirmed by another method than the one that proved it."""
        self._require_blocks()
        blocks, scaled, left = Counter[str](), Counter[str](), list[str]()
        for one in self.claimed:
            try:
                ways, way = one.confirmed(self.dense_limit, self.failure / len(self.claimed))
            except NotChecked as reason:  # what is behind it may be refuted
                left.append(str(reason))
                continue
            blocks += ways
            scaled += Counter(way)
        if left:
            raise NotChecked("; ".join(left))
        how = ", ".join(f"{count} {way}" for way, count in sorted(blocks.items())) or "there are none"
        if scaled.total() == 1:
            how += f"; the scaled map, {next(iter(scaled))}"
        elif scaled:
            how += f"; {scaled.total()} scaled maps, {', '.join(f'{n} {way}' for way, n in sorted(scaled.items()))}"
        return f"{how}; a wrong one would pass with probability {self.failure:g} at most"

    def _require_blocks(self) -> None:
        if set(self.bound.norms) != set(self.claims):  # making the bound refuses them first
            raise Refuted("the norms are not those of this network's blocks")

    def bounded(self) -> str:
        """The claimed bound is what the claimed norms give."""
        claimed, found = _claimed_value(self.c), self.bound.value.detach().cpu()
        if claimed.shape != found.shape:
            raise Refuted(f"the bound is of shape {tuple(found.shape)}, claimed is {tuple(claimed.shape)}")
        low, high = found * (1 - TOLERANCE), found * (1 + ALTERED)
        if bool((claimed < low).any()):
            worst = float((found - claimed).max())
            raise Refuted(f"the claimed bound is below what its norms give, by {worst:.3g}")
        if bool((claimed > high).any()):
            raise Refuted("the claimed bound is above what its norms give: it was changed")
        if abs(self.c.bound.slack - self.bound.slack) > ALTERED:
            raise Refuted(f"the slack that its norms give is {self.bound.slack:.6g}, not {self.c.bound.slack:.6g}")
        how = "small gain and LipLT" if self.c.bound.method == "smallgain" else f"the {self.c.bound.method} recursion"
        return f"what its norms give by {how}, {self.c.bound.scope}"

    # --- data ---------------------------------------------------------------------------------------------
    def same_data(self, data: Samples | None) -> str:
        """The samples are those that were certified."""
        c = self.c
        if data is None:
            raise NotChecked("none was given: labels, predictions, margins and radii were not compared with data")
        for what, mine, theirs in (
            ("SHA-256", data.sha256, c.data.sha256),
            ("number", len(data), c.data.samples),
            ("name", data.name, c.data.name),
            ("split", data.split, c.data.split),
            ("class names", data.classes, c.model.classes),
        ):
            if mine != theirs:
                raise Refuted(f"other samples were certified: their {what} is {theirs!r}, not {mine!r}")
        ends = [(float(x.min()), float(x.max())) for x in data.batches(1000)]
        if (min(e[0] for e in ends), max(e[1] for e in ends)) != (c.input.smallest, c.input.largest):
            raise Refuted("the samples' smallest and largest entry are not those stated")
        return f"{data.name}, {data.split}: the {len(data):,} samples that were certified"

    def labels(self, data: Samples) -> str:
        """The labels are the samples'."""
        wrong = torch.nonzero(torch.tensor(self.c.samples.label) != data.labels).flatten()
        _refute(wrong, lambda n: f"is labelled {int(data.labels[n])}, not {self.c.samples.label[n]}")
        return "every label is that of its sample"

    def enclosed(self, data: Samples) -> str:
        """Predictions, margins and runners-up, from logits computed again."""
        lower, upper = self.margins(data)
        own = torch.nn.functional.one_hot(self.prediction, lower.shape[1]).bool()
        width, claimed = upper - lower, torch.tensor(self.c.samples.margin, dtype=torch.float64)
        lost = torch.nonzero(upper.masked_fill(own, torch.inf).min(1).values < 0).flatten()
        _refute(lost, lambda n: f"is not classified as {self.c.samples.prediction[n]}")
        runner_up = torch.tensor(self.c.samples.runner_up)[:, None]
        low, wide = (v.gather(1, runner_up)[:, 0] for v in (lower, width))
        _refute(
            torch.nonzero(~(claimed <= low)).flatten(),
            lambda n: f"has a margin of which {float(low[n])!r} is proved here, not {float(claimed[n])!r}",
        )
        if bool((claimed < low - ALTERED * low.abs() - 4 * wide).any()):
            wide = wide + self.doubt(data).gather(1, runner_up)[:, 0]
        altered = claimed < low - ALTERED * low.abs() - 4 * wide
        _refute(torch.nonzero(altered).flatten(), lambda n: f"has a margin of {float(low[n])!r}: it was changed")
        most = (upper / self.pairs[self.prediction]).masked_fill(own, torch.inf).min(1).values
        slope = self.pairs[self.prediction].gather(1, runner_up)[:, 0]
        other = (low - 4 * wide) / slope > most.clamp_min(0) * (1 + TOLERANCE)
        _refute(torch.nonzero(other).flatten(), lambda n: f"is not limited by class {self.c.samples.runner_up[n]}")
        return f"predictions and runners-up are right, and margins within {float(wide.max()):.1g} of the float64 logits"

    def radii(self, data: Samples) -> str:
        """Radii, from margins and the bound; in the module's precision from its rounding, too."""
        lower, upper = self.margins(data)
        pairs = self.pairs[self.prediction]
        claimed = torch.tensor(self.c.samples.real_radius, dtype=torch.float64)
        least, _ = real_radii(lower, self.pairs, self.prediction)
        wide = ((upper - lower) / pairs).max(1).values
        if bool((claimed < least * (1 - ALTERED) - 4 * wide).any()):
            wide = ((upper - lower + self.doubt(data)) / pairs).max(1).values
        self._compare("real_radius", claimed, least * (1 - ALTERED) - 4 * wide, least * (1 + TOLERANCE))
        said = "no real_radius is above the one that was proved here"
        if self.c.precision.arithmetic == "real":
            return said
        found, contest = self.contested(data)
        real = contest.real().amin(1)
        # a certificate may be older than the second account of rounding
        largest, smallest = (
            torch.minimum(one.executed().amin(1), real).cpu()
            for one in (contest, contest.spared(3 * SPARE).by_first_account())
        )
        low, high = smallest * (1 - ALTERED) - 4 * wide, largest * (1 + TOLERANCE)
        # where two logits tie, another class may have been predicted here: then all radii are 0
        tie = found.prediction.cpu() != self.prediction
        claimed = torch.tensor(self.c.samples.by_bound, dtype=torch.float64)
        self._compare("radius", claimed, low.masked_fill(tie, 0.0), high.masked_fill(tie, 0.0))
        return f"{said}, and none in {self.c.precision.arithmetic} above what rounding leaves of it"

    def local(self, data: Samples) -> str:
        """Each radius that local bounds have made larger is proved again, as it is."""
        found, contest = self.contested(data)
        radius = torch.tensor(self.c.samples.radius, dtype=torch.float64)
        larger = radius > torch.tensor(self.c.samples.by_bound, dtype=torch.float64)
        same = found.prediction.cpu() == self.prediction
        batches = data.batches(BATCH)
        proof = reproved(self.graph, self.bound, batches, contest, radius, larger & same).cpu()
        _refute(
            torch.nonzero(larger & ~proof).flatten(),
            lambda n: f"has a radius of {float(radius[n])!r} that no local bound proves",
        )
        return f"{int(larger.sum()):,} radii are larger by local bounds; each was proved again as it is"

    @staticmethod
    def _compare(what: str, claimed: Tensor, low: Tensor, high: Tensor) -> None:
        _refute(
            torch.nonzero(~(claimed <= high)).flatten(),
            lambda n: f"has a {what} of {float(high[n])!r} at most, not {float(claimed[n])!r}",
        )
        _refute(
            torch.nonzero(~(claimed >= low)).flatten(),
            lambda n: (
                f"has a {what} of at least {float(low[n])!r}, not {float(claimed[n])!r}: it was changed, or made by "
                "another version of lipcert"
            ),
        )


def _refute(wrong: Tensor, say: Callable[[int], str]) -> None:
    if len(wrong):
        n = int(wrong[0])
        more = f" ({len(wrong):,} such samples)" if len(wrong) > 1 else ""
        raise Refuted(f"sample {n} {say(n)}{more}")
