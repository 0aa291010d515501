"""`python scripts/fuzz.py all|PART ... [--inputs 100000] [--seed 0]`: properties on drawn inputs.

The inputs are shared among the parts asked for by what one costs, and evenly within a part. Prints
for every property how many were tried and whether it failed, with hypothesis's smallest failing
input; status 1 if any failed. Every property runs in a process of its own: a crash or a hang is a
failure too. scripts/properties says what the properties are."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")

import properties
import torch

# Inputs of a part per input of the cheapest; a command line takes 100 times as long as a window.
SHARES = {
    "replay": 30,
    "objectives": 35,
    "planners": 20,
    "config": 2,
    "datasets": 10,
    "checkpoints": 3,
}


def quotas(parts: list[str], inputs: int) -> list[tuple[properties.Property, int]]:
    """Every property of these parts and how many inputs it gets, at least one."""
    claims = properties.properties(tuple(parts))
    weights = [
        SHARES[c.part] * c.share / sum(o.share for o in claims if o.part == c.part) for c in claims
    ]
    return [(c, max(1, round(inputs * w / sum(weights)))) for c, w in zip(claims, weights)]


def _tried(part: str, name: str, inputs: int, seed: int, answers: multiprocessing.Queue) -> None:
    """In a process of its own: run one property, and say how it went."""
    torch.set_num_threads(1)
    (claim,) = (c for c in properties.properties((part,)) if c.name == name)
    try:
        answers.put((properties.run(claim, inputs, seed), ""))
    except BaseException:
        answers.put((inputs, traceback.format_exc()))


def main(arguments: list[str] | None = None) -> int:
    """Run -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART", help="all, or some of them")
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    parts = list(properties.PARTS) if "all" in given.parts else given.parts
    try:
        claims = quotas(parts, given.inputs)
    except ValueError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    context, total, failures, began = multiprocessing.get_context("spawn"), 0, 0, time.monotonic()
    for claim, inputs in claims:
        since = time.monotonic()
        answers = context.Queue()
        process = context.Process(
            target=_tried, args=(claim.part, claim.name, inputs, given.seed, answers)
        )
        process.start()
        process.join()
        # how many it had tried is lost with it
        tried, fault = 0, f"a crash or a hang: the process ended with {process.exitcode}."
        if process.exitcode == 0:
            tried, fault = answers.get()
        total, failures = total + tried, failures + bool(fault)
        name, seconds = f"{claim.part}.{claim.name}", time.monotonic() - since
        state = "FAILED" if fault else "ok"
        print(f"{name:68s} {tried:7d} inputs {seconds:7.1f} s  {state}", flush=True)
        if fault:
            print(fault, file=sys.stderr, flush=True)
    print(f"{total} inputs, {failures} failures, {time.monotonic() - began:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
