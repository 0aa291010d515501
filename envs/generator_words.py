"""A random generator's state as numbers in an environment's state vector."""

from __future__ import annotations

import numpy as np

WORDS = 10  # entries that one generator takes


def to_words(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, 32 bits to an entry, which float64 holds exactly -> (10,)."""
    state = generator.bit_generator.state
    long = [state["state"]["state"], state["state"]["inc"]]
    words = [number >> 32 * i & 0xFFFFFFFF for number in long for i in range(4)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.float64)


def from_words(generator: np.random.Generator, words: np.ndarray) -> None:
    """Put `to_words`' state into a PCG64 generator."""
    *low, has_uint32, uinteger = (int(word) for word in words)
    state, inc = (sum(word << 32 * i for i, word in enumerate(low[at : at + 4])) for at in (0, 4))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
