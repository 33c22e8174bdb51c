"""A night's report as one page: nothing is loaded, nothing runs; light, dark, on a telephone and on paper."""

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from sidecar.audits.facts import Portrayed
from sidecar.audits.report import NightReport, changes
from sidecar.audits.status import Check, NightState, Outcome
from sidecar.audits.trend import render_trend
from sidecar.compare import STYLE, render_sections

Reader = Callable[[str], bytes | None]
"""Returns an artifact by its sha256; None where it is gone."""

PICTURE_LIMIT_BYTES = 2 << 20
"""A picture above this is named but not shown: a report is mailed."""

_STYLE = """
:root{--weak:#a06800}
@media(prefers-color-scheme:dark){:root{--weak:#e0a100}}
h2.part{font-size:1.35rem;border-top:2px solid var(--text);padding-top:1rem;margin-top:3rem}
table.checks td{white-space:normal;text-align:left;vertical-align:top}
table.checks th{text-align:left}
table.checks td:nth-child(n+3):not(:last-child){text-align:right;white-space:nowrap}
table.checks td:nth-child(2){white-space:nowrap}
table.checks td:last-child{width:100%;min-width:14rem;padding-right:0;overflow-wrap:anywhere}
.passed{color:var(--same);font-weight:600}.failed-word{color:var(--lost);font-weight:600}
.impossible{color:var(--faint)}.weak{color:var(--weak)}.unreliable{color:var(--lost)}
svg.trend{display:block;width:100%;height:auto;max-width:46rem}
svg.trend text{font:11px system-ui,sans-serif;fill:var(--faint)}
svg.trend .end{text-anchor:end}svg.trend .mid{text-anchor:middle}
svg.trend line{stroke:var(--line)}
svg.trend .lost{fill:var(--lost)}svg.trend .moved{fill:var(--moved)}svg.trend .same{fill:var(--same)}
.legend i{display:inline-block;width:.7rem;height:.7rem;margin:0 .3rem 0 .8rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1rem}
.pictures figure,.pair figure{margin:0}
.pictures img,.pair img{display:block;width:100%;height:auto;border:1px solid var(--line)}
figcaption{font-size:.85rem;line-height:1.35;margin-top:.3rem;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,13rem));gap:1rem;margin:.5rem 0}
@media(max-width:34rem){table.checks .far{display:none}}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{verdict}
<h2>Checks</h2>
<div class="wide">
<table class="checks">
<thead><tr><th>Check</th><th>Outcome</th><th class="far">Value</th><th class="far">Limit</th><th>Why</th></tr></thead>
<tbody>
{checks}
</tbody>
</table>
</div>
<h2>Since the night before</h2>
{changes}
<h2>Trend</h2>
{trend}
{differing}
{portraits}
{comparison}
<h2 class="part">What this rests on</h2>
<div class="wide">
<table>
<thead><tr><th>Job</th><th>For</th><th>State</th></tr></thead>
<tbody>
{jobs}
</tbody>
</table>
</div>
<dl>
{facts}
</dl>
</body>
</html>
"""

_OUTCOMES = {
    Outcome.PASSED: '<span class="passed">passed</span>',
    Outcome.FAILED: '<span class="failed-word">failed</span>',
    Outcome.IMPOSSIBLE: '<span class="impossible">not possible</span>',
}

_ASKED = {
    "model": "the model itself",
    "compare": "comparison",
    "portraits": "portraits",
    "again": "a portrait of an earlier night, made again",
}


def render_night(report: NightReport, read: Reader) -> str:
    """Return a night's report as an HTML page that loads nothing and runs nothing.

    Args:
        report: The night.
        read: Where pictures come from; one that is gone is named in its place.
    """
    night, found = report.entry.night, report.found
    return _PAGE.format(
        title=html.escape(f"{night.audit}, {_date(night.id)}: {night.state}"),
        style=STYLE + _STYLE,
        lead=_lead(report),
        verdict=_verdict(report),
        checks="\n".join(map(_check, night.checks)),
        changes=_changes(report),
        trend=_trend(report),
        differing=_differing(report, read),
        portraits=_portraits(report, read),
        comparison=_comparison(report),
        jobs="\n".join(
            f"<tr><td><code>{html.escape(job.id)}</code></td><td>{_asked(job.role)}</td>"
            f"<td>{html.escape(job.state)}{', from the store' if job.cached else ''}</td></tr>"
            for job in found.jobs
        ),
        facts="\n".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
            for name, value in _facts(report)
        ),
    )


def _asked(role: str) -> str:
    return html.escape(_ASKED.get(role.partition("-")[0], role))


def _lead(report: NightReport) -> str:
    night, audit = report.entry.night, report.audit
    against = f", held against <b>{html.escape(audit.against)}</b>" if audit.against else ""
    began = "at its time" if report.entry.scheduled else f"asked for by {html.escape(night.actor)}"
    return (
        f"Model <b>{html.escape(audit.model_name)}</b>{against}. Begun {began}, on {_moment(night.started_at)}; "
        f"judged on {_moment(night.ended_at or night.started_at)}."
    )


def _verdict(report: NightReport) -> str:
    night = report.entry.night
    if night.state is NightState.PASSED:
        possible = sum(one.outcome is Outcome.PASSED for one in night.checks)
        rest = len(night.checks) - possible
        left = f"; {rest} were not possible" if rest else ""
        return f'<div class="verdict"><p><b>Passed</b>: {possible} checks{left}.</p></div>'
    if night.state is NightState.FAILED:
        words = "<b>Failed</b>: no job was done, so nothing is known of this night."
    else:
        names = html.escape(", ".join(one.name for one in night.failed_checks))
        words = f"<b>Regressed</b>: {len(night.failed_checks)} of {len(night.checks)} checks failed: {names}."
    return f'<div class="verdict failed"><p>{words}</p></div>'


def _check(one: Check) -> str:
    return (
        f"<tr><td><b>{html.escape(one.name)}</b></td><td>{_OUTCOMES[one.outcome]}</td>"
        f'<td class="far">{_number(one.value)}</td><td class="far">{_number(one.limit)}</td>'
        f"<td>{html.escape(one.reason)}</td></tr>"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _changes(report: NightReport) -> str:
    before = report.before
    if before is None:
        return "<p>This is the first night.</p>"
    found = changes(report.found.facts, before.facts)
    if not found:
        return (
            f"<p>Nothing of what is compared and judged changed since {_date(before.night.id)}.</p>"
        )
    return "<ul>" + "".join(f"<li>{html.escape(one)}</li>" for one in found) + "</ul>"


def _trend(report: NightReport) -> str:
    if not report.past:
        return "<p>It begins with the second night.</p>"
    legend = (
        '<p class="lead legend">All units of the compared layers, by their values on the images.<i class="lost"></i>lost'
        '<i class="moved"></i>moved</p>'
    )
    return f"{legend}\n{render_trend(report.trend)}"


def _differing(report: NightReport, read: Reader) -> str:
    articles = [
        _pair(
            one.now.feature,
            (one.night, one.then.picture, one.then),
            ("tonight", one.now.picture, one.now),
            read,
        )
        for one in report.found.changes
    ]
    changed = {one.now.feature for one in report.found.changes}
    for one in report.found.repeats:
        earlier = report.earlier(one.feature)
        if one.different and earlier is not None and one.feature not in changed:
            then = (earlier[0], earlier[1].picture, None)
            articles.append(_pair(one.feature, then, ("made again", one.picture, None), read))
    if not articles:
        return ""
    lead = "Portraits that are not those of an earlier night: another revision, another recipe, or a defect."
    return f'<h2>Pictures that changed</h2>\n<p class="lead">{lead}</p>\n' + "\n".join(articles)


def _pair(
    feature: str,
    then: tuple[str, str, Portrayed | None],
    now: tuple[str, str, Portrayed | None],
    read: Reader,
) -> str:
    sides = "".join(
        f"<figure>{_image(picture, f'{feature}, {label}', read)}"
        f"<figcaption>{html.escape(_date(label) if label[:1].isdigit() else label)}"
        f"{'<br>' + _trust(one) if one is not None else ''}</figcaption></figure>"
        for label, picture, one in (then, now)
    )
    return f'<article><h3>{html.escape(feature)}</h3><div class="pair">{sides}</div></article>'


def _portraits(report: NightReport, read: Reader) -> str:
    portraits = report.found.facts.portraits
    if not portraits:
        return ""
    why = {one.feature: one.reason.words for one in report.entry.plan.chosen or ()}
    figures = "\n".join(
        f"<figure>{_image(one.picture, one.feature, read)}<figcaption><b>{html.escape(one.feature)}</b>"
        f"{_trust(one)}<br>{html.escape(why.get(one.feature, ''))}</figcaption></figure>"
        for one in portraits
    )
    return (
        f"<h2>Portraits of tonight</h2>\n"
        f'<p class="lead">{len(portraits)} features, by priority. Portraits are computed; how far each can be '
        f'believed stands beside it.</p>\n<div class="pictures">{figures}</div>'
    )


def _trust(one: Portrayed) -> str:
    if not one.verdict:
        return ""
    kind = html.escape(one.verdict)
    return f' <span class="{kind}" title="{html.escape(one.reasons)}">{kind}</span>'


def _image(digest: str, words: str, read: Reader) -> str:
    content = read(digest)
    if content is None or len(content) > PICTURE_LIMIT_BYTES:
        why = "is gone" if content is None else "is too large to be shown here"
        return f"<p>Picture <code>{html.escape(digest)}</code> {why}.</p>"
    data = base64.b64encode(content).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="Portrait of {html.escape(words)}">'


def _comparison(report: NightReport) -> str:
    found = report.found.report
    if found is None:
        return ""
    title = f"{found.model.name} against {found.other.name}"
    lead = f"On the {found.dataset.images} images of {found.dataset.name}."
    return (
        f'<h2 class="part">{html.escape(title)}</h2>\n<p class="lead">{html.escape(lead)}</p>\n'
        + render_sections(found)
    )


def _facts(report: NightReport) -> Iterator[tuple[str, str]]:
    audit, facts = report.audit, report.found.facts
    yield "Audit", audit.name
    yield "Night", report.entry.night.id
    yield "Schedule", f"{audit.schedule}, {audit.zone}"
    yield "Model", f"{audit.model}, sha256 {facts.digest or 'not known'}"
    if audit.fail_on:
        yield "Gate", audit.fail_on
    yield "Served", ", ".join(report.found.served.revisions) or "no hook has sampled this model"
    yield "Made again", _names([one.feature for one in report.found.repeats if not one.problem])


def _names(items: Sequence[str]) -> str:
    return ", ".join(items) or "nothing"


def _date(night: str) -> str:
    """Return the date and time of a night's id."""
    return f"{night[:4]}-{night[4:6]}-{night[6:8]} {night[9:11]}:{night[11:13]} UTC"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%d %B %Y, %H:%M} UTC"
