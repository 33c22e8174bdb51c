"""One decision per forward pass: is this one sampled?"""

import itertools

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Sampler:
    """Draws decisions from a hash of a counter.

    A hash and not every n-th forward: periodic traffic would be seen always at the same phase. Any
    number of threads may draw at once; equal seeds give equal sequences.

    Args:
        seed: Start of the sequence.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed & _MASK
        self._counter = itertools.count()  # next() on it is atomic: no lock in the forward pass

    def draw(self, rate: float) -> int:
        """Decide on one forward pass.

        Args:
            rate: Probability of being sampled, 0 to 1.

        Returns:
            0 with probability ``1 - rate``, else a positive random number whose lowest bits serve
            further choices within the pass.
        """
        if rate <= 0.0:
            return 0
        value = mix(self._seed + next(self._counter))
        return value + 1 if value < rate * 2.0**64 else 0


def mix(value: int) -> int:
    """Return a well-mixed 64-bit hash of an integer.

    Source:
        splitmix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    value = (value * _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
