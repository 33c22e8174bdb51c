"""The metrics server as its clients see it, friendly and hostile."""

import gzip
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sidecar.errors import ConfigError
from sidecar.metrics import Collector, MetricsServer
from sidecar.metrics.alerts import ALERTS

pytestmark = pytest.mark.service


def ask(
    server: MetricsServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Return the answer to one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_text_is_the_default_and_openmetrics_is_by_request(source: Any, serve: Any) -> None:
    """``Accept`` decides the format, and the media type says which it is."""
    server = serve(source)

    plain, _ = ask(server, "/metrics")
    strict, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")

    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert strict.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("", False)],
)
def test_gzip_is_used_where_it_is_accepted(
    accepted: str, packed: bool, source: Any, serve: Any
) -> None:
    """The packed body holds the same metrics, in a fraction of the bytes."""
    server = serve(source)

    answer, body = ask(server, "/metrics?name[]=sidecar_jobs", **{"Accept-Encoding": accepted})
    whole, packed_body = ask(server, "/metrics", **{"Accept-Encoding": accepted})

    assert answer.headers["Content-Encoding"] is None, "a small answer is not worth packing"
    assert b"sidecar_jobs{" in body
    assert (whole.headers["Content-Encoding"] == "gzip") is packed
    text = gzip.decompress(packed_body) if packed else packed_body
    assert b"sidecar_batches_received_total 110.0" in text
    assert int(whole.headers["Content-Length"]) == len(packed_body)


def test_name_selects_families(source: Any, serve: Any) -> None:
    """``name[]`` leaves everything else out, also Python's and the process's own families."""
    _, body = ask(serve(source), "/metrics?name[]=sidecar_streams&name[]=sidecar_queue_bytes")

    names = {line.split()[0] for line in body.decode().splitlines() if not line.startswith("#")}
    assert {"sidecar_streams", "sidecar_queue_bytes"} == names


def test_health_says_why(source: Any, serve: Any) -> None:
    """Probes get 200 and no reasons, or 503 and every reason."""
    reasons: list[str] = []
    server = serve(source, live=list, ready=lambda: tuple(reasons))

    good, good_body = ask(server, "/readyz")
    reasons += ["the queue is full", "no snapshot"]
    bad, bad_body = ask(server, "/readyz")
    live, _ = ask(server, "/livez")

    assert (200, {"status": "ok", "reasons": []}) == (good.status, json.loads(good_body))
    wanted = {"status": "unavailable", "reasons": ["the queue is full", "no snapshot"]}
    assert (503, wanted) == (bad.status, json.loads(bad_body))
    assert bad.headers["Content-Type"] == "application/json"
    assert live.status == 200


def test_a_check_that_fails_is_an_answer_too(source: Any, serve: Any) -> None:
    """A probe is answered 503 with the failure, not with a cut connection."""

    def broken() -> list[str]:
        raise RuntimeError("lost my head")

    answer, body = ask(serve(source, ready=broken), "/readyz")

    assert answer.status == 503
    assert "lost my head" in json.loads(body)["reasons"][0]


def test_every_alert_has_its_runbook_on_the_server(source: Any, serve: Any) -> None:
    """The links in alerts lead somewhere, without any other server."""
    server = serve(source)

    answers = {alert.name: ask(server, f"/runbooks/{alert.name}") for alert in ALERTS}

    assert {200} == {answer.status for answer, _ in answers.values()}
    for name, (_, body) in answers.items():
        assert body.decode().startswith(f"# {name}\n")


@pytest.mark.parametrize(
    "path", ["/", "/metric", "/metrics/", "/runbooks/", "/runbooks/Nothing", "/..%2fmetrics"]
)
def test_other_paths_are_not_found(path: str, source: Any, serve: Any) -> None:
    """What does not exist is 404, with the list of what does."""
    answer, body = ask(serve(source), path)

    assert answer.status == 404
    assert b"/metrics, /livez, /readyz" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed(method: str, source: Any, serve: Any) -> None:
    """Anything but GET and HEAD is 405, and the connection is closed on an unread body."""
    answer, _ = ask(serve(source), "/metrics", method)

    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.headers["Connection"] == "close"


def test_head_has_no_body(source: Any, serve: Any) -> None:
    """HEAD says what GET would, without sending it."""
    answer, body = ask(serve(source), "/livez", "HEAD")

    assert (200, b"") == (answer.status, body)
    assert int(answer.headers["Content-Length"]) > 0


def test_a_connection_serves_many_scrapes(source: Any, serve: Any) -> None:
    """Keep-alive works: Prometheus needs one connection for all its scrapes."""
    connection = http.client.HTTPConnection("127.0.0.1", serve(source).port, timeout=10)

    lengths = set()
    for _ in range(5):
        connection.request("GET", "/livez")
        lengths.add(len(connection.getresponse().read()))
    connection.close()

    assert len(lengths) == 1


def test_stalling_clients_cannot_keep_a_scrape_out(source: Any, serve: Any, scrape: Any) -> None:
    """With a hundred connections that send half a request, a scrape is answered at once."""
    server = serve(source)
    stalled = []
    for _ in range(100):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        stalled.append(connection)

    began = time.monotonic()
    found = scrape(server)
    took = time.monotonic() - began
    answering = [t for t in threading.enumerate() if "process_request_thread" in t.name]
    for connection in stalled:
        connection.close()

    assert found
    assert took < 3.0, "far below the five seconds after which a stalled client is cut anyway"
    assert len(answering) <= 40, "threads are bounded however many clients stall"


def test_a_stalled_client_is_cut_off(source: Any, serve: Any) -> None:
    """Half a request is closed by the server, within its own time limit and some slack."""
    server = serve(source)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost")

        assert connection.recv(1024) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
    ],
)
def test_garbage_is_refused_and_harms_nobody(
    request_bytes: bytes, source: Any, serve: Any, scrape: Any
) -> None:
    """TLS hellos and broken request lines end their own connection only."""
    server = serve(source)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    assert scrape(server)


def test_scrapes_run_side_by_side(source: Any, serve: Any, scrape: Any) -> None:
    """Eight scrapers at once all get the whole truth."""
    server = serve(source)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: scrape(server), range(24)))

    received = ("sidecar_batches_received_total", frozenset())
    assert {110.0} == {one[received] for one in found}


def test_a_port_in_use_is_a_configuration_error(source: Any, serve: Any) -> None:
    """The message names the key, the address and the way out."""
    taken = serve(source).port

    with pytest.raises(ConfigError, match=rf"listen\.metrics 127\.0\.0\.1:{taken}: .*in use.*port"):
        MetricsServer(f"127.0.0.1:{taken}", Collector(source, version="0", config_digest="0"))


def test_an_address_of_another_machine_is_a_configuration_error(source: Any) -> None:
    """An address that is not of this machine is refused with the same error."""
    with pytest.raises(ConfigError, match=r"listen\.metrics 192\.0\.2\.1:0"):
        MetricsServer("192.0.2.1:0", Collector(source, version="0", config_digest="0"))


def test_a_stopped_server_frees_its_port(source: Any) -> None:
    """The same address can be bound again at once; a server that never ran can be stopped too."""
    collector = Collector(source, version="0", config_digest="0")
    first = MetricsServer("127.0.0.1:0", collector)
    first.start()
    address = f"127.0.0.1:{first.port}"
    assert ask(first, "/livez")[0].status == 200
    first.stop()

    second = MetricsServer(address, collector)
    second.stop()

    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{address}/livez", timeout=5)


def test_ipv6_loopback_is_served(source: Any) -> None:
    """``[::1]:0`` works where the machine has IPv6, and the URL has its brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = MetricsServer("[::1]:0", Collector(source, version="0", config_digest="0"))
    server.start()
    try:
        with urllib.request.urlopen(f"{server.url}/livez", timeout=10) as answer:
            assert answer.status == 200
    finally:
        server.stop()

    assert server.url.startswith("http://[::1]:")
