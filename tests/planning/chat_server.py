"""A stand-in for a language model's endpoint, which answers as it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(content):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


class ChatServer:
    """Answers request after request with ``(status, body)``; ``None`` stays silent.

    Attributes:
        requests: path, headers and JSON body of each.
    """

    def __init__(self, answers):
        self.requests = []
        self.ended = threading.Event()
        remaining = iter(answers)
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                chat.requests.append((self.path, dict(self.headers), json.loads(body)))
                answer = next(remaining)
                if answer is None:
                    chat.ended.wait()
                    return
                self.reply(*answer)

            def do_GET(self):
                chat.requests.append((self.path, dict(self.headers), None))
                self.reply(*next(remaining))

            def reply(self, status, body):
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", body)
                    body = ""
                content = body if isinstance(body, bytes) else body.encode()
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
