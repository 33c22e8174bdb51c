"""The console people open, the JSON API, and the webhook through which Alertmanager asks for portraits.

Promises: every page is complete without JavaScript; nothing is fetched from another host; no inline
script or style runs; every value from outside is escaped; forms and hosts are checked against
cross-site requests and DNS rebinding; what goes wrong is told with its stable code. It knows the
daemon only through ``Backend``.
"""

from sidecar.web.app import create_app
from sidecar.web.backend import Backend
from sidecar.web.server import WebServer

__all__ = ["Backend", "WebServer", "create_app"]
