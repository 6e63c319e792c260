# Tests of the judge, by itself: whatever a line holds, it gives values of the listed types, one of the exceptions that
# an answer may raise, or the end of the trial. Nothing is called, and no other question is asked meanwhile.
import collections
import datetime
import decimal
import fractions
import io
import random

import __main__ as judge

TYPES = {type(None), bool, int, float, str, bytes, complex, tuple, frozenset, list, dict, set, bytearray, range}
TYPES |= {type({}.keys()), type({}.values()), type({}.items()), collections.deque, fractions.Fraction, decimal.Decimal}
TYPES |= {datetime.date, datetime.time, datetime.datetime, datetime.timedelta, judge.Remote}
TAGS = "n t f i y c h v q r l d s b x".split()
SCALARS = [None, True, 0, 1, 2, -1, 1.5, float("nan"), "", "a", "0xff", 10**20, "keys", "items", "values"]
SCALARS += ["decimal.Decimal", "builtins.eval", "os.system", *judge.RECORDS]


def value(depth=0):
    chance = random.random()
    if depth > 4 or chance < 0.3:
        return random.choice(SCALARS)
    if chance < 0.33:
        return {"a": 1}
    tag = random.choice(TAGS) if chance < 0.95 else value(depth + 1)
    return [tag, *(value(depth + 1) for _ in range(random.randint(0, 3)))]


def reply():
    nodes = [[random.choice("lldsb"), *(value(2) for _ in range(random.randint(0, 2)))] for _ in range(random.randint(0, 2))]
    text = judge.dumps([random.choice(["value", "value", "raise"]), value(), nodes])
    if random.random() < 0.1:
        at = random.randrange(len(text))
        text = text[:at] + random.choice(["[", "]", '"', ",", "{", "\\", "é"]) + text[at + 1 :]
    return text.encode() + b"\n"


def walk(value, seen):
    assert type(value) in TYPES, type(value)
    if id(value) in seen or not isinstance(value, (dict, list, tuple, set, frozenset, collections.deque)):
        return
    seen.add(id(value))
    for part in [*value, *value.values()] if isinstance(value, dict) else value:
        walk(part, seen)


# A pair that `dict` would read by asking for its parts; a number of another kind; nodes that are not there.
KNOWN = [b'["value", ["v", "items", ["h", 0]], []]\n', b'["value", ["h", true], []]\n', b'["value", ["n", -1], []]\n']

read = 0
for written in KNOWN + [reply() for _ in range(6000)]:
    asked = []
    line = judge.Line(io.BytesIO(written), asked.append)
    try:
        nodes = [] if written in KNOWN else random.choice([[], [[1]], [{1: 2}, [3]]])
        walk(line.answered("", nodes), set())
        read += 1
    except judge.Unreadable:
        assert line.broken is not None
    except judge.Raised:
        read += 1
    except judge.Lost:
        pass
    assert len(asked) == 1, "a reply made the judge ask"
assert read > 50, read
assert f() == 1
