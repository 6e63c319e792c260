# Runs the tests. The answer lives in another process, in another jail; here is only what stands for it: what the tests
# ask of it goes there, and what comes back is data. No object, no code and no name of the answer's gets here, and
# nothing that the tests compare with gets there.

# Longest line that the answer may reply with, in bytes.
REPLY_MAX = 16 << 20


class Lost(BaseException):
    """The answer's process is gone."""


class Unreadable(BaseException):
    """The answer's process writes what is no reply."""


class Raised(Exception):
    """The answer raised what is none of Python's own exceptions."""


class Line:
    """The way to the answer's process."""

    def __init__(self, replies, write):
        self.replies, self.write = replies, write
        self.broken = self.first = None
        self.remotes = {}

    def remote(self, number):
        if number not in self.remotes:
            self.remotes[number] = Remote(number, self)
        return self.remotes[number]

    def number(self, value):
        if type(value) is Remote:
            return object.__getattribute__(value, "_number")
        raise TypeError("a value of type %s does not cross to the answer" % type(value).__name__)

    def ask(self, action, target, parts=(), named=None):
        encoder = Encoder((), self.number)
        request = [action, target, [encoder.value(part) for part in parts]]
        request.append([[name, encoder.value(value)] for name, value in (named or {}).items()])
        request.append(encoder.contents())
        if action == "call" and self.first is None:
            self.first = dumps(request)
        return self.answered(dumps(request), encoder.nodes)

    def answered(self, request, known):
        if self.broken is not None:
            raise self.broken  # whatever the tests caught
        try:
            self.write((request + "\n").encode())
        except OSError:
            pass  # there will be no reply
        line = self.replies.readline(REPLY_MAX)
        try:
            if not line.endswith(b"\n"):
                raise Unreadable("the reply is longer than %d bytes" % REPLY_MAX) if line else Lost()
            status, result, contents = loads(line.decode())
            decoder = Decoder(known, contents, self.remote)
            if status == "value":
                return decoder.value(result)
            error = exception(*result)
        except Lost as lost:
            self.broken = lost
            raise
        except Unreadable as unreadable:
            self.broken = unreadable
            raise
        except Exception as error:
            self.broken = Unreadable("the reply cannot be read: %s" % type(error).__name__)
            raise self.broken from None
        raise error


def exception(name, parts):
    """One of Python's own exceptions as such, any other by its name."""
    import builtins

    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(*(part for part in parts if type(part) in (str, int)))
        except TypeError:
            pass
    return Raised("%s: %s" % (name, " ".join(map(str, parts))))


class Remote:
    """What stands for an object of the answer's. It equals nothing but itself, is not ordered, not added and contains
    nothing: each of these would show the object what it is compared with."""

    def __init__(self, number, line):
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_ask", lambda *what, **named: line.ask(what[0], number, what[1:], named))

    def __call__(self, *parts, **named):
        return self._ask("call", *parts, **named)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name, value):
        self._ask("set", name, value)

    def __getitem__(self, key):
        return self._ask("item", key)

    def __setitem__(self, key, value):
        self._ask("put", key, value)

    def __len__(self):
        return self._ask("length")

    def __bool__(self):
        return self._ask("true")

    def __iter__(self):
        return self._ask("iterate")

    def __next__(self):
        return self._ask("next")

    def __str__(self):
        return self._ask("text")

    def __repr__(self):
        return self._ask("shown")

    __contains__ = None


class Scope(dict):
    """The tests' names. One that is not there yet is, in this order: the function that is asked for; what stands before
    the answer, run here again; Python's; a module of the standard library, if the tests look into it; the answer's."""

    def __init__(self, line, entry, before, tests):
        super().__init__(__name__="program", __builtins__=__builtins__)
        self.line, self.entry, self.tests, self.own, self.before = line, entry, tests, None, None
        for text in (before, before + "\n    pass\n"):  # the head of a function without its body
            try:
                self.before = compile(text, "before.py", "exec")
                break
            except SyntaxError:
                pass

    def __missing__(self, name):
        import builtins
        import sys

        if name == self.entry:
            value = self.line.ask("find", name)
        elif self.before is not None and name in self.before.co_names and name in self.others():
            value = self.own[name]
        elif hasattr(builtins, name):
            raise KeyError(name)
        elif name in getattr(sys, "stdlib_module_names", ()) and name + "." in self.tests:
            value = __import__(name)
        else:
            value = self.line.ask("find", name)
        self[name] = value
        return value

    def others(self):
        """What stands before the answer. Where that has classes, nothing of it is used: tests make objects of them, which
        the answer has to get, and only its own are there."""
        if self.own is None:
            own = {"__name__": "program", "__builtins__": __builtins__}
            exec(self.before, own)
            classes = any(isinstance(value, type) and value.__module__ == "program" for value in own.values())
            self.own = {} if classes else own
        return self.own


def judge(request, line):
    """Raises if the answer is wrong."""
    tests = compile(request["tests"], "tests.py", "exec")
    if "random" in request["tests"] or "random" in request["before"]:
        __import__("random").seed(0)
    line.ask("load", request["source"])
    exec(tests, Scope(line, request["entry"], request["before"], request["tests"]))
    canary(request["number"], line)


def canary(number, line):
    """The answer once more, against a test that it must fail: that what it gave to the first call is a number that it
    cannot know. An answer that passes this passes anything."""
    if line.first is None:
        raise Raised("the tests pass without a call of the answer")
    action, target, parts, named, contents = loads(line.first)
    decoder = Decoder((), contents, line.remote)
    scope = {"candidate": line.remote(target), "number": number}
    scope["parts"] = [decoder.value(part) for part in parts]
    scope["named"] = {name: decoder.value(value) for name, value in named}
    try:
        exec(compile("assert candidate(*parts, **named) == number", "canary.py", "exec"), scope)
    except Exception:
        return
    raise Raised("the answer passes a test that it must fail")


def main():
    import os
    import sys

    os.write(2, b"\nready\n")
    replies, asked = os.fdopen(os.dup(0), "rb"), os.dup(1)
    request = loads(replies.readline().decode())
    sys.stdin = open(os.devnull)
    os.dup2(sys.stdin.fileno(), 0)
    os.dup2(2, 1)

    def write(data):
        while data:
            data = data[os.write(asked, data) :]

    line = Line(replies, write)
    try:
        judge(request, line)
        ended = "passed"
    except BaseException as error:
        ended = "wrong " + message(error)
    if line.broken is not None:
        ended = "lost" if isinstance(line.broken, Lost) else "wrong " + message(line.broken)
    end = "\n%s %s\n" % (request["number"], ended)
    os.write(2, end.encode("utf-8", "replace"))
    os._exit(0)


def message(error):
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:
        text = ""
    if isinstance(error, (Raised, Unreadable)):
        return text
    return type(error).__name__ + (": " + text if text else "")


main()
