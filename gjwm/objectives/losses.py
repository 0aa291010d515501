"""How losses become one: the only place where they are added up."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of weights[name] * losses[name] over the names of both, in the order of `weights`; a
    weight of 0 leaves its loss out, whatever it is.

    Raises:
        ValueError: when nothing is left to minimise.
    """
    terms = [
        losses[name] if weight == 1 else weight * losses[name]
        for name, weight in weights.items()
        if weight and name in losses
    ]
    if not terms:
        raise ValueError(f"no loss has a weight: losses {list(losses)}, weights {dict(weights)}.")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
