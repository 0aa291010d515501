"""Bias and variance of the value and the gradient of every discrepancy, and its cost, against batch
size N, slices and dimension D, at laws where both are known (scripts/population.py).

    python scripts/estimators.py docs/study/estimators.csv --measure
    python scripts/estimators.py docs/study/estimators.csv --picture docs/assets/estimators.svg

The first writes the csv, in about 15 minutes on one core; the second prints the tables of
docs/results.md from it and draws their picture.

A row of the csv is one law, discrepancy, D, N and number of slices:

    ms                forward and backward on one thread, median of interleaved rounds
    value             D of the law itself
    value_bias        mean over batches less that, and its standard error
    value_sd          standard deviation over batches
    signal            root mean square over points z ~ law of the gradient field g(z) of D at it;
                      0 where it is below 1e-5, the reference's own error
    error             the same of N dD/dz_i - g(z_i) over all points of all batches
    bias2             mean square of E[N dD/dz_i | z_i] - g(z_i): error^2 = bias2 + variance. It is
                      estimated without bias, so that it may be negative
    cosine            of N dD/dz_i and g(z_i) over all points

Any two batches of a law share exactly one point, and slices are drawn afresh. So the two errors at
that point are independent given the point, and the mean of their products is bias2. Standard errors
(_se) are by the jackknife that leaves out one batch, and larger for shared points."""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import table
from discrepancy_table import discrepancies
from population import LAWS, Law, orthogonal, population
from torch import Generator, Tensor

from gjwm.objectives import Discrepancy, SIGReg, Subspaces
from gjwm.reporting.svg import Figure
from gjwm.study.rows import as_csv

Row = dict[str, Any]
KEYS = ("law", "discrepancy", "D", "N", "slices")
FULL = {
    "dims": (8, 32, 128),
    "sizes": (32, 64, 128, 256, 512, 1024),
    "slices": (16, 64, 256, 1024),
    "laws": LAWS,
    "batches": 32,
    "directions": 1024,
    "rounds": 5,
}
QUICK = {
    "dims": (4,),
    "sizes": (8, 16),
    "slices": (4, 8),
    "laws": LAWS,
    "batches": 4,
    "directions": 8,
    "rounds": 1,
}


class OrthogonalSIGReg(SIGReg):
    """SIGReg with directions at right angles in blocks of D, each still uniform on the sphere."""

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        directions = orthogonal(z.shape[-1], self.num_slices, generator, dtype=z.dtype)
        return self._mean(z, directions[: self.num_slices].T, len(z))


def contenders(slices: int) -> dict[str, Discrepancy]:
    """Every discrepancy with its defaults, SIGReg's plain statistic, and SIGReg with other
    slices.
    """
    return discrepancies(slices) | {
        "SIGReg, plain": SIGReg(slices, estimator="v"),
        "SIGReg, orthogonal": OrthogonalSIGReg(slices),
    }


def is_sliced(discrepancy: Discrepancy) -> bool:
    """Whether the number of slices matters."""
    return isinstance(discrepancy, Subspaces) or hasattr(discrepancy, "num_slices")


def cases(dim: int, slices: Iterable[int]) -> dict[tuple[str, int | None], Discrepancy]:
    """(name, slices) -> discrepancy; those without slices once."""
    made = {}
    for count in slices:
        for name, d in contenders(count).items():
            made.setdefault((name, count if is_sliced(d) else None), d)
    return made


# -- measuring -------------------------------------------------------------------------------------


def batches_of(n: int, most: int) -> int:
    """How many batches of n samples to draw: many samples say as much in fewer."""
    return min(most, max(10, 6144 // n))


def sharing_batches(law: Law, count: int, size: int, generator: Generator) -> Tensor:
    """`count` batches of independent samples (count, size, D), any two of which share one point:
    that of i and j > i is at place j - 1 of i and at place i of j.
    """
    if not 3 <= count <= size + 1:
        raise ValueError(f"expected 3 to {size + 1} batches of {size} samples, got {count}.")
    z = law.sample(count, size, generator=generator)
    for i in range(count):
        for j in range(i + 1, count):
            z[j, i] = z[i, j - 1]
    return z


def gradients(
    discrepancy: Discrepancy, batches: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Values (R,) and N dD/dz_i (R, N, D) of batches (R, N, D)."""
    values, out = [], []
    for batch in batches:
        z = batch.clone().requires_grad_()
        value = discrepancy(z, generator=generator)
        out.append(torch.autograd.grad(value, z)[0] * len(z))
        values.append(value.detach())
    return torch.stack(values).double(), torch.stack(out)


def sharing(count: int, n: int) -> float:
    """By how much standard errors grow, at most, as `count` batches of n share points: exactly so
    for a mean over points.
    """
    return math.sqrt(1 + (count - 1) / n)


def _spread(left_out: Tensor, n: int) -> float:
    """Jackknife standard error from the figures with one batch of n left out (R,)."""
    count = len(left_out)
    return sharing(count, n) * math.sqrt((count - 1) * left_out.var(unbiased=False).item())


def _without_one(x: Tensor) -> Tensor:
    return (x.sum() - x) / (len(x) - 1)


def compared(found: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """signal, error, bias2 and cosine with standard errors, of gradients (R, N, D) of batches as
    `sharing_batches` has them, against the field at their points, given twice.
    """
    count, n = found.shape[:2]
    field = (first + second) / 2

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)

    own = dot(found, found).mean(1).double()
    with_field = dot(found, field).mean(1).double()
    square = dot(first, second).mean(1).double()
    error2 = own - 2 * with_field + square

    # place [i, j] of the point that batches i and j share, in i
    place = torch.arange(count).expand(count, count).clone()
    place -= torch.triu(torch.ones(count, count, dtype=torch.long), 1)
    place.fill_diagonal_(0)
    rows = torch.arange(count)[:, None]
    mine, field = found[rows, place], field[rows, place]
    both = dot(first[rows, place], second[rows, place])
    # <e_i, e_j>; found[i] at the point that it shares with j, and the other way round
    pairs = dot(mine, mine.transpose(0, 1)) - dot(mine + mine.transpose(0, 1), field) + both
    pairs = pairs.double().fill_diagonal_(0)
    bias2 = pairs.sum() / (count * (count - 1))
    bias2_left = (pairs.sum() - 2 * pairs.sum(1)) / ((count - 1) * (count - 2))

    def cosine(own: Tensor, with_field: Tensor, square: Tensor) -> Tensor:
        return with_field / (own * square.clamp(min=1e-30)).sqrt()

    return {
        "signal": square.mean().clamp(min=0).sqrt().item(),
        "error": error2.mean().clamp(min=0).sqrt().item(),
        "error_se": _spread(_without_one(error2).clamp(min=0).sqrt(), n),
        "bias2": bias2.item(),
        "bias2_se": _spread(bias2_left, n),
        "cosine": cosine(own.mean(), with_field.mean(), square.mean()).item(),
        "cosine_se": _spread(cosine(*map(_without_one, (own, with_field, square))), n),
    }


def measure(
    dim: int,
    name: str,
    *,
    sizes: Sequence[int],
    slices: Sequence[int],
    batches: int,
    directions: int,
    seed: int = 0,
) -> list[Row]:
    """Rows of one law and dimension, without cost."""
    g = Generator().manual_seed(seed)
    law, rows = Law.of(name, dim), []
    z = sharing_batches(law, batches, max(sizes), g)
    found = population(
        contenders(slices[0]), law, z.flatten(0, 1), directions=directions, generator=g
    )
    for (discrepancy, count), d in cases(dim, slices).items():
        value, (first, second) = found[discrepancy]
        field = first.view_as(z), second.view_as(z)
        if name == "Gaussian":  # D is 0 and at its minimum; do not keep rounding errors
            value, field = 0.0, (torch.zeros_like(z), torch.zeros_like(z))
        for n in sizes:
            number = batches_of(n, batches)
            values, gradient = gradients(d, z[:number, :n], g)
            rows.append(
                dict(zip(KEYS, (name, discrepancy, dim, n, count or "")))
                | {
                    "value": value,
                    "value_bias": values.mean().item() - value,
                    "value_bias_se": sharing(number, n) * values.std().item() / math.sqrt(number),
                    "value_sd": values.std().item(),
                }
                | compared(gradient, *(x[:number, :n] for x in field))
            )
            if rows[-1]["signal"] < 1e-5:  # blind, at the minimum, or too faint to be known
                rows[-1].update(signal=0.0, cosine="", cosine_se="")
    return rows


def milliseconds(
    dim: int, sizes: Sequence[int], slices: Sequence[int], rounds: int
) -> dict[tuple, float]:
    """Median time of forward and backward per (discrepancy, N, slices), all in turn in each
    round.
    """
    g = Generator().manual_seed(0)
    made = cases(dim, slices)
    times: dict[tuple, list[float]] = {}
    for round in range(rounds + 1):
        for n in sizes:
            z = torch.randn(n, dim, generator=g).requires_grad_()
            for (name, count), d in made.items():
                since = time.process_time()
                torch.autograd.grad(d(z, generator=g), z)
                if round:  # the first one warms up
                    key = (name, n, count)
                    times.setdefault(key, []).append(time.process_time() - since)
    return {key: 1e3 * sorted(x)[len(x) // 2] for key, x in times.items()}


def everything(
    *,
    dims: Sequence[int],
    sizes: Sequence[int],
    slices: Sequence[int],
    laws: Sequence[str],
    batches: int,
    directions: int,
    rounds: int,
) -> list[Row]:
    """All rows, with cost."""
    rows = []
    for dim in dims:
        ms = milliseconds(dim, sizes, slices, rounds)
        for name in laws:
            since = time.perf_counter()
            some = measure(
                dim, name, sizes=sizes, slices=slices, batches=batches, directions=directions
            )
            for row in some:
                key = (row["discrepancy"], row["N"], row["slices"] or None)
                keys = {k: row.pop(k) for k in KEYS}
                rows.append(keys | {"ms": ms[key]} | row)
            print(f"D = {dim}, {name}: {time.perf_counter() - since:.0f} s", flush=True)
    return rows


# -- reading ---------------------------------------------------------------------------------------


def written(rows: Sequence[Row]) -> str:
    """The csv, with three significant digits (integers and names as they are)."""
    return as_csv(
        {key: f"{x:.3g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows
    )


def read(path: Path) -> list[Row]:
    """Rows of a csv that `written` made."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("law", "discrepancy")
    return [
        {k: x if k in names or not x else int(x) if k in KEYS else float(x) for k, x in row.items()}
        for row in rows
    ]


class Results:
    """Rows by their keys."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = list(rows)
        self.of = {tuple(row[key] for key in KEYS): row for row in rows}
        self.laws, self.names, self.dims, self.sizes, self.slices = (
            list(dict.fromkeys(row[key] for row in rows)) for key in KEYS
        )
        self.slices = sorted(x for x in self.slices if x)
        self.sliced = {row["discrepancy"] for row in rows if row["slices"]}

    def row(self, law: str, name: str, dim: int, n: int, slices: int) -> Row:
        """The row; of a discrepancy without slices that of N alone."""
        return self.of[law, name, dim, n, slices if name in self.sliced else ""]

    def cells(self, law: str, name: str, dim: int) -> list[Row]:
        """All rows of a law, discrepancy and dimension."""
        wanted = (law, name, dim)
        return [row for row in self.rows if tuple(row[key] for key in KEYS[:3]) == wanted]


def share(row: Row, key: str = "error") -> float:
    """A figure of gradients in shares of the law's own."""
    return row[key] / row["signal"] if row["signal"] else math.nan


def percent(value: float, error: float | None = None) -> str:
    """A share as a percentage, with its standard error."""
    if math.isnan(value):
        return ""
    digits = 0 if value >= 0.0995 else 1
    ends = "" if error is None else f" ± {100 * error:.{digits}f}"
    return f"{100 * value:,.{digits}f}{ends}"


def bias(row: Row) -> str:
    """The gradient's bias in percent of the signal: a figure if it is at least two standard errors
    from 0, else a bound, two of them above what was found.
    """
    if not row["signal"]:
        return ""
    high = math.sqrt(max(0.0, row["bias2"] + 2 * row["bias2_se"])) / row["signal"]
    if row["bias2"] < 2 * row["bias2_se"]:
        return f"< {percent(high)}"
    return percent(math.sqrt(row["bias2"]) / row["signal"])


def cheapest(rows: Sequence[Row], target: float) -> Row | None:
    """The row of least cost whose error is at most a share of the signal."""
    good = [row for row in rows if row["signal"] and share(row) <= target]
    return min(good, key=lambda row: row["ms"], default=None)


def _place(row: Row | None, rows: Sequence[Row]) -> str:
    """N, slices and cost of a row, or the least error of all."""
    if row is None:
        least = min((share(r) for r in rows if r["signal"]), default=math.nan)
        return "" if math.isnan(least) else f"least {percent(least)}"
    size = f"{row['N']} × {row['slices']}" if row["slices"] else f"{row['N']}"
    return f"{size}: {row['ms']:.2g} ms"


def batch_table(results: Results, n: int, slices: int) -> str:
    """Every discrepancy at one batch size and number of slices."""
    lines = []
    for dim in results.dims:
        at = {name: results.row("decaying", name, dim, n, slices) for name in results.names}
        least = min(row["ms"] for row in at.values())
        for name, row in at.items():
            rest = {
                law: results.row(law, name, dim, n, slices)
                for law in ("Gaussian", "uniform", "Laplace")
            }
            noise = rest["Gaussian"]["error"] / row["signal"]
            lines.append(
                {
                    "D": dim,
                    "discrepancy": name,
                    "ms": f"{row['ms']:.2g}",
                    "times the cheapest": f"{row['ms'] / least:.3g}",
                    "value: bias": percent(row["value_bias"] / row["value"], None)
                    if row["value_bias"] > 0
                    else "-" + percent(-row["value_bias"] / row["value"]),
                    "value: sd": percent(row["value_sd"] / row["value"]),
                    "gradient: error": percent(share(row), share(row, "error_se")),
                    "its bias": bias(row),
                    "cosine": f"{row['cosine']:.3f}",
                    "error, uniform": percent(share(rest["uniform"])),
                    "error, Laplace": percent(share(rest["Laplace"])),
                    "at N(0, I)": percent(noise),
                }
            )
    return table(lines)


def target_table(results: Results, targets: Sequence[float] = (0.3, 0.1)) -> str:
    """The cheapest batch size and number of slices for a gradient error."""
    lines = []
    for dim in results.dims:
        for name in results.names:
            line: dict[str, object] = {"D": dim, "discrepancy": name}
            for law in ("decaying", "Laplace"):
                rows = results.cells(law, name, dim)
                for target in targets:
                    found = cheapest(rows, target)
                    line[f"{law}, {100 * target:.0f}%"] = _place(found, rows)
            lines.append(line)
    return table(lines)


def constants(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """a and b of (error / signal)^2 = a / N + b / slices + c / (N slices), or with c / N^2 where
    there are no slices, with standard errors; weighted least squares.
    """
    n = torch.tensor([1 / row["N"] for row in rows], dtype=torch.float64)
    square = torch.tensor([share(row) ** 2 for row in rows], dtype=torch.float64)
    error = torch.tensor([2 * row["error_se"] / row["error"] for row in rows]) * square
    if rows[0]["slices"]:
        s = torch.tensor([1 / row["slices"] for row in rows], dtype=torch.float64)
        terms = torch.stack([n, n * s, s], 1)
    else:
        terms = torch.stack([n, n * n], 1)
    terms = terms / error[:, None]
    inverse = torch.linalg.inv(terms.T @ terms)
    found, spread = inverse @ terms.T @ (square / error), inverse.diagonal().sqrt()
    both = list(zip(found.tolist(), spread.tolist()))
    return {"a": both[0]} | ({"b": both[2]} if rows[0]["slices"] else {})


def constants_table(results: Results) -> str:
    """How many samples and slices a gradient needs: the constants of each law and dimension. Fewer
    directions at right angles than D are another regime, left out.
    """
    lines = []
    for name in results.names:
        line: dict[str, object] = {"discrepancy": name}
        for law, key in (("decaying", "a"), ("decaying", "b"), ("Laplace", "a"), ("uniform", "a")):
            for dim in results.dims:
                least = dim if "orthogonal" in name else 0
                rows = [r for r in results.cells(law, name, dim) if (r["slices"] or dim) >= least]
                found = constants(rows) if rows and rows[0]["signal"] else {}
                shown = (f"{x:,.3g}" if x < 1000 else f"{x:,.0f}" for x in found.get(key, ()))
                line[f"{key}, {law}, D = {dim}"] = " ± ".join(shown)
        lines.append(line)
    return table(lines)


def slope(
    rows: Sequence[Row], by: str, figure: str, relative: str | None = None
) -> tuple[float, float]:
    """Least-squares slope of log figure (in units of another one) against log of a key, with the
    standard error that the figure's own lead to (0 for figures without).
    """
    x = torch.tensor([math.log(row[by]) for row in rows], dtype=torch.float64)
    y = [row[figure] / (row[relative] if relative else 1) for row in rows]
    errors = torch.tensor([row.get(f"{figure}_se", 0.0) / row[figure] for row in rows])
    x = x - x.mean()
    weight = x / x.square().sum()
    log_y = torch.tensor(y, dtype=torch.float64).log()
    return (weight @ log_y).item(), (weight * errors).square().sum().sqrt().item()


def slope_table(results: Results) -> str:
    """How error, spread and cost grow: log-log slopes, near collapse."""
    top, n_top, middle = results.slices[-1], results.sizes[-1], results.dims[len(results.dims) // 2]

    def rows(name: str, by: str, *, n: int, slices: int, dim: int) -> list[Row]:
        places = {"N": results.sizes, "slices": results.slices, "D": results.dims}[by]
        at = {"dim": dim, "n": n, "slices": slices}
        field = {"N": "n", "slices": "slices", "D": "dim"}[by]
        return [results.row("decaying", name, **at | {field: x}) for x in places]

    def shown(found: tuple[float, float]) -> str:
        return f"{found[0]:.2f}" + (f" ± {found[1]:.2f}" if found[1] else "")

    lines = []
    for name in results.names:
        fixed = dict(n=n_top, slices=top, dim=middle)
        line: dict[str, object] = {"discrepancy": name}
        for figure, title, relative in (
            ("error", "error", "signal"),
            ("value_sd", "value's sd", "value"),
            ("ms", "cost", None),
        ):
            for by in ("N", "slices", "D"):
                sliced = by != "slices" or name in results.sliced
                found = rows(name, by, **fixed) if sliced else []
                line[f"{title}, {by}"] = shown(slope(found, by, figure, relative)) if found else ""
        lines.append(line)
    return table(lines)


ROLES = {
    "SIGReg": "model",
    "SIGReg, orthogonal": "ink",
    "SlicedWasserstein": "oracle",
    "SlicedEnergy": "third",
    "Subspaces(SIGReg)": "plain",
    "BHEP": "second",
    "GaussianKL": "linear",
    "VICReg": "chance",
}


def picture(results: Results, slices: int = 256) -> str:
    """The gradient's error near collapse against N, for each D, as an svg."""
    places = [(dim, n) for dim in results.dims for n in (*results.sizes, None)][:-1]
    curves = {
        name: [
            None if n is None else share(results.row("decaying", name, dim, n, slices))
            for dim, n in places
        ]
        for name in ROLES
    }
    highest = max(y for curve in curves.values() for y in curve if y is not None)
    figure = Figure(
        "estimators",
        "Relative error of the gradient near collapse against batch size",
        f"Three dimensions side by side; {slices} slices where there are any.",
        labels=("N", "error / gradient"),
        categories=["" if n is None else str(n) for _, n in places],
        y=(None, 2 * highest),
        log_y=True,
        width=1000,
    )
    for name, curve in curves.items():
        figure.line(range(len(places)), curve, ROLES[name], name, dots=True)
    for i, dim in enumerate(results.dims):
        middle = i * (len(results.sizes) + 1) + (len(results.sizes) - 1) / 2
        figure.text(middle, 1.3 * highest, f"D = {dim}")
    for target in (0.1, 0.3):
        figure.level(target, "ideal")
    return figure.svg(standalone=True)


def tables(results: Results, n: int = 128, slices: int = 256) -> Mapping[str, str]:
    """Every table of docs/results.md by its title."""
    return {
        f"batches of {n}, {slices} slices": batch_table(results, n, slices),
        "the cheapest for a gradient error": target_table(results),
        "samples and slices that a gradient needs": constants_table(results),
        "log-log slopes": slope_table(results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read; print tables and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--measure", action="store_true", help="write the csv")
    parser.add_argument("--quick", action="store_true", help="seconds: shows that it runs")
    parser.add_argument("--picture", type=Path, help="draw this svg")
    options = parser.parse_args(arguments)
    if options.quick and not options.measure:
        parser.error("--quick is for --measure")
    if options.measure:
        torch.set_num_threads(1)
        options.csv.write_text(written(everything(**QUICK if options.quick else FULL)))
        if options.quick:
            return 0
    results = Results(read(options.csv))
    for title, text in tables(results).items():
        print(f"{title}\n\n{text}\n")
    if options.picture:
        options.picture.write_text(picture(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
