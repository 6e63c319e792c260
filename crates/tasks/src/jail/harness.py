"""Runs the source that standard input brings and, when its end is reached, writes the number that came with it."""


def main():
    import json
    import os
    import sys

    write, leave = os.write, os._exit
    request = json.loads(sys.stdin.buffer.read())
    done = ("\n" + request.pop("number") + "\n").encode()
    sys.stdin = open(os.devnull)
    os.dup2(sys.stdin.fileno(), 0)
    scope = {"__name__": "program", "__builtins__": __builtins__}
    try:
        exec(compile(request.pop("source"), "program.py", "exec"), scope)
        sys.stdout.flush()
    except BaseException as error:
        try:
            text = type(error).__name__ + ": " + " ".join(str(error).split())[:200]
        except BaseException:
            text = type(error).__name__
        write(2, ("\n" + text + "\n").encode("utf-8", "replace"))
        leave(1)
    write(1, done)
    leave(0)


main()
