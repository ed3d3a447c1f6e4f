"""A server over HTTP in this process that speaks the rerank forms of SGLang, vLLM, text-embeddings-inference, infinity
and Jina, as their sources have them: what they refuse, how they sort, what they say of themselves. And their faults.

A pair's score is a function of the pair alone: the logit grows with the share of the query's words that the text has.
"""

import json
import math
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

YES, NO = 9693, 2152


def logit(query, text):
    """-4 without a word in common, 4 with all, and a little for length, so that texts rarely tie."""
    wanted = set(re.findall(r"\w+", query.lower()))
    held = re.findall(r"\w+", text.lower())
    return 8.0 * len(wanted & set(held)) / max(1, len(wanted)) - 4.0 + len(text) / 10_000


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


class RerankServer:
    """Listens on a free port between `with` and its end.

    `fault` is what happens to each request for scores until set anew: a status, the name of one in FAULTS, or None.
    `faults` are taken first, one a request. `constant`: every pair scores the same. `raw`: logits whatever is asked.
    """

    def __init__(self, max_client_batch_size=32, key=None):
        self.fault = None
        self.faults = []
        self.constant = self.raw = False
        self.max_client_batch_size = max_client_batch_size
        self.key = key
        self.model = "acme/reranker"
        self.requests = []  # (path, body) of those for scores
        self.connections = 0
        self.under_way = self.most_under_way = 0
        self.released = threading.Event()  # ends what hangs
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._http.shutdown()
        self._thread.join(20)
        self._http.server_close()

    def next_fault(self):
        with self.lock:
            return self.faults.pop(0) if self.faults else self.fault

    def score(self, query, text, raw=False):
        x = 0.0 if self.constant else logit(query, text)
        return x if raw or self.raw else sigmoid(x)

    def served(self, path):
        """(HTTP status, reply) to a GET."""
        if path == "/info":
            return 200, {
                "model_id": self.model,
                "model_sha": "fca14538aa99",
                "model_dtype": "float16",
                "max_client_batch_size": self.max_client_batch_size,
                "version": "1.8.0",
            }
        if path in ("/v1/models", "/models"):
            return 200, {"object": "list", "data": [{"id": self.model, "object": "model", "root": "models/acme"}]}
        return 404, {"detail": "Not Found"}

    def answer(self, path, body):
        """(HTTP status, reply) to a POST."""
        routes = {
            "/v1/score": self._sglang_score,
            "/v1/rerank": self._sglang_rerank,
            "/score": self._vllm_score,
            "/tei/rerank": self._tei,
            "/infinity/rerank": self._infinity,
            "/jina/rerank": self._jina,
            "/rerank": self._vllm_rerank,
        }
        if path not in routes:
            return 404, {"detail": "Not Found"}
        try:
            return routes[path](body)
        except KeyError as missing:
            return 422, {"detail": [{"type": "missing", "loc": ["body", missing.args[0]], "msg": "Field required"}]}

    def _sglang_score(self, body):
        if not isinstance(body.get("query"), str) or not isinstance(body.get("items"), list):
            return 400, {"object": "error", "message": "query and items must be text", "type": "BadRequestError"}
        if body.get("label_token_ids") != [YES, NO] or body.get("apply_softmax") is not True or body.get("item_first"):
            return 400, {"object": "error", "message": "Token ID out of vocabulary", "type": "BadRequestError"}
        yes = [self.score(body["query"], item) for item in body["items"]]
        return 200, {"scores": [[p, 1.0 - p] for p in yes], "model": self.model, "usage": None, "object": "scoring"}

    def _sglang_rerank(self, body):
        if not body["query"].strip():
            return 400, {"object": "error", "message": "Query cannot be empty or whitespace only", "code": 400}
        if not body["documents"] or not all(text.strip() for text in body["documents"]):
            return 400, {"object": "error", "message": "Each document cannot be empty or whitespace only", "code": 400}
        return 200, self._sorted(body["query"], body["documents"], "score", meta_info={"prompt_tokens": 9})

    def _vllm_score(self, body):
        if not isinstance(body.get("queries"), str) or not self._known(body):
            return 400, {"error": {"message": "bad request", "type": "BadRequestError", "code": 400}}
        raw = body.get("use_activation") is False
        scores = [self.score(body["queries"], text, raw) for text in body["documents"]]
        data = [{"index": at, "object": "score", "score": score} for at, score in enumerate(scores)]
        return 200, {"id": "score-1", "object": "list", "created": 1, "model": self.model, "data": data, "usage": {}}

    def _vllm_rerank(self, body):
        if not self._known(body):
            return 404, {"error": {"message": "The model does not exist.", "type": "NotFoundError", "code": 404}}
        raw = body.get("use_activation") is False
        results = self._sorted(body["query"], body["documents"], "relevance_score", raw, document={"text": "…"})
        return 200, {"id": "rerank-1", "model": self.model, "usage": {"total_tokens": 9}, "results": results}

    def _tei(self, body):
        if not body["texts"]:
            return 400, {"error": "`texts` cannot be empty", "error_type": "Empty"}
        if len(body["texts"]) > self.max_client_batch_size:
            message = f"batch size {len(body['texts'])} > maximum allowed batch size {self.max_client_batch_size}"
            return 422, {"error": message, "error_type": "Validation"}
        if body.get("truncate") is not True:
            return 422, {"error": "`inputs` must have less than 512 tokens", "error_type": "Validation"}
        return 200, self._sorted(body["query"], body["texts"], "score", body.get("raw_scores", False))

    def _infinity(self, body):
        raw = body.get("raw_scores", False)
        results = self._sorted(body["query"], body["documents"], "relevance_score", raw)
        return 200, {"object": "rerank", "results": results, "model": self.model, "usage": {}, "id": "1", "created": 1}

    def _jina(self, body):
        results = self._sorted(body["query"], body["documents"], "relevance_score")[: body.get("top_n", 3)]
        return 200, {"model": self.model, "usage": {"total_tokens": 9}, "results": results}

    def _known(self, body):
        return body.get("model", self.model) == self.model

    def _sorted(self, query, texts, key, raw=False, **beside):
        rows = [{"index": at, key: self.score(query, text, raw), **beside} for at, text in enumerate(texts)]
        return sorted(rows, key=lambda row: row[key], reverse=True)


def _rows(reply):
    """(the list of results, the key of a score) in a reply of any form."""
    if isinstance(reply, dict):
        reply = reply.get("results", reply.get("data", reply.get("scores")))
    key = next((k for k in ("score", "relevance_score") if isinstance(reply[0], dict) and k in reply[0]), None)
    return reply, key


def _missing(reply):
    _rows(reply)[0].pop()


def _doubled(reply):
    rows, _ = _rows(reply)
    rows[-1] = rows[0]


def _too_many(reply):
    rows, _ = _rows(reply)
    rows.append(rows[0])


def _set(place, value):
    def spoil(reply):
        rows, key = _rows(reply)
        if key is None:
            rows[0][0] = value
        else:
            rows[0]["index" if place == "index" else key] = value

    return spoil


def _no_score(reply):
    rows, key = _rows(reply)
    if key is None:
        rows[0].pop()
    else:
        del rows[0][key]


# What is done to a good reply, in place.
SPOILED = {
    "missing": _missing,
    "doubled": _doubled,
    "too many": _too_many,
    "index out of range": _set("index", 10_000),
    "index negative": _set("index", -1),
    "index a string": _set("index", "0"),
    "index a boolean": _set("index", True),
    "score NaN": _set("score", math.nan),
    "score infinite": _set("score", math.inf),
    "score a string": _set("score", "0.9"),
    "score null": _set("score", None),
    "score above 1": _set("score", 1.5),
    "score below 0": _set("score", -0.5),
    "no score": _no_score,
}
# What is sent in place of one, with status 200.
REPLACED = {
    "not JSON": b"<html>please wait</html>",
    "empty": b"",
    "half of it": b'{"results": [{"index": 0, "relevance_sco',
    "another form": b'{"embeddings": [[0.1, 0.2]]}',
    "a list of numbers": b"[0.1, 0.2]",
    "null": b"null",
    "not UTF-8": b'[{"index": 0, "score": "\xff\xfe"}]',
    "nested too deep": b"[" * 100_000,
}
FAULTS = (*SPOILED, *REPLACED, "drop", "cut", "hang", "drops", "large")


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self):
            super().setup()
            with server.lock:
                server.connections += 1

        def handle(self):
            with suppress(ConnectionError):  # a client may leave whenever it likes
                super().handle()

        def do_GET(self):
            status, reply = server.served(self.path.removeprefix("/tei").removeprefix("/infinity"))
            self._send(status, json.dumps(reply).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append((self.path, body))
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                self._answer(body)
            finally:
                with server.lock:
                    server.under_way -= 1

        def _answer(self, body):
            fault = server.next_fault()
            if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
                self._send(401, b'{"error": "Unauthorized"}')
            elif isinstance(fault, int):
                self._send(fault, json.dumps({"error": f"fault {fault}"}).encode())
            elif fault in REPLACED:
                self._send(200, REPLACED[fault])
            elif fault == "drop":
                self.close_connection = True
            elif fault == "cut":
                self._send(200, b'{"results": [', length=1_000)
                self.close_connection = True
            elif fault == "hang":
                server.released.wait(60)
                self.close_connection = True
            elif fault == "drops":  # a byte at a time, for ever
                self._send(200, b" ", length=1_000_000)
                while not server.released.wait(0.02):
                    self.wfile.write(b" ")
                self.close_connection = True
            elif fault == "large":
                self._send(200, b" " * (9 << 20))
            else:
                status, reply = server.answer(self.path, body)
                if fault is not None:
                    SPOILED[fault](reply)
                self._send(status, json.dumps(reply).encode())

        def _send(self, status, data, length=None):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler
