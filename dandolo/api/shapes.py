"""What code looks like, in any language of machines or humans: data for `codesigns`.

A shape is a pattern with its points, its name, and what must stand in a text for the pattern to be tried at all:
a substring costs 50 ns to look for in 1 KB, a pattern up to 50 µs. Where a pattern can begin with a literal it
does, and looks behind it for what stands before: the search then jumps from one to the next.
No two neighbouring repeats of a pattern can take the same character: hostile texts cost no more than others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MULTI = re.MULTILINE


@dataclass(frozen=True, slots=True)
class Shape:
    """`pattern` None: one of `guards` in the text is enough. No guards: the pattern is always tried.

    `needs` are characters of which one must be there before anything else is looked for; none: no matter.
    """

    name: str
    points: float
    guards: tuple[str, ...]
    pattern: re.Pattern[str] | None = None
    needs: str = ""


def _shape(name: str, points: float, guards: str, pattern: str = "", flags: int = 0, needs: str = "") -> Shape:
    """`guards` are separated by white space; `·` in one of them stands for a space."""
    split = tuple(guard.replace("·", " ") for guard in guards.split())
    return Shape(name, points, split, re.compile(pattern, flags) if pattern else None, needs)


_TRACE = "a stack trace or a tool's error"
_LOG = "lines of a log"

SHAPES: tuple[Shape, ...] = (
    _shape("a gap to fill in code", 8.0, "<|fim <fim_ <PRE> [SUFFIX]", needs="<["),
    _shape(
        _TRACE,
        4.0,
        """Traceback·(most egmentation·fault segfault·at core·dumped panicked·at npm·ERR! command·not·found SQLSTATE
        ORA-0 No·such·file·or·directory undefined·reference OOMKilled ECONN ENOENT CrashLoopBackOff Caused·by:
        syntax·error·near Uncaught· NullPointerException StackOverflow is·not·assignable·to NaN·instead
        cannot·find·symbol exit·status
        Permission·denied·( Connection·refused unexpected·token Unexpected·token is·not·defined not·a·function""",
        needs=":\n(",
    ),
    _shape(_TRACE, 4.0, ", line·", r'File "[^"\n]{1,200}", line \d'),
    _shape(_TRACE, 4.0, "at· goroutine·", r"^[ \t]*at [\w.$<>/]{3,120} ?\([^)\n]{1,120}:\d+|^goroutine \d+ \[", _MULTI),
    _shape(_TRACE, 4.0, "*** fatal: E:· panic:", r"^fatal: |^E: |^panic: |\*\*\* .{3,60}\. +Stop\.", _MULTI),
    _shape(_TRACE, 4.0, "rror ERROR ts(", r"\berror(?:\[E\d+\]| (?:TS|CS|C)\d{3,5})|\bERROR \d{4} \(|\bts\(\d{4}\)"),
    _shape("the name of an exception", 2.0, "Error Exception", r"\b[A-Z][A-Za-z]{0,40}(?:Error|Exception)\b"),
    _shape("a diff", 4.0, "diff·--git @@·- --- <<<<<<<", r"^diff --git |^@@ -\d|^--- [ab]/|^<{7} ", _MULTI),
    _shape("a code block", 3.0, "```"),
    _shape("a code block", 3.0, "#!/"),
    _shape(
        "SQL",
        3.0,
        "SELECT· CREATE· INSERT·INTO ALTER·TABLE UPDATE· ·JOIN· GROUP·BY DELETE·FROM ORDER·BY",
        r"\bSELECT\b[\s\S]{1,400}?\bFROM\b|\bCREATE (?:OR REPLACE )?(?:TABLE|INDEX|VIEW|FUNCTION)\b|\bINSERT INTO\b"
        r"|\bALTER TABLE\b|\bUPDATE \w+ SET\b|\b(?:INNER|LEFT|OUTER|RIGHT) JOIN\b|\bGROUP BY\b"
        r"|\bDELETE FROM\b|\bORDER BY\b",
    ),
    _shape(
        "SQL",
        2.4,
        "select·",
        r"\bselect (?:\*|distinct |count\([^)\n]{0,40}\)|[\w.]{1,40}(?:, ?[\w.]{1,40}){0,20})[^\n;]{0,60}?"
        r"\sfrom \w{1,40}(?:;|\s(?:\w{1,20}\s)?(?:where|join|group by|order by|limit|left|inner)\b)",
    ),
    _shape(
        "statements of a program",
        2.6,
        "",
        r"^[ \t]*(?:(?:export |async |public |private |protected |static |final |pub |override |internal ){0,4}"
        r"(?:def|class|function|func|fn|interface|struct|enum|impl|trait|module|namespace|void|sub) +"
        r"[\w:<>*&~]+ *[({:<]"
        r"|(?:from +[\w.]+ +)?import +(?:[\w.{*]+;?$|\w+ as |[\w{ ]+\} from|[\w, ]{1,80}$)|#include\b|using +[\w.]+;"
        r"|package +[\w.]+;?$|(?:const|let|var|val) +[\w{\[]+.{0,60}="
        r"|(?:if|for|while|switch|catch)\s*\(.+\)\s*\{?$|(?:if|for|while|with|elif) .{1,90}:$|(?:try|else|finally):$"
        r"|return\b.{0,90};$|return [\w.]+[(\[].*$|(?:end|fi|done|esac)$|print\()",
        _MULTI,
        "(:{=;#<",
    ),
    _shape(
        "configuration",
        2.6,
        "",
        r"^(?:FROM [\w./-]+(?::[\w.-]+)?(?: AS \w+)?$|RUN |COPY [\w./-]+ |ENTRYPOINT|WORKDIR |CMD )"
        r"|^[ \t]*-? ?(?:apiVersion|image|replicas|runs-on|uses|steps|services|volumes):|^\[\w[\w. -]*\]$\n^\w+ ?="
        r"|^[ \t]*(?:location|server|upstream) [^\n]{0,40}\{|^[ \t]*Rewrite(?:Rule|Cond) |^ExecStart=",
        _MULTI,
        ":={/",
    ),
    _shape("lines of code", 2.2, ";", r";[ \t]*$(?<=[)\]}\w'\"];)(?<=.{2})", _MULTI),
    _shape("lines of code", 2.2, "} ) ]", r"^[ \t]*[})\]][})\];,]*[ \t]*$", _MULTI),
    _shape("lines of code", 1.6, "{", r"\{[ \t]*$", _MULTI),
    _shape(
        "markup",
        2.4,
        "< {{ {%",
        r"</?(?:div|span|html|body|head|script|style|table|tr|td|ul|li|img|input|button|form|svg|nav|section|footer"
        r"|template|br|h[1-6])\b[^>\n]{0,200}>|<\?(?:php|xml)|\{\{[^}\n]{1,80}\}\}|\{%[^%\n]{1,80}%\}",
        re.IGNORECASE,
    ),
    _shape("calls", 2.0, "(", r"\.[A-Za-z_]\w+\("),
    _shape("calls", 1.6, "() :: self. this. $this", needs="(:."),
    _shape("calls", 1.2, "->", r"->(?<=\w->)\w"),
    _shape(
        "calls",
        1.0,
        "(",
        r"\((?<=[A-Za-z_]{3}\()(?<!(?:sin|cos|tan|log|exp|qrt|max|min|lim|gcd|mod)\()"
        r"(?!e?s\)|e?n\)|in\)|innen\)|r\)|a\)|o\)|as\)|os\)|ies\)|ren\))[^\s)]",
    ),
    _shape("a signature or table", 1.6, ",", r"\((?<=[a-z_]\()(?:\w+(?: \w+)?, ){1,30}\w+(?: \w+)?\)"),
    _shape(
        "assignments", 1.8, "const let var", r"\b(?:const|let|var) [A-Za-z_]\w* ?(?::[^=\n]{1,40})?= ?\S", needs="="
    ),
    _shape("a spreadsheet formula", 0.6, "", r"\b[A-Z]{1,2}[1-9]\d{0,2}\b", needs="0123456789"),
    _shape("operators", 1.6, "== != && || += -= := => << >>>", needs="=&|<>+"),
    _shape("assignments", 1.0, "=", r"^[ \t]*[A-Za-z_][\w.\[\]'\"]{0,60} ?= ?[\w\[({\"'][^\n]*$", _MULTI),
    _shape("a spreadsheet formula", 3.0, "=", r"=[A-ZÄÖÜ]{2,20}(?:\.[A-Z]+)?\("),
    _shape(
        "a spreadsheet formula",
        2.5,
        ":",
        r":(?<=[A-Z]\d:)\$?[A-Z]{1,3}\$?\d{1,5}\b|:(?<=[A-Z]\d\d:)\$?[A-Z]{1,3}\$?\d"
        r"|:(?<=[(,; ][A-Z]:)[A-Z]\b(?=[,;)])",
    ),
    _shape("options of a command", 1.6, "·--", r" --[a-z][a-z-]{2,}\b"),
    _shape("options of a command", 1.6, "·-", r" -[A-Za-z]{1,8}\d?(?: [^\n ]{1,80}){0,3} -[A-Za-z]{1,8}\b| -Xm[xs]\d"),
    _shape(
        "paths and variables",
        1.6,
        "/",
        r"/(?<![\w:/]/)(?:etc|usr|var|opt|srv|tmp|home|dev|proc|bin|app|api|src|lib|mnt|root|www)\b",
    ),
    _shape("paths and variables", 1.6, "$ :\\", r"\$\{?[A-Za-z_]{3,}\b|\$\(|\b[A-Z]:\\\w"),
    _shape(
        "names of source files",
        1.5,
        ".",
        r"\.(?:py|pyi|jsx?|tsx?|mjs|java|cpp|cc|hpp|cs|rs|rb|php|sh|bat|ps1|sql|html?|s?css|ya?ml|toml|ini|conf|env|ipynb"
        r"|kt|swift|lua|vue|gradle|so|dll|jar|tf|tex|json|lock|xml|htaccess|gitignore)\b(?!\.\w|\()",
    ),
    _shape("names of files", 1.2, "·. *.", r"[ *(]\.(?:jpe?g|png|csv|txt|log|pdf|mp[34]|flac|wav|zip|docx|xlsx)\b"),
    _shape("names with underscores", 1.3, "_", r"_(?<=[a-z]_)[a-z]|_(?<=[A-Z]_)[A-Z]"),
    _shape(
        "names in camel case",
        1.0,
        "",
        r"[A-Z](?<=[a-z]{2}[A-Z])(?<!You[A-Z])(?<!Pay[A-Z])(?<!hats[A-Z])(?<!nked[A-Z])(?<!Face[A-Z])(?<!Tik[A-Z])"
        r"(?<!Mac[A-Z])(?<!Power[A-Z])(?<!Open[A-Z])(?<!Deep[A-Z])(?<!Micro[A-Z])(?<!Air[A-Z])(?<!Chat[A-Z])[a-z]",
    ),
    _shape(
        _LOG,
        2.2,
        "ERROR WARN INFO FATAL DEBUG CRITICAL",
        r"\b(?:ERROR|WARN(?:ING)?|INFO|FATAL|DEBUG|CRITICAL)\b[ :\]\[|]",
    ),
    _shape(_LOG, 2.2, 'level= "level" [error] [warn] HTTP/1. Exit·Code:', needs="=[/:"),
    _shape("patterns or addresses", 1.5, "0x", r"0x[0-9a-fA-F]{4,}"),
    _shape("patterns or addresses", 1.5, "\\ [", r"\\[dwsb](?:[+*{)\]]|\\)|\(\?:|\[\^?[a-zA-Z0-9]-[a-zA-Z0-9]"),
    _shape(
        "the name of a language",
        1.6,
        "",
        r"[CDEGNPRSZ](?<= [A-Z])(?:(?<=in [A-Z])|(?<= a [A-Z])|(?<=ing [A-Z])|(?<=ith [A-Z])|(?<=my [A-Z])"
        r"|(?<=en [A-Z])|(?<=mit [A-Z])|(?<=em [A-Z]))"
        r"(?:(?<=C)|(?<=R)(?:ust|uby)?|(?<=G)o|(?<=S)(?:wift|cala|cheme)|(?<=P)erl"
        r"|(?<=D)art"
        r"|(?<=E)lixir|(?<=Z)ig|(?<=N)im)\b(?!\.|#| (?:major|minor|flat|sharp|vitamin|Dur|Moll|Taylor)|-)",
    ),
    _shape("names with dots", 0.9, ".", r"\.(?<=[a-z]{2}\.)[A-Z][a-z]+\b"),
    _shape("JSON", 1.1, "{ [", r"\{\s*\"\w+\"\s*:|\[\s*\{"),
    _shape("names in backticks", 0.9, "`", r"(?<!`)`[^`\n]{1,60}`(?!`)"),
    _shape("sizes, colours or ports", 1.2, "", r"\d(?:px|rem|vh|vw|Mi|Gi)\b|\d{2}x\d{2,4}\b", needs="0123456789"),
    _shape("sizes, colours or ports", 1.2, "#  :", r"#[0-9a-fA-F]{6}\b|:\d{4,5}\b|localhost", needs="#:"),
    _shape("sizes, colours or ports", 1.5, "", r"[Pp]ort \d{2,5}\b", needs="0123456789"),
    _shape(
        "LaTeX", 3.0, "\\documentclass \\begin{tikz \\begin{tab \\begin{fig \\begin{doc \\usepackage \\draw", needs="\\"
    ),
)
"""In the order in which they are looked for; the surest first."""
