"""Words by which people ask: verbs of making and their objects, how a turn carries on, how it turns away.

Data for `codesigns` and `intent`, of the same human languages as `lexicon`.
"""

from __future__ import annotations

import re

from dandolo.api.lexicon import table_of, words_of

VERBS = words_of(
    """napište kirjoita írj scrie napíš write create make build generate give need want draft design
    implement develop produce compose code show prepare provide add fix debug craft pen help schreib schreibe
    schreiben erstell erstelle erstellen bau baue mach mache gib brauche bräuchte formuliere entwirf
    programmiere écris écrire écrivez crée créer créez génère générer fais donne besoin voudrais veux rédige
    rédiger rédigez escribe escribir escríbeme crea crear haz hazme genera dame necesito quiero redacta
    escriba scrivi scrivimi creare fammi dammi vorrei escreva escreve crie criar faça gere preciso redija
    schrijf maak geef napisz stwórz zrób utwórz yaz oluştur hazırla buat buatkan tulis tuliskan viết skriv
    lav napiš напиши напишите создай создайте сделай составь составьте нужен нужна нужно напишіть створи"""
)
"""Verbs of asking for something to be made, whose object tells what kind of thing it is."""

BUILDING = words_of("make add fix show debug build implement code mach mache bau baue fais haz faça maak crea")
"""Those of them whose object, when it is prose, says little: a title is added to a diagram too."""

ABOUT = words_of(
    "about on for to that who with über für an von sur pour de sobre para su per over voor o про для where"
)
"""Behind these stands what a text is about, no longer what it is: a post about a function, but a quiz app."""

CONNECTING = words_of(
    """to that which for who when with from using um das die der zum mit qui que pour qu avec che per con
    para com om który która które чтобы для который которая yang untuk"""
)
"""What stands between a thing of code and what it is to do: `command to`, `bot qui`."""

ASKING_HOW = words_of(
    """how wie comment cómo como come hoe jak nasıl bagaimana как як kann peut puedo posso kan можно"""
)
"""How to do something, or whether one can."""

TOOLS = words_of(
    """python java rust go swift ruby elixir unity unreal godot notion excel mermaid minecraft latex julia
    lua dart scala r c matlab perl react vue angular flask spring node spark docker kubernetes airflow qt
    arduino blender wordpress drupal shopify salesforce tableau grafana powerbi git vim emacs sheets calc
    access obsidian airtable zapier n8n outlook word android ios linux windows ubuntu debian chrome firefox
    safari terraform ansible jenkins github gitlab apache nginx prometheus sheet scad sieve mysql postgres
    bash css sql html"""
)
"""Programs and languages: a text that begins with one is likely to ask how to use it."""

OBJECTS = table_of(
    (
        2.5,
        """funkci funkce funksjon függvényt funkciju function script query regex regexp formula macro snippet
        code webpage html css dockerfile makefile unittest unit endpoint scraper crawler parser liner
        oneliner command sql userscript bookmarklet shader program component bot class api config
        configuration migration funktion skript programm abfrage formel makro webseite fonction requête
        programme función consulta programa fórmula funzione função planilha functie formule funkcję skrypt
        zapytanie fonksiyon fungsi skrip functies código codice kod функцию функция скрипт программу запрос
        код макрос формулу hàm dataframe iterator hook decorator struct testfälle navbar svg pipeline
        playbook helm manifest trigger view procedure stylesheet loop""",
    ),
    (
        1.2,
        """test tests website page app game schema type types method plugin extension tool calculator seite
        site""",
    ),
    (
        -3.0,
        """ad advert complaint absage zusage kündigung beschwerde plainte queja reclamo rap raps email mail
        letter note status office thank poem story haiku song essay speech toast joke jokes limerick sonnet
        tweet post article blog invitation biography bio title titles headline slogan caption notes proposal
        press quiz itinerary recipe agenda minutes scene dialogue monologue lyrics cv resume reply paragraph
        sentence rhyme tale fable obituary eulogy interview tagline announcement apology novel chapter
        outline curriculum syllabus questions advice gedicht geschichte rede einladung aufsatz bewerbung
        artikel lied märchen brief beitrag anschreiben lettre poème histoire discours courriel carta poema
        cuento guion guión discurso invitación artículo correo lettera poesia storia racconto discorso conto
        história redação verhaal wiersz opowiadanie şiir mektup hikaye surat puisi cerita thư письмо стих
        стихотворение рассказ сказку сказка эссе поздравление план tags flashcards""",
    ),
    (
        -1.5,
        """summary résumé resumen riassunto zusammenfassung plan text message description report overview
        explanation presentation slides erklärung""",
    ),
)
"""What such a verb may be about."""

OPENING = words_of(
    """and also but now then or so if make add remove rename use change do does can could why is und auch
    aber jetzt dann oder y ahora también pero et maintenant aussi mais e ora adesso anche ma agora também mas
    en nu ook maar i a teraz też ale ve şimdi ama dan sekarang tapi и теперь а но ще"""
)
"""First words of a short turn that carries on with what was there."""

ASKING = words_of(
    """who when where which what is are was tell wer wann wo welche welcher qui quand où quel quelle quién
    cuándo dónde cuál qué chi quando dove quale quem onde qual wie waar welke kto kiedy gdzie kim nerede кто
    когда где"""
)
"""First words of a question that stands alone."""

FOLLOWING = words_of(
    """it its this these those them same instead line still again version another other why works work doesn
    faster shorter cleaner simpler change remove rename handle explain second first third last das es diese
    dieser dieses stattdessen zeile gleiche nochmal geht warum ohne eso esto línea mismo ça cela ligne même
    questo riga stesso isso linha dit dat zonder bez bunu это также"""
)
"""Words anywhere in it that point back."""

TURNING = re.compile(
    r"different (?:thing|topic|question|subject|story)|unrelated|another (?:topic|subject|matter)|by the way|\bbtw\b"
    r"|off[- ]?topic|something (?:completely |totally |else )?(?:else|different)"
    r"|chang(?:e|ing) (?:the )?(?:subject|topic)"
    r"|on another note|forget (?:about )?(?:the|this|that) (?:code|script|program)|enough (?:code|coding|programming)"
    r"|übrigens|was (?:ganz )?anderes|anderes thema|themenwechsel|andere frage|por cierto|otra cosa|cambiando de tema"
    r"|au fait|autre chose|rien à voir|changeons de sujet|a proposito|altra cosa|cambiando argomento|tutt'altro"
    r"|a propósito|outra coisa|mudando de assunto|trouwens|iets anders|ander onderwerp|swoją drogą|inna sprawa|bu arada"
    r"|кстати|другой вопрос|другая тема|换个话题|換個話題|顺便问|題外話|ところで|別の話|別件|그런데|다른 얘기"
)
"""A turn away from what was talked about."""

THANKS = words_of(
    """ok okay perfect great thanks thank you thx ty cool nice awesome danke super merci gracias grazie
    obrigado obrigada bedankt dzięki спасибо 谢谢 謝謝 ありがとう ありがとうございます 감사합니다 hi hello
    hey bye very so much vielen dank schön parfait perfetto perfecto mille muchas good done that s it works
    all"""
)
"""What a turn that only thanks or greets is made of."""

SUMMARIES = words_of(
    """summary summaries summarise summarize summarised summarizing summarising tldr zusammenfassung fasse
    zusammenfassen résumé résume résumer resumen resume resumir resumo riassunto riassumi riassumere
    samenvatting podsumuj özetle"""
)
TRANSLATIONS = words_of(
    """translate translates translated translation translator translating übersetze übersetzen übersetzung
    übersetz traduce traducir traduzca traduci tradurre traduzione traducción traduz traduza traduzir
    tradução traduis traduire traduisez traduction vertaal vertalen vertaling przetłumacz çevir terjemahkan"""
)
TONGUES = words_of(
    """english german french spanish italian portuguese dutch polish russian ukrainian czech turkish greek
    arabic hebrew hindi chinese mandarin japanese korean swedish danish norwegian finnish latin vietnamese
    thai indonesian romanian hungarian deutsch englisch französisch spanisch italienisch anglais français
    allemand espagnol italien inglés francés alemán español inglese francese tedesco italiano inglês francês
    alemão engels duits frans nederlands angielski niemiecki ingilizce inggris deutsche englische"""
)
"""Human languages, in some of them."""
MACHINE_TONGUES = words_of(
    "python java javascript rust go c c++ c# sql code typescript query kotlin swift ruby perl php scala r"
)
