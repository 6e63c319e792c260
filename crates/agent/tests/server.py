"""An MCP server for tests, by the standard library alone. Its argument says how it behaves; with a second one it
serves HTTP, and prints its port."""

import http.server
import json
import os
import sys
import time

HOW = sys.argv[1] if len(sys.argv) > 1 else "good"
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
CONST = {
    "type": "object",
    "properties": {"x": {"const": "fish"}},
    "required": ["x"],
    "additionalProperties": False,
}


def send(message):
    print(json.dumps(message), flush=True)


def tools():
    if HOW == "many":
        return [{"name": f"tool{n}", "description": "one of many", "inputSchema": SCHEMA} for n in range(500)]
    if HOW == "const":
        return [{"name": "echo", "description": "Says what it is given.", "inputSchema": CONST}]
    names = ["echo", "fail", "die", "hang", "nonsense", "structured", "image", "read_file", "dots.and/slashes"]
    listed = [{"name": name, "description": f"does {name}", "inputSchema": SCHEMA} for name in names]
    listed.append({"name": "huge", "inputSchema": {"type": "object", "description": "x" * 40000}})
    listed.append({"name": "list", "inputSchema": {"type": "array"}})
    return listed


def page(cursor):
    """Two tools a page."""
    if HOW == "endless":
        return {"tools": [], "nextCursor": "again"}
    at, listed = int(cursor or 0), tools()
    size = len(listed) if HOW == "many" else 2
    result = {"tools": listed[at : at + size]}
    if at + size < len(listed):
        result["nextCursor"] = str(at + size)
    return result


def call(name, arguments):
    text = lambda text: [{"type": "text", "text": text}]
    if name == "echo":
        return {"content": text("echo " + str(arguments.get("x")))}
    if name == "fail":
        return {"content": text("it failed"), "isError": True}
    if name == "die":
        print("giving up the ghost", file=sys.stderr, flush=True)
        sys.exit(3)
    if name == "hang":
        time.sleep(600)
    if name == "nonsense":
        return 5
    if name == "structured":
        return {"content": [], "structuredContent": {"n": 1}}
    if name == "image":
        return {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/png"}]}
    return {"content": text("other")}


def main():
    if HOW == "exit":
        print("no configuration", file=sys.stderr)
        sys.exit(1)
    if HOW == "silent":
        time.sleep(600)
    if HOW == "flood":
        while True:
            sys.stdout.write("x" * 65536)
    if HOW == "junk":
        print("Welcome to the server!\n\n{not json\n[1, 2]\n\x00\xff", flush=True)
    if len(sys.argv) > 2:
        return serve()
    for line in sys.stdin:
        reply = answer(json.loads(line))
        if reply:
            send(reply)


def answer(message):
    method, number = message.get("method"), message.get("id")
    reply = {"jsonrpc": "2.0", "id": number}
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}}
        return {**reply, "result": {**result, "serverInfo": {"name": "test", "version": "1"}}}
    if method == "tools/list":
        if HOW == "refuse":
            return {**reply, "error": {"code": -32603, "message": "no list today"}}
        return {**reply, "result": page((message.get("params") or {}).get("cursor"))}
    if method == "tools/call":
        if HOW == "junk":
            print("calling…", flush=True)
        return {**reply, "result": call(message["params"]["name"], message["params"].get("arguments") or {})}
    if number is not None:
        return {**reply, "error": {"code": -32601, "message": f"no method {method}"}}
    return None


class Handler(http.server.BaseHTTPRequestHandler):
    """Streamable HTTP. `events`: answers are streams of events, with others before them, which stay open."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def give(self, status, kind, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if HOW == "moved":
            return self.give(307, "text/plain", b"", Location="http://elsewhere.invalid/mcp")
        if HOW == "page":
            return self.give(200, "text/html", b"<html>a page</html>")
        if HOW == "down":
            return self.give(503, "text/plain", b"come again", Retry_After="5")
        if HOW == "locked" and self.headers["X-Key"] != "secret":
            return self.give(401, "text/plain", b"", WWW_Authenticate="Bearer")
        if message.get("method") != "initialize" and self.headers["Mcp-Session-Id"] != "seven":
            return self.give(400, "text/plain", b"no session")
        die = (message.get("params") or {}).get("name") == "die"
        if die:
            os._exit(3)
        reply = answer(message)
        if reply is None:
            return self.give(202, "text/plain", b"")
        body = json.dumps(reply).encode()
        if HOW != "events":
            return self.give(200, "application/json; charset=utf-8", body, Mcp_Session_Id="seven")
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "soon"}}
        self.send_response(200)
        for name, value in [("Content-Type", "text/event-stream"), ("Mcp-Session-Id", "seven"), ("Connection", "close")]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b": hello\n\ndata: " + json.dumps(note).encode() + b"\n\nevent: message\ndata: " + body + b"\n\n")
        self.wfile.flush()
        time.sleep(1)


def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


main()
