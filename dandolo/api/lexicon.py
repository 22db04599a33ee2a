"""Words that speak for code or for plain prose, with weights: data for `codesigns`.

Weights are in points of one scale: 3 speaks for itself (`regexp`, `dockerfile`), 1 to 2 wants company (`function`,
`query`), below 1 is only a shade (`file`, `error`). Words with another life outside computing (python, java,
class, script, commit) stand low on purpose. Latin words are looked up whole; other scripts, which inflect at
the end or write no spaces, by  the text contains.
"""

from __future__ import annotations

import re


def table_of(*groups: tuple[float, str]) -> dict[str, float]:
    """Words to weights, the first of several; `_` in a word stands for a space."""
    weights: dict[str, float] = {}
    for weight, words in groups:
        for word in words.split():
            weights.setdefault(word.replace("_", " "), weight)
    return weights


def words_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


WORDS = table_of(
    (
        3.0,
        """scad rigidbody collider prefab navmesh raycast genserver liveview activerecord addeventlistener
        ahk applescript argv arrayformula asyncio autocad_lisp autohotkey awk axios bash bashrc batchdatei
        beautifulsoup bibtex bigquery bookmarklet buscarv c# c++ chmod clang clickhouse cmake cosmosdb
        countif countifs cronjob crontab css cypher dataframe dataframes django dockerfile dockerignore
        docstring docstrings dplyr duckdb editorconfig elisp eloquent endlosschleife entitymanager esbuild
        eslint f# fastapi fizzbuzz gcc gdb gdscript getopt gitignore glsl gnuplot golang goroutine graphviz
        grep gsub gunicorn hlookup hlsl htaccess html i2c importrange innerhtml instanceof iostream iptables
        javascript jenkinsfile jinja journalctl jq jquery jupyter kibana knitr kommandozeile kotlin kubectl
        kustomize laravel leetcode lilypond linq lldb logql logstash makefile malloc mariadb matplotlib
        microcontroller mikrocontroller mockito mongodump mssql mutex mypy mysql nasm nextjs nodejs npm
        nullpointerexception numpy nunit nuxt objdump onclick oneliner openapi opengl openmp openscad pandas
        parametrize pg_dump pgfplots phpunit plantuml plpgsql plsql pnpm polars postgres postgresql
        powershell prettierrc printf println procv promql protobuf pseudocode psql pygame pyspark pytest
        pytorch queryselector readme.md recherchev regex regexes regexp replaceall rmarkdown rspec
        rückgabewert sbt scss segfault segfaults setinterval settimeout sklearn solidity sparql sql
        sqlalchemy sqlite stacktrace stdlib strace stylelint subconsulta subconsultas subprocess subquery
        sumif sumifs summewenn sumproduct sverweis swiftui systemctl tailwind tensorflow testng tidyr tikz
        timestamptz traceback tsconfig tsql typeof typescript uart unittest unittests upsert useeffect
        userscript usestate uvicorn valgrind vba verilog vhdl vhost vimrc vitest vlookup vuejs webpack
        wverweis xargs xlookup xpath xslt xunit xverweis zsh zshrc zählenwenn""",
    ),
    (
        2.0,
        """oom hitbox ajax api_key arm64 asciidoc async autoload autoscaling backtrace base64 betik bitfield
        bitmask bitwise blazor bogue breakpoints bundler certbot cherrypick childnodes clojure cobol codebase
        codeblock codepen colspan combobox conda coroutine cors crawler crc32 cron crud css3 cte cuda
        datagrid debounce debug debuggen debugger debugging depurar destructor dijkstra div divs docker
        dotnet dovecot dynamodb déboguer endian endpoint endpoints enum erlang ffmpeg firestore flexbox
        foreach fortran functor getter ggplot git gitea gpio gradle grafana graphql grpc haproxy hashmap
        hashset hashtable hashtables haskell homebrew hotkey href html5 iframe imagemagick isnan iterator
        jenkins js jsfiddle json5 junit jvm jwt keybinding keymap kubernetes kueri letsencrypt liner lint
        linter listbox localhost makefiles makro makros matlab memoised memoization memoize memoized
        mergesort microservice middleware minify monad mongodb monorepo multithreading navbar neovim nginx
        nixos nosql notepad++ nullptr ocaml oomkilled opencv openldap orm overleaf parametrized parser perl
        php pipx pointers polyfill polymorphism preprocessor prolog query_string quicksort rabbitmq rebase
        recursion recursiva recursive recursivo redis refactor refactoring rekursion rekursiv replit
        ricorsione ricorsiva rowspan rsync rustc récursif récursive scheme_lang scikit scraper seaborn serde
        serverless setter sha256 shader shortcode simd skrip skrypt sorgu springboot sqlserver stackoverflow
        stacktraces stderr stdin stdout streamlit struct stylesheet subclass subclasses submodule submodules
        subroutine sudo supabase systemd t-sql textarea textbox tidyverse tkinter tmux tokio toml traefik
        transpile transpiler typeclass uint uncaught unhandled utf8 venv viewmodel viewport vim vscode wasm
        webapp webhook webhooks webpage websocket websockets wget wpf wsl x86 xcode yaml yarn_lock yml
        zeichenkette""",
    ),
    (
        1.4,
        """svg arduino append appends autocomplete beamer bfs camelcase cname concatenated crc debian dfs
        dépôt firmware iterate iterates iterating kafka knapsack ldap linker lowercase multipart mvvm oauth2
        overload overloaded override overrides pagination palindrome pip postfix raspberry regelausdruck
        repositorio requete requête saml sharding singleton slug stringa strings substring ternary unicode
        uppercase utf""",
    ),
    (
        1.2,
        """doublons duplikate duplicados duplicati dubbele dublety ansible apache backend checksum compiler
        elementor fibonacci frontend github gitlab ide latex markdown mermaid mvc ruff spss terraform""",
    ),
    (
        1.0,
        """funkci funkce funkcia funksjon funkció függvény funkcija funkciju funktio pythonu pythonie
        pythonem pythonissa javascriptu formula formel fórmula formule konsole abfrage abfragen airflow
        algorithm algorithme algoritmi algoritmo android api apis array arrays ascii await aws balancer
        boolean bucle buggy caching callback canvas cfg chatbot chroot cidr cli coding colonne colonnes
        columnas columns commit commits compilar compile compiled compiles compiling concatenate concurrency
        config constructor consulta consultas cookie cpu csv database databases datapack datenbank datetime
        dax db dbt decode decorator dependencies deserialize dict discord dkim dns duplicates döngü ec2
        encode env esp32 esp8266 excel exception fehlermeldung filename filenames firebase firewall flutter
        fonction fonctions fonksiyon foutmelding fstab funcion funciones función functie function functions
        fungsi funkcja funkcji funkcję funktion funktionen funzione funzioni função funções gcp gpu grub
        heroku hexadecimal hàm iis imap imports indentation indexes ingress initramfs integer integers
        interrogazione ints iso8601 joins json keystore kod kode koden kodu kolommen kolumny kompilieren
        lambda latency leerzeichen linkedlist linux loadbalancer localstorage lockfile loop loops macro
        macros markup modbus mqtt namespace netlify newline newlines nfs oauth openssl parquet parse parses
        parsing pixel planilha plc powerbi programmiere programmieren programmierung programming px py python
        pętla pętlę quellcode quelltext queries query redirect repo repository requêtes retries roblox rows
        runtime s3 samba script scripts sdk selector semicolon serialization serialize servlet skript skripte
        smtp snippet sortieren sorting spalten spreadsheet ssh ssl subnet timeout timeouts timestamp tls
        tomcat truststore ts tuple tuples ubuntu undefined unity unix uuid variabile variabili variable
        variables vercel vlan webpagina webseite webserver whitespace wordpress xml zapier zapytanie""",
    ),
    (
        0.7,
        """asp cache caddy curl daemon deadlock deploy elixir godot hash hibernate jest kernel lisp maven pod
        pods prometheus qt sas segmentation selenium semaphore stata svelte""",
    ),
    (
        0.6,
        """alert alerts sieve filter animate animation archivo archivos argparse argument arguments arquivo
        arquivos assert attribute ausdruck ausführen auth automate automation befehl bestand bestanden boucle
        bug bugs build button błąd błędu celda cell cella cells cellule certificate checkout ci ciclo class
        classes closure cluster code coded codice codigo column columna coluna comando command commande
        commands compila compilare component components concurrent configuration configure console container
        crash crashed crashes célula código datei dateien dependency deployed deployment deploys deprecated
        directory dosya downgrade dropdown duplicate einbinden einrückung ejecutar erreur erro error errore
        errors eseguire event events executar export extension exécuter failed failing fails fehler feuille
        fichier fichiers fila filas file files fixture foglio folder footer fout framework generic generics
        grid handler hata header headers hoja http https implement implementation import imported index
        inheritance input install installed instance interface interfaces java julia kolom kolumna kompiliert
        lancer layout laço leak leaks library listener log logging login logs lus läuft mac memory merge
        merged migration module object objects optional ordner output overflow package packages parallel
        parameter parameters path payload pipeline pivot placeholder plik pliki pliku plugin port ports
        printed program programa programm programma programme promise properties property props proxy pull
        pulled push pushed queue refactored rename render responsive restart restarts return returns riga
        router row ruby rust schema schleife schnittstelle server servers serveur servidor session sessions
        sheets shell sidebar sort sorted sorts spalte state string swift sütun tabela tabella tabelle tabla
        tablas tableau template terminal test testfall testfälle tests token tokens type typed types
        umbenennen url urls user_id userid variablen verzeichnis website zeile zelle""",
    ),
    (
        0.5,
        """angular binary coder cookies dom flask float floats heap hex hooks lua mock mocks node null
        pointer react scala sed spark spf spring stack syntax thread threads vue""",
    ),
    (
        0.4,
        """automatically automatisch automatiquement automáticamente automaticamente digits app apps bot
        branch clase classe docs field fields form job key keys klasse line lines list lists method methods
        metodo méthode método page patch print prints release request requests response responses screen
        sheet site table tables update upgrade value values version versions windows worker workers""",
    ),
    (
        -0.7,
        """colleague colleagues boss better capo chef company customers feel feeling idea ideas jefe logo
        manager meeting opinion stakeholders worth""",
    ),
    (
        -1.5,
        """blog announcement recommend book books politely gently party abogado beruf bewerbung birthday
        bootcamp branding career carreira carrera carrière college colloquio contract contrat contrato cook
        cooking copyright course courses cv degree derecho dinner doctor droit empleo emprego entretien
        entrevista essay exam founder gehalt gesetz haiku hire hiring history homework influencer instagram
        insurance interview interviews invented inventor investor investors iş joke kariera kariyer karriere
        landlord lavoro law lawyer learn learning lebenslauf legal lernen licence lyrics marketing metaphor
        newsletter novel pet philosophy pitch podcast poem poetry praca recht recipe recruiter rhyme salaire
        salary salário slogan sociology stakeholder stipendio student sueldo symptoms tax teacher tenant
        university vertrag vet wedding""",
    ),
    (
        -2.5,
        """crossword riddle trivia chess kreuzworträtsel rätsel abuela abuelita abuelo analogie analogy
        analogía eli5 etymology fachjargon grandma grandmother grandpa großmutter jargon kindergarten
        korrekturlesen laien layman laypeople layperson lektorieren metáfora nonna oma profane pronounce
        proofread reformula reformule reformuler rephrase reword toddler umformulieren vulgarisation""",
    ),
    (-0.4, "what who when where"),
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
        """linked list; linked lists; binary tree; binary search; regular expression; regular expressions;
        unit test; unit tests; stack trace; time complexity; merge conflict; merge conflicts; null pointer;
        foreign key; primary key; list comprehension; inline style; inline styles; data frame; data frames;
        apps script; power query; conditional formatting; shell script; batch file; command line; regulärer
        ausdruck; regulären ausdruck; reguläre ausdrücke; expresión regular; expresion regular; expression
        régulière; espressione regolare; expressão regular; wyrażenie regularne; reguliere expressie; düzenli
        ifade; base de datos; banco de dados; base de données; source map; syntax error; google sheets;
        google sheet; dynamic programming; object oriented; code review; dry run; one liner; github actions;
        github action; hosts file; zone file; virtual host; unit file; core dump; react native; media query;
        z index; border radius; query string; query parameter; left join; inner join; outer join; group by;
        where clause; stored procedure; materialized view; window function; slow query; explain analyze;
        connection pool; type hint; type hints; type annotation; type annotations; pip install; npm install;
        npm run; node modules; package json; compile error; borrow checker; switch statement; nested loop;
        nested loops; abstract class; dependency injection; entity framework; bedingte formatierung; mise en
        forme; chaîne de caractères; ligne de commande; línea de comandos; formato condicional; riga di
        comando; formattazione condizionale; linha de comando; formatação condicional; wiersz poleceń; cadena
        de texto; visual basic; visual studio; structured text; ladder logic; design pattern; web component;
        event listener; race condition; kernel panic; pull requests; rest endpoint; command block; hook
        script; git hook; if else; else if; if statement; if statements; docker container; docker image;
        lookup table; hash map; hash table; priority queue; code golf; g code; emacs lisp; vim script; google
        apps; word macro; excel macro; makefile target; test case; test cases; unit testing; integration
        test; integration tests; boundary cases""",
    ),
    (
        1.5,
        """web page; landing page; for loop; while loop; infinite loop; environment variable; environment
        variables; load balancer; out of memory; exit code; permission denied; connection refused; type
        error; pull request; merge request; rest api; web server; source code; command prompt; lập trình;
        boucle infinie; bucle infinito; loop infinito; node js; home assistant; docker compose; hello world;
        config file; stack overflow; status code; big o; pushed a commit; push a commit; last commit; my
        commit; the commit; force push; to main; to master; on main; from main; into main; feature branch;
        without recursion; no recursion; edge cases; edge case; return type; the console; my function; this
        function; my script; this script; my code; this code; the code; ma fonction; mon script; mon code;
        mein code; mein skript; meine funktion; der code; mi código; mi script; il mio codice; mijn code;
        mijn script; http request; post request; get request; web app; memory leak; build error; runtime
        error; event loop; state machine; rate limit; pattern matching; many to many; off by one; header
        file; virtual environment; active directory; home directory; file name; file names; command not
        found; is not defined; not a function; no such file; access denied; database table; database tables;
        in a loop; per line; line by line; return value; default value; null value; column a; column b; cell
        a1; in cell; hoja de cálculo; foglio di calcolo; tableau croisé; css class; html file; text file;
        config files; yaml file; json file; csv file; log file; log files; error message; error log; stops
        compiling; won t compile; doesn t compile""",
    ),
    (
        0.7,
        """what s wrong; what is wrong; doesn t work; does not work; not working; stopped working; no longer
        works; funktioniert nicht; geht nicht; ne fonctionne pas; ne marche pas; no funciona; non funziona;
        não funciona""",
    ),
    (
        -2.0,
        """code of conduct; code of ethics; code of practice; code of honour; code of honor; dress code; zip
        code; area code; postal code; promo code; discount code; penal code; civil code; morse code; tax
        code; building code; highway code; country code; cheat code; colour code; color code; bar code; qr
        code; tv script; movie script; film script; código postal; código penal; código civil; code postal;
        code pénal; code civil; code de la route; codice fiscale; codice penale; codice civile; codice
        tributo; error code; body language; support group; film class; yoga class; first class; middle class;
        working class; social class; loop station; ball python; coffee bean; java island; source of""",
    ),
    (
        -2.5,
        """non technical; nontechnical; lay audience; lay reader; lay person; lay people; like i m five; like
        i m 5; like i m a child; year old; year olds; plain words; plain english; no code; no coding; without
        code; without coding; without any code; ohne code; kein code; keinen code; sans code; sin código;
        senza codice; release notes; press release; cover letter; blog post; short story; bedtime story; for
        my ceo; for our ceo; to my ceo; for our board; for our customers; for my parents; for my mother; for
        my mum; for my mom; for my dad; to my boss; for my boss; stay in character; should i learn; learn
        first; zonder jargon; in einfachen worten; con parole semplici; con palabras sencillas; avec des mots
        simples; job interview; in simple terms; job description; code name""",
    ),
    (
        -1.2,
        """what s a; what is a; what is an; what s an; what are; what is the difference; what s the
        difference; difference between; was ist ein; was ist eine; was ist der; was ist die; was ist das;
        unterschied zwischen; différence entre; diferencia entre; differenza tra; diferença entre; verschil
        tussen; qu est ce qu; qu est ce que; is it true; pros and cons; stimmt es; why is it called; ist es
        sinnvoll; should i use; should we use; should i choose; should we switch; should we choose; qué es;
        que es un; cos è; o que é; is it worth; advantages of; history of; as a json; as json; in json; json
        array; json only""",
    ),
)
"""Words that go together, in lower case and with single spaces; of a group the first to be found counts."""

SCRIPTS: tuple[tuple[re.Pattern[str], dict[str, float]], ...] = (
    (
        re.compile("[\u4e00-\u9fff\u3040-\u30ff]"),
        table_of(
            (
                3.0,
                """正则 正規表現 单元测试 程式碼 代码 报错 報錯 爬虫 スクリプト デバッグ クエリ リファクタ
                コンパイル マクロ 非同期""",
            ),
            (
                2.0,
                """脚本 重构 调试 编译 数组 陣列 線程 线程 函式 迴圈 前端 后端 後端 命令行 递归 配列 コード
                実装 再帰 デプロイ 源码 编程""",
            ),
            (
                2.0,
                """变量 死锁 报表脚本 程式 單元測試 セル参照 シェル 関数を 型エラー ビルド 正規""",
            ),
            (
                1.2,
                """エクセル 程序 函数 关数 関数 数据库 資料庫 部署 小程序 プログラム 変数 エラー データベース
                スプレッドシート 接口 网页 網頁 页面""",
            ),
            (
                0.7,
                """查询 查詢 循环 算法 公式 表格 命令 配置 服务器 伺服器 异常 内存 サーバ コマンド 例外
                ループ 数式 テーブル 日志 列 ファイル""",
            ),
            (
                -1.5,
                """邮件 郵件 メール 学习 面试 职业 总结 要約 総結 转行 先生 学校 料理 法律""",
            ),
            (
                -2.5,
                """方程 翻译 翻譯 翻訳 作文 故事 诗 詩 文案 通俗 比喻 手紙 物語 俳句 面接 転職 例え話
                専門用語 外行 润色 潤色 小学生 初中生 散文 词性""",
            ),
        ),
    ),
    (
        re.compile("[\uac00-\ud7a3]"),
        table_of(
            (
                3.0,
                """정규식 정규표현식 정규 스크립트 자바스크립트 타입스크립트 쿼리 디버그 디버깅 컴파일 리팩터
                단위""",
            ),
            (
                2.0,
                """코드 배열 파이썬 비동기 재귀 매크로 크롤러 크롤링 도커 깃허브 커밋 리액트""",
            ),
            (
                1.2,
                """함수 오류 에러 변수 데이터베이스 구현 명령어 프로그램 배포 엑셀 수식 코딩 반복문""",
            ),
            (
                0.7,
                """서버 로그 파일 테이블 정렬 출력""",
            ),
            (
                -1.5,
                """이메일 이야기 면접 취업 법률 요약""",
            ),
            (
                -2.5,
                """번역 시를 편지 소설 비유 쉽게""",
            ),
        ),
    ),
    (
        re.compile("[\u0400-\u04ff]"),
        table_of(
            (
                3.0,
                """регулярк регулярное выраж джаваскрипт рефактор отлад""",
            ),
            (
                2.0,
                """скрипт массив переменн компил рекурс питоне питона исходник эксел макрос докер гит
                подзапрос""",
            ),
            (
                1.2,
                """функци запрос алгоритм программу базу_данных кода код_ цикл запит масив змінн""",
            ),
            (
                0.7,
                """ошибк помилк сервер формул таблиц столбец столбц команд файл код строк лог поток сортир""",
            ),
            (
                -1.5,
                """письм юрист закон договор учить карьер зарплат резюме собеседован истори кодекс""",
            ),
            (
                -2.5,
                """переведи перевод стих сказк рассказ простыми_словами бабушк аналоги переклад вірш лист""",
            ),
        ),
    ),
    (
        re.compile("[\u0600-\u06ff]"),
        table_of(
            (
                3.0,
                """جافاسكريبت سكربت سكريبت استعلام بايثون پایتون كود اسکریپت""",
            ),
            (
                2.0,
                """مصفوفة خوارزمية کد برمجة برنامه‌نویسی""",
            ),
            (
                1.2,
                """دالة برنامج تابع متغير خطأ خطای""",
            ),
            (
                -2.5,
                """ترجم رسالة قصة قصيدة شعر ترجمه داستان""",
            ),
        ),
    ),
    (
        re.compile("[\u0590-\u05ff\u0370-\u03ff\u0900-\u0dff\u0e00-\u0e7f]"),
        table_of(
            (
                3.0,
                """סקריפט שאילת פייתון สคริปต์ โค้ด स्क्रिप्ट क्वेरी""",
            ),
            (
                2.0,
                """κώδικ पायथन पाइथन कोड प्रोग्रामिंग कोडिंग ফাংশন কোড""",
            ),
            (
                1.2,
                """פונקצי קוד שגיא συνάρτησ σφάλμα फंक्शन फ़ंक्शन प्रोग्राम एरर ฟังก์ชัน โปรแกรม""",
            ),
            (
                -2.5,
                """תרגם מכתב שיר μετάφρασ ποίημα अनुवाद कविता कहानी แปล กลอน นิทาน""",
            ),
        ),
    ),
)
"""Other scripts: a letter of theirs, and what a text of theirs may contain."""
