"""`python scripts/fuzz.py all|PART ... [--inputs 100000] [--seed 0] [--limit 120]`: properties on
drawn inputs.

The inputs are shared among the parts asked for by what one costs, and evenly within a part. Prints
for every property how many were tried and whether it failed, with hypothesis's smallest failing
input; status 1 if any failed. Every property runs in a process of its own. An input that crashes it
or takes longer than --limit seconds is a failure too: it is printed and the property goes on behind
it, until there are MOST of them. scripts/properties says what the properties are."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import properties
import torch

MOST = 10  # crashes and hangs of one property, after which it is left
# Of the inputs, a part's share in percent: the cheaper one is, the more, as a command line or a
# dataset on disk takes 10 to 40 times as long as an objective.
SHARES = {
    "replay": 6.0,
    "objectives": 70.0,
    "planners": 21.0,
    "config": 0.7,
    "datasets": 1.5,
    "checkpoints": 0.8,
}


def quotas(parts: list[str], inputs: int) -> list[tuple[properties.Property, int]]:
    """Every property of these parts and how many inputs it gets, at least one."""
    claims = properties.properties(tuple(parts))
    weights = [
        SHARES[c.part] * c.share / sum(o.share for o in claims if o.part == c.part) for c in claims
    ]
    return [(c, max(1, round(inputs * w / sum(weights)))) for c, w in zip(claims, weights)]


def _tried(part, name, inputs, seed, limit, last: Path, answers) -> None:
    """In a process of its own: run one property, and say how it went."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # a line for every repaired dataset
    (claim,) = (c for c in properties.properties((part,)) if c.name == name)
    count = 0
    with last.open("w", buffering=1) as file:

        def note(number: int, text: str) -> None:
            nonlocal count
            count = number
            file.seek(0)
            file.truncate()
            file.write(f"{number} {text}\n")

        fault = ""
        try:
            properties.run(claim, inputs, seed, limit, note)
        except BaseException:
            fault = traceback.format_exc()
    answers.put((count, fault))


def tried(
    claim: properties.Property, inputs: int, seed: int, limit: float
) -> tuple[int, list[str]]:
    """Try a property, behind every input that ends its process again -> (inputs, failures)."""
    context, done, faults = multiprocessing.get_context("spawn"), 0, []
    with tempfile.TemporaryDirectory() as folder:
        while done < inputs and len(faults) < MOST:
            last, answers = Path(folder, "last"), context.Queue()
            last.write_text("")
            rest = (inputs - done, seed + done, limit, last, answers)
            process = context.Process(target=_tried, args=(claim.part, claim.name, *rest))
            process.start()
            process.join()
            if process.exitcode == 0:
                count, fault = answers.get()
                return done + count, [*faults, fault] if fault else faults
            number, _, text = last.read_text().partition(" ")
            if not number:
                return done, [*faults, f"its process did not start ({process.exitcode})."]
            done += int(number)
            faults.append(
                f"a crash or a hang: the process ended with {process.exitcode} at {text.strip()}"
            )
    return done, faults


def main(arguments: list[str] | None = None) -> int:
    """Run -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART", help="all, or some of them")
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=properties.HANGS, help="s for one input")
    given = parser.parse_args(arguments)
    parts = list(properties.PARTS) if "all" in given.parts else given.parts
    try:
        claims = quotas(parts, given.inputs)
    except ValueError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    total, failures, began = 0, 0, time.monotonic()
    for claim, inputs in claims:
        if claim.needs and importlib.util.find_spec(claim.needs) is None:
            print(f"{claim.part}.{claim.name}: left out; pip install {claim.needs}")
            continue
        since = time.monotonic()
        count, faults = tried(claim, inputs, given.seed, given.limit)
        total, failures = total + count, failures + len(faults)
        name, seconds = f"{claim.part}.{claim.name}", time.monotonic() - since
        state = "FAILED" if faults else "ok"
        print(f"{name:68s} {count:7d} inputs {seconds:7.1f} s  {state}", flush=True)
        for fault in faults:
            print(fault, file=sys.stderr, flush=True)
    print(f"{total} inputs, {failures} failures, {time.monotonic() - began:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
