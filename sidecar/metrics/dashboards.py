"""Renders the panels of the catalogue as a Grafana dashboard (classic JSON, schema version 39)."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sidecar.metrics.panels import ANNOTATIONS, ROWS, STATS, VARIABLES, Annotation, Variable
from sidecar.metrics.rules import CONSOLE_URL, DASHBOARD_UID
from sidecar.metrics.vocabulary import Column, Panel, Query, Row

_Json = dict[str, Any]

# Grafana 10.4 to 13 read it; they migrate it forward when they load it.
_SCHEMA_VERSION = 39

_GRID_WIDTH = 24
_STAT_SIZE = (3, 4)
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_FEATURE_LINK = (
    "${console:raw}/f/${__field.labels.model}@${__field.labels.revision}/${__field.labels.layer}"
    "/${__field.labels.kind}/${__field.labels.feature:percentencode}"
)
_ROW_LINK = "${console:raw}/f/${__data.fields.path}"
_AUDIT_LINK = "${console:raw}/audits/${__field.labels.audit:percentencode}"
_AUDIT_ROW_LINK = "${console:raw}/audits/${__data.fields.audit:percentencode}"


def render_dashboard(console_url: str = CONSOLE_URL) -> str:
    """Return the overview dashboard as JSON, ready to provision or import.

    Args:
        console_url: Default of the variable ``console``: where the viewer's browser reaches the
            console.
    """
    return json.dumps(_dashboard(console_url.rstrip("/")), indent=2, ensure_ascii=False) + "\n"


def _dashboard(console_url: str) -> _Json:
    return {
        "annotations": {"list": [_annotation(a) for a in ANNOTATIONS]},
        "description": "What the flagged features of your models do, and whether anybody is looking.",
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": False,
                "keepTime": False,
                "tags": [],
                "targetBlank": True,
                "title": "Console",
                "tooltip": "Distributions, portraits and jobs",
                "type": "link",
                "url": "${console:raw}",
            }
        ],
        "panels": list(_laid_out()),
        "refresh": "10s",
        "schemaVersion": _SCHEMA_VERSION,
        "tags": ["sidecar"],
        "templating": {"list": list(_variables(console_url))},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": "Sidecar / Overview",
        "uid": DASHBOARD_UID,
        "version": 1,
        "weekStart": "",
    }


def _annotation(item: Annotation) -> _Json:
    return {
        "datasource": _SOURCE,
        "enable": item.on,
        "expr": item.expr,
        "hide": False,
        "iconColor": item.colour,
        "name": item.name,
        "step": "15s",
        "tagKeys": "model,severity",
        "textFormat": item.text,
        "titleFormat": item.title,
    }


def _variables(console_url: str) -> Iterator[_Json]:
    yield {
        "hide": 0,
        "label": "Data source",
        "name": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "type": "datasource",
    }
    yield from (_variable(item) for item in VARIABLES)
    yield {
        "description": "Where your browser reaches the sidecar's console.",
        "hide": 0,
        "label": "Console",
        "name": "console",
        "query": console_url,
        "type": "textbox",
    }
    yield {
        "datasource": _SOURCE,
        "filters": [],
        "hide": 0,
        "label": "Filters",
        "name": "filters",
        "type": "adhoc",
    }


def _variable(item: Variable) -> _Json:
    selector = f"{{{item.selector}}}" if item.selector else ""
    text = f"label_values({item.family.name}{selector}, {item.label})"
    found: _Json = {
        "datasource": _SOURCE,
        "description": item.description,
        "hide": 0,
        "includeAll": item.all,
        "label": item.name.capitalize(),
        "multi": True,
        "name": item.name,
        "options": [],
        "query": {"qryType": 1, "query": text, "refId": item.name},
        # On every change of the time range: revisions and flags come and go.
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }
    if item.all:
        found |= {"allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]}}
    return found


def _laid_out() -> Iterator[_Json]:
    """Yield panels with their places and ids: left to right, top to bottom."""
    ids = iter(range(1, 1000))
    stats = _placed([(panel, _STAT_SIZE) for panel in STATS], ids, 0)
    yield from stats
    bottom = _bottom(stats, 0)
    for row in ROWS:
        header = _header(row, next(ids), bottom)
        panels = _placed([(panel, panel.size) for panel in row.panels], ids, bottom + 1)
        if row.folded:
            yield {**header, "panels": panels}
            bottom += 1
        else:
            yield header
            yield from panels
            bottom = _bottom(panels, bottom + 1)


def _header(row: Row, number: int, top: int) -> _Json:
    place = {"h": 1, "w": _GRID_WIDTH, "x": 0, "y": top}
    return {
        "collapsed": row.folded,
        "gridPos": place,
        "id": number,
        "panels": [],
        "title": row.title,
        "type": "row",
    }


def _placed(
    panels: Sequence[tuple[Panel, tuple[int, int]]], ids: Iterator[int], top: int
) -> list[_Json]:
    found: list[_Json] = []
    x, y, tallest = 0, top, 0
    for panel, (width, height) in panels:
        if x + width > _GRID_WIDTH:
            x, y, tallest = 0, y + tallest, 0
        place = {"h": height, "w": width, "x": x, "y": y}
        found.append({"id": next(ids), "gridPos": place, **_panel(panel)})
        x, tallest = x + width, max(tallest, height)
    return found


def _bottom(panels: Iterable[_Json], top: int) -> int:
    return max((p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels), default=top)


def _panel(panel: Panel) -> _Json:
    found: _Json = {
        "datasource": _SOURCE,
        "description": panel.description,
        "title": panel.title,
        "transparent": False,
        "type": panel.type,
    }
    if panel.repeat:
        found |= {"maxPerRow": 4, "repeat": panel.repeat, "repeatDirection": "h"}
    if panel.type == "text":
        return found | {"options": {"content": panel.text, "mode": "html"}}
    return found | {
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel),
        "targets": [_target(panel, n, query) for n, query in enumerate(panel.queries)],
        "transformations": _transformations(panel),
    }


def _target(panel: Panel, number: int, query: Query) -> _Json:
    now = panel.type in ("stat", "table")
    return {
        "datasource": _SOURCE,
        "editorMode": "code",
        "exemplar": panel.exemplars,
        "expr": query.expr,
        "format": panel.type if panel.type in ("table", "heatmap") else "time_series",
        "instant": now,
        "legendFormat": query.legend or "__auto",
        "range": not now,
        "refId": _ref(number),
    }


def _ref(number: int) -> str:
    return chr(ord("A") + number)


def _defaults(panel: Panel) -> _Json:
    steps = [{"color": colour, "value": level} for level, colour in panel.steps]
    steps[0]["value"] = None
    found: _Json = {
        "color": {"mode": "thresholds" if panel.type != "timeseries" else "palette-classic"},
        "custom": _custom(panel),
        "mappings": _mappings(panel.mappings) if panel.type != "table" else [],
        "noValue": panel.no_value,
        "thresholds": {"mode": "absolute", "steps": steps},
        "unit": panel.unit,
    }
    url = _page(panel)
    if url:
        found["links"] = [{"targetBlank": True, "title": "Open in the console", "url": url}]
    return found


def _page(panel: Panel) -> str:
    """Return where a click on a series or a line leads; empty: nowhere."""
    table = panel.type == "table"
    if panel.to_feature:
        return _ROW_LINK if table else _FEATURE_LINK
    if panel.to_audit:
        return _AUDIT_ROW_LINK if table else _AUDIT_LINK
    return ""


def _custom(panel: Panel) -> _Json:
    if panel.type == "timeseries":
        stacking = "normal" if panel.stacked else "none"
        return {
            "drawStyle": "line",
            "fillOpacity": 30 if panel.stacked else 0,
            "lineWidth": 1,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": stacking},
        }
    if panel.type == "state-timeline":
        return {"fillOpacity": 80, "lineWidth": 0}
    return {"align": "auto", "filterable": True} if panel.type == "table" else {}


def _mappings(items: Iterable[tuple[int, str, str]]) -> list[_Json]:
    options = {
        str(value): {"color": colour, "index": place, "text": text}
        for place, (value, text, colour) in enumerate(items)
    }
    return [{"options": options, "type": "value"}] if options else []


def _overrides(panel: Panel) -> Iterator[_Json]:
    for number, query in enumerate(panel.queries):
        properties = list(_series_properties(query))
        if properties:
            matcher = {"id": "byFrameRefID", "options": _ref(number)}
            yield {"matcher": matcher, "properties": properties}
    for column in panel.columns:
        properties = list(_column_properties(panel, column))
        if properties:
            matcher = {"id": "byName", "options": column.title}
            yield {"matcher": matcher, "properties": properties}
    if panel.type == "table" and panel.to_feature:
        # Hidden, not removed: the link of every cell needs it.
        hidden = [{"id": "custom.hidden", "value": True}]
        yield {"matcher": {"id": "byName", "options": "path"}, "properties": hidden}


def _series_properties(query: Query) -> Iterator[_Json]:
    if query.colour:
        yield {"id": "color", "value": {"fixedColor": query.colour, "mode": "fixed"}}
    if query.dashed:
        yield {"id": "custom.lineStyle", "value": {"dash": [6, 6], "fill": "dash"}}


def _column_properties(panel: Panel, column: Column) -> Iterator[_Json]:
    if column.unit:
        yield {"id": "unit", "value": column.unit}
    if column.width:
        yield {"id": "custom.width", "value": column.width}
    if column.field == "portrait":
        yield {"id": "custom.cellOptions", "value": {"type": "image", "alt": "portrait"}}
    if column.title == "State":
        yield {"id": "mappings", "value": _mappings(panel.mappings)}
        yield {"id": "custom.cellOptions", "value": {"type": "color-text"}}


def _options(panel: Panel) -> _Json:
    match panel.type:
        case "stat":
            return {
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "textMode": "auto",
            }
        case "state-timeline":
            return {
                "alignValue": "left",
                "legend": {
                    "calcs": [],
                    "displayMode": "list",
                    "placement": "bottom",
                    "showLegend": True,
                },
                "mergeValues": True,
                "rowHeight": 0.9,
                "showValue": "auto",
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                # Told apart by people with any kind of colour vision, and in print.
                "color": {
                    "exponent": 0.5,
                    "mode": "scheme",
                    "scale": "exponential",
                    "scheme": "Blues",
                    "steps": 64,
                },
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "rowsFrame": {"layout": "le"},
                "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            }
        case "table":
            return {"cellHeight": "md" if panel.to_feature else "sm", "showHeader": True}
        case _:
            return {
                "legend": {
                    "calcs": ["lastNotNull", "max"],
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def _transformations(panel: Panel) -> list[_Json]:
    if panel.type != "table":
        return []
    shown = [column.field for column in panel.columns] + ["path"] * panel.to_feature
    keep = {"id": "filterFieldsByName", "options": {"include": {"names": shown}}}
    renamed = {column.field: column.title for column in panel.columns}
    order = {field: place for place, field in enumerate(shown)}
    arrange = {
        "id": "organize",
        "options": {"excludeByName": {}, "indexByName": order, "renameByName": renamed},
    }
    return [{"id": "merge", "options": {}}, keep, arrange]
