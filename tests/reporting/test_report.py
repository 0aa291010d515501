"""Claims about the report: whole, self-contained, true to its numbers, and at home in a real
browser.
"""

import html.parser
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from gjwm._core.video import write_video
from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.geometry import embedding_report, gaussianity_curves, trajectory_report
from gjwm.models.dynamics import Prediction
from gjwm.reporting import ARRAYS, EVALUATION, GALLERY, LiveReport, save_arrays, write_report
from gjwm.reporting.figures import coverage_from_pit, training_figures
from gjwm.reporting.svg import Figure, number, ticks

# Every figure that a run with all the trimmings shows.
FIGURES = set(
    """planning-success planning-reached planning-distance prediction-r2 prediction-rank
    prediction-skill calibration-reliability calibration-pit calibration-temperature
    geometry-spectrum geometry-slices geometry-norms geometry-memory probe-r2
    training-train-one-step training-loss gallery-attempt-003""".split()
)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def outcome(rate, **extra):
    row = {"success_rate": rate, "ci95": [max(0, rate - 0.1), min(1, rate + 0.1)], "episodes": 20}
    row |= {"return_mean": 1.0, "closest_distance_mean": 0.01, "start_distance_mean": 0.2}
    return row | {"seconds_per_step": 0.02} | extra


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as `gjwm evaluate` leaves it, of latents made up here: every kind of figure,
    no training.
    """
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    folder.mkdir()
    z = torch.randn(60, 30, 4, generator=g()).cumsum(1) / 4
    y = torch.randn(400, 3, generator=g(1))
    law = calibration_report(Prediction(torch.zeros_like(y), torch.ones_like(y)), y)
    wide = calibration_report(Prediction(torch.zeros_like(y), 4 * torch.ones_like(y)), y)
    steps = [0.95, 0.9, 0.8]
    probes = {f"{kind}_r2": 0.95 for kind in ("linear", "knn", "mlp")}
    probes |= {f"{kind}_r2_ci95": [0.93, 0.97] for kind in ("linear", "knn", "mlp")}
    report = {
        "prediction": {
            "horizon": 3,
            "r2_by_horizon": steps,
            "r2_ci95_by_horizon": [[r - 0.02 for r in steps], [r + 0.02 for r in steps]],
            "copy_last_r2_by_horizon": [0.7, 0.2, -0.5],
            "linear_gaussian": {"r2_by_horizon": [0.8, 0.6, 0.4], "skill_nats_per_dim": 0.7},
            "noise_floor": dict(windows=9, deterministic=False, r2_by_horizon=[None, 0.99, 0.98]),
            "rank_accuracy": 0.8,
            "rank_accuracy_by_horizon": [1.0, 0.9, 0.8],
            "rank_chance": 1 / 256,
            "skill_nats_per_dim": 1.2,
            "skill_copy_last_nats_per_dim": -0.1,
            "variance_per_dim": 1.0,
        },
        "calibration": law
        | dict(horizon_5=wide, horizon_10=law, temperature_by_horizon=[1.0, 1.1, 0.9]),
        "surprise": dict(episodes=9, false_alarm_rate=0.01, level=0.01)
        | {"teleport": {"auroc": 1.0, "detection_rate": 0.9}},
        "probe": {**probes, "variables": {"position": probes, "qvel": probes}},
        "gaussianity": embedding_report(z, generator=g()),
        "trajectory": trajectory_report(z),
        "marginal": {"variance_per_dim": 0.9, "encoded_variance_per_dim": 1.0},
        "planning": {
            **outcome(0.9),
            "random": outcome(0.1),
            "hold": outcome(0.0),
            "oracle": outcome(1.0),
            "share_of_oracle": 0.9,
            "share_of_oracle_ci95": [0.8, 1.0],
            "protocol": {"goals": "ahead", "goal_offset": 12, "steps": 8, "success_radius": 0.05},
        },
        "timings": {"prediction": 1.25, "representation": 130.0},
        "training": {"seconds": 61.0, "threads": 1, "command": "gjwm train name=a"},
        "command": "gjwm evaluate name=a",
        "version": "0.0",
        "versions": {"torch": "9"},
        "config": dict(name="a <b> & c", env={"id": "x"}, planner={"samples": 256, "cost": None}),
    }
    film = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    write_video(folder / GALLERY / "attempt-003.mp4", film)
    Image.fromarray(film[0]).save(folder / GALLERY / "attempt-003.jpg")
    row = dict(attempt=3, kind="worst", reached=False, closest_distance=0.2, start_distance=0.4)
    report["gallery"] = [{"file": "attempt-003.mp4", "poster": "attempt-003.jpg", **row}]
    (folder / EVALUATION).write_text(json.dumps(report))
    rng = np.random.default_rng(1)
    arrays = {f"distance_{k}": rng.random((20, 9)) for k in ("model", "random", "hold", "oracle")}
    save_arrays(folder / ARRAYS, {**arrays, **gaussianity_curves(z, generator=g())})
    rows = [
        {"step": k, "train/one_step": 1 / k, "loss": 1 - k / 9, "odd/thing": k, "train/nll": None}
        for k in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 9, "train')
    return folder


class Outline(html.parser.HTMLParser):
    """Tags as they open and close: which ids, which addresses, whether all is nested."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags, self.words = [], [], [], [], []
        self.feed(page)
        assert self.open == [], f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [
            attrs[k] for k in ("src", "href", "poster", "data", "srcset") if k in attrs
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else(run):
    text = write_report(run).read_text()
    page = Outline(text)
    assert FIGURES <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") >= len(FIGURES) - 1  # one is a film
    assert all(address.startswith("data:") for address in page.addresses), page.addresses
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert len(text) < 1_000_000


def test_names_and_numbers_are_shown_as_they_are(run):
    words = " ".join(Outline(write_report(run).read_text()).words)
    assert "a <b> & c" in words  # escaped, or it would be a tag
    assert "90%" in words and "gjwm train name=a" in words and "planner.samples=256" in words
    assert "planner.cost=null" in words and "2.2 min" in words  # 130 s
    assert "Attempt 3 (worst): nearest 0.2, began 0.4 away" in words
    assert "odd/thing" in words  # a metric nobody foresaw has a plot too
    assert "what two futures of one state have in common" in words


def test_the_folder_alone_makes_the_same_page_elsewhere(run, tmp_path):
    here = write_report(run).read_bytes()
    moved = tmp_path / run.name
    shutil.copytree(run, moved)
    (moved / "report.html").unlink()
    assert write_report(moved).read_bytes() == here


def test_what_an_evaluation_did_not_measure_is_left_out(run, tmp_path):
    moved = tmp_path / "bare"
    shutil.copytree(run, moved)
    report = json.loads((moved / EVALUATION).read_text())
    for key in ("surprise", "trajectory", "marginal", "gallery", "timings", "versions"):
        del report[key]
    for key in ("linear_gaussian", "noise_floor", "r2_ci95_by_horizon"):
        del report["prediction"][key]
    del report["planning"]["oracle"], report["planning"]["share_of_oracle"]
    (moved / EVALUATION).write_text(json.dumps(report))
    (moved / "metrics.jsonl").unlink()
    page = Outline(write_report(moved).read_text())
    assert {"planning-success", "prediction-r2", "probe-r2"} <= set(page.ids)
    assert not {"geometry-memory", "gallery", "training"} & set(page.ids)
    assert "noise floor is unknown" in " ".join(page.words)


def test_information_is_told_with_the_ceiling_of_its_bound(run, tmp_path):
    moved = tmp_path / "informed"
    shutil.copytree(run, moved)
    report = json.loads((moved / EVALUATION).read_text())
    bound = {"nats": [1.25, 0.75], "ceiling_nats": 4.61}
    time = {"lags": [1, 2], "gaussian": {"nats": [7.125, 3.0]}, "bound": bound}
    time |= {"within_lags": [1], "within_gaussian": {"nats": [2.5]}, "within_bound": bound}
    bits = {"linear": {"bits": [0.5, 1.0]}, "mlp": {"bits": [0.25, 2.5]}}
    report["information"] = {
        "time": time,
        "entropy": {"kl_nats": 3.5},
        "labels": {"labels": [50, 200], "variables": {"position": bits}},
    }
    (moved / EVALUATION).write_text(json.dumps(report))
    words = " ".join(Outline(write_report(moved).read_text()).words)
    assert "at most 4.61" in words and "3.50 nats from N(0, I)" in words
    assert re.search(r"1 step\W+7\.1\d\W+1\.25\W+2\.50\W+1\.25", words)
    assert re.search(r"2 steps\W+3\.00\W+0\.75\W+Bits of", words)  # nothing within
    assert re.search(r"50 labels\W+200 labels\W+position\W+0\.5\W+2\.5", words)


def test_a_film_that_is_missing_is_named(run, tmp_path):
    moved = tmp_path / "filmless"
    shutil.copytree(run, moved)
    shutil.rmtree(moved / GALLERY)
    assert "attempt-003.mp4 is missing" in " ".join(Outline(write_report(moved).read_text()).words)


def test_a_folder_without_an_evaluation_or_with_a_damaged_one_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="gjwm evaluate"):
        write_report(tmp_path)
    moved = tmp_path / "damaged"
    shutil.copytree(run, moved)
    (moved / ARRAYS).write_bytes((moved / ARRAYS).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"evaluation\.npz is missing or damaged"):
        write_report(moved)
    (moved / EVALUATION).write_text("{")
    with pytest.raises(ValueError, match="not a readable evaluation"):
        write_report(moved)


# -- plots -----------------------------------------------------------------------------------------


def plot(**options):
    return Figure("key", "title", labels=("", ""), **options)


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.83, 1.03) == pytest.approx([-0.5, 0, 0.5, 1])
    assert ticks(3, 3) == [3]
    assert [number(v) for v in (0.0, 0.5, -2.0, 1e-5, 5e-4, 1500.0, 2e6)] == [
        *("0", "0.5", "-2", "1e-5", "0.0005", "1500", "2e6")
    ]
    assert number(0.1 + 0.2) == "0.3"


def test_marks_lie_where_the_axes_say():
    svg = plot(x=(0, 10), y=(0, 2)).dot(0, 0, "model").dot(10, 2, "model").svg()
    dots = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (left, floor), (right, top) = dots
    axis = re.search(r'class="axis" d="M(\d+) (\d+)V(\d+)H(\d+)"', svg).groups()
    assert [left, top, floor, right] == [float(v) for v in axis]


def test_nan_breaks_a_line_and_a_logarithm_needs_positive_values():
    curve = range(6), [1, 10, None, math.nan, 10, 100]
    svg = plot(y=(0.1, 100), log_y=True).line(*curve, "model", "a").svg()
    first, second = re.findall(r'class="line model" d="M([^"]+)"', svg)
    points = [[float(p.split()[1]) for p in path.split("L")] for path in (first, second)]
    # a decade is a decade
    assert points[0][0] - points[0][1] == pytest.approx(points[1][0] - points[1][1], abs=0.11)
    assert "nan" not in svg
    with pytest.raises(ValueError, match="positive"):
        plot(y=(0, 1), log_y=True)


def test_axes_that_are_left_open_hold_all_marks():
    points = list(zip((1, 5, 9), (-3.0, 40.0, 7.0)))
    figure = plot()
    for x, y in points:
        figure.dot(x, y, "model")
    dots = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure.svg())]
    assert len(dots) == 3 and len({y for _, y in dots}) == 3
    assert all(46 <= x <= 348 and 10 < y < 192 for x, y in dots)
    assert plot().level(2.0, "ideal").svg().count("<path") > 2  # one value is an axis too


def test_words_cannot_break_out_of_a_plot():
    svg = Figure("key", '"><script>', labels=("<b>", "&")).svg()
    assert "<b>" not in svg and "<script>" not in svg and "&quot;&gt;&lt;script&gt;" in svg


def test_coverage_of_a_pit_histogram_is_that_of_the_values():
    pit = torch.rand(5000, generator=g()).square()
    histogram = (torch.histc(pit, 20, 0, 1) * 20 / len(pit)).tolist()
    levels, covered = coverage_from_pit(histogram)
    assert levels[0] == 0 and levels[-1] == 1 and len(levels) == 11
    for level, share in zip(levels, covered):
        assert share == pytest.approx(
            (2 * (pit - 0.5).abs() <= level).float().mean().item(), abs=1e-3
        )


def test_training_curves_group_what_belongs_together():
    rows = [
        {"step": k, "train/one_step": 0.1, "train/open_loop": 0.2, "loss": -1.0, "train/nll": None}
        for k in (1, 2)
    ]
    result = {
        figure.title: [label for *_, label in figure.legend] for figure in training_figures(rows)
    }
    assert result["Prediction error in training"] == ["train/one_step", "train/open_loop"]
    # a metric that was never finite has no curve
    assert result["Loss, and the spread's part"] == ["loss"]
    assert training_figures([]) == []


def test_curves_of_one_last_name_are_told_apart_by_their_whole_one():
    row = {"step": 1, "return": 3.0, "evaluate/return": 5.0, "aimless/return": 1.0, "loss": 2.0}
    said = {figure.title: figure.note for figure in training_figures([row])}
    told = said["Return of acting, evaluated, and without a plan"]
    assert told == "Last: return 3, evaluate/return 5, aimless/return 1."
    assert said["Loss, and the spread's part"] == "Last: loss 2."


# -- live ------------------------------------------------------------------------------------------


def test_the_live_page_follows_a_run_and_stops_reloading_at_its_end(tmp_path):
    now = [0.0]
    live = LiveReport(tmp_path, name="run", steps=100, seconds=10, clock=lambda: now[0])
    log = tmp_path / "metrics.jsonl.partial"
    log.write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n')
    live.update(20)
    page = (tmp_path / "report.html").read_text()
    assert '<meta http-equiv="refresh" content="10">' in page and "step 20 of 100" in page
    assert "training-loss" in Outline(page).ids
    now[0] = 9.0
    live.update(30)
    assert (tmp_path / "report.html").read_text() == page  # not yet
    now[0] = 10.0
    live.update(40)
    assert "step 40 of 100" in (tmp_path / "report.html").read_text()
    assert "returns" not in Outline(page).ids
    one = {"return_mean": 3.25, "ci95": None, "episodes": 1, "seconds_per_step": 0.002}
    live.finish(100, returns={"plan": one, "policy": {**one, "return_mean": 1.5}})
    last = (tmp_path / "report.html").read_text()
    assert "http-equiv" not in last and {"training-loss", "returns"} <= {*Outline(last).ids}
    # of one episode no interval
    assert "<th>the planner</th><td>3.2</td><td></td><td>1</td><td>2.0</td>" in last
    assert "<th>the policy alone</th><td>1.5</td><td></td>" in last


def test_a_live_page_says_what_is_wrong_as_long_as_it_is(tmp_path):
    now = [0.0]
    live = LiveReport(tmp_path, name="run", steps=100, seconds=10, clock=lambda: now[0])
    live.update(20, ["No reward but <0>."])
    page = tmp_path / "report.html"
    assert "remarks" in Outline(page.read_text()).ids
    assert "<p>No reward but &lt;0&gt;.</p>" in page.read_text()
    now[0] = 10.0
    live.update(30)
    assert "No reward" not in page.read_text()
    live.update(40, ["Values run away."])
    live.finish(100)
    assert "<p>Values run away.</p>" in page.read_text()


def test_a_training_that_fails_says_so_or_leaves_the_report_of_the_run_before(run, tmp_path):
    (tmp_path / "metrics.jsonl.partial").write_text('{"step": 7, "loss": 2.0}\n')

    def fail(folder):
        with pytest.raises(FloatingPointError):
            with LiveReport(folder, name="run", steps=100, seconds=5) as live:
                live.update(7)
                raise FloatingPointError("the loss became nan")
        return (folder / "report.html").read_text()

    page = fail(tmp_path)
    assert "stopped at step 7 of 100: the loss became nan" in page and "http-equiv" not in page
    before = write_report(run).read_text()
    assert fail(run) == before


def test_a_live_page_every_zero_seconds_is_none(tmp_path):
    live = LiveReport(tmp_path, name="run", steps=2, seconds=0)
    live.update(1)
    live.finish(2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="0 for never"):
        LiveReport(tmp_path, name="run", steps=2, seconds=-1)


# -- in a browser ----------------------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)"
)

BROWSER = """--headless --no-sandbox --disable-gpu --window-size=1400,1000
    --virtual-time-budget=6000 --enable-logging=stderr --dump-dom""".split()
# What a reader would see, measured inside the page.
MEASURE = """<script>
const seen = e => { const b = e.getBoundingClientRect(); return b.width > 80 && b.height > 40; };
setTimeout(() => {
  parent.postMessage(JSON.stringify({
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    width: window.innerWidth,
    figures: [...document.querySelectorAll("figure")]
      .filter(f => seen(f) && [...f.querySelectorAll("svg,video")].some(seen)).map(f => f.id),
    films: [...document.querySelectorAll("video")]
      .map(v => [v.readyState, v.videoWidth, v.error && v.error.message]),
    ink: getComputedStyle(document.querySelector("path.line.model")).stroke,
    page: getComputedStyle(document.body).backgroundColor,
  }), "*");
}, 1500);
</script>"""
# A window is at least 500 pixels wide, a frame in it as narrow as a phone.
FRAME = """<!DOCTYPE html><pre id="measured"></pre>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe><script>
addEventListener("message", m => {{ document.getElementById("measured").textContent = m.data; }});
</script>"""


def browse(page, folder, *, width=1240, dark=False):
    """The page in headless Chromium -> (what MEASURE found, console messages)."""
    file = folder / "browsed.html"
    inside = page.replace("</body>", MEASURE + "</body>")
    file.write_text(FRAME.format(width=width, page=html.escape(inside, quote=True)))
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [CHROMIUM, *BROWSER, f"--user-data-dir={folder / 'profile'}", *scheme, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    result = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result and result[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(result[1])), console


@needs_chromium
def test_a_browser_shows_every_figure_without_complaint(run, tmp_path):
    page = write_report(run).read_text()
    desk, console = browse(page, tmp_path)
    assert console == []
    assert set(desk["figures"]) >= FIGURES
    assert desk["overflow"] <= 0
    phone, console = browse(page, tmp_path, width=390, dark=True)
    assert console == [] and phone["width"] == 390
    assert set(phone["figures"]) >= FIGURES and phone["overflow"] <= 0
    assert phone["ink"] != desk["ink"] and phone["page"] != desk["page"]  # dark is another palette
    for state, wide, error in desk["films"]:
        assert error is None and state >= 1 and wide == 64


@needs_chromium
def test_the_browser_check_sees_errors_and_missing_figures(tmp_path):
    body = '<path class="line model"></path><figure id="empty"></figure><script>throw 1</script>'
    page = f"<!DOCTYPE html><html><body>{body}</body></html>"
    result, console = browse(page, tmp_path)
    assert len(console) == 1 and result["figures"] == []
