"""What machines see of the sidecar: metrics, health, alert rules and the dashboard.

Promises: a scrape is bounded whatever the model's width, conserves the batches it counts, and is
answered by threads of its own when everything else is busy. Rules, dashboard, runbooks and documents
are generated from the same catalogue as the exposition, so they cannot name what does not exist.
The daemon implements ``MetricsSource``; ``tools/golden.py`` writes ``render_files()``.
"""

from sidecar.metrics.checks import check_rules
from sidecar.metrics.collector import Collector
from sidecar.metrics.documents import render_files
from sidecar.metrics.rules import render_rules
from sidecar.metrics.ruletests import render_rule_tests
from sidecar.metrics.server import MetricsServer
from sidecar.metrics.source import JobCounts, MetricsSource, StatisticsCounts, StorageCounts

__all__ = [
    "Collector",
    "JobCounts",
    "MetricsServer",
    "MetricsSource",
    "StatisticsCounts",
    "StorageCounts",
    "check_rules",
    "render_files",
    "render_rule_tests",
    "render_rules",
]
