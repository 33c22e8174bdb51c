"""The whole loop in one command: starts everything, tells the story, keeps serving."""

import argparse
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from demo import apis, stages
from demo.display import Display
from demo.launch import start
from demo.layout import ROOT, Programs, Site
from demo.photos import load_cats, load_everyday
from demo.processes import ChildEnded, Children
from demo.stages import Follower, StageFailed
from demo.story import CAT_SHARE, RATE
from demo.traffic import Traffic


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when the story came to its end, 1 when not, 130 on Ctrl-C before."""
    options = _parser().parse_args(arguments)
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(console, options)
    except (StageFailed, ChildEnded, FileExistsError) as error:
        console.print(f"\n[red]✗[/red] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        return 130


def _run(console: Console, options: argparse.Namespace) -> int:
    site = Site.prepare(options.out.resolve())
    programs = Programs(None, None) if options.embedded else Programs.find()
    if not programs.complete and not options.embedded:
        console.print(
            "Prometheus or Alertmanager is not installed, so the daemon acts on its own detectors. "
            "For the whole way: apt-get install prometheus prometheus-alertmanager"
        )
    site.write(alertmanager=programs.complete)
    with Children(ROOT, site.folder / "logs", os.environ) as children, Display(console) as display:
        follower = Follower(display, children)
        display.heading("Starting")
        start(follower, children, site, programs)
        traffic = Traffic(
            f"{site.server}/classify",
            load_everyday(),
            load_cats(),
            rate=options.rate,
            cat_share=CAT_SHARE,
        )
        with traffic:
            pictures = _tell(follower, site, traffic, direct=not programs.complete)
            _print_links(console, site, programs, pictures)
            if not options.exit:
                _keep_serving(console, children)
    return 0


def _tell(follower: Follower, site: Site, traffic: Traffic, *, direct: bool) -> tuple[Path, ...]:
    """Run the two phases and return the files of the portraits."""
    follower.display.heading("Phase 1: everyday photographs")
    stages.learn_baseline(follower, site, traffic)
    stages.stay_quiet(follower, site)
    follower.display.heading("Phase 2: a new client joins and sends photographs of a cat")
    stages.wait_firing(follower, site, traffic)
    if not direct:
        stages.wait_prometheus(follower, site, "pending")
        stages.wait_prometheus(follower, site, "firing")
        stages.wait_alertmanager(follower, site)
    stages.wait_jobs(follower, site)
    pictures = tuple(stages.wait_portrait(follower, site, one) for one in stages.spiking())
    stages.check_quiet_features(follower, site)
    return pictures


def _print_links(
    console: Console, site: Site, programs: Programs, pictures: Sequence[Path]
) -> None:
    pages = {
        # The console finds a revision by its first digits; whole, the links would fill two lines.
        one["flag"]["name"]: one["page"].replace(one["revision"], one["revision"][:12])
        for one in apis.features(site.console)
    }
    links = [("console", site.console)]
    links += [(one.name, apis.absolute(site.console, pages[one.name])) for one in stages.spiking()]
    if programs.complete:
        links += [
            ("Prometheus", f"{site.prometheus}/alerts"),
            ("Alertmanager", f"{site.alertmanager}/#/alerts"),
        ]
    links += [("metrics", f"http://{site.metrics}/metrics"), ("server", f"{site.server}/classify")]
    console.print("\n[bold]Look around[/bold]")
    for name, target in [*links, *(("portrait", str(picture)) for picture in pictures)]:
        console.print(f"  {name:<14}{target}", highlight=False, soft_wrap=True)


def _keep_serving(console: Console, children: Children) -> None:
    """Leave everything running, traffic too, until Ctrl-C; the story is told, so that is no failure.

    Raises:
        ChildEnded: A process ended by itself.
    """
    console.print("\nServer and traffic go on. Ctrl-C ends the demo.")
    try:
        while True:
            children.check()
            time.sleep(1.0)
    except KeyboardInterrupt:
        console.print("Stopping.")


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
    """Let SIGTERM take the way of Ctrl-C, which stops the children."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="An image server, its sidecar, a real alert and the portrait of its cause.",
    )
    parser.add_argument("--exit", action="store_true", help="end after the portraits, status 0")
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="do without Prometheus and Alertmanager even where they are installed",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo" / "out", help="folder of state, logs, portraits"
    )
    parser.add_argument("--rate", type=float, default=RATE, help="photographs a second")
    return parser
