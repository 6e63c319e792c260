"""Coding agents do a small task through a server of Wels, and their requests are recorded.

    python agents.py AGENT --script ../../crates/server/tests/data/agents/AGENT.json [--record]
    python agents.py AGENT --url http://127.0.0.1:8080 --key KEY

AGENT is claude, codex, opencode, aider, cline, pi or continue, started by `wels launch` from the search path:

    npm i @anthropic-ai/claude-code@2.1.332 @openai/codex@0.171.0 opencode-ai@1.18.33 cline@3.0.65 \\
        @mariozechner/pi-coding-agent@0.73.1 @continuedev/cli@1.5.47
    pip install aider-chat==0.86.2

The task: a function that subtracts where it should add is mended, and its test passes. With `--script` the server is
the one of `crates/server/tests/it/agents.rs`, whose model says what the script has for each step; all else is the
server's and the agent's own. With `--record` the agent's requests are written into the script's file, with long texts
cut short: the test holds the same conversation again. With `--url` the server has a model of its own.

Python's standard library alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
TASK = "add() in sum.py gives wrong results. Mend it, and run the test with: python3 test_sum.py"
FILES = {
    "sum.py": 'def add(a, b):\n    """The sum of two numbers."""\n    return a - b\n',
    "test_sum.py": "from sum import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('all tests pass')\n",
}
ARGUMENTS = {
    "claude": ["-p", TASK, "--dangerously-skip-permissions"],
    "codex": ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK],
    "opencode": ["run", TASK],
    "aider": ["--yes-always", "--no-check-update", "--no-show-model-warnings", "--no-pretty", "--edit-format", "diff",
              "--no-suggest-shell-commands", "--auto-test", "--test-cmd", "python3 test_sum.py", "--message", TASK,
              "sum.py"],
    "cline": [TASK],
    "pi": ["--offline", "-p", TASK],
    "continue": ["--auto", "-p", TASK],
}
# Characters of a recorded text, and of one that describes a tool; the beginning of a longer one is kept.
TEXT_MAX, DESCRIPTION_MAX = 240, 40


class Recorder(BaseHTTPRequestHandler):
    """Hands everything on to the server, and notes what was asked."""

    protocol_version = "HTTP/1.0"
    server_address: str
    requests: list = []
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.command == "POST":
            with self.lock:
                self.requests.append({"path": self.path, "body": json.loads(body)})
        upstream = http.client.HTTPConnection(self.server_address, timeout=600)
        skipped = {"host", "connection", "accept-encoding", "content-length"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        upstream.request(self.command, self.path, body or None, headers)
        response = upstream.getresponse()
        if response.status >= 400:
            print(f"recorder: {self.command} {self.path}: {response.status}", file=sys.stderr)
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        text = b""
        while piece := response.read1():
            text += piece
            self.wfile.write(piece)
        self.note_usage(text.decode(errors="replace"))

    def note_usage(self, text):
        """Prints which part of the prompt was in the prefix cache, as the three APIs tell it."""
        last = lambda name: int((re.findall(rf'"{name}":(\d+)', text) or [0])[-1])
        cached = last("cached_tokens") or last("cache_read_input_tokens")
        prompt = last("prompt_tokens") or last("input_tokens") + last("cache_read_input_tokens")
        if prompt:
            print(f"recorder: {self.path}: {cached} of {prompt} prompt tokens cached, {cached / prompt:.1%}", flush=True)

    do_GET = do_POST = handle_one


def cut(value, folder, longest=TEXT_MAX):
    """A recorded value without its long texts, and with `{folder}` where the task lay."""
    match value:
        case dict():
            longest_of = lambda name: DESCRIPTION_MAX if name == "description" else TEXT_MAX
            return {name: cut(part, folder, longest_of(name)) for name, part in value.items()}
        case list():
            return [cut(part, folder, longest) for part in value]
        case str():
            value = value.replace(folder, "{folder}")
            return value if len(value) <= longest else value[:longest] + " […]"
        case _:
            return value


def write_recording(path: Path, requests: list, folder: str):
    """Adds the requests to a script, one a line; tools that are those of the request before are left out."""
    script, tools, lines = json.loads(path.read_text()), None, []
    for request in cut(requests, folder):
        own = request["body"].get("tools")
        if own is not None and own == tools:
            request["body"]["tools"] = "as before"
        tools = own or tools
        lines.append(json.dumps(request, ensure_ascii=False))
    head = json.dumps({**script, "requests": []}, indent=1, ensure_ascii=False)
    path.write_text(head.replace('"requests": []', '"requests": [\n' + ",\n".join(lines) + "\n ]") + "\n")


def start_script(script: Path, folder: str):
    command = ["cargo", "test", "--release", "-p", "wels-server", "--test", "it", "--", "agents::serve_a_script"]
    if binary := os.environ.get("WELS_SERVER_TESTS"):
        command = [binary, "agents::serve_a_script"]
    environment = {**os.environ, "WELS_SCRIPT": str(script.resolve()), "WELS_FOLDER": folder}
    server = subprocess.Popen(
        [*command, "--ignored", "--nocapture"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in server.stdout:
        if line.startswith("127."):
            address, key = line.split()
            return server, f"http://{address}", key
    sys.exit("the server did not start")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", choices=ARGUMENTS)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--dump", type=Path, help="write the whole requests there")
    parser.add_argument("--url")
    parser.add_argument("--key", default="none")
    parser.add_argument("--wels", default=str(ROOT / "target/release/wels"))
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, url, key = start_script(args.script, folder) if args.script else (None, args.url, args.key)
        Recorder.server_address = urlsplit(url).netloc
        recorder = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        for name, text in FILES.items():
            Path(folder, name).write_text(text)
        subprocess.run("git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm first", shell=True,
                       cwd=folder, check=True)
        home = Path(folder, ".home")
        home.mkdir()
        environment = {**os.environ, "HOME": str(home), "PWD": folder, "IS_SANDBOX": "1", "WELS_API_KEY": key}
        proxy = f"http://127.0.0.1:{recorder.server_port}"
        command = [args.wels, "launch", args.agent, "--url", proxy, "--", *ARGUMENTS[args.agent]]
        try:
            quiet = {"stdin": subprocess.DEVNULL, "start_new_session": True}
            agent = subprocess.Popen(command, cwd=folder, env=environment, **quiet)
            print("agent's exit status:", agent.wait(timeout=args.seconds))
        except subprocess.TimeoutExpired:
            os.killpg(agent.pid, signal.SIGKILL)
            print("the agent was stopped: it took too long")
        test = subprocess.run([sys.executable, "test_sum.py"], cwd=folder, capture_output=True, text=True)
        print("requests:", [request["path"] for request in Recorder.requests])
        print("task:", "done" if test.returncode == 0 else "NOT done", test.stdout.strip())
    if server:
        server.kill()
    if args.dump:
        args.dump.write_text(json.dumps(Recorder.requests, indent=1))
    if args.record:
        write_recording(args.script, Recorder.requests, folder)
    sys.exit(test.returncode)


if __name__ == "__main__":
    main()
