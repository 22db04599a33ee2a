"""Words that speak for code or for plain prose, with weights: data for `codesigns`.

Weights are in points of one scale: 3 speaks for itself (`regexp`, `dockerfile`), 1 to 2 wants company (`function`,
`query`), below 1 is only a shade (`file`, `error`). Words with another life outside computing (python, java,
class, script, commit) stand low on purpose. Latin words are looked up whole; other scripts, which inflect at
the end or write no spaces, by what the text contains.
"""

from __future__ import annotations

import re


def _table(*groups: tuple[float, str]) -> dict[str, float]:
    """Words to weights, the first of several; `_` in a word stands for a space."""
    weights: dict[str, float] = {}
    for weight, words in groups:
        for word in words.split():
            weights.setdefault(word.replace("_", " "), weight)
    return weights


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


WORDS = _table(
    (
        3.0,
        """javascript typescript golang kotlin vba regex regexp regexes sql mysql postgresql postgres sqlite
        mariadb plsql tsql clickhouse bigquery duckdb html css scss tailwind jquery nextjs nuxt vuejs nodejs
        django fastapi laravel numpy pandas pytorch matplotlib sklearn tensorflow dataframe dataframes polars
        dockerfile kubectl htaccess crontab cronjob makefile cmake gcc clang webpack npm pnpm bash zsh
        powershell awk grep xargs chmod jq xpath xslt protobuf glsl hlsl vhdl verilog tikz openscad pytest
        vlookup xlookup hlookup sumif sumifs countif countifs arrayformula importrange sumproduct sverweis
        xverweis wverweis summewenn zählenwenn recherchev buscarv procv malloc segfault stacktrace traceback
        nullpointerexception eslint mypy swiftui useeffect usestate beautifulsoup pygame iptables c++ c# f#
        timestamptz parametrize mutex userscript bookmarklet plpgsql sqlalchemy linq opengl oneliner goroutine
        gdscript solidity autohotkey applescript promql logql mermaid plantuml graphviz autocad_lisp subquery
        unittest endlosschleife subconsulta subconsultas kommandozeile pseudocode docstring systemctl journalctl
        iostream printf println unittests leetcode jupyter openapi""",
    ),
    (
        2.0,
        """php git github graphql mongodb redis grpc websocket websockets jwt cors localhost stdout stderr stdin
        refactor refactoring debounce linter lint coroutine hashmap hashtable polymorphism nullptr rebase
        flexbox navbar iframe href stylesheet div divs webpage subclass destructor middleware yaml yml toml
        kubernetes docker terraform ansible nginx apache systemd venv conda sudo curl wget rsync ffmpeg
        imagemagick cuda arduino selenium matlab latex multithreading async debugger iterator struct enum cobol
        fortran haskell clojure elixir erlang perl xcode vscode js gpio godot shader parser scraper crawler
        rabbitmq orm crud uint sha256 cron webapp microservice backtrace compiler concurrency lambda base64 utf8
        backend ide codebase ruff parametrized prolog lisp scheme_lang ocaml query_string jvm zsh vim neovim
        nixos homebrew yarn_lock gradle maven junit makefiles deadlock stackoverflow serverless api_key endpoint
        endpoints webhook webhooks autoscaling oomkilled tmux traefik caddy haproxy prometheus grafana hibernate
        springboot asp dotnet blazor wpf qt tkinter streamlit opencv scikit seaborn ggplot tidyverse dplyr sed
        nan isnan recursion recursive memoization memoize quicksort mergesort dijkstra bogue déboguer depurar
        debuggen debugging debug skrypt betik sorgu kueri skrip segmentation wasm simd css3 html5 svg liner
        frontend rekursion rekursiv récursive récursif recursiva recursivo ricorsiva ricorsione makro makros
        sqlserver t-sql nosql dynamodb firestore supabase graphviz json5 svelte""",
    ),
    (
        1.0,
        """function functions script scripts query queries algorithm array arrays tuple tuples boolean null
        undefined await callback decorator constructor debugging exception compile compiles compiled compiling
        compiler runtime sdk cli api apis json xml csv oauth crud markup macro macros spreadsheet excel commit
        commits repo repository deploy docker pod pods daemon namespace ingress timeout timeouts retries parse
        parses parsing decode encode ascii hash sorting buggy linux ubuntu debian ssh unix react angular vue
        flask ts py python flutter android wordpress jupyter aws s3 ec2 gcp firmware loadbalancer balancer
        redirect dns tls loop loops joins database databases db config cfg filename filenames env dependencies
        mocks mock pixel px variable variables snippet programming coding linkedlist dict hooks dom selector
        canvas sortieren skript skripte funktion funktionen abfrage abfragen programmieren programmiere
        programmierung quelltext quellcode fehlermeldung datenbank kompilieren fonction fonctions requête
        requete requêtes coder algorithme función funcion funciones algoritmo algoritmi bucle compilar função
        funções planilha funzione funzioni functie foutmelding funkcja funkcję funkcji zapytanie pętla pętlę
        fonksiyon döngü fungsi hàm kode kod kodu koden webseite webpagina serverless powerbi dax spark airflow
        dbt parquet scala lua netlify vercel heroku lockfile localstorage cookie cache caching latency endpoint
        stack heap pointer pointers thread threads semaphore timestamp datetime iso8601 uuid cidr subnet vlan
        firewall quicksort bitwise hex hexadecimal binary floats float integer integers ints indexes imports
        consulta consultas interrogazione variabile variabili stringa strings serialize serialization
        deserialize chatbot discord zapier firebase unity roblox datapack raspberry esp32 mqtt modbus plc
        esp8266 cpu gpu webserver servlet tomcat iis wsl kernel chroot initramfs grub fstab samba nfs smtp imap
        dkim spf certbot letsencrypt openssl ssl keystore truststore indentation syntax semicolon whitespace
        newline newlines concatenate substring duplicates rows columns leerzeichen colonnes columnas spalten
        colonne kolommen kolumny""",
    ),
    (
        0.6,
        """code coded program programm programme programa programma parameter parameters argument arguments method
        methods class classes error errors bug bugs crash crashes crashed server servers serveur servidor
        container cluster branch merge merged pushed pulled push pull checkout java rust swift ruby scala julia
        node spring http https url urls schema migration index memory leak leaks overflow log logs logging
        console terminal command commands shell file files folder directory path configuration configure install
        installed package packages module component components template plugin extension build pipeline ci test
        tests assert fixture typed type types interface interfaces generic generics props render vue state
        dropdown responsive layout footer header sidebar placeholder port ports proxy certificate router mac
        windows app apps website site page bot automate automation table tables column columns row cell cells
        sheet sheets pivot formula formel formule fórmula fila filas hoja celda columna tabla tablas archivo
        archivos fichier fichiers datei dateien ordner verzeichnis befehl schleife spalte zeile zelle tabelle
        codice código codigo erreur errore erro fout hata błąd błędu commande comando boucle ciclo laço lus
        bestand bestanden plik pliki pliku dosya sütun kolom kolumna cella foglio riga tabella feuille tableau
        cellule colonne coluna arquivo arquivos célula tabela sort sorted sorts loops output input string list
        lists concurrent parallel property properties attribute inheritance closure promise object objects
        instance field fields value values key keys optional argparse rename refactored implement implementation
        duplicate duplicates import export imported dependency library framework version versions release
        deployed deployment deploys restart restarts fails failing failed returns return print prints printed
        line lines worker workers queue job button form animate animation grid screen docs deprecated update
        upgrade downgrade patch ausdruck klasse variablen umbenennen einrückung testfälle testfall schnittstelle
        einbinden ausführen läuft fehler compilare kompiliert compila executar ejecutar exécuter eseguire lancer
        request requests response responses payload headers token tokens auth login session sessions userid
        user_id handler listener event events""",
    ),
    (-0.7, "what who when where boss colleague colleagues manager company recommend worth better chef jefe capo"),
    (
        -1.5,
        """career salary interview interviews recruiter hiring hire cv bootcamp degree university college teacher
        student learn learning course courses legal law lawyer copyright contract licence history invented
        inventor founder philosophy sociology exam homework beruf karriere gehalt bewerbung recht vertrag gesetz
        lebenslauf lernen entretien carrière salaire droit contrat empleo carrera sueldo entrevista derecho
        contrato abogado lavoro stipendio colloquio emprego carreira salário kariera praca kariyer iş birthday
        wedding recipe cook cooking dinner pet vet doctor landlord tenant insurance tax symptoms novel poem
        poetry essay metaphor rhyme lyrics haiku joke""",
    ),
    (
        -2.5,
        """layman layperson laypeople jargon analogy eli5 grandma grandmother grandpa toddler kindergarten laien
        fachjargon oma großmutter analogie analogía metáfora vulgarisation profane abuela abuelo nonna abuelita
        proofread rephrase reword umformulieren korrekturlesen lektorieren reformule reformuler reformula
        pronounce etymology""",
    ),
)
"""Single words in lower case."""

def _phrases(*groups: tuple[float, str]) -> dict[str, tuple[tuple[str, float, int], ...]]:
    """By their first word: phrases, their weights, and the number of their group; `;` stands between phrases."""
    found: dict[str, list[tuple[str, float, int]]] = {}
    for number, (weight, phrases) in enumerate(groups):
        for phrase in " ".join(phrases.split()).split("; "):
            found.setdefault(phrase.partition(" ")[0], []).append((f" {phrase} ", weight, number))
    return {head: tuple(phrases) for head, phrases in found.items()}


PHRASES = _phrases(
    (
        2.5,
        """linked list; linked lists; binary tree; binary search; regular expression; regular expressions; unit test;
        unit tests; stack trace; time complexity; merge conflict; merge conflicts; null pointer; foreign key; primary key;
        list comprehension; inline style; inline styles; data frame; data frames; apps script; power query; conditional
        formatting; shell script; batch file; command line; regulärer ausdruck; regulären ausdruck; reguläre ausdrücke;
        expresión regular; expresion regular; expression régulière; espressione regolare; expressão regular; wyrażenie
        regularne; reguliere expressie; düzenli ifade; base de datos; banco de dados; base de données; source map; syntax
        error; google sheets; google sheet; dynamic programming; object oriented; code review; dry run; one liner""",
    ),
    (
        1.5,
        """web page; landing page; for loop; while loop; infinite loop; environment variable; environment variables; load
        balancer; out of memory; exit code; permission denied; connection refused; type error; pull request; merge request;
        rest api; web server; source code; command prompt; lập trình; boucle infinie; bucle infinito; loop infinito; node js;
        home assistant; docker compose; hello world; config file; stack overflow; status code; big o; pushed a commit;
        push a commit; last commit; my commit; the commit; force push; to main; to master; on main; from main; into main; feature
        branch; without recursion; no recursion; edge cases; edge case; return type; the console; my function; this function;
        the function; my script; this script; the script; my code; this code; the code; ma fonction; mon script; mon code;
        mein code; mein skript; meine funktion; der code; mi código; mi script; il mio codice; mijn code; mijn script""",
    ),
    (0.7, """what s wrong; what is wrong; doesn t work; does not work; not working; stopped working; no longer works;
        funktioniert nicht; geht nicht; ne fonctionne pas; ne marche pas; no funciona; non funziona; não funciona"""),
    (
        -2.0,
        """code of conduct; code of ethics; code of practice; code of honour; code of honor; dress code; zip code; area code;
        postal code; promo code; discount code; penal code; civil code; morse code; tax code; building code; highway code;
        country code; cheat code; colour code; color code; bar code; qr code; tv script; movie script; film script; código
        postal; código penal; código civil; code postal; code pénal; code civil; code de la route; codice fiscale; codice
        penale; codice civile; codice tributo; error code; body language; support group; film class; yoga class; first
        class; middle class; working class; social class; loop station; ball python; coffee bean; java island; source of""",
    ),
    (
        -2.5,
        """non technical; nontechnical; lay audience; lay reader; lay person; lay people; like i m five; like i m 5; like i m
        a child; year old; year olds; plain words; plain english; no code; no coding; without code; without coding; without
        any code; ohne code; kein code; keinen code; sans code; sin código; senza codice; release notes; press release;
        cover letter; blog post; short story; bedtime story; for my ceo; for our ceo; to my ceo; for our board; for our
        customers; for my parents; for my mother; for my mum; for my mom; for my dad; to my boss; for my boss; stay in
        character; should i learn; learn first; zonder jargon; in einfachen worten; con parole semplici; con palabras
        sencillas; avec des mots simples; job interview; in simple terms; job description; code name""",
    ),
    (
        -1.2,
        """what s a; what is a; what is an; what s an; what are; what is the difference; what s the difference; difference
        between; was ist ein; was ist eine; was ist der; was ist die; was ist das; unterschied zwischen; différence entre;
        diferencia entre; differenza tra; diferença entre; verschil tussen; qu est ce qu; qu est ce que; is it true; pros
        and cons; stimmt es; why is it called; ist es sinnvoll; should i use; should we use; should i choose; should we
        switch; should we choose; qué es; que es un; cos è; o que é; is it worth; advantages of; history of""",
    ),
)
"""Words that go together, in lower case and with single spaces; of a group the first to be found counts."""

SUMMARIES = _words(
    """summary summaries summarise summarize summarised summarizing summarising tldr zusammenfassung fasse zusammenfassen
    résumé résume résumer resumen resume resumir resumo riassunto riassumi riassumere samenvatting podsumuj özetle"""
)
TRANSLATIONS = _words(
    """translate translates translated translation translator translating übersetze übersetzen übersetzung übersetz traduce
    traducir traduzca traduci tradurre traduzione traducción traduz traduza traduzir tradução traduis traduire traduisez
    traduction vertaal vertalen vertaling przetłumacz çevir terjemahkan"""
)
TONGUES = _words(
    """english german french spanish italian portuguese dutch polish russian ukrainian czech turkish greek arabic hebrew hindi
    chinese mandarin japanese korean swedish danish norwegian finnish latin vietnamese thai indonesian romanian hungarian
    deutsch englisch französisch spanisch italienisch anglais français allemand espagnol italien inglés francés alemán
    español inglese francese tedesco italiano inglês francês alemão engels duits frans nederlands angielski niemiecki
    ingilizce inggris deutsche englische"""
)
"""Human languages, in some of them."""
MACHINE_TONGUES = _words("python java javascript rust go c c++ c# sql code typescript query kotlin swift ruby perl php scala r")

SCRIPTS: tuple[tuple[re.Pattern[str], dict[str, float]], ...] = (
    (
        re.compile("[\u4e00-\u9fff\u3040-\u30ff]"),
        _table(
            (
                3.0,
                "正则 正規表現 单元测试 程式碼 代码 报错 報錯 爬虫 スクリプト デバッグ クエリ リファクタ コンパイル マクロ 非同期",
            ),
            (
                2.0,
                "脚本 重构 调试 编译 数组 陣列 線程 线程 函式 迴圈 前端 后端 後端 命令行 递归 配列 コード 実装 再帰 デプロイ 源码 编程",
            ),
            (2.0, "变量 死锁 报表脚本 程式 單元測試 セル参照 シェル 関数を 型エラー ビルド 正規"),
            (
                1.2,
                "程序 函数 关数 関数 数据库 資料庫 部署 小程序 プログラム 変数 エラー データベース スプレッドシート 接口 网页 網頁 页面",
            ),
            (
                0.7,
                "查询 查詢 循环 算法 公式 表格 命令 配置 服务器 伺服器 异常 内存 サーバ コマンド 例外 ループ 数式 テーブル 日志 列 ファイル",
            ),
            (-1.5, "邮件 郵件 メール 学习 面试 职业 总结 要約 総結 转行 先生 学校 料理 法律"),
            (
                -2.5,
                "翻译 翻譯 翻訳 作文 故事 诗 詩 文案 通俗 比喻 手紙 物語 俳句 面接 転職 例え話 専門用語 外行 润色 潤色 小学生 初中生 散文 词性",
            ),
        ),
    ),
    (
        re.compile("[\uac00-\ud7a3]"),
        _table(
            (3.0, "정규식 정규표현식 정규 스크립트 자바스크립트 타입스크립트 쿼리 디버그 디버깅 컴파일 리팩터 단위"),
            (2.0, "코드 배열 파이썬 비동기 재귀 매크로 크롤러 크롤링 도커 깃허브 커밋 리액트"),
            (1.2, "함수 오류 에러 변수 데이터베이스 구현 명령어 프로그램 배포 엑셀 수식 코딩 반복문"),
            (0.7, "서버 로그 파일 테이블 정렬 출력"),
            (-1.5, "이메일 이야기 면접 취업 법률 요약"),
            (-2.5, "번역 시를 편지 소설 비유 쉽게"),
        ),
    ),
    (
        re.compile("[\u0400-\u04ff]"),
        _table(
            (3.0, "регулярк регулярное выраж джаваскрипт рефактор отлад"),
            (2.0, "скрипт массив переменн компил рекурс питоне питона исходник эксель макрос докер гит подзапрос"),
            (
                1.2,
                "функци запрос алгоритм программу базу_данных кода код_ цикл запит масив змінн",
            ),
            (0.7, "ошибк помилк сервер формул таблиц столбец столбц команд файл код строк лог поток сортир"),
            (-1.5, "письм юрист закон договор учить карьер зарплат резюме собеседован истори кодекс"),
            (
                -2.5,
                "переведи перевод стих сказк рассказ простыми_словами бабушк аналоги переклад вірш лист",
            ),
        ),
    ),
    (
        re.compile("[\u0600-\u06ff]"),
        _table(
            (3.0, "جافاسكريبت سكربت سكريبت استعلام بايثون پایتون كود اسکریپت"),
            (2.0, "مصفوفة خوارزمية کد برمجة برنامه‌نویسی"),
            (1.2, "دالة برنامج تابع متغير خطأ خطای"),
            (-2.5, "ترجم رسالة قصة قصيدة شعر ترجمه داستان"),
        ),
    ),
    (
        re.compile("[\u0590-\u05ff\u0370-\u03ff\u0900-\u0dff\u0e00-\u0e7f]"),
        _table(
            (3.0, "סקריפט שאילת פייתון สคริปต์ โค้ด स्क्रिप्ट क्वेरी"),
            (2.0, "κώδικ पायथन पाइथन कोड प्रोग्रामिंग कोडिंग ফাংশন কোড"),
            (1.2, "פונקצי קוד שגיא συνάρτησ σφάλμα फंक्शन फ़ंक्शन प्रोग्राम एरर ฟังก์ชัน โปรแกรม"),
            (-2.5, "תרגם מכתב שיר μετάφρασ ποίημα अनुवाद कविता कहानी แปล กลอน นิทาน"),
        ),
    ),
)
"""Other scripts: a letter of theirs, and what a text of theirs may contain."""

VERBS = _words(
    """write create make build generate give need want draft design implement develop produce compose code show
    prepare provide add fix debug craft pen help schreib schreibe schreiben erstell erstelle erstellen bau baue
    mach mache gib brauche bräuchte formuliere entwirf programmiere écris écrire écrivez crée créer créez génère
    générer fais donne besoin voudrais rédige rédiger rédigez escribe escribir escríbeme crea crear haz hazme
    genera dame necesito quiero redacta escriba scrivi scrivimi creare fammi dammi vorrei escreva escreve crie
    criar faça gere preciso redija schrijf maak geef napisz stwórz zrób utwórz yaz oluştur hazırla buat buatkan
    tulis tuliskan viết skriv lav napiš напиши напишите создай создайте сделай составь составьте нужен нужна
    нужно напишіть створи"""
)
"""Verbs of asking for something to be made, whose object tells what kind of thing it is."""

OBJECTS = _table(
    (
        2.5,
        """function script query regex regexp formula macro snippet code webpage html css dockerfile makefile
        unittest unit endpoint scraper crawler parser liner oneliner command sql userscript bookmarklet shader
        program component bot class api config configuration migration funktion skript programm abfrage formel
        makro webseite fonction requête programme función consulta programa fórmula funzione função planilha
        functie formule funkcję skrypt zapytanie fonksiyon fungsi skrip functies código codice kod функцию
        функция скрипт программу запрос код макрос формулу hàm dataframe iterator hook decorator struct
        testfälle navbar svg pipeline playbook helm manifest trigger view procedure stylesheet loop""",
    ),
    (
        1.2,
        "test tests website page app game schema type types method plugin extension website tool calculator seite site",
    ),
    (
        -3.0,
        """email mail e letter poem story haiku song essay speech toast joke jokes limerick sonnet tweet post
        article blog invitation biography bio title titles headline slogan caption summary notes proposal press
        quiz itinerary recipe agenda minutes scene dialogue monologue lyrics cv resume reply paragraph sentence
        rhyme tale fable obituary eulogy interview tagline announcement apology novel chapter outline curriculum
        syllabus questions advice gedicht geschichte rede einladung aufsatz bewerbung artikel zusammenfassung
        lied märchen brief beitrag anschreiben lettre poème histoire discours courriel résumé carta poema cuento
        guion guión discurso invitación artículo resumen correo lettera poesia storia racconto discorso conto
        história redação verhaal list wiersz opowiadanie şiir mektup hikaye surat puisi cerita thư письмо стих
        стихотворение рассказ сказку сказка эссе поздравление план лист tags flashcards""",
    ),
    (-1.5, "plan text message description report list overview explanation newsletter presentation slides erklärung"),
)
"""What such a verb may be about."""

OPENING = _words(
    """and also but now then or so what if make add remove rename use change do does can could why is und auch aber jetzt
    dann oder y ahora también pero et maintenant aussi mais e ora adesso anche ma agora também mas en nu ook maar i a
    teraz też ale ve şimdi ama dan sekarang tapi и теперь а но ще"""
)
"""First words of a short turn that carries on with what was there."""

FOLLOWING = _words(
    """it its this these those them same instead line still again version another other why works work doesn
    faster shorter cleaner simpler change remove rename handle explain second first third last
    das es diese dieser dieses stattdessen zeile gleiche nochmal geht warum ohne eso esto línea mismo ça cela ligne même
    questo riga stesso isso linha dit dat zonder bez bunu это также"""
)
"""Words anywhere in it that point back."""

TURNING = re.compile(
    r"different (?:thing|topic|question|subject|story)|unrelated|another (?:topic|subject|matter)|by the way|\bbtw\b"
    r"|off[- ]?topic|something (?:completely |totally |else )?(?:else|different)|chang(?:e|ing) (?:the )?(?:subject|topic)"
    r"|on another note|forget (?:about )?(?:the|this|that) (?:code|script|program)|enough (?:code|coding|programming)"
    r"|übrigens|was (?:ganz )?anderes|anderes thema|themenwechsel|andere frage|por cierto|otra cosa|cambiando de tema"
    r"|au fait|autre chose|rien à voir|changeons de sujet|a proposito|altra cosa|cambiando argomento|tutt'altro"
    r"|a propósito|outra coisa|mudando de assunto|trouwens|iets anders|ander onderwerp|swoją drogą|inna sprawa|bu arada"
    r"|кстати|другой вопрос|другая тема|换个话题|換個話題|顺便问|題外話|ところで|別の話|別件|그런데|다른 얘기"
)
"""A turn away from what was talked about."""

THANKS = _words(
    """ok okay perfect great thanks thank you thx ty cool nice awesome danke super merci gracias grazie obrigado obrigada
    bedankt dzięki спасибо 谢谢 謝謝 ありがとう ありがとうございます 감사합니다 hi hello hey bye very so much vielen dank schön
    parfait perfetto perfecto mille muchas good done that s it works all"""
)
"""What a turn that only thanks or greets is made of."""
