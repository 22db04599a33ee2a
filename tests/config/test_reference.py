import re
import subprocess
import sys

from dandolo.config import parse
from dandolo.config.known import KNOWN, key_variable
from dandolo.config.reference import markdown, starter
from dandolo.config.schema import Config
from dandolo.config.spec import keys_of, walk
from dandolo.config.unenforced import NOT_YET

ENVIRON = {key_variable(name): "k" * 30 for name in KNOWN} | {
    "HOME": "/h",
    "DANDOLO_KEY": "d" * 30,
    "VENICE_API_KEY_2": "v" * 30,
    "DANDOLO_CACHE_SECRET": "c" * 30,
    "DANDOLO_ALERT_SECRET": "a" * 30,
    "OTEL_KEY": "o" * 30,
}


def test_every_key_is_in_the_table_with_a_description():
    text = markdown()
    for path, _, cls in walk(Config):
        assert f"{'.'.join(path)}]" in text
        for name, spec in keys_of(cls).items():
            assert spec.about
            if spec.kind.section is None:
                assert f"| `{name}` |" in text
    assert '| `connect` | `"3s"` | duration | 50ms to 1m |' in text


def test_the_table_is_well_formed():
    for line in markdown().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6, line


def test_the_module_prints_the_table():
    done = subprocess.run([sys.executable, "-m", "dandolo.config"], capture_output=True, text=True, check=True)
    assert done.stdout == markdown()


def test_the_starter_parses_and_means_the_defaults():
    config = parse(starter(["venice"]), "d", ENVIRON)
    assert config.limits == Config().limits
    assert config.warnings == ()
    assert len(parse(starter(list(KNOWN)), "d", ENVIRON).providers) == len(KNOWN)


def test_each_comment_of_the_starter_is_a_key_that_parses():
    left_out = ("tls", "admin_tls", "ca")  # name files that need not exist
    lines = []
    for line in starter(["venice"]).splitlines():
        name = line.removeprefix("# ").partition(" = ")[0]
        if re.match(r"# (\w+ = |\[\[)", line) and name not in left_out:
            line = line.removeprefix("# ")
        lines.append(line)
    text = "\n".join(lines)
    # A key has either a digest or itself, a provider either a key or accounts.
    text = re.sub(r"\nkey = \{ env = \"(DANDOLO_KEY|VENICE_API_KEY)\" \}.*", "", text)
    config = parse(text, "d", ENVIRON)
    assert config.keys[0].concurrent == 64
    assert config.providers[0].models[0].context_tokens == 65_536


def test_what_is_not_enforced_yet_names_real_keys():
    sections = {".".join(path): keys_of(cls) for path, _, cls in walk(Config)}
    for dotted in NOT_YET:
        section, name = dotted.split(".")
        assert name in sections[section]
