//! What tests ask of answers, and what of that crosses between the two processes.

/// An answer, its tests, and how that ends.
pub struct Case {
    pub name: &'static str,
    pub answer: &'static str,
    pub before: &'static str,
    pub tests: &'static str,
    /// `None`: it passes.
    pub message: Option<&'static str>,
}

const fn case(name: &'static str, answer: &'static str, tests: &'static str, message: Option<&'static str>) -> Case {
    Case { name, answer, before: "", tests, message }
}

pub const CASES: &[Case] = &[
    case(
        "values_come_back_as_they_were",
        "def f(*values):
    return values
",
        "
import collections, datetime, decimal, fractions
values = [
    None, True, False, 0, -1, 1 << 61, 1 << 62, -(1 << 62), 10 ** 5000, 0.1, -0.0, 1e308, float('inf'), 2 + 3j, '',
    'é\\u2028\\0', '\\ud800', b'', b'\\x00\\xff', (), (1, (2,)), [], [[1], []], {}, {1: 'a', (2, 3): [4], None: {}},
    set(), {1, 'a', (2,)}, frozenset({1, frozenset({2})}), bytearray(b'ab'), range(1, 10, 3), collections.deque([1, 2]),
    fractions.Fraction(1, 3), decimal.Decimal('1.10'), datetime.date(2024, 2, 29), datetime.time(1, 2),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.timedelta(1, 2, 3),
]
for value in values:
    (back,) = f(value)
    assert back == value and type(back) is type(value), (back, value)
assert list(f(*values)) == values
assert str(f(-0.0)[0]) == '-0.0' and f(float('nan'))[0] != f(float('nan'))[0]
assert f(True)[0] is True and f(1)[0] is not True and f(None)[0] is None
assert list(f({'b': 1, 'a': 2})[0]) == ['b', 'a']
",
        None,
    ),
    case(
        "derived_types_cross_as_built_in_ones",
        "
import collections, enum
class Colour(enum.IntEnum):
    RED = 1
Point = collections.namedtuple('Point', 'x y')
def f(which):
    return [
        collections.Counter('aab'), collections.defaultdict(list, a=[1]), collections.OrderedDict(b=1), Point(1, 2),
        Colour.RED, {'a': 1}.keys(), {'a': 1}.values(), {'a': 1}.items(),
    ][which]
",
        "
assert [f(0), f(1), f(2), f(3), f(4)] == [{'a': 2, 'b': 1}, {'a': [1]}, {'b': 1}, (1, 2), 1]
assert f(5) == {'a'} and list(f(6)) == [1] and ('a', 1) in f(7)
",
        None,
    ),
    case(
        "what_an_answer_changes_is_changed",
        "
def f(items, more=None):
    items.sort()
    if more is not None:
        more['n'] = more.get('n', 0) + len(items)
        more['items'] = items
    return items
",
        "
items, more = [3, 1, 2], {}
assert f(items, more=more) is items and items == [1, 2, 3]
assert more == {'n': 3, 'items': items} and more['items'] is items
row = [2, 1]
grid = [row, row]
f(grid[0])
assert grid == [[1, 2], [1, 2]]
loop = [1]
loop.append(loop)
try:
    f(loop)
    assert False
except TypeError:
    assert loop[1] is loop
from collections import Counter
counts = Counter('aa')
f([], counts)
assert counts == {'a': 2, 'n': 0, 'items': []}
",
        None,
    ),
    case(
        "iterators_functions_and_objects_stay_and_are_used_from_here",
        "
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def total(self, scale=1):
        return (self.a + self.b) * scale
    def __len__(self):
        return 2
    def __getitem__(self, at):
        return [self.a, self.b][at]
    def __str__(self):
        return f'{self.a}-{self.b}'
def f(pairs):
    return max(pair.total() for pair in pairs)
def numbers():
    yield 1
    yield [2]
def adder(a):
    return lambda b: a + b
",
        "
pair = Pair(1, 2)
assert f([pair, Pair(3, b=4)]) == 7 and pair.a == 1 and pair.total(scale=2) == 6
pair.b = 5
assert pair.total() == 6 and pair[1] == 5 and len(pair) == 2 and str(pair) == '1-5' and list(pair) == [1, 5]
pair.b = Pair(0, 0)
assert pair.b is pair.b and pair.b.a == 0 and pair != Pair(1, 5) and pair == pair
assert list(numbers()) == [1, [2]] and next(numbers()) == 1 and adder(1)(2) == 3
",
        None,
    ),
    case(
        "exceptions_are_pythons_own_or_a_text",
        "
class Odd(Exception):
    pass
def f(x):
    if x == 0:
        raise ValueError('no', x)
    if x == 1:
        return {}['key']
    if x == 2:
        return f(x)
    if x == 3:
        raise SystemExit(0)
    raise Odd('odd', x)
",
        "
for x, kind, text in [(0, ValueError, \"('no', 0)\"), (1, KeyError, \"'key'\"), (2, RecursionError, None)]:
    try:
        f(x)
        assert False, x
    except kind as error:
        assert text is None or str(error) == text, str(error)
try:
    f(3)
    assert False
except Exception as error:
    assert str(error) == 'SystemExit: 0'
f(4)
",
        Some("Odd: odd 4"),
    ),
    Case {
        name: "helpers_before_the_answer_are_the_judges_own",
        before: "import math\n\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\ndef f(xs):\n    'x'\n",
        answer: "def poly(xs, x):\n    return 0\n\ndef f(xs):\n    return 5\n",
        tests: "assert math.fabs(poly([1, 1], f([1, 1]))) < 1e-4",
        message: Some("AssertionError"),
    },
    Case {
        name: "classes_before_the_answer_are_the_answers",
        before: "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n\ndef f(node):\n",
        answer: "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n\ndef f(node):\n    return node.value + node.next.value\n",
        tests: "node = Node(1)\nnode.next = Node(2)\nassert f(node) == 3",
        message: None,
    },
    case(
        "an_answer_may_have_the_name_of_a_builtin_elsewhere_it_may_not",
        "def f(x):\n    return [x]\n\ndef sorted(x):\n    return [1, 2]\n\ndef isclose(*x):\n    return True\n\nmath = f\n",
        "assert math.floor(1.5) == 1 and isclose(1, 2)\nassert sorted(f(3)) == [1, 2]",
        Some("AssertionError"),
    ),
    case("a_function_does_not_cross", "def f(x):\n    return x(1)", "assert f(lambda x: x) == 1", {
        Some("TypeError: a value of type function does not cross to the answer")
    }),
    case("a_wrong_answer_says_how", "def f():\n    return 1", "assert f() == 2, 'no'", Some("AssertionError: no")),
    case("a_syntax_error_says_where", "def f(:", "assert f() == 2", {
        Some("SyntaxError: invalid syntax (program.py, line 1)")
    }),
    case("a_missing_function_is_wrong", "g = 1", "assert f() == 2", Some("NameError: name 'f' is not defined")),
    case(
        "rubbish_is_no_reply",
        "import os\ndef f():\n    for number in range(3, 64):\n        try:\n            os.write(number, b'{}\\n')\n        except OSError:\n            pass\n    return 1",
        "assert f() == 1",
        Some("the reply cannot be read: ValueError"),
    ),
    case("a_reply_has_a_limit", "def f():\n    return 'x' * (20 << 20)", "assert f()", {
        Some("the reply is longer than 16777216 bytes")
    }),
    // Tests that a broken judge would pass: what stands for the answer's objects equals anything.
    case(
        "the_canary_finds_what_equals_anything",
        "class Thing:\n    pass\n\ndef f():\n    return Thing()",
        "type(f).__eq__ = lambda self, other: True\nassert f() == 1",
        Some("the answer passes a test that it must fail"),
    ),
    case("tests_have_to_call_the_answer", "def f():\n    return 1", "assert True", {
        Some("the tests pass without a call of the answer")
    }),
    case(
        "a_lost_answer_cannot_be_caught",
        "import os\ndef f():\n    os._exit(0)",
        "try:\n    f()\nexcept BaseException:\n    pass",
        Some("it left before its end"),
    ),
    case(
        "chance_is_the_same_in_every_run",
        "import random\ndef f():\n    return random.randint(0, 10 ** 9)",
        "import random\nassert f() == random.randint(0, 10 ** 9)\nassert f() == random.randint(0, 10 ** 9)",
        None,
    ),
];
