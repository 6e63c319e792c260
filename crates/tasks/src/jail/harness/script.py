# Runs a program that nobody has read. What it prints are the two standard streams; there is no other.


def run():
    import ast
    import linecache
    import os
    import sys
    import traceback

    # Before the program exists: that this process was set up is known by a word that only a set-up process could write.
    os.write(2, b"\nready\n")
    with os.fdopen(os.dup(0), "rb") as given:
        source = given.read().decode("utf-8", "replace")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = ["program.py"]
    linecache.cache["program.py"] = (len(source), None, source.splitlines(True), "program.py")
    scope = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        tree = ast.parse(source, "program.py")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "program.py", "exec"), scope)
        if last is not None:  # as in a session: what the last line is worth
            value = eval(compile(ast.Expression(last.value), "program.py", "eval"), scope)
            if value is not None:
                print(repr(value))
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, None if isinstance(error, SyntaxError) else trace)
        sys.exit(1)


run()
