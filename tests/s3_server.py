"""An S3 server on loopback: moto's, with the atomic writes of S3, and faults on demand. `python
tests/s3_server.py PORT`.

It lives until standard input closes. `POST /faults?count=3&status=503` fails the next three
requests, `&seconds=1` delays them.
"""

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class Application:
    def __init__(self) -> None:
        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self._faults: list[tuple[str, float]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/faults":
            fields = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
            self._faults = [(fields.get("status", ""), float(fields.get("seconds", 0)))] * int(
                fields["count"]
            )
            start_response("204 No Content", [])
            return []
        status, seconds = self._faults.pop() if self._faults else ("", 0.0)
        time.sleep(seconds)
        if status:
            start_response(f"{status} Fault", [("Content-Length", "0")])
            return []
        with self._one_at_a_time:  # moto looks at a condition and writes in two steps
            return list(self._moto(environ, start_response))


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Application(), threaded=True)
