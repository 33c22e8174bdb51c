"""The ``sidecar`` command. ``sidecar --help`` loads no group: each is imported when it is used.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or
configuration, 3 not found, 4 conflict, 5 the daemon cannot be reached or is overloaded, 6 a gate failed.
"""

import importlib
import sys
from typing import Any

try:
    import click
except ModuleNotFoundError:  # a model server's installation, which has the hooks alone
    sys.exit("the sidecar's daemon is not installed here: pip install 'feature-sidecar[daemon]'")

import sidecar

_COMMANDS = {
    "serve": ("sidecar.cli.daemon", "Run the daemon."),
    "check": ("sidecar.cli.daemon", "Check files before they are used."),
    "feature": ("sidecar.cli.features", "List, describe, flag and unflag features."),
    "layer": ("sidecar.cli.layers", "List and describe layers, and what stands out in them."),
    "baseline": ("sidecar.cli.baselines", "Freeze, relearn, list, export and import baselines."),
    "job": ("sidecar.cli.jobs", "Run, list, watch and cancel visualisation jobs."),
    "compare": ("sidecar.cli.compare", "Say what became of a model's units in another model."),
    "audit": ("sidecar.cli.audits", "Say how nightly audits stand, run one, fetch its report."),
    "artifact": ("sidecar.cli.artifacts", "List, check, reproduce, export and keep pictures."),
    "replay": ("sidecar.cli.replay", "Say what a policy would have fired on."),
    "calibrate": ("sidecar.cli.calibrate", "Say how often a policy is wrong on recorded traffic."),
    "rules": ("sidecar.cli.rules", "Render, check and test alert rules."),
}


class _LazyGroup(click.Group):
    """Knows its commands by name and imports one only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command; None where there is none of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        found: Any = getattr(importlib.import_module(module), cmd_name)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sidecar.__version__, prog_name="sidecar")
def main() -> None:
    """Monitor what happens inside served models."""
