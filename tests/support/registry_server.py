"""A schema registry over HTTP in this process: what Confluent's client asks of one to register and look up schemas."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RegistryServer:
    """Listens on a free port between `with` and its end. `away`: 503 to everything; `refuse_ids`: to lookups alone."""

    def __init__(self):
        self.away = self.refuse_ids = False
        self.refused = self.refused_ids = 0
        self.schemas = []  # the schema with id n is at n - 1
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def config(self):
        """As `settings.kafka.schema_registry`, for whoever writes first."""
        return {"url": f"http://127.0.0.1:{self._http.server_address[1]}"}

    @property
    def reader(self):
        """The same for a client of its own, which knows nothing yet and gives up at once."""
        return {**self.config, "max.retries": 0}

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._thread.join(20)
        self._http.server_close()

    def answer(self, method, path, body):
        """(HTTP status, reply)."""
        parts = path.partition("?")[0].strip("/").split("/")
        lookup = method == "GET" and parts[:2] == ["schemas", "ids"]
        with self._lock:
            if self.away:
                self.refused += 1
                return 503, {"error_code": 50301, "message": "away"}
            if lookup and self.refuse_ids:
                self.refused_ids += 1
                return 503, {"error_code": 50301, "message": "away"}
            if lookup:
                place = int(parts[2]) - 1
                if 0 <= place < len(self.schemas):
                    return 200, {"schema": self.schemas[place], "schemaType": "AVRO"}
                return 404, {"error_code": 40403, "message": "Schema not found"}
            if method == "POST" and parts[0] == "subjects" and parts[2:] == ["versions"]:
                schema = body["schema"]
                if schema not in self.schemas:
                    self.schemas.append(schema)
                return 200, {"id": self.schemas.index(schema) + 1}
        return 404, {"error_code": 404, "message": f"{method} {path} is not served here"}


def _handler(registry):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body):
            status, reply = registry.answer(self.command, self.path, body)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler
