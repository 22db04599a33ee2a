import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.config.lines import find_lines, line_of

TABLES = """\
# a comment with [brackets] and "quotes
top = 1
[server]   # why
listen = [
  "a:1",   # ] not the end
  "b:2",
]
text = \"\"\"
[not.a.table]
x = 1 \\\"\"\" still ""\"\"\"
raw = '''
[[nor.this]]'''
tls = { cert = "c]", key = "k}" }
"quoted.key" = 2
'single key' = 3
a.b."c.d" = 4

[[providers]]
name = "one"
[[providers.accounts]]
owner = "x"
[[providers.accounts]]
owner = "y"
[providers.defaults]
deep = { er = [ { x = 1 },
  { y = 2 } ] }
[[providers]]
name = "two"
[[providers.accounts]]
owner = "z"
[cache.redis]
url = "u"
[cache]
when = 1979-05-27 07:32:00
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("server",), 3),
        (("server", "listen"), 4),
        (("server", "listen", 0), 5),
        (("server", "listen", 1), 6),
        (("server", "text"), 8),
        (("server", "raw"), 11),
        (("server", "tls", "key"), 13),
        (("server", "quoted.key"), 14),
        (("server", "single key"), 15),
        (("server", "a", "b", "c.d"), 16),
        (("providers", 0), 18),
        (("providers", 0, "name"), 19),
        (("providers", 0, "accounts", 1, "owner"), 23),
        (("providers", 0, "defaults", "deep", "er", 1, "y"), 26),
        (("providers", 1), 27),
        (("providers", 1, "name"), 28),
        (("providers", 1, "accounts", 0, "owner"), 30),
        (("cache", "redis", "url"), 32),
        (("cache",), 33),
        (("cache", "when"), 34),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_key_has_its_line(path, line, ends):
    tomllib.loads(TABLES)
    assert find_lines(TABLES.replace("\n", ends))[path] == line


def test_a_path_without_a_line_has_that_of_what_is_around_it():
    lines = find_lines("\n[server]\nlisten = []\n")
    assert line_of(lines, ("server", "missing")) == 2
    assert line_of(lines, ("elsewhere", 3)) == 1


def paths(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in items:
        yield (*at, name)
        yield from paths(one, (*at, name))


def test_no_path_of_a_parsed_document_is_missing():
    assert set(paths(tomllib.loads(TABLES))) <= set(find_lines(TABLES))


@given(st.text(alphabet="[]{}\"'=#.,\\ab1 \n", max_size=60))
def test_no_text_hangs_or_breaks_the_walk(text):
    find_lines(text)


def test_nesting_beyond_the_stack_gives_no_traceback():
    find_lines("x = " + "[" * 100_000)
