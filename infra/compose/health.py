"""Is the role in this container at work? Exit code 0 when its own account says ready: `... health ROLE`.

Costs a second of a core: a container's health check asks seldom, a test when it waits.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from penstock.infra import settings as settings_module
from penstock.infra.local.health import STATUS
from penstock.infra.settings import Settings
from penstock.schemas.grpc_avro import CallError, Client
from penstock.schemas.rpc import StatusRequest

TIMEOUT = 5.0  # seconds


def trouble(role: str, settings: Settings) -> str:
    """Why the role is not ready; empty when it is. Raises KeyError for no role."""
    port = getattr(settings, role).listen.rpartition(":")[2]
    if role in STATUS:
        client = Client(f"127.0.0.1:{port}")
        try:
            status = client.call(STATUS[role], StatusRequest(), TIMEOUT)
        except CallError as error:
            return str(error)
        finally:
            client.close()
        return "" if status.ready else status.reason or "not ready"
    try:
        # Loopback must not go through a proxy that the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return error.read(400).decode(errors="replace")
    except OSError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(trouble(sys.argv[1], settings_module.load()) or 0)
