"""Every random choice as a pure function of (seed, purpose, counters).

Nothing here holds state, so a run that stops needs to remember no generator, and two processes that ask the same
question get the same answer.
"""

from __future__ import annotations

from hashlib import blake2b


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit key for one purpose: feed it to a generator, or use it as a draw.

    >>> key(0, "order", 1) == key(0, "order", 1)
    True
    >>> key(0, "order", 1) == key(0, "order", 2)
    False
    """
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
