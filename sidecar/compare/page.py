"""A report as one page: nothing is loaded, nothing runs; readable on a telephone and on paper."""

import base64
import html
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from sidecar.compare.gate import FATES
from sidecar.compare.report import FeatureFate, LayerFate, Named, Report

STYLE = """
:root{color-scheme:light dark;--text:#1d2430;--faint:#525c6b;--ground:#fff;--line:#dfe3e8;--track:#eef0f3;
 --good:#f2f7f4;--bad:#fbf1f0;--same:#3c8d5a;--moved:#e0a100;--lost:#c2372e;--new:#5a6fb5}
@media(prefers-color-scheme:dark){:root{--text:#e6e9ee;--faint:#a0a9b8;--ground:#14181f;--line:#333b48;
 --track:#262d38;--good:#16261d;--bad:#2e1b1a;--same:#4ba06c;--lost:#d8564c;--new:#7f92d4}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--text);background:var(--ground);margin:0 auto;max-width:62rem;
 padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
h3{font-size:1.05rem;margin:0 0 .25rem;overflow-wrap:anywhere}
p{margin:.25rem 0 .75rem;max-width:46rem}
.lead{color:var(--faint)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .75rem .4rem 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{font-weight:600;border-bottom:2px solid var(--text)}
.bar{display:flex;height:.7rem;width:9rem;background:var(--track)}
.bar i{display:block;height:100%}
.same{background:var(--same)}.moved{background:var(--moved)}.lost{background:var(--lost)}.new{background:var(--new)}
.badge{display:inline-block;padding:.05rem .6rem;border-radius:1rem;color:#fff;font-weight:600}
.badge.moved{color:#1d2430}
.verdict{border-left:.4rem solid var(--same);background:var(--good);padding:.75rem 1rem;margin:1rem 0}
.verdict.failed{border-color:var(--lost);background:var(--bad)}
.verdict p,.verdict ul{margin:.1rem 0}.verdict ul{padding-left:1.2rem}
article{border-top:1px solid var(--line);padding:1.25rem 0;break-inside:avoid}
article img{display:block;max-width:100%;height:auto;margin:.5rem 0;border:1px solid var(--line)}
@media(min-width:52rem){.both{display:grid;grid-template-columns:auto minmax(0,1fr);gap:1.5rem}}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0}
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}
.id{color:var(--faint);max-width:none}
code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
@media(max-width:34rem){dl{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}.far{display:none}
 th,td{padding-right:.4rem}}
@media print{:root{color-scheme:light;--text:#1d2430;--faint:#525c6b;--ground:#fff;--line:#dfe3e8;
 --track:#eef0f3;--good:#f2f7f4;--bad:#fbf1f0}body{max-width:none;padding:0}h2{break-after:avoid}
 .bar i,.badge,.verdict{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{model} against {other}</title>
<style>{style}</style>
</head>
<body>
<h1>{model} against {other}</h1>
<p class="lead">{lead}</p>
{verdict}
{sections}
</body>
</html>
"""

_SECTIONS = """\
<h2>Layers</h2>
<p class="lead">Units by what became of them. New ones are units of {other} that none of {model} is like.</p>
<div class="wide">
<table>
<thead><tr><th>Layer</th><th class="far">In {other}</th><th>Units</th><th>Same</th><th>Moved</th><th>Lost</th><th>New</th>
<th class="far">Median r</th><th class="far">Share</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="lead" style="margin-top:.75rem">Same: the unit of the same index answers to the same images at about the same values. Moved: to
partly other images, at other values, from another index, or not to its portrait any more. Lost: no unit of the
layer is related to it.</p>
<h2>Pictured units</h2>
<p class="lead">Above {model}, below {other}: the portrait, which is computed, and the images of {dataset} that
drive the unit most, with its value on them.</p>
{articles}
<h2>What this rests on</h2>
<dl>
{facts}
</dl>
"""

_PORTRAIT_WORDS = {
    "activation_here": "Portrait drives it here to",
    "activation_there": "The same portrait there to",
    "transfer": "Carries over",
    "rank_there": "Rank of the unit there on it",
    "percentile_there": "Images that drive it there less",
    "own_activation_there": "Its own portrait there drives it to",
    "transfer_back": "Carries back",
    "feature_similarity": "Likeness of the two portraits",
    "no_portrait_here": "No portrait here",
    "no_portrait_there": "No portrait there",
}

_FORMS = {
    "transfer": "{:.0%}",
    "transfer_back": "{:.0%}",
    "percentile_there": "{:.0f} %",
    "feature_similarity": "{:.2f}",
}


def render_page(report: Report) -> str:
    """Return a report as an HTML page that loads nothing and runs nothing."""
    return _PAGE.format(
        style=STYLE,
        model=html.escape(report.model.name),
        other=html.escape(report.other.name),
        lead=_lead(report),
        verdict=_verdict(report),
        sections=render_sections(report),
    )


def render_sections(report: Report) -> str:
    """Return what a page says of layers, pictured units and origin; it needs ``STYLE`` and no more."""
    return _SECTIONS.format(
        model=html.escape(report.model.name),
        other=html.escape(report.other.name),
        dataset=html.escape(report.dataset.name),
        rows="\n".join(map(_row, report.layers)),
        articles="\n".join(_article(report, one) for one in report.features),
        facts="\n".join(_line(name, value) for name, value in _facts(report)),
    )


def _lead(report: Report) -> str:
    return (
        f"Both models were shown the {report.dataset.images} images of "
        f"<b>{html.escape(report.dataset.name)}</b>. Units are matched by how their values correlate over "
        f"them. Made on {_moment(report.created)}."
    )


def _verdict(report: Report) -> str:
    if not report.rules:
        return ""
    rules = html.escape(", ".join(report.rules))
    if not report.broken:
        return f'<div class="verdict"><p><b>Passed</b>: {rules}</p></div>'
    items = "".join(
        f"<li><b>{html.escape(one.layer)}</b>: {html.escape(one.reason)}</li>"
        for one in report.broken
    )
    return f'<div class="verdict failed"><p><b>Failed</b>: {rules}</p><ul>{items}</ul></div>'


def _row(layer: LayerFate) -> str:
    counts = "".join(f"<td>{layer.counts[fate]}</td>" for fate in FATES)
    median = layer.median_correlation
    parts = "".join(
        f'<i class="{fate}" style="width:{100 * layer.counts[fate] / layer.units:.1f}%"></i>'
        for fate in FATES[:3]
    )
    shown = "-" if median is None else f"{median:.3f}"
    return (
        f'<tr><td>{html.escape(layer.layer)}</td><td class="far">{html.escape(layer.other)}</td>'
        f'<td>{layer.units}</td>{counts}<td class="far">{shown}</td>'
        f'<td class="far"><div class="bar">{parts}</div></td></tr>'
    )


def _article(report: Report, one: FeatureFate) -> str:
    picture = base64.b64encode(report.pictures[one.picture]).decode("ascii")
    name = html.escape(f"{one.layer}, unit {one.unit}")
    lines = "\n".join(_line(label, value) for label, value in _numbers(one))
    return (
        f'<article><h3>{name} <span class="badge {one.fate}">{one.fate}</span></h3>\n'
        f"<p>{html.escape(one.reason[:1].upper() + one.reason[1:])}.</p>\n"
        f'<div class="both"><img src="data:image/png;base64,{picture}" alt="Portraits and strongest images '
        f'of {name} in both models">\n<dl>\n{lines}\n</dl></div>\n'
        f'<p class="id">Picture <code>{one.picture}</code><br>Manifest <code>{one.manifest}</code></p></article>'
    )


def _numbers(one: FeatureFate) -> Iterator[tuple[str, str]]:
    """Yield what was measured of a unit, in words."""
    yield "Compared with", f"{one.other_layer}, unit {one.other_unit}"
    numbers = one.numbers
    yield "Correlation at its own index", _correlation(numbers["correlation"])
    known = numbers["best_correlation"] is not None
    index = f", of unit {numbers['best']:.0f}" if known else ""
    yield "Best correlation", _correlation(numbers["best_correlation"]) + index
    if numbers["median_shift"] is not None:
        yield "Median moved, in deviations", f"{numbers['median_shift']:.3g}"
    if numbers["spread_ratio"] is not None:
        yield "Spread", f"times {numbers['spread_ratio']:.3g}"
    for name, label in _PORTRAIT_WORDS.items():
        if name not in one.portraits:
            continue
        value = one.portraits[name]
        if isinstance(value, str) or value is None:
            yield label, value or "-"
        else:
            yield label, _FORMS.get(name, "{:.4g}").format(value)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what names everything the report came from."""
    for label, what in (("Model", report.model), ("Against", report.other)):
        yield label, _named(what)
    yield "Dataset", f"{_named(report.dataset)}, {report.dataset.images} images"
    yield "Recipe", _listed(report.recipe)
    yield "Made with", _listed(report.made_with)
    yield "Computed on", report.device


def _named(what: Named) -> str:
    return f"{what.name}, sha256 {what.digest}"


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, ""))


def _line(name: str, value: str) -> str:
    return f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%d %B %Y, %H:%M} UTC"
