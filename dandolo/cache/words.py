"""Words that tell how long an answer stays true, and words that ask for code, in the languages callers write most.

They choose a lifetime and nothing else: never do they remove a byte from a key, so a missing word makes an
answer old at worst, a superfluous one makes a call that need not have been made.

Every miss pays for this, so a text is first cut into words once and held against one set of everything that could
matter; only a text with such a word is looked at again. Languages that do not put spaces where we could cut (Chinese,
Japanese, Korean, Thai), that inflect much (Russian) or write with marks that are no letters (Hindi) are searched
for parts of words, which a text that is ASCII cannot have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

OPENING_WORDS = 6
"""An imperative's verb stands among a sentence's first words ("Could you please write …")."""


def _words(*lines: str) -> frozenset[bytes]:
    return frozenset(" ".join(lines).encode().split())


_VOLATILE = _words(
    # English
    "today todays tonight yesterday tomorrow current currently latest newest recent recently nowadays price prices",
    "pricing weather forecast news headline headlines breaking trending upcoming stock stocks score scores standings",
    # German
    "heute heutige heutigen gestern morgen jetzt derzeit momentan preis preise kurs kurse wetter wettervorhersage",
    "nachrichten schlagzeilen spielstand aktuell aktuelle aktueller aktuelles aktuellen aktuellem",
    "neueste neuester neuestes neuesten jüngst jüngste jüngsten kürzlich",
    # French
    "aujourd demain actuellement actuel actuels actuelle actuelles prix météo meteo actualité actualités nouvelles",
    "dernier derniers dernière dernières récent récents récente récentes récemment dernièrement",
    # Spanish, Portuguese
    "hoy ayer mañana ahora actualmente actualidad precio precios clima noticias último última últimos últimas",
    "últimamente reciente recientes recientemente hoje ontem amanhã agora atual atuais atualmente preço preços",
    "notícia notícias recente recentes recentemente",
    # Italian
    "oggi ieri domani adesso attuale attuali attualmente prezzo prezzi notizie ultimo ultima ultimi ultime recenti",
    # Dutch
    "vandaag gisteren nu momenteel prijs prijzen nieuws onlangs laatste huidige actuele",
    # Polish, Russian, Ukrainian
    "dziś dzisiaj wczoraj jutro teraz obecnie cena ceny pogoda najnowsze najnowszy najnowsza aktualny aktualna",
    "aktualne цена цены цену курс курса зараз ціна",
    # Turkish, Indonesian
    "bugün dün yarın şimdi fiyat fiyatı hava haber haberler güncel harga cuaca sekarang kemarin besok berita terbaru",
)
_VOLATILE_PAIRS = frozenset(
    tuple(pair.encode().split())
    for pair in (
        "this year", "this month", "this week", "this season", "this morning", "this quarter", "right now",
        "last night", "last week", "last month", "next week", "exchange rate", "what time", "what day", "what date",
        "dieses jahr", "diesen monat", "diese woche", "wie spät", "cette année", "cette semaine", "ce mois",
        "quelle heure", "este año", "este mes", "esta semana", "qué hora", "qué tiempo", "este ano", "este mês",
        "que horas", "quest anno", "questa settimana", "che ore", "che tempo", "dit jaar", "deze week", "hoe laat",
        "het weer", "tym roku", "bu yıl", "этом году", "который час", "hôm nay", "năm nay",
    )
)  # fmt: skip
_VOLATILE_PARTS = (
    "今天", "今日", "昨天", "昨日", "明天", "明日", "现在", "現在", "目前", "最新", "最近", "今年", "本月", "本周",
    "价格", "價格", "価格", "値段", "天气", "天氣", "天気", "新闻", "新聞", "ニュース", "股价", "株価", "汇率", "匯率",
    "오늘", "어제", "내일", "지금", "현재", "최신", "최근", "올해", "가격", "날씨", "뉴스", "주가",
    "сегодня", "вчера", "завтра", "сейчас", "текущ", "последн", "погод", "новост", "сьогодні",
    "اليوم", "أمس", "غدا", "الآن", "سعر", "أسعار", "الطقس", "أخبار", "أحدث", "היום", "אתמול", "מחר", "עכשיו", "מחיר",
    "วันนี้", "ล่าสุด", "ราคา", "อากาศ", "आज", "अभी", "कीमत", "मौसम", "ताज़ा", "नवीनतम",
)  # fmt: skip

_CODE_VERBS = _words(
    "write code implement create build generate make develop program refactor rewrite fix debug convert port translate",
    "optimise optimize complete test document review extend add simplify",
    "schreib schreibe implementiere erstelle programmiere korrigiere übersetze optimiere entwickle",
    "écris écrire implémente crée génère corrige convertis développe programme traduis",
    "escribe escribir implementa crea genera corrige convierte desarrolla programa",
    "escreva implemente crie gere corrija converta desenvolva scrivi correggi converti sviluppa",
    "schrijf maak verbeter napisz stwórz popraw напиши создай реализуй исправь yaz oluştur",
)
_CODE_THINGS = _words(
    "python javascript typescript java kotlin swift rust golang ruby php perl lua scala haskell erlang elixir clojure",
    "fortran cobol matlab julia dart bash powershell shell sql sqlite postgresql mysql html css scss json yaml toml",
    "xml regex regexp dockerfile makefile terraform react django flask fastapi numpy pandas",
    "function functions method methods class classes script scripts program algorithm api endpoint module decorator",
    "parser compiler unittest unittests snippet codebase loop",
    "funktion funktionen methode klasse skript programm algorithmus fonction classe algorithme función clase algoritmo",
    "função funzione functie funkcję funkcja skrypt функцию функция класс скрипт fonksiyon",
)
_FILE_ENDINGS = _words(
    "py js mjs ts tsx jsx rs go java kt c h cc cpp hpp cs rb php sh sql html css yaml yml toml ipynb"
)
_FILE = re.compile(rb"[\w-]\.(?:" + b"|".join(sorted(_FILE_ENDINGS)) + rb")\b")
_SYMBOLIC = re.compile(rb"(?<!\w)(?:c\+\+|c#|f#|node\.js|\.net)(?!\w)")
_PARTS_OF_CODE = ("代码", "代碼", "函数", "函數", "関数", "コード", "脚本", "스크립트", "함수", "코드")
_FENCES = ("```", "~~~")

_SECONDS = frozenset(second for _, second in _VOLATILE_PAIRS)
_CODE_HINTS = _CODE_THINGS | _FILE_ENDINGS | _words("f net")
_TELLING = _VOLATILE | _SECONDS | _CODE_HINTS
_LETTERS = bytes(
    # Lower case, and a space for whatever is no letter or digit; bytes beyond ASCII stay what they are.
    byte if byte > 127 else ord(chr(byte).lower()) if chr(byte).isalnum() else 32
    for byte in range(256)
)
_SENTENCE_END = re.compile(rb"[.!?;:\n]+")
_MARKS = "¿¡«»„“”’‘…—–\u00a0\u202f؟،"
"""What separates words elsewhere."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a text's words tell of its answer: whether it depends on the day, whether it is code."""

    volatile: bool
    code: bool


_NEITHER = Said(volatile=False, code=False)


def heard(text: str) -> Said:
    """What the words of `text` tell."""
    fenced = any(fence in text for fence in _FENCES)
    plain = text.isascii()
    if not plain:
        text = text.casefold()
        for mark in _MARKS:
            if mark in text:
                text = text.replace(mark, " ")
    raw = text.encode()
    words = raw.translate(_LETTERS).split()
    said = _TELLING.intersection(words)
    if plain and not said:
        return Said(volatile=False, code=True) if fenced else _NEITHER
    volatile = (
        not _VOLATILE.isdisjoint(said)
        or (not _SECONDS.isdisjoint(said) and not _VOLATILE_PAIRS.isdisjoint(pairwise(words)))
        or (not plain and any(part in text for part in _VOLATILE_PARTS))
    )
    code = (
        fenced
        or (not _CODE_HINTS.isdisjoint(said) and _asks_for_code(raw.lower(), said))
        or (not plain and any(part in text for part in _PARTS_OF_CODE))
    )
    return Said(volatile=volatile, code=code)


def _asks_for_code(lower: bytes, said: frozenset[bytes]) -> bool:
    if _CODE_THINGS.isdisjoint(said) and _FILE.search(lower) is None and _SYMBOLIC.search(lower) is None:
        return False
    return any(
        not _CODE_VERBS.isdisjoint(sentence.translate(_LETTERS).split()[:OPENING_WORDS])
        for sentence in _SENTENCE_END.split(lower)
    )
