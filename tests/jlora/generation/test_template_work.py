import jinja2
import pytest
from markupsafe import Markup

from jlora.generation import template_work as work
from jlora.generation.template_sizes import ENTRY

TEXT = "a b\nc\td, " * 40
METHODS = [
    ("split", ()), ("split", (" ",)), ("split", (" ", 3)), ("split", (" ", -1)), ("splitlines", ()),
    ("rsplit", ("a", 2)), ("replace", ("a", "xyz" * 9)), ("replace", ("", "xyz")), ("expandtabs", ()),
    ("expandtabs", (99,)), ("center", (999,)), ("zfill", (999,)),
    ("join", (["x", "yy"] * 50,)), ("join", ("xyz",)), ("translate", ({97: "long " * 20},)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args"), METHODS)
@pytest.mark.parametrize("is_bytes", [False, True])
def test_no_method_makes_more_than_its_estimate(name, args, is_bytes):
    text = TEXT.encode() if is_bytes else TEXT
    if is_bytes and name in ("join", "translate"):  # these take other arguments there
        name, args = "hex", (":",)
    if is_bytes and name != "hex":
        args = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    result = getattr(text, name)(*args)
    made = len(result) if isinstance(result, str | bytes) else sum(len(piece) + ENTRY for piece in result)
    assert made <= work.estimate_method(name, text, args) + 3 * len(text)


@pytest.mark.parametrize(
    ("name", "value", "args"),
    [
        ("indent", TEXT, (30,)),
        ("indent", TEXT, ("--" * 9,)),
        ("replace", [TEXT], ("a", "xyz" * 9)),
        ("tojson", [[1], [2]], (30,)),
        ("format", "%99d|%s", (1, TEXT)),
        ("format", ["%999d"], (1,)),
        ("join", ["a"] * 9, ("--" * 9,)),
        ("urlencode", TEXT, ()),
        ("e", TEXT.replace("a", "&"), ()),
    ],
)
def test_no_filter_makes_more_than_its_estimate(name, value, args):
    environment = jinja2.Environment()
    context = environment.from_string("").new_context()
    result = environment.call_filter(name, value, args, context=context)
    assert len(str(result)) <= work.estimate_filter(name, value, args)


@pytest.mark.parametrize(
    ("operator", "left", "right", "least"),
    [
        ("in", "ab", "a" * 6400, 300),
        ("in", "x" * 640, ["y"] * 10, 400),
        ("in", 1, [0] * 100, 100),
        ("in", -1, dict.fromkeys(range(1600)), 100),
        ("eq", "a" * 640, "a" * 640, 40),
        ("lt", [0] * 100, [0] * 100, 1000),
        ("eq", {1: 2}, {1: 2}, 10),
    ],
)
def test_a_comparison_counts_what_it_may_read(operator, left, right, least):
    assert work.estimate_comparison(operator, left, right) >= least


def test_comparisons_that_read_nothing_cost_nothing():
    assert work.estimate_comparison("eq", 1, "a" * 999) == 0
    assert work.estimate_comparison("eq", None, [0] * 999) == 0
    assert work.estimate_key(["a"] * 999, 1) == 0


def test_numbers_of_many_bits_are_refused():
    for operator, left, right in (
        ("**", 10, 10**9),
        ("*", 2**6000, 2**6000),
        ("//", 2**20_000, 3),
        ("-", 1, 2**20_000),
    ):
        with pytest.raises(jinja2.TemplateError, match="a number of more than 10,000 bits"):
            work.estimate_operator(operator, left, right)


def test_markup_grows_when_it_is_escaped():
    assert work.estimate_operator("+", Markup("a"), "&" * 100) >= 500
    assert work.estimate_operator("+", "a", "&" * 100) < 200
    assert work.estimate_operator("*", "ab", -3) == 0
    assert work.estimate_operator("*", 5, [0]) == 5 * ENTRY


@pytest.mark.parametrize("spec", ["1234567", "\u0661\u0660\u0660\u0660\u0660\u0660", ".999999f"])
def test_a_width_of_more_than_five_digits_is_refused(spec):
    with pytest.raises(jinja2.TemplateError, match="more than five digits"):
        work.estimate_field(1, spec)
