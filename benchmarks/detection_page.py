"""The tables of ``docs/detection.md``, made of the rows of the suite ``detect``."""

from collections.abc import Mapping, Sequence

from benchmarks.detectors import PATIENCE

Measured = Mapping[str, str | float]

SCENARIOS = ("A", "B", "C", "D", "E")
ENDS = {"": "B", "_own_bursts": "C", "_shared_bursts": "C, one mix for all features"}
ENDS |= {"_unequal": "D", "_strong_bursts": "E"}
"""Traffic of the screen by the suffix of its rows."""

DEEP = ("detect.spike.", "detect.learned.", "detect.rival.", "detect.conditions.", "detect.drift.")
"""Beginnings of rows that are told here and not in the table of all suites."""


def filled(page: str, rows: Sequence[Measured]) -> str:
    """Return the page with its tables, each between ``<!-- name: begin -->`` and its end, anew."""
    value = {str(row["name"]): float(row["value"]) for row in rows}
    for name, table in (
        ("spike", _spike(value)),
        ("learned", _learned(value)),
        ("rivals", _rivals(value, rows)),
        ("screen", _screen(value)),
        ("layers", _layers(value)),
        ("slow", _slow(value)),
    ):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = before + "\n".join([begin, *table, end]) + rest.split(end)[1]
    return page


def _spike(value: Mapping[str, float]) -> Sequence[str]:
    head = ("traffic", "requests", "false alarms", "20 %: delay", "missed", "10 %: delay", "missed")
    lines = []
    for name in SCENARIOS:
        for requests in (64, 256):
            where = f"{name}_{requests}"
            cells = [name, str(requests), _number(value[f"detect.spike.false_alarms.{where}"])]
            for share in ("20pct", "10pct"):
                cells += [
                    _delay(value[f"detect.spike.delay.{where}_{share}"]),
                    f"{value[f'detect.spike.missed.{where}_{share}']:.2g} %",
                ]
            lines.append(cells)
    return _table(head, lines)


def _learned(value: Mapping[str, float]) -> Sequence[str]:
    head = ("rows a request", "requests", *SCENARIOS, "20 %: delay")
    first, lines = "detect.learned.false_alarms.", []
    for tokens in (1, 16):
        for requests in (8, 16, 32, 64, 256):
            where = f"{requests}x{tokens}"
            alarms = [_number(value[f"{first}{name}_{where}"]) for name in SCENARIOS]
            delay = _delay(value[f"detect.learned.delay.B_{where}"])
            lines.append([str(tokens), str(requests), *alarms, delay])
    return _table(head, lines)


def _rivals(value: Mapping[str, float], rows: Sequence[Measured]) -> Sequence[str]:
    head = ("detector", *SCENARIOS, "B, lognormal", "all tokens: delay", "a tenth of them")
    theirs = {str(row["name"]): row for row in rows}
    first = "detect.rival.delay.all_tokens."
    names = [name.removeprefix(first) for name in value if name.startswith(first)]
    places = [f"false_alarms.{where}" for where in (*SCENARIOS, "B_lognormal")]
    places += ["delay.all_tokens", "delay.few_tokens"]
    ours = [value[f"detect.rival.{place}.{names[0]}"] for place in places]
    lines = [["**spike test**", *_cells(ours)]]
    for name in names:
        found = [float(theirs[f"detect.rival.{place}.{name}"]["peer_value"]) for place in places]
        lines.append([str(theirs[first + name]["peer"]), *_cells(found)])
    return _table(head, lines)


def _cells(values: Sequence[float]) -> Sequence[str]:
    *alarms, all_tokens, few = values
    return [*map(_number, alarms), _delay(all_tokens), _delay(few)]


def _screen(value: Mapping[str, float]) -> Sequence[str]:
    head = ("traffic", "false share of findings", "found share of spikes", "quiet windows, finding")
    lines = [
        [
            traffic,
            f"{value[f'detect.screen.fdr{end}']:.3f}",
            f"{value[f'detect.screen.power{end}']:.3f}",
            f"{value[f'detect.screen.quiet{end}']:.2g} %",
        ]
        for end, traffic in ENDS.items()
    ]
    return _table(head, lines)


def _layers(value: Mapping[str, float]) -> Sequence[str]:
    head = ("traffic, share of the mix that all features have in common", "false alarms")
    first = "detect.layer.false_alarms."
    lines = []
    for name in value:
        if name.startswith(first):
            scenario, share = name.removeprefix(first).split("_")[:2]
            lines.append([f"{scenario}, {share.replace('pct', ' %')}", _number(value[name])])
    return _table(head, lines)


def _slow(value: Mapping[str, float]) -> Sequence[str]:
    head = ("traffic", "values never seen", "false tickets of drift")
    lines = []
    for name in (*SCENARIOS, "B_lognormal"):
        tickets = value.get(f"detect.drift.false_tickets.{name}")
        records = _number(value[f"detect.conditions.records.{name}"])
        told = "" if tickets is None else _number(tickets)
        lines.append([name.replace("_", ", "), records, told])
    return _table(head, lines)


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - .2g turns to powers


def _delay(value: float) -> str:
    return f"> {PATIENCE}" if value > PATIENCE else f"{value:g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Sequence[str]:
    rule = "|---" + "|--:" * (len(head) - 1) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]
