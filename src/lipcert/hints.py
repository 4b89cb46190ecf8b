"""What to say about a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(word: str, known: Iterable[str], then: str = "") -> str:
    """A question with the nearest known word, if one is near, followed by ``then``, if there is anything to follow.

    >>> did_you_mean("Epoch", ["epochs", "ema"])
    "did you mean 'epochs'?"
    >>> did_you_mean("zebra", ["epochs", "ema"], "there are: epochs, ema")
    'there are: epochs, ema'
    """
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return " ".join([*(f"did you mean '{name}'?" for name in near), *([then] if then else [])])
