"""Every benchmark runs and fills its table; how fast is nothing to test on a shared machine."""

import csv
import math

import benchmarks
import pytest
import torch
from benchmark import main
from benchmarks import gpu


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.names())
def test_a_benchmark_fills_its_table(name):
    rows = benchmarks.run(name, quick=True)
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert figures and all(math.isfinite(value) for value in figures)


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


def test_a_wrong_name_or_option_is_one_sentence(capsys):
    assert main(["moon"]) == 1
    assert "no benchmark 'moon'" in capsys.readouterr().err
    assert main(["collect", "size=3"]) == 1
    assert "size=3" in capsys.readouterr().err


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
