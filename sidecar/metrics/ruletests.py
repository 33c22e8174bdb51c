"""The shipped unit tests of the alert rules, rewritten for the options that rules are rendered with."""

import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import yaml

from sidecar.metrics.alerts import ALERTS
from sidecar.metrics.rules import (
    CONSOLE_URL,
    FOR_SECONDS,
    GRAFANA_URL,
    KEEP_SECONDS,
    RUNBOOK_URL,
    WINDOW_SECONDS,
    waiting_seconds,
)

RULES_NAME = "rules.yaml"
"""Where the tests expect the rules: beside them."""

LIMIT_SECONDS = 1800
"""Longest time that can be tested: promtool's series are stale after five minutes, sixty times five seconds."""

WAITS_LIMIT = 20
"""Longest wait that can be tested together with being kept, in times of that: promtool takes small steps."""

_WAITS = "waits.yaml"
"""Tests of rules that wait. The committed ones do not, so it is not beside them."""

_WAIT_SECONDS = 30
"""The wait in that file."""

_NEVER_SEEN = next(alert for alert in ALERTS if alert.name == "SidecarFeatureNeverSeen")

_DURATION = re.compile(r"(\d+)(ms|[smhd])")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_Swap = Callable[[str], str]


def shipped_tests() -> dict[str, str]:
    """Return the tests of the committed rules as they are: file name to text."""
    return {name: text for name, text in _cases().items() if name != _WAITS}


def _cases() -> dict[str, str]:
    folder = resources.files("sidecar.metrics") / "cases"
    found = [item for item in folder.iterdir() if item.name.endswith(".yaml")]
    return {item.name: item.read_text(encoding="utf-8") for item in sorted(found, key=str)}


def render_rule_tests(
    console_url: str = CONSOLE_URL,
    grafana_url: str = GRAFANA_URL,
    runbook_url: str = RUNBOOK_URL,
    *,
    for_seconds: int = FOR_SECONDS,
    keep_seconds: int = KEEP_SECONDS,
    window_seconds: float = WINDOW_SECONDS,
    job: str = "sidecar",
) -> dict[str, str]:
    """Return the tests of rules that ``render_rules`` made of the same arguments.

    Links and the job are the operator's, and what hangs on a time is stretched with it. How alerts begin
    has one file for rules that wait and one for those that do not. What hangs on a time above
    ``LIMIT_SECONDS``, or on one of 0 on which nothing can hang, is left out, and so is being kept for
    less than a ``WAITS_LIMIT``-th of the wait.

    Returns:
        File name to text for ``promtool test rules``; they expect the rules as ``RULES_NAME`` beside them.
    """
    links = {
        CONSOLE_URL: console_url.rstrip("/"),
        GRAFANA_URL: grafana_url.rstrip("/"),
        RUNBOOK_URL: runbook_url.rstrip("/"),
    }
    swap = _swapping(links, job)
    long = for_seconds > min(LIMIT_SECONDS, WAITS_LIMIT * keep_seconds)
    stretched = {  # The time of which every other in a file is a multiple: as rendered, as in the file.
        _WAITS: (for_seconds, _WAIT_SECONDS),
        "spikes.yaml": (0 if long else keep_seconds, KEEP_SECONDS),
        "windows.yaml": (
            waiting_seconds(_NEVER_SEEN, for_seconds, window_seconds),
            waiting_seconds(_NEVER_SEEN, FOR_SECONDS, WINDOW_SECONDS),
        ),
    }
    found = {}
    for name, text in _cases().items():
        tests = _rewritten(yaml.safe_load(text), swap, job) | {"rule_files": [RULES_NAME]}
        if name == "onset.yaml" and for_seconds:
            continue
        if name in stretched:
            wanted, usual = stretched[name]
            if not 0 < wanted <= LIMIT_SECONDS:
                continue
            _stretch(tests, wanted, usual)
        if name == "spikes.yaml":
            _delay(tests, for_seconds * 1000)
        found[name] = yaml.safe_dump(tests, sort_keys=False, width=10_000)
    return found


def _swapping(links: Mapping[str, str], job: str) -> _Swap:
    # The longest first: one address may begin with another.
    known = re.compile("|".join(map(re.escape, sorted(links, key=len, reverse=True))))

    def swap(text: str) -> str:
        text = known.sub(lambda match: links[match[0]], text)
        return text.replace('job="sidecar"', f'job="{job}"').replace(
            "the job sidecar;", f"the job {job};"
        )

    return swap


def _rewritten(value: Any, swap: _Swap, job: str) -> Any:
    if isinstance(value, dict):
        return {
            key: job if (key, item) == ("job", "sidecar") else _rewritten(item, swap, job)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_rewritten(item, swap, job) for item in value]
    return swap(value) if isinstance(value, str) else value


def _stretch(tests: dict[str, Any], wanted: int, usual: int) -> None:
    """Make every time of a file ``wanted / usual`` as long, in place."""

    def stretched(text: str) -> int:
        return -(-_milliseconds(text) * wanted // usual)  # rounded up: a wait is then surely over

    tests["evaluation_interval"] = f"{stretched(tests['evaluation_interval'])}ms"
    for test in tests["tests"]:
        old, new = _milliseconds(test["interval"]), stretched(test["interval"])
        test["interval"] = f"{new}ms"
        for case in test.get("alert_rule_test", []) + test.get("promql_expr_test", []):
            case["eval_time"] = f"{_milliseconds(case['eval_time']) // old * new}ms"


def _delay(tests: dict[str, Any], wait: int) -> None:
    """Let every series keep its first value for ``wait`` milliseconds more, in place: all is so much later."""
    for test in tests["tests"]:
        step = _milliseconds(test["interval"])
        more = -(-wait // step)
        for series in test["input_series"] if more else ():
            first = series["values"].partition("x")[0]
            series["values"] = f"{first}x{more - 1} {series['values']}"
        for case in test.get("alert_rule_test", []) + test.get("promql_expr_test", []):
            case["eval_time"] = f"{_milliseconds(case['eval_time']) + more * step}ms"


def _milliseconds(duration: str) -> int:
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in _DURATION.findall(duration))
