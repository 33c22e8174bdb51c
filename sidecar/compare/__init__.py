"""Comparisons of two models as reports: what is compared, what came of it, and whether a gate holds.

The room promises: a comparison needs no daemon, and leaves nothing behind but its report; a report is
whole, so that a page sent to somebody shows all there was; every number in it is that of a manifest, which
names weights, dataset, recipe and versions; a gate fails for counts of all units of a layer, never for
those alone that were pictured. No torch here: the worker child computes.
"""

from sidecar.compare.gate import Rule, parse_rules
from sidecar.compare.offline import compare_offline
from sidecar.compare.page import STYLE, render_page, render_sections
from sidecar.compare.report import Answer, LayerFate, Report, as_json, report_of
from sidecar.compare.selection import UNPINNED, flagged, named

__all__ = [
    "STYLE",
    "UNPINNED",
    "Answer",
    "LayerFate",
    "Report",
    "Rule",
    "as_json",
    "compare_offline",
    "flagged",
    "named",
    "parse_rules",
    "render_page",
    "render_sections",
    "report_of",
]
