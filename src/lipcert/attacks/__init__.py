"""Attacks: how near an adversarial example is, to stand beside how far a certificate says that there is none.

The attacks are those of libraries (``pip install 'lipcert[attacks]'``). What they find is judged here: the class in the
certificate's arithmetic, the ℓ2 distance in float64, the range [0, 1]; and moved as close to the input as it goes. An
adversarial example inside of a certified radius is a :class:`lipcert.errors.CounterexampleError`.
"""

from lipcert.attacks.campaign import attack, remeasured
from lipcert.attacks.judge import Judge
from lipcert.attacks.methods import METHODS, Method, Strength
from lipcert.attacks.record import Attacked, Tried, read_attacked

__all__ = ["METHODS", "Attacked", "Judge", "Method", "Strength", "Tried", "attack", "read_attacked", "remeasured"]
