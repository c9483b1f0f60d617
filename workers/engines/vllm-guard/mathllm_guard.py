"""Asks for the key at every address of a vLLM server.

vLLM's own check leaves most addresses outside /v1 open: until late 2026 /invocations, /tokenize and /pause, and with
sleep mode /sleep and /collective_rpc, which runs any method of the engine. vLLM loads this class by --middleware.
"""

import hmac
import json
import os


class Guard:
    """ASGI middleware: HTTP without `Authorization: Bearer $VLLM_API_KEY` is answered 401, but for GET /health."""

    def __init__(self, app):
        key = os.environ.get("VLLM_API_KEY", "")
        if key == "":
            raise SystemExit("Expected the server's key in VLLM_API_KEY; it is not set.")
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self._admits(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            error = {"message": "Expected Authorization: Bearer and this server's key.", "type": "invalid_request_error"}
            body = json.dumps({"error": {**error, "param": None, "code": "invalid_api_key"}}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _admits(self, scope):
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/health":
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
