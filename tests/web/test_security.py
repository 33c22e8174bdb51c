import http.client
from typing import Any

import httpx
import pytest

from sidecar.errors import ConfigError
from sidecar.features import FeatureKey
from sidecar.web import WebServer, create_app

pytestmark = pytest.mark.service


def raw(server: WebServer, method: str, target: str, **headers: str) -> http.client.HTTPResponse:
    """Send a request whose path no client library has tidied up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, target, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    response.body = response.read()
    connection.close()
    return response


@pytest.mark.parametrize(
    "page", ["/", "/jobs", "/layers", "/missing", "/api/v1/jobs", "/static/console.css"]
)
def test_every_answer_carries_the_strict_policy(client: httpx.Client, page: str) -> None:
    """Nothing inline, nothing foreign, no sniffing, no framing by others."""
    headers = client.get(page).headers

    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    assert "nosniff" == headers["x-content-type-options"]
    assert "server" not in headers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "",
        "[",
        "0.0.0.0",  # noqa: S104 - a name to refuse
        "console.example.evil",
    ],
)
def test_a_rebound_name_is_refused(server: WebServer, host: str) -> None:
    """A page whose name was pointed at loopback reads nothing."""
    response = raw(server, "GET", "/api/v1/features", host=host)

    assert response.status in (400, 403)
    assert b"features" not in response.body or b"SC209" in response.body


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost:1234",
        "[::1]:80",
        "console.example",
        "CONSOLE.example:8080",
        "127.3.2.1",
    ],
)
def test_loopback_and_the_console_url_are_known_names(server: WebServer, host: str) -> None:
    """Readers reach the console by any of its names."""
    assert 200 == raw(server, "GET", "/", host=host).status


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://localhost.evil.example"},
    ],
)
def test_a_form_from_another_site_is_refused(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str, headers: dict[str, str]
) -> None:
    """Even with the right token, a foreign origin changes nothing."""
    response = client.post(f"/f/{spiking.path}/unflag", data={"token": token}, headers=headers)

    assert 403 == response.status_code
    assert "SC208" in response.text
    assert spiking in backend.watched


@pytest.mark.parametrize("token", ["", "guess", "\u00e9"])
def test_a_form_without_the_token_is_refused(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """A form this daemon did not make changes nothing."""
    response = client.post(f"/f/{spiking.path}/unflag", data={"token": token})

    assert 403 == response.status_code
    assert spiking in backend.watched


def test_the_console_own_form_is_accepted_with_a_browsers_headers(
    client: httpx.Client, server: WebServer, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """Same origin by address or through the proxy that console_url names."""
    for origin in (f"http://127.0.0.1:{server.port}", "http://console.example"):
        headers = {"origin": origin, "sec-fetch-site": "same-origin"}
        fields = {"token": token, "name": origin[-7:]}
        response = client.post(f"/f/{spiking.path}/flag", data=fields, headers=headers)

        assert 303 == response.status_code


def test_a_get_never_changes_anything(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """Actions answer to POST alone."""
    for path in (f"/f/{spiking.path}/unflag", f"/f/{spiking.path}/flag", "/layers/reset"):
        assert client.get(path, params={"token": token}).status_code in (400, 404, 405)
    assert spiking in backend.watched


def test_an_endless_form_is_cut_off(client: httpx.Client, spiking: FeatureKey, token: str) -> None:
    """No more than the limit is ever held."""
    response = client.post(f"/f/{spiking.path}/flag", data={"token": token, "name": "x" * 100_000})

    assert 413 == response.status_code
    assert "SC205" in response.text


@pytest.mark.parametrize("body", [b"\xff\xfe", b"token=%zz&" + b"a=b&" * 200])
def test_a_form_that_cannot_be_read_is_refused(
    client: httpx.Client, spiking: FeatureKey, body: bytes
) -> None:
    """Bytes that are no form give a clear answer."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = client.post(f"/f/{spiking.path}/flag", content=body, headers=headers)

    assert response.status_code in (400, 403)


@pytest.mark.parametrize(
    "target",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/errors.py",
        "/static//etc/passwd",
        "/api/v1/artifacts/../../../../etc/passwd",
        "/api/v1/artifacts/..%2f..%2fetc%2fpasswd",
        "/api/v1/artifacts/" + "a" * 63 + "%00",
        "/f/../../etc/passwd",
        "/f/%2e%2e%2f%2e%2e/portrait.png",
    ],
)
def test_no_path_leads_out_of_the_console(server: WebServer, target: str) -> None:
    """Names are looked up in tables, not on the disk."""
    response = raw(server, "GET", target)

    assert response.status in (400, 404)
    assert b"root:" not in response.body
    assert b"import" not in response.body


def test_a_prefix_in_the_console_url_is_in_every_link_and_optional_in_requests(
    backend: Any, spiking: FeatureKey
) -> None:
    """Behind a proxy under a path, links work whether the proxy strips the path or not."""
    app = create_app(backend, console_url="https://ops.example/sidecar/", clock=lambda: 1e9)
    server = WebServer(app, "127.0.0.1", 0)
    server.start()
    page, plain, near = (
        raw(server, "GET", path, host="ops.example") for path in ("/sidecar/", "/", "/sidecarx")
    )
    server.stop()

    assert page.body == plain.body
    assert b'href="/sidecar/f/lite0@' in page.body
    assert b'href="/sidecar/static/console.css' in page.body
    assert near.status == 404


@pytest.mark.parametrize(
    "url", ["", "console.example", "ftp://x", "http://", "javascript:alert(1)"]
)
def test_a_console_url_that_is_none_is_a_configuration_error(backend: Any, url: str) -> None:
    """The daemon does not start with links that lead nowhere."""
    with pytest.raises(ConfigError, match="console_url"):
        create_app(backend, console_url=url)
