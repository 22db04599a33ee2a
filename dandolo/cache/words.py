"""Words that tell how long an answer stays true, and words that ask for code, in the languages callers write most.

They choose a lifetime and nothing else: never do they remove a byte from a key, so a missing word makes an
answer old at worst, a superfluous one makes a call that need not have been made. Inflected languages are matched
by how words begin; Chinese, Japanese, Korean, Thai and Hindi, which cannot be split into words by letters alone,
by substring.
"""

from __future__ import annotations

import re
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?;:\n]+")
OPENING_WORDS = 6
"""An imperative's verb stands among a sentence's first words ("Could you please write …")."""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_VOLATILE = _words(
    # English
    "today todays tonight yesterday tomorrow current currently latest newest nowadays price prices pricing weather",
    "forecast news headline headlines breaking trending upcoming stock stocks score scores standings",
    # German
    "heute heutige heutigen gestern morgen jetzt derzeit momentan preis preise kurs kurse wetter wettervorhersage",
    "nachrichten schlagzeilen spielstand",
    # French
    "aujourd demain actuellement prix météo meteo actualité actualités nouvelles dernièrement",
    # Spanish, Portuguese
    "hoy ayer mañana ahora precio precios clima noticias últimamente hoje ontem amanhã agora preço preços notícias",
    # Italian
    "oggi ieri domani adesso prezzo prezzi notizie ultimo ultima ultimi ultime",
    # Dutch
    "vandaag gisteren nu momenteel prijs prijzen nieuws onlangs",
    # Polish, Russian, Ukrainian
    "dziś dzisiaj wczoraj jutro teraz obecnie cena ceny pogoda цена цены цену курс курса зараз ціна",
    # Turkish, Indonesian
    "bugün dün yarın şimdi fiyat fiyatı hava haber haberler harga cuaca sekarang kemarin besok berita terbaru",
)
_VOLATILE_BEGINNINGS = (
    "recent", "aktuell", "neueste", "jüngst", "kürzlich", "dernier", "dernière", "récent", "récemment", "actuel",
    "actual", "último", "última", "reciente", "atual", "attual", "laatste", "huidig", "najnow", "aktualn", "güncel",
    "сегодня", "вчера", "завтра", "сейчас", "текущ", "последн", "погод", "новост", "сьогодні",
    "اليوم", "أمس", "غدا", "الآن", "سعر", "أسعار", "الطقس", "أخبار", "أحدث", "היום", "אתמול", "מחר", "עכשיו", "מחיר",
)  # fmt: skip
_VOLATILE_PAIRS = frozenset((
    "this year", "this month", "this week", "this season", "this morning", "this quarter", "right now", "last night",
    "last week", "last month", "next week", "exchange rate", "what time", "what day", "what date", "so far",
    "dieses jahr", "diesen monat", "diese woche", "wie spät", "cette année", "cette semaine", "ce mois", "quelle heure",
    "este año", "este mes", "esta semana", "qué hora", "qué tiempo", "este ano", "este mês", "que horas", "quest anno",
    "questa settimana", "che ore", "che tempo", "dit jaar", "deze week", "hoe laat", "het weer", "tym roku", "bu yıl",
    "этом году", "который час", "hôm nay", "năm nay",
))  # fmt: skip
_VOLATILE_PARTS = (
    "今天", "今日", "昨天", "昨日", "明天", "明日", "现在", "現在", "目前", "最新", "最近", "今年", "本月", "本周",
    "价格", "價格", "価格", "値段", "天气", "天氣", "天気", "新闻", "新聞", "ニュース", "股价", "株価", "汇率", "匯率",
    "오늘", "어제", "내일", "지금", "현재", "최신", "최근", "올해", "가격", "날씨", "뉴스", "주가",
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
_FILE = re.compile(
    r"\b[\w-]+\.(?:py|js|mjs|ts|tsx|jsx|rs|go|java|kt|c|h|cc|cpp|hpp|cs|rb|php|sh|sql|html|css|ya?ml|toml|ipynb)\b"
)
_SYMBOLIC = re.compile(r"(?<![^\W_])(?:c\+\+|c#|f#|node\.js|\.net)(?![^\W_])")
_PARTS_OF_CODE = ("代码", "代碼", "函数", "函數", "関数", "コード", "脚本", "스크립트", "함수", "코드")


def is_volatile(text: str) -> bool:
    """Whether the answer to `text` depends on the day it is asked."""
    text = text.casefold()
    words = _WORD.findall(text)
    if not _VOLATILE.isdisjoint(words):
        return True
    if not _VOLATILE_PAIRS.isdisjoint([f"{one} {other}" for one, other in pairwise(words)]):
        return True
    if any(word.startswith(_VOLATILE_BEGINNINGS) for word in words):
        return True
    return not text.isascii() and any(part in text for part in _VOLATILE_PARTS)


def is_code(text: str) -> bool:
    """Whether `text` holds a code fence, or an imperative together with a language, a file or a function."""
    if "```" in text or "~~~" in text:
        return True
    text = text.casefold()
    if not text.isascii() and any(part in text for part in _PARTS_OF_CODE):
        return True
    if _CODE_THINGS.isdisjoint(_WORD.findall(text)) and _FILE.search(text) is None and _SYMBOLIC.search(text) is None:
        return False
    return any(
        not _CODE_VERBS.isdisjoint(_WORD.findall(sentence)[:OPENING_WORDS]) for sentence in _SENTENCE_END.split(text)
    )
