"""Texts whose answers grow old, texts that ask for code, and texts that only look so."""

import pytest

from dandolo.cache.words import heard

VOLATILE = [
    "What is the price of gold?",
    "What's today's date?",
    "Who is the current president of France?",
    "Give me the LATEST news",
    "How many medals has Norway won this year?",
    "Wie wird das Wetter in Köln?",
    "Was kostet das aktuelle Modell?",
    "Quel temps fait-il aujourd'hui ?",
    "Quelles sont les dernières élections ?",
    "¿Cuál es el precio del oro?",
    "¿Qué hora es en Lima?",
    "Qual é a notícia mais recente?",
    "Che tempo fa a Roma?",
    "Wat is het weer in Gent?",
    "Jaka jest dzisiaj pogoda?",
    "Какая сегодня погода?",
    "Bugün hava nasıl?",
    "今天天气怎么样?",
    "最新のニュースは?",
    "오늘 날씨 어때?",
    "ما هو سعر الذهب؟",
    "आज का मौसम कैसा है?",
    "Hôm nay là thứ mấy?",
]
LASTING = [
    "Why is the sky blue?",
    "Who wrote Hamlet?",
    "What actually happened at Actium?",
    "What did she write this time, and what year was it?",
    "Is the ultimate limit reached?",
    "Warum ist der Himmel blau?",
    "Hier steht ein Satz.",
    "Pourquoi le ciel est-il bleu ?",
    "¿Por qué el cielo es azul?",
    "Perché il cielo è blu?",
    "Почему небо голубое?",
    "Где центр города?",
    "天空为什么是蓝色的?",
    "하늘은 왜 파란가요?",
    "",
]
CODE = [
    "Write a Python function that reverses a list.",
    "Please could you refactor this class?",
    "I have a question. Fix the bug in main.py",
    "Convert it to C++",
    "Port this to .NET!",
    "FIX server.TS",
    "Schreibe eine Funktion in Rust.",
    "Écris une fonction qui trie une liste.",
    "Escribe una función en Python",
    "Напиши функцию сортировки",
    "写一个函数反转列表",
    "What does this do?\n```\nx = 1\n```",
]
PROSE = [
    "Write a poem about the sea.",
    "I drink java every morning, and I never write.",
    "What is a function in mathematics?",
    "Python snakes are long; how long do they live",
    "Make me laugh.",
    "Make it so. I go there.",
]


@pytest.mark.parametrize("text", VOLATILE)
def test_texts_about_the_day_are_volatile(text: str) -> None:
    assert heard(text).volatile


@pytest.mark.parametrize("text", LASTING)
def test_other_texts_are_not(text: str) -> None:
    assert not heard(text).volatile


@pytest.mark.parametrize("text", CODE)
def test_texts_that_ask_for_code(text: str) -> None:
    assert heard(text).code


@pytest.mark.parametrize("text", [*PROSE, *LASTING])
def test_texts_that_do_not(text: str) -> None:
    assert not heard(text).code
