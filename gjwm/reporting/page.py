"""The report as one HTML file: no script, no network, light and dark, phone and desk."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gjwm._core.files import replacing
from gjwm.evaluation.verdict import Verdict, best_probe, judge
from gjwm.reporting import figures
from gjwm.reporting.figures import Figure, Report
from gjwm.reporting.run import GALLERY, Run, load_run
from gjwm.reporting.svg import stylesheet

REPORT = "report.html"


def write_report(folder: str | Path, report: Mapping[str, Any] | None = None) -> Path:
    """Draw `<folder>/report.html` from what an evaluation left there; `report` as in `load_run`.

    Raises:
        FileNotFoundError, ValueError: as `gjwm.reporting.load_run`.
    """
    run = load_run(folder, report)
    return save_page(run.folder / REPORT, render_report(run))


def save_page(path: Path, page: str) -> Path:
    """Write a page atomically, so that a browser that reloads never sees half of it."""
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def page(title: str, body: str, *, refresh: int | None = None) -> str:
    """A document with the style sheet inlined; `refresh` seconds reload it."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{again}<title>{escape(title)}</title>'
        # An empty icon: a browser would ask the network for one.
        f'<link rel="icon" href="data:,"><style>{stylesheet()}</style></head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )


def render_report(run: Run) -> str:
    """The whole page of an evaluated run."""
    report, arrays = run.report, run.arrays
    planning, prediction = report["planning"], report["prediction"]
    calibration, probe = report["calibration"], report["probe"]
    radius, gallery = planning["protocol"]["success_radius"], report.get("gallery")
    title = str(run.config.get("name") or run.folder.resolve().name)
    sections = {
        ("planning", "Planning"): figure_grid(
            figures.success_figure(planning),
            figures.reached_figure(arrays, radius),
            figures.distance_figure(arrays, radius),
        )
        + _planning_table(planning),
        ("gallery", "Attempts, worst first"): gallery and _gallery(run.folder / GALLERY, gallery),
        ("prediction", "Prediction"): figure_grid(
            figures.prediction_figure(prediction),
            figures.rank_figure(prediction),
            figures.skill_figure(prediction),
        ),
        ("uncertainty", "Uncertainty"): figure_grid(
            figures.reliability_figure(calibration),
            figures.pit_figure(calibration),
            figures.temperature_figure(calibration),
        )
        + _calibration_table(calibration)
        + _surprise_table(report.get("surprise")),
        ("geometry", "Latent geometry"): _geometry(report, arrays),
        ("probes", "The true state in z"): figure_grid(
            figures.probe_figure(probe), table=_probe_table(probe)
        )
        + _information_tables(report.get("information")),
        ("training", "Training"): run.metrics
        and figure_grid(*figures.training_figures(run.metrics)),
        ("timings", "Timings"): _timings(report),
        ("reproduce", "Reproduce"): _reproduce(run),
    }
    body = "".join(
        f'<section id="{key}"><h2>{name}</h2>{content}</section>'
        for (key, name), content in sections.items()
        if content
    )
    return page(title, _header(title, run, judge(report)) + _tiles(report) + body)


# -- parts -----------------------------------------------------------------------------------------


def figure_grid(*items: Figure | None, table: str = "") -> str:
    """Figures as cards, None left out; `table` fills the last row."""
    cards = []
    for figure in items:
        if figure is None:
            continue
        legend = "".join(
            f'<li><i class="key {kind} {role}"></i>{escape(label)}</li>'
            for role, kind, label in figure.legend
        )
        cards.append(
            f'<figure id="{figure.key}"><figcaption>{escape(figure.title)}</figcaption>'
            + (f'<ul class="legend">{legend}</ul>' if legend else "")
            + f'{figure.svg()}<p class="note">{escape(figure.note)}</p></figure>'
        )
    return f'<div class="grid">{"".join(cards)}{table}</div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    def line(cells: Sequence[str], first: str, other: str) -> str:
        tags = [first, *[other] * (len(cells) - 1)]
        row = "".join(f"<{tag}>{escape(cell)}</{tag}>" for tag, cell in zip(tags, cells))
        return f"<tr>{row}</tr>"

    body = "".join(line(row, "th", "td") for row in rows)
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead>{line(header, 'th', 'th')}</thead>"
    return f'<div class="table"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


def _header(title: str, run: Run, verdict: Verdict) -> str:
    report = run.report
    facts = (
        run.config.get("env", {}).get("id", ""),
        f"gjwm {report.get('version', '')}",
        report.get("evaluated", ""),
    )
    grade = "not good" if verdict.grade == "poor" else verdict.grade
    answers = "".join(
        f"<dt>{question}</dt><dd>{escape(line)}</dd>"
        for question, line in zip(("Is it good?", "Why", "What to change"), verdict.lines)
    )
    remarks = "".join(
        f"<li>{escape(finding.why)}</li>"
        for finding in (*verdict.broken, *verdict.remarks)
        if finding.change != verdict.lines[2]
    )
    return (
        f'<header><p class="eyebrow">{escape(" · ".join(str(f) for f in facts if f))}</p>'
        f'<h1>{escape(title)}</h1><div class="verdict {verdict.grade}" id="verdict">'
        f'<p class="grade">{grade}</p><dl>{answers}</dl>'
        + (f'<ul class="remarks">{remarks}</ul>' if remarks else "")
        + "</div></header>"
    )


def _tiles(report: Report) -> str:
    planning, prediction = report["planning"], report["prediction"]
    gaussianity = report["gaussianity"]
    low, high = planning["ci95"]
    tiles = [("goals reached", f"{planning['success_rate']:.0%}", f"95%: {low:.0%} to {high:.0%}")]
    if planning.get("share_of_oracle") is not None:
        ends = planning.get("share_of_oracle_ci95")
        # Where all or none succeed a bootstrap draws the same each time, which is no certainty.
        vary = ends and ends[0] < ends[1]
        below = f"95%: {ends[0]:.0%} to {ends[1]:.0%}" if vary else "successes over successes"
        tiles.append(("of the true simulator's", f"{planning['share_of_oracle']:.0%}", below))
    r2, copied = (prediction[key][-1] for key in ("r2_by_horizon", "copy_last_r2_by_horizon"))
    rank, ideal = gaussianity["effective_rank"], gaussianity["effective_rank_ideal"]
    coverage = report["calibration"]["coverage_90"]
    tiles += [
        (f"R² {prediction['horizon']} steps ahead", f"{r2:.2f}", f"copying {copied:.2f}"),
        ("held by 90% intervals", f"{coverage:.0%}", "one step ahead"),
        ("position read from z", f"{best_probe(report['probe']):.2f}", "R², best probe"),
        ("effective rank", f"{rank:.1f}", f"ideal {ideal:.1f}"),
    ]
    cells = "".join(
        f"<li><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></li>"
        for a, b, c in tiles
    )
    return f'<ul class="tiles">{cells}</ul>'


def _planning_table(planning: Report) -> str:
    header = "who acts", "reached", "95% interval", "nearest, mean", "task return", "ms per step"
    rows = [
        (
            figures.POLICIES[key],
            f"{row['success_rate']:.1%}",
            f"{row['ci95'][0]:.1%} to {row['ci95'][1]:.1%}",
            f"{row['closest_distance_mean']:.3g}",
            f"{row['return_mean']:.3g}",
            f"{1e3 * row['seconds_per_step']:.1f}",
        )
        for key, row in figures.outcomes(planning).items()
    ]
    return _table(header, rows)


RETURNS_OF = {
    "plan": "the planner",
    "policy": "the policy alone",
    **{name: figures.POLICIES[name] for name in ("random", "hold", "oracle")},
}


def returns_table(returns: Mapping[str, Report]) -> str:
    """A section: what was earned by who acts, see `gjwm.rl.return_report`."""
    rows = []
    for key, row in returns.items():
        ends = row["ci95"]
        rows.append(
            (
                RETURNS_OF.get(key, key),
                f"{row['return_mean']:.1f}",
                f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else "",
                f"{row['episodes']}",
                f"{1e3 * row['seconds_per_step']:.1f}",
            )
        )
    header = "who acts", "return, mean", "95% interval over episodes", "episodes", "ms per step"
    caption = "The same held-out seeds for all; of this one model, so nothing of other seeds of it."
    table = _table(header, rows, caption)
    return f'<section id="returns"><h2>What is earned</h2>{table}</section>'


def _calibration_table(calibration: Report) -> str:
    levels = (50, 80, 90, 95)
    others = {
        "ece": ("ECE", ".3f"),
        "spread_skill": ("spread/error", ".2f"),
        "mahalanobis": ("Mahalanobis", ".2f"),
        "skill": ("skill, nats", ".2f"),
        "crps": ("CRPS", ".3f"),
    }
    rows = [
        (
            name,
            *(f"{law[f'coverage_{level}']:.1%}" for level in levels),
            *(f"{law[key]:{digits}}" for key, (_, digits) in others.items()),
        )
        for _, name, law in figures.laws(calibration)
    ]
    names = [name for name, _ in others.values()]
    return _table(("ahead", *(f"{level}%" for level in levels), *names), rows)


def _surprise_table(surprise: Report | None) -> str:
    if surprise is None:
        return ""
    rows = [
        (kind, f"{row['auroc']:.3f}", f"{row['detection_rate']:.0%}")
        for kind, row in surprise.items()
        if isinstance(row, Mapping)
    ]
    level = f"{surprise['level']:.0%}"
    caption = (
        f"Violations of expectation in {surprise['episodes']} spoiled episodes; false alarms "
        f"{surprise['false_alarm_rate']:.2%} at {level}."
    )
    header = ("what cannot happen", "AUROC of surprise", f"alarms at {level}")
    return _table(header, rows, caption)


_GEOMETRY = {
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
    "dead_directions": "dead directions",
    "mean_norm": "norm of the mean",
    "variance_error": "error of the variances",
    "epps_pulley": "Epps-Pulley, mean of slices",
    "epps_pulley_reject_rate": "slices over the 95% line",
    "norm_squared_variance": "variance of |z|² over chi²'s",
    "mardia_kurtosis": "Mardia's kurtosis",
    "henze_zirkler": "Henze-Zirkler",
}


def _geometry(report: Report, arrays: Mapping[str, Any]) -> str:
    draw = (figures.spectrum_figure, figures.quantile_figure, figures.norm_figure)
    shown = [figure(arrays) for figure in draw if "spectrum" in arrays]
    if "trajectory" in report:
        shown.append(figures.memory_figure(report["trajectory"]))
    g, m = report["gaussianity"], report.get("marginal")
    pairs = [(name, g[key], g[f"{key}_ideal"]) for key, name in _GEOMETRY.items() if key in g]
    if m is not None:
        name = "variance of samples after a whole episode"
        pairs.append((name, m["variance_per_dim"], m["encoded_variance_per_dim"]))
    rows = [(name, f"{ours:.3g}", f"{ideal:.3g}") for name, ours, ideal in pairs]
    caption = f"{g['samples']} latents, {g['independent_samples']} of them independent."
    return figure_grid(
        *shown, table=_table(("figure", "latents", "Gaussian, same size"), rows, caption)
    )


def _probe_table(probe: Report) -> str:
    def cell(row: Report, kind: str) -> str:
        ends = row.get(f"{kind}_r2_ci95")
        return f"{row[f'{kind}_r2']:.3f}" + (f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")

    rows = [
        (name, *(cell(row, kind) for kind, *_ in figures.PROBES))
        for name, row in probe["variables"].items()
    ]
    return _table(("variable", *(name for _, name, _ in figures.PROBES)), rows)


def _information_tables(information: Report | None) -> str:
    if information is None:
        return ""
    time, labels = information["time"], information["labels"]
    rows = []
    for i, lag in enumerate(time["lags"]):
        cells = [f"{lag} step{'s' * (lag > 1)}"]
        for prefix in ("", "within_"):
            measured = i < len(time[f"{prefix}lags"])
            for kind in ("gaussian", "bound"):
                nats = time[f"{prefix}{kind}"]["nats"]
                cells.append(f"{nats[i]:.2f}" if measured else "")
        rows.append(cells)
    kl = information["entropy"]["kl_nats"]
    caption = (
        "Nats that z holds about z so much later: of a joint Gaussian, and a lower bound that "
        f"assumes no law and can be at most {time['bound']['ceiling_nats']:.2f}; within episodes, "
        "what an episode keeps cancels."
        + ("" if kl is None else f" z is {kl:.2f} nats from N(0, I).")
    )
    header = ("later", "Gaussian", "at least", "Gaussian, within", "at least, within")
    read = [
        (name, *(f"{max(bits):.1f}" for bits in zip(*(kind["bits"] for kind in kinds.values()))))
        for name, kinds in labels["variables"].items()
    ]
    counts = [f"{count} labels" for count in labels["labels"]]
    bits = "Bits of a variable read with few labels, by the best of three probes."
    return _table(header, rows, caption) + _table(("variable", *counts), read, bits)


def _timings(report: Report) -> str:
    training = report.get("training", {})
    threads = training.get("threads")
    seconds = {
        "training" + (f", {threads} thread{'s' * (threads > 1)}" if threads else ""): training.get(
            "seconds"
        ),
        "refining the dynamics": training.get("refine_seconds"),
        "fitting the reach": training.get("reach_seconds"),
        **{f"evaluation: {stage}": value for stage, value in report.get("timings", {}).items()},
    }
    rows = [
        (name, f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min")
        for name, value in seconds.items()
        if value is not None
    ]
    return _table(("what", "time"), rows)


def _gallery(folder: Path, gallery: Sequence[Report]) -> str:
    def inline(path: Path, kind: str) -> str:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

    cards = []
    for row in gallery:
        film, poster = folder / row["file"], folder / row["poster"]
        end = "reached" if row["reached"] else f"nearest {row['closest_distance']:.3g}"
        caption = (
            f"Attempt {row['attempt']} ({row['kind']}): {end}, began "
            f"{row['start_distance']:.3g} away"
        )
        if film.is_file() and poster.is_file():
            shown = (
                "<video controls autoplay loop muted playsinline "
                f'poster="{inline(poster, "image/jpeg")}" src="{inline(film, "video/mp4")}">'
                "</video>"
            )
        else:
            shown = f'<p class="note">{escape(row["file"])} is missing from the run\'s folder.</p>'
        cards.append(
            f'<figure id="gallery-{Path(row["file"]).stem}" class="film">{shown}'
            f'<figcaption class="small">{escape(caption)}</figcaption></figure>'
        )
    note = (
        "Blue: the plan and where it is thought to lead. Grey and orange: what the model imagined "
        "from the first picture and the actions alone, and where its samples differ."
    )
    return f'<p class="note">{note}</p><div class="grid films">{"".join(cards)}</div>'


def _reproduce(run: Run) -> str:
    def folded(title: str, content: str) -> str:
        pre = f"<pre>{escape(content)}</pre>"
        return f"<details><summary>{title}</summary>{pre}</details>" if content else ""

    report = run.report
    commands = [c for c in (report.get("training", {}).get("command"), report.get("command")) if c]
    again = f"gjwm report run_dir={run.folder.name}   # this page again, from the folder alone"
    versions = "".join(f"{name} {v}\n" for name, v in report.get("versions", {}).items())
    numbers = {key: value for key, value in report.items() if key != "config"}
    return (
        f"<pre>{escape(chr(10).join([*commands, again]))}</pre>"
        + folded("Versions and machine", versions)
        + folded("Configuration", "\n".join(_overrides(run.config)))
        + folded("All figures (evaluation.json)", json.dumps(numbers, indent=1))
    )


def _overrides(config: Any, prefix: str = "") -> list[str]:
    """A nested configuration as the overrides that a command line takes, one per line."""
    if isinstance(config, Mapping) and config:
        return [
            line
            for key, value in config.items()
            for line in _overrides(value, f"{prefix}.{key}" if prefix else key)
        ]
    return [f"{prefix}={config if isinstance(config, str) else json.dumps(config)}"]
