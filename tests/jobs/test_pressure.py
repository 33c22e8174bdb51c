"""Audits make way for the model server."""

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sidecar.jobs import JobState, Priority
from sidecar.jobs.pressure import greatest
from tests.jobs.bench import Bench, wait_until

PAGE = """# HELP latency Time.
# TYPE latency gauge
latency{route="/a b",quantile="0.99"} 0.25
latency{route="/{x}"} 0.75 1795447970000
latency_total 9
latency{route="broken"} x
latency{route="nan"} NaN
plain 3
"""


@pytest.mark.unit
@pytest.mark.parametrize(
    ("metric", "expected"), [("latency", 0.75), ("plain", 3.0), ("latency_total", 9.0)]
)
def test_the_greatest_series_counts(metric: str, expected: float) -> None:
    """Labels with spaces and brackets, times, NaN and nonsense do not mislead."""
    assert expected == greatest(PAGE, metric)


@pytest.mark.unit
@pytest.mark.parametrize("metric", ["late", "route", "HELP"])
def test_a_metric_that_is_not_there_has_no_value(metric: str) -> None:
    """A part of a name is no name."""
    assert math.isnan(greatest(PAGE, metric))


class Server:
    """A model server's metrics page."""

    def __init__(self) -> None:
        self.page = "latency 0.1\n"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(outer.page.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.http.server_port}/metrics"


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve a page."""
    made = Server()
    yield made
    made.http.shutdown()
    made.thread.join()
    made.http.server_close()


@pytest.mark.e2e
def test_an_audit_makes_way_while_latency_is_high(bench: Bench, server: Server) -> None:
    """It is put back and says why, people's jobs run, and it goes on when the server is calm."""
    limit = {"url": server.url, "metric": "latency", "threshold": 0.5, "poll_seconds": 0.05}
    bench.runner(yield_to=limit).start()
    audit = bench.submit("resumable", 1, asked_priority=Priority.AUDIT)
    wait_until(lambda: bench.queue.get(audit.id).step >= 3, "three steps")

    server.page = "latency 0.9\n"
    wait_until(lambda: bench.queue.get(audit.id).state is JobState.QUEUED, "the audit's return")
    waiting = bench.queue.get(audit.id)
    other = bench.ended(bench.submit("work", 2))
    still = bench.queue.get(audit.id).state
    server.page = "another 1\n"
    done = bench.ended(audit)

    assert "latency is 0.9, above 0.5 of jobs.yield_to" in waiting.message
    assert (JobState.DONE, JobState.QUEUED) == (other.state, still)
    assert (JobState.DONE, 1) == (done.state, done.attempts)


@pytest.mark.e2e
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_everybody_makes_way_where_all_share_a_gpu(
    bench: Bench, server: Server, device: str
) -> None:
    """With whom: all a person's job is put back too, whatever it runs on, and none is started."""
    limit = {"url": server.url, "metric": "latency", "threshold": 0.5, "poll_seconds": 0.05}
    jobs = {"device": device, "gpu": {"poll_seconds": 0.05, "admission": "off"}}
    bench.runner(yield_to={**limit, "whom": "all"}, **jobs).start()
    job = bench.submit("resumable", 1)
    wait_until(lambda: bench.queue.get(job.id).step >= 3, "three steps")

    server.page = "latency 0.9\n"
    wait_until(lambda: bench.queue.get(job.id).state is JobState.QUEUED, "the job's return")
    wait_until(lambda: bench.runners[0].admission.counts["pressure"] >= 2, "two looks")
    wait_until(
        lambda: "latency is 0.9, above 0.5 of jobs.yield_to" in bench.queue.get(job.id).message,
        "its reason",
    )
    server.page = "latency 0.1\n"
    done = bench.ended(job)

    assert (JobState.DONE, 1) == (done.state, done.attempts)


@pytest.mark.e2e
def test_a_page_that_is_not_there_holds_nobody_up(bench: Bench) -> None:
    """Audits run."""
    limit = {"url": "http://127.0.0.1:9/metrics", "metric": "latency", "threshold": 0.5}
    bench.runner(yield_to=limit).start()

    done = bench.ended(bench.submit("work", 1, asked_priority=Priority.AUDIT))

    assert JobState.DONE == done.state
