# Values as data, for both sides: what crosses is built from the types below, and from nothing else.
#
# A message is one line of JSON. Numbers, texts, None, True and False stand for themselves; everything else is a list
# that begins with a tag. Containers that can change are numbered nodes, so that sharing and cycles survive; their
# contents follow in the message's list of nodes. A call's nodes keep their numbers in its reply, which brings their
# contents as the call left them. What is of no listed type stays with the answer: it crosses as a handle, a number.


def _json():
    # The C functions alone start in no time; importing `json` takes as long as starting Python.
    try:
        import _json

        class Context:
            strict, object_hook, object_pairs_hook, memo = True, None, None, {}
            parse_float, parse_int, parse_constant = float, int, {"NaN": nan, "Infinity": inf, "-Infinity": -inf}.get

        scan = _json.make_scanner(Context())
        text = _json.encode_basestring_ascii
        write = _json.make_encoder(None, None, text, None, ": ", ", ", False, False, True)
        read, show = lambda line: scan(line, 0)[0], lambda value: "".join(write(value, 0))
        sample = [1, -2.5, None, True, "\u00e9\n\ud800", [inf, []]]
        if read(show(sample)) == sample:
            return read, show
    except Exception:
        pass
    from json import dumps, loads

    return loads, dumps


inf = float("inf")
nan = inf - inf
loads, dumps = _json()

# Types of the standard library that do not change, by what makes an equal one.
RECORDS = {
    "builtins.range": ("start", "stop", "step"),
    "fractions.Fraction": ("numerator", "denominator"),
    "datetime.timedelta": ("days", "seconds", "microseconds"),
    "datetime.date": ("year", "month", "day"),
    "datetime.time": ("hour", "minute", "second", "microsecond"),
    "datetime.datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
}
NODES = {"l": list, "d": dict, "s": set, "b": bytearray}
VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
SMALL = 1 << 62


class Encoder:
    """Values of one message. `known` are the objects that both sides have numbered already, in their order; `handle`
    gives the number of an object that cannot cross, or raises."""

    def __init__(self, known, handle):
        self.nodes, self.handle = list(known), handle
        self.numbers = {id(node): number for number, node in enumerate(self.nodes)}

    def value(self, value):
        kind = type(value)
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return value if -SMALL < value < SMALL else ["i", hex(value)]
        for base in (tuple, list, dict, str, int, float, set, frozenset, bytes, bytearray, complex):
            if issubclass(kind, base):
                return self.builtin(value, base)
        if kind in VIEWS:
            return ["v", VIEWS[kind], *map(self.value, value)]
        name = "%s.%s" % (kind.__module__, kind.__qualname__)
        if name == "decimal.Decimal":
            return ["r", name, str(value)]
        if name == "collections.deque":
            return ["q", *map(self.value, value)]
        if name in RECORDS and getattr(value, "tzinfo", None) is None:
            return ["r", name, *(self.value(getattr(value, part)) for part in RECORDS[name])]
        return ["h", self.handle(value)]

    def builtin(self, value, base):
        """A value of a built-in type, or of one derived from it, which crosses as the built-in one."""
        if base in (list, dict, set, bytearray):
            number = self.numbers.get(id(value))
            if number is None:
                number = self.numbers[id(value)] = len(self.nodes)
                self.nodes.append(value)
            return ["n", number]
        if base is tuple:
            return ["t", *map(self.value, tuple.__iter__(value))]
        if base is frozenset:
            return ["f", *map(self.value, frozenset.__iter__(value))]
        if base is bytes:
            return ["y", bytes.decode(value, "latin-1")]
        if base is complex:
            return ["c", complex.real.__get__(value), complex.imag.__get__(value)]
        return self.value({str: str.__str__, int: int.__int__, float: float.__float__}[base](value))

    def contents(self):
        """Of all nodes; to be asked for last."""
        written = []
        for node in self.nodes:  # grows on the way
            if isinstance(node, dict):
                written.append(["d", *([self.value(key), self.value(value)] for key, value in dict.items(node))])
            elif isinstance(node, bytearray):
                written.append(["b", bytes(node).decode("latin-1")])
            else:
                tag, base = ("l", list) if isinstance(node, list) else ("s", set)
                written.append([tag, *map(self.value, base.__iter__(node))])
        return written


class Decoder:
    """The values of one message. Anything that is not as it should be raises."""

    def __init__(self, known, contents, handle):
        self.handle = handle
        for node, content in zip(known, contents):
            if not isinstance(node, NODES[content[0]]):
                raise TypeError("a container has become another")
        made = [NODES[content[0]]() for content in contents[len(known) :]]
        self.nodes = list(known) + made
        if len(contents) != len(self.nodes):
            raise TypeError("containers are missing")
        # Read whole before anything is changed: the contents of what is known stay as they are if this fails.
        read = [self.content(*content) for content in contents]
        for node, content in zip(self.nodes, read):
            # By the built-in types' own methods: `Counter.update` counts.
            if isinstance(node, bytearray):
                node[:] = content
            elif isinstance(node, list):
                list.__setitem__(node, slice(None), content)
            else:
                base = dict if isinstance(node, dict) else set
                base.clear(node)
                base.update(node, content)

    def content(self, tag, *items):
        if tag == "d":
            return [(self.value(key), self.value(value)) for key, value in items]
        if tag == "b":
            return items[0].encode("latin-1")
        return [self.value(item) for item in items]

    def value(self, value):
        if type(value) is not list:
            if type(value) is dict:
                raise TypeError("no value is written so")
            return value
        tag, *items = value
        if tag == "n":
            return self.nodes[self.natural(items[0])]
        if tag == "t":
            return tuple(map(self.value, items))
        if tag == "f":
            return frozenset(map(self.value, items))
        if tag == "i":
            return int(items[0], 16)
        if tag == "y":
            return items[0].encode("latin-1")
        if tag == "c":
            return complex(float(items[0]), float(items[1]))
        if tag == "h":
            return self.handle(self.natural(items[0]))
        if tag == "v":
            return self.view(items[0], [self.value(item) for item in items[1:]])
        if tag == "q":
            from collections import deque

            return deque(map(self.value, items))
        if tag == "r":
            return self.record(*items)
        raise TypeError("there is no tag " + repr(tag))

    def natural(self, number):
        if type(number) is not int or number < 0:
            raise TypeError("no number of an object")
        return number

    def view(self, name, items):
        if name == "keys":
            return dict.fromkeys(items).keys()
        return dict(enumerate(items)).values() if name == "values" else dict(items).items()

    def record(self, name, *parts):
        if name == "decimal.Decimal":
            from decimal import Decimal

            return Decimal(str(parts[0]))
        if name not in RECORDS or len(parts) != len(RECORDS[name]):
            raise TypeError("there is no type " + repr(name))
        parts = [self.value(part) for part in parts]
        if not all(type(part) is int for part in parts):
            raise TypeError("it is made of whole numbers")
        module, kind = name.split(".")
        return getattr(__import__(module), kind)(*parts)
