"""Whatever a file says, the answer is a Config or a ConfigError that shows no secret."""

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.config import ConfigError, parse

CANARY = "sk-Canary0123456789ABCDEFcanary"
ENVIRON = {"VENICE_API_KEY": CANARY, "DANDOLO_CACHE_SECRET": CANARY + "2", "HOME": "/home/x"}
CONTRACT = Path(__file__).with_name("contract.toml").read_text()
PIECES = [
    *CONTRACT.split(),
    "[[",
    "]]",
    '"""',
    "{",
    "}",
    "0",
    "-1",
    "nan",
    "true",
    '""',
    "\\u0000",
    "[[keys]]\n",
    "\n",
    "é",
]


def attempt(text):
    try:
        parse(text, "d.toml", ENVIRON)
    except ConfigError as error:
        refused = error
    else:
        return
    assert CANARY not in str(refused)
    assert refused.problems


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_a_mutated_file_is_never_a_traceback(seed, changes):
    dice = random.Random(seed)
    lines = CONTRACT.splitlines()
    for _ in range(changes):
        at = dice.randrange(len(lines))
        match dice.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, dice.choice(lines))
            case 2:
                name, equals, _ = lines[at].partition("=")
                lines[at] = f"{name}{equals} {dice.choice(PIECES)}"
            case 3:
                cut = dice.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + dice.choice(PIECES) + lines[at][cut:]
            case 4:
                lines[at] = lines[at].replace("{ env = ", f'"{CANARY}" #')
            case 5:
                name, equals, value = lines[at].partition("=")
                lines[at] = f"{name[::-1]}{equals}{value}"
        attempt("\n".join(lines))


SCALARS = st.sampled_from(
    ["0", "-1", "1e999", "nan", "true", '""', f'"{CANARY}"', "[]", "[[]]", "{}", "1979-05-27", '"\\u0000"', "9" * 30]
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_never_a_traceback(data):
    lines = [line.partition("  #")[0] for line in CONTRACT.splitlines()]
    for at, line in enumerate(lines):
        if "=" in line and data.draw(st.booleans()):
            lines[at] = line.partition("=")[0] + "= " + data.draw(SCALARS)
    attempt("\n".join(lines))
