# Runs the answer, and does with it what the judge asks, line by line. Nothing here is kept from the answer: it can do
# what this program can. The judge does not trust it, and the tests are never here.


def serve():
    import os
    import sys

    # Before the answer exists: that this process was set up is known by a word that only a set-up process could write.
    os.write(2, b"\nready\n")
    asked, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    sys.stdin = open(os.devnull)
    os.dup2(sys.stdin.fileno(), 0)
    os.dup2(2, 1)  # what the answer prints counts as output, and is no reply
    leave, write = os._exit, os.write
    scope = {"__name__": "program", "__builtins__": __builtins__}
    kept, numbers = [], {}

    def keep(value):
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    def find(name):
        if name in scope:
            return scope[name]
        raise NameError("name %r is not defined" % name)

    does = {
        "call": lambda value, /, *parts, **named: value(*parts, **named),
        "get": getattr,
        "set": setattr,
        "item": lambda value, key: value[key],
        "put": lambda value, key, item: value.__setitem__(key, item),
        "length": len,
        "true": bool,
        "iterate": iter,
        "next": next,
        "text": str,
        "shown": repr,
    }

    def do(action, target, parts, named):
        if action == "load":
            if "random" in target:
                __import__("random").seed(0)
            exec(compile(target, "program.py", "exec"), scope)
            return None
        return find(target) if action == "find" else does[action](kept[target], *parts, **named)

    def reply(action, target, parts=(), named=(), contents=()):
        known = []
        try:
            decoder = Decoder((), contents, kept.__getitem__)
            known = decoder.nodes
            named = {name: decoder.value(value) for name, value in named}
            status, result = "value", do(action, target, [decoder.value(part) for part in parts], named)
            encoder = Encoder(known, keep)
            result = encoder.value(result)
            contents = encoder.contents()
        except BaseException as error:
            status, result = "raise", raised(error)
            encoder = Encoder(known, keep)
            contents = encoder.contents()
        return dumps([status, result, contents])

    for line in asked:
        line = (reply(*loads(line.decode())) + "\n").encode()
        while line:
            line = line[write(replies, line) :]
    try:
        sys.stdout.flush()
    finally:
        leave(0)


def raised(error):
    """Name of the type, and the arguments as far as they are texts and numbers."""
    name = type(error).__name__
    try:
        parts = [part if type(part) in (str, int) else str(part) for part in error.args]
        if isinstance(error, SyntaxError) or sum(len(str(part)) for part in parts) > 1000:
            parts = [str(error)[:1000]]
    except BaseException:
        parts = []
    return [name, parts]


serve()
