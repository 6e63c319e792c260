"""An MCP server for tests, by the standard library alone. Its argument says how it behaves."""

import json
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
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        reply = {"jsonrpc": "2.0", "id": number}
        if method == "initialize":
            version = message["params"]["protocolVersion"]
            result = {"protocolVersion": version, "capabilities": {"tools": {}}}
            send({**reply, "result": {**result, "serverInfo": {"name": "test", "version": "1"}}})
        elif method == "tools/list":
            if HOW == "refuse":
                send({**reply, "error": {"code": -32603, "message": "no list today"}})
            else:
                send({**reply, "result": page((message.get("params") or {}).get("cursor"))})
        elif method == "tools/call":
            if HOW == "junk":
                print("calling…", flush=True)
            send({**reply, "result": call(message["params"]["name"], message["params"].get("arguments") or {})})


main()
