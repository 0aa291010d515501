"""The report as one HTML file: no script, no network, light and dark, phone and desk."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from gjwm.evaluation.verdict import Verdict, judge
from gjwm.reporting import figures
from gjwm.reporting.figures import Figure
from gjwm.reporting.run import GALLERY, Run, load_run

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Draw `<folder>/report.html` from what an evaluation left there; model, data and world are not
    needed.

    Raises:
        FileNotFoundError, ValueError: as `gjwm.reporting.load_run`.
    """
    run = load_run(folder)
    return save_page(run.folder / REPORT, render_report(run))


def save_page(path: Path, page: str) -> Path:
    """Write a page atomically, so that a browser that reloads never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def render_report(run: Run) -> str:
    """The whole page of an evaluated run."""
    report, arrays = run.report, run.arrays
    verdict = judge(report)
    planning, radius = report["planning"], report["planning"]["protocol"]["success_radius"]
    prediction, calibration = report["prediction"], report["calibration"]
    gallery = report.get("gallery", [])
    body = [
        _header(run, verdict),
        _tiles(report),
        _section(
            "Planning",
            "planning",
            figure_grid(
                [
                    figures.success_figure(planning),
                    figures.reached_figure(arrays, radius),
                    figures.distance_figure(arrays, radius),
                ]
            )
            + _planning_table(planning),
        ),
    ]
    if gallery:
        body.append(
            _section("Attempts, worst first", "gallery", _gallery(run.folder / GALLERY, gallery))
        )
    body += [
        _section(
            "Prediction",
            "prediction",
            figure_grid(
                [
                    figures.prediction_figure(prediction),
                    figures.rank_figure(prediction),
                    figures.skill_figure(prediction),
                ]
            ),
        ),
        _section(
            "Uncertainty",
            "uncertainty",
            figure_grid(
                [
                    figures.reliability_figure(calibration),
                    figures.pit_figure(calibration),
                    figures.temperature_figure(calibration),
                ]
            )
            + _calibration_table(calibration)
            + _surprise_table(report.get("surprise")),
        ),
        _section("Latent geometry", "geometry", _geometry(report, arrays)),
        _section(
            "The true state in z",
            "probes",
            figure_grid(
                [figures.probe_figure(report["probe"])], beside=_probe_table(report["probe"])
            ),
        ),
    ]
    if run.metrics:
        body.append(
            _section("Training", "training", figure_grid(figures.training_figures(run.metrics)))
        )
    body.append(_section("Timings", "timings", _timings(report)))
    body.append(_section("Reproduce", "reproduce", _reproduce(run)))
    return page(_title(run), "".join(body))


def page(title: str, body: str, *, refresh: int | None = None) -> str:
    """A document with the style sheet inlined; `refresh` seconds reload it."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    style = (files("gjwm.reporting") / "style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{again}<title>{escape(title)}</title>'
        # An icon of nothing: a browser would ask the network for one.
        f'<link rel="icon" '
        f'href="data:,"><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n'
    )


# -- parts -----------------------------------------------------------------------------------------
# parts


def _title(run: Run) -> str:
    return str(run.config.get("name") or run.folder.resolve().name)


def _header(run: Run, verdict: Verdict) -> str:
    config, report = run.config, run.report
    facts = [
        config.get("env", {}).get("id", ""),
        f"gjwm {report.get('version', '')}",
        report.get("evaluated", ""),
    ]
    words = {"good": "good", "partly": "partly", "poor": "not good", "undecided": "undecided"}
    is_it, why, change = (escape(line) for line in verdict.lines)
    others = [
        found for found in (*verdict.broken, *verdict.remarks) if found.change != verdict.lines[2]
    ]
    notes = [f"<li>{escape(found.why)}</li>" for found in others]
    more = f'<ul class="remarks">{"".join(notes)}</ul>' if notes else ""
    return (
        f'<header><p class="eyebrow">{escape(" · ".join(str(f) for f in facts if f))}</p>'
        f"<h1>{escape(_title(run))}</h1>"
        f'<div class="verdict {verdict.grade}" id="verdict"><p '
        f'class="grade">{words[verdict.grade]}</p>'
        f"<dl><dt>Is it good?</dt><dd>{is_it}</dd><dt>Why</dt><dd>{why}</dd><dt>What to "
        f"change</dt><dd>{change}</dd></dl>"
        f"{more}</div></header>"
    )


def _tiles(report: Mapping[str, Any]) -> str:
    planning, prediction, calibration = (
        report["planning"],
        report["prediction"],
        report["calibration"],
    )
    low, high = planning["ci95"]
    tiles = [("goals reached", f"{planning['success_rate']:.0%}", f"95%: {low:.0%} to {high:.0%}")]
    if planning.get("share_of_oracle") is not None:
        ends = planning.get("share_of_oracle_ci95")
        # Where all or none succeed a bootstrap draws the same each time, which is no certainty.
        beside = (
            f"95%: {ends[0]:.0%} to {ends[1]:.0%}"
            if ends and ends[0] < ends[1]
            else "successes over successes"
        )
        tiles.append(("of the true simulator's", f"{planning['share_of_oracle']:.0%}", beside))
    gaussianity, probe = report["gaussianity"], report["probe"]
    best = max(probe["linear_r2"], probe["knn_r2"], probe["mlp_r2"])
    tiles += [
        (
            f"R² {prediction['horizon']} steps ahead",
            f"{prediction['r2_by_horizon'][-1]:.2f}",
            f"copying {prediction['copy_last_r2_by_horizon'][-1]:.2f}",
        ),
        ("held by 90% intervals", f"{calibration['coverage_90']:.0%}", "one step ahead"),
        ("position read from z", f"{best:.2f}", "R², best probe"),
        (
            "effective rank",
            f"{gaussianity['effective_rank']:.1f}",
            f"ideal {gaussianity['effective_rank_ideal']:.1f}",
        ),
    ]
    cells = "".join(
        f"<li><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></li>"
        for a, b, c in tiles
    )
    return f'<ul class="tiles">{cells}</ul>'


def _section(title: str, key: str, content: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>{content}</section>'


def figure_grid(items: Iterable[Figure | None], *, beside: str = "") -> str:
    """Figures as cards that flow into as many columns as fit, None left out; `beside` is a table
    that fills the last row.
    """
    cards = []
    for figure in items:
        if figure is None:
            continue
        legend = "".join(
            f'<li><i class="key {kind} {role}"></i>{escape(label)}</li>'
            for role, kind, label in figure.plot.legend
        )
        cards.append(
            f'<figure id="{figure.key}"><figcaption>{escape(figure.title)}</figcaption>'
            + (f'<ul class="legend">{legend}</ul>' if legend else "")
            + f'{figure.plot.svg()}<p class="note">{escape(figure.note)}</p></figure>'
        )
    return f'<div class="grid">{"".join(cards)}{beside}</div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join(
        "<tr>"
        + "".join(
            f"<{'td' if i else 'th'}>{escape(cell)}</{'td' if i else 'th'}>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    rows = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="table"><table>{told}{rows}</table></div>'


def _planning_table(planning: Mapping[str, Any]) -> str:
    rows = []
    for key, name in figures.POLICIES.items():
        row = planning if key == "model" else planning.get(key)
        if row is not None:
            low, high = row["ci95"]
            rows.append(
                (
                    name,
                    f"{row['success_rate']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    f"{row['closest_distance_mean']:.3g}",
                    f"{row['return_mean']:.3g}",
                    f"{1e3 * row['seconds_per_step']:.1f}",
                )
            )
    return _table(
        ("who acts", "reached", "95% interval", "nearest, mean", "task return", "ms per step"), rows
    )


def _calibration_table(calibration: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            *(f"{law[f'coverage_{level}']:.1%}" for level in (50, 80, 90, 95)),
            f"{law['ece']:.3f}",
            f"{law['spread_skill']:.2f}",
            f"{law['mahalanobis']:.2f}",
            f"{law['skill']:.2f}",
            f"{law['crps']:.3f}",
        )
        for _, name, law in figures.laws(calibration)
    ]
    return _table(
        (
            "ahead",
            "50%",
            "80%",
            "90%",
            "95%",
            "ECE",
            "spread/error",
            "Mahalanobis",
            "skill, nats",
            "CRPS",
        ),
        rows,
    )


def _surprise_table(surprise: Mapping[str, Any] | None) -> str:
    if surprise is None:
        return ""
    rows = [
        (kind, f"{row['auroc']:.3f}", f"{row['detection_rate']:.0%}")
        for kind, row in surprise.items()
        if isinstance(row, Mapping)
    ]
    caption = (
        f"Violations of expectation in {surprise['episodes']} spoiled episodes; false alarms "
        f"{surprise['false_alarm_rate']:.2%} at {surprise['level']:.0%}."
    )
    return _table(
        ("what cannot happen", "AUROC of surprise", f"alarms at {surprise['level']:.0%}"),
        rows,
        caption,
    )


_GEOMETRY = (
    ("effective_rank", "effective rank"),
    ("participation_ratio", "participation ratio"),
    ("dead_directions", "dead directions"),
    ("mean_norm", "norm of the mean"),
    ("variance_error", "error of the variances"),
    ("epps_pulley", "Epps-Pulley, mean of slices"),
    ("epps_pulley_reject_rate", "slices over the 95% line"),
    ("norm_squared_variance", "variance of |z|² over chi²'s"),
    ("mardia_kurtosis", "Mardia's kurtosis"),
    ("henze_zirkler", "Henze-Zirkler"),
)


def _geometry(report: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    found = []
    if "spectrum" in arrays:
        found += [
            figures.spectrum_figure(arrays),
            figures.quantile_figure(arrays),
            figures.norm_figure(arrays),
        ]
    if "trajectory" in report:
        found.append(figures.memory_figure(report["trajectory"]))
    g = report["gaussianity"]
    rows = [
        (name, f"{g[key]:.3g}", f"{g[key + '_ideal']:.3g}") for key, name in _GEOMETRY if key in g
    ]
    if "marginal" in report:
        m = report["marginal"]
        rows.append(
            (
                "variance of samples after a whole episode",
                f"{m['variance_per_dim']:.3g}",
                f"{m['encoded_variance_per_dim']:.3g}",
            )
        )
    caption = f"{g['samples']} latents, {g['independent_samples']} of them independent."
    return figure_grid(
        found, beside=_table(("figure", "latents", "Gaussian, same size"), rows, caption)
    )


def _probe_table(probe: Mapping[str, Any]) -> str:
    def cell(row: Mapping[str, Any], kind: str) -> str:
        ends = row.get(f"{kind}_r2_ci95")
        return f"{row[f'{kind}_r2']:.3f}" + (f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")

    rows = [
        (name, *(cell(row, kind) for kind, *_ in figures.PROBES))
        for name, row in probe["variables"].items()
    ]
    return _table(("variable", *(name for _, name, _ in figures.PROBES)), rows)


def _timings(report: Mapping[str, Any]) -> str:
    training = report.get("training", {})
    rows = []
    if "seconds" in training:
        threads = training.get("threads")
        rows.append(
            (
                "training" + (f", {threads} thread{'s' * (threads > 1)}" if threads else ""),
                _seconds(training["seconds"]),
            )
        )
    if "refine_seconds" in training:
        rows.append(("refining the dynamics", _seconds(training["refine_seconds"])))
    rows += [
        (f"evaluation: {stage}", _seconds(value))
        for stage, value in report.get("timings", {}).items()
    ]
    for key, name in (
        ("model", "one plan step of the model"),
        ("oracle", "one plan step on the true simulator"),
    ):
        row = report["planning"] if key == "model" else report["planning"].get(key)
        if row is not None:
            rows.append((name, f"{1e3 * row['seconds_per_step']:.1f} ms"))
    return _table(("what", "time"), rows)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def _gallery(folder: Path, gallery: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for row in gallery:
        film, poster = folder / row["file"], folder / row["poster"]
        told = "reached" if row["reached"] else f"nearest {row['closest_distance']:.3g}"
        caption = (
            f"Attempt {row['attempt']} ({row['kind']}): {told}, began "
            f"{row['start_distance']:.3g} away"
        )
        key = f"gallery-{Path(row['file']).stem}"
        if film.is_file() and poster.is_file():
            shown = (
                f"<video controls autoplay loop muted playsinline "
                f'poster="{_inline(poster, "image/jpeg")}" '
                f'src="{_inline(film, "video/mp4")}"></video>'
            )
        else:
            shown = f'<p class="note">{escape(row["file"])} is missing from the run\'s folder.</p>'
        cards.append(
            f'<figure id="{key}" class="film">{shown}<figcaption '
            f'class="small">{escape(caption)}</figcaption></figure>'
        )
    note = (
        "Blue: the plan and where it is thought to lead. Grey and orange: what the model imagined "
        "from the first picture and the actions alone, and where its samples differ."
    )
    return f'<p class="note">{note}</p><div class="grid films">{"".join(cards)}</div>'


def _inline(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _overrides(config: Any, prefix: str = "") -> list[str]:
    """A nested configuration as the overrides that a command line takes, one per line."""
    if isinstance(config, Mapping) and config:
        return [
            line
            for key, value in config.items()
            for line in _overrides(value, f"{prefix}.{key}" if prefix else key)
        ]
    return [f"{prefix}={json.dumps(config) if not isinstance(config, str) else config}"]


def _reproduce(run: Run) -> str:
    report = run.report
    commands = [c for c in (report.get("training", {}).get("command"), report.get("command")) if c]
    commands.append(
        f"gjwm report run_dir={run.folder.name}   # this page again, from the folder alone"
    )
    config = "\n".join(_overrides(run.config))
    figures_json = json.dumps({k: v for k, v in report.items() if k != "config"}, indent=1)
    versions = "".join(
        f"{name} {version}\n" for name, version in report.get("versions", {}).items()
    )
    return (
        f"<pre>{escape(chr(10).join(commands))}</pre>"
        + (
            f"<details><summary>Versions and "
            f"machine</summary><pre>{escape(versions)}</pre></details>"
            if versions
            else ""
        )
        + f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>"
        f"<details><summary>All figures "
        f"(evaluation.json)</summary><pre>{escape(figures_json)}</pre></details>"
    )
