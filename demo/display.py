"""Progress on the terminal: one line a stage, moving while it runs, kept when it is done."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


class _Seconds(ProgressColumn):
    """Seconds a stage has taken."""

    def render(self, task: Task) -> Text:
        """Return them with one decimal."""
        seconds = task.finished_time if task.finished_time is not None else task.elapsed
        return Text(f"{seconds or 0.0:6.1f} s", style="dim")


class Display:
    """Shows stages one below the other; a context manager around the whole story.

    On a terminal the running stage has a spinner and, where it has one, a bar. Elsewhere (a file, a
    build log) every stage is one plain line when it is done.
    """

    def __init__(self, console: Console) -> None:
        """Show on ``console``."""
        self.console = console
        self._progress: Progress | None = None
        self._title = ""
        self._begun = 0.0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines on the terminal, that of a stage cut short too."""
        if self._progress is not None:
            self._progress.stop()

    def heading(self, text: str) -> None:
        """Begin a chapter of the story."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def begin(self, title: str) -> None:
        """Begin a stage."""
        self._title, self._begun = title, time.monotonic()
        if not self.console.is_terminal:
            return
        # A display of its own for every stage: finished ones scroll up like other text.
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", table_column=Column(min_width=46, no_wrap=True)),
            BarColumn(bar_width=12),
            _Seconds(),
            TextColumn(
                "{task.fields[detail]}",
                style="dim",
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=self.console,
        )
        self._progress.add_task(title, total=None, detail="")
        self._progress.start()

    def update(self, detail: str, share: float | None = None) -> None:
        """Say how the running stage goes; ``share`` of it is done, 0 to 1, where that is known."""
        if self._progress is None:
            return
        task = self._progress.task_ids[-1]
        if share is not None:
            # Never quite full: a full bar would say that the stage is done.
            self._progress.update(task, total=1.0, completed=min(share, 0.99))
        self._progress.update(task, detail=detail)

    def done(self, detail: str) -> None:
        """End the running stage well."""
        if self._progress is None:
            seconds = time.monotonic() - self._begun
            self.console.print(
                f"✓ {self._title:<46} {seconds:6.1f} s  {detail}", highlight=False, soft_wrap=True
            )
            return
        self._progress.update(self._progress.task_ids[-1], total=1.0, completed=1.0, detail=detail)
        self._progress.stop()
        self._progress = None
