"""Every benchmark runs and fills its table; how fast is nothing to test on a shared machine."""

import csv
import json
import math
import socket

import benchmarks
import pytest
import torch
from benchmark import main
from benchmarks import gpu, growth


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.names())
def test_a_benchmark_fills_its_table(name):
    rows = benchmarks.run(name, quick=True)
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert figures and all(math.isfinite(value) for value in figures)
    # a ratio of two warm-ups would say nothing
    compares = ("times", "ratio", "share", "spread")
    assert not [key for key in rows[0] if any(word in key for word in compares)]


@pytest.mark.slow
def test_all_goes_on_after_one_that_fails_and_writes_what_it_found(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(benchmarks, "names", lambda: ["moon", "objective", "risk"])
    file = tmp_path / "all.json"
    assert main(["all", "--quick", "--out", str(file)]) == 1
    said = capfd.readouterr()
    assert "no benchmark 'moon'" in said.err and "moon failed" in said.err
    content = json.loads(file.read_text())
    assert content["quick"] and list(content["benchmarks"]) == ["objective"]  # risk is not of speed
    assert benchmarks.table(content["benchmarks"]["objective"]) in said.out
    assert content["machine"]["torch"] == torch.__version__
    assert socket.gethostname() not in map(str, content["machine"].values())


def test_cases_take_turns_and_a_ratio_is_that_within_rounds():
    calls, now = [], 0.0

    def case(name, *costs):
        left = iter(costs)

        def call():
            nonlocal now
            calls.append(name)
            now += next(left)

        return call

    # the machine is ten times slower in the second round, and the warm-up does not count
    cases = {"a": case("a", 9, 1, 10, 1), "b": case("b", 9, 2, 20, 2)}
    found = benchmarks.seconds(cases, 3, clock=lambda: now)
    assert calls == ["a", "b"] * 4
    assert found["a"].figures == [1, 10, 1] and found["a"].median == 1
    assert found["b"].over(found["a"]) == 2
    assert found["a"].spread_percent == pytest.approx(450)


def test_the_table_is_aligned_markdown():
    text = benchmarks.table(
        [{"what": "a", "ms": 1234.5}, {"what": "floor", "ms": None}, {"what": "b", "ms": 0.12345}]
    )
    assert text.splitlines() == [
        "| what  |    ms |",
        "|-------|------:|",
        "| a     | 1,234 |",
        "| floor |       |",
        "| b     | 0.123 |",
    ]


def test_growth_is_drawn_with_its_last_slopes():
    rows = [
        {"against": what, "value": k * own, "ms": 10.0 * k, "slope_ratio": slope}
        for what, (_, own, _) in growth.GROWTH.items()
        for k, slope in ((1, None), (2, 0.5), (4, 1.0))
    ]
    svg = growth.picture(rows)
    assert [f"{what} (1.00)" in svg for what in growth.GROWTH] == [True] * len(growth.GROWTH)
    assert svg.count("<title>2: 40</title>") == len(growth.GROWTH)  # two doublings: 40 ms


def test_a_wrong_name_or_option_is_one_sentence(capsys):
    assert main(["moon"]) == 1
    assert "no benchmark 'moon'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["collect", "size=3"])
    assert left.value.code == 2 and "size=3" in capsys.readouterr().err


def test_a_part_of_the_gpu_benchmark_that_fails_loses_no_other_row(monkeypatch, tmp_path, capsys):
    def before(bench):
        yield gpu.row("before", 1.0, "ms")
        raise RuntimeError("out of memory")

    def after(bench):
        yield gpu.row("after", 2.0, "ms", "before", 2.0)

    monkeypatch.setattr(gpu, "PARTS", (before, after))
    file = tmp_path / "gpu.csv"
    assert gpu.main([str(file), "quick=true"]) == 1
    assert "out of memory" in capsys.readouterr().err
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["what"], row["value"], row["ratio"]) for row in rows] == [
        ("before", "1.0", ""),
        ("after", "2.0", "2.0"),
    ]
    assert list(rows[0]) == "date device torch what value unit reference ratio".split()


def test_a_call_at_the_matmul_rate_has_a_share_of_one():
    bench = gpu.Bench(torch.device("cpu"), quick=True)
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    work = 2 * 3 * 5 * 7
    assert bench.share(lambda: a @ b, work / bench.ceiling) == pytest.approx(1)
    # its gradient is one more product of that size
    assert bench.share(lambda: (a @ b).sum().backward(), work / bench.ceiling) == pytest.approx(2)
