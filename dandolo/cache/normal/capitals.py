"""Which words lose their capitals, and which are other words with one: data.

A capital inside an English sentence is dropped unless the word stands in `AMBIGUOUS` or `UNIT_CASE`, so these two
lists are generous: a word too many costs a hit, a word too few may answer for Turkey with a recipe.
"""

from __future__ import annotations

from dandolo.cache.normal.words import words_of

PROGRAMMING_NAMES = words_of("python java rust go ruby swift julia dart scratch perl pascal elixir crystal")
"""Languages that are also common words: as good as their small letters once the question is about programs."""

AMBIGUOUS = PROGRAMMING_NAMES | words_of(
    """access accord ace act ada afghan aids aim airflow al alas alien aliens ally alphabet alpine am amazon amber amp
    and angel angels angular animals appium apple ar arch archer argo arrival art as ask at august aurora autumn
    avalanche babel backbone baker ball banks barber baron basic basil basque bat bath battle be beam bear bears
    beetle bell beloved berry best bid big bill bills bing bionic bird birds bishop bit black blender block bolt
    bond bones books bordeaux bottle bower box brave bread bridges brook brooks brown browns buffalo bulls bumble
    burgundy bus bush buster butler calendar can cap capitol carbon cardigan cardinals carpenter cars carter castle
    cat catalina catholic cats celery chai champagne chandler chapel chase chat cheddar chef chile china chrome
    church circle civic clash clean client cliff coco cologne compound conservative consul cook cooper cop cork cos
    cpt crane crisp crown cruise ct cucumber cure curie curry curve cut cypress daisy dale dane danes danish dash
    date dawn day de debut delta democrat democratic denim diamond dick dip discord docs dodge doors dos dot dove
    drake drew drive duck duke dune eagles earl earth east echo ed edge eiffel elastic elementary elf elm emacs
    ember epic era escape eta eve excel explorer express faith falcon fanny fast fat fiat fidelity field fields
    figma finch finn fire firm fisher fit flask flink flux focus fold ford forest forth fortune fox frank
    frankfurter friends frozen fusion galaxies galaxy gap garage gardener gates gemini gene ghost giants gladiator
    glee glen glue god gods gold golf grace grant gravity gre grease green grok grunt guardian guinea gulp hack hal
    hall ham hamburger hare harper hawks he head heat heath heather helm her hi hill hinge hiv hive hives holly hook
    hooks hope horn host house hun hunter id if in inception indeed intel iota ira iris is it ivy jack jade jaguar
    jam jammy jaws jay jersey jest jets jewel job jobs joule journey joy kafka karma keep keynote killers kindle
    king kings knight la labor labour lake lambda lan lane lap laps lead leaf lean lent leopard less liberal life
    lily lions lisp little llama log logo long longhorn lord lost love lsat luck ma mac mach magic mail major make
    maker man mandarin manila map maps march mark mars marsh marshall martin mason mat matrix may md me medium meet
    melody memento mercury mesa messages messenger met meta miller mills mint mirror misty mo mobile mocha mojo
    monster monterey moon more mosaic moss mr ms music mustang my nano nap nasa ne near nest net nets news nice nim
    no noble node nomad nook north not notes notion nova numbers nut oasis office oh ohm ok olive on opera
    or oracle orange orthodox outlook oxford pa packer page pages pan pandora pap parcel parker pat patch peach
    peacock pear pearl penny people pet phoenix photos pico pig pilot pin piper pixel plague planner plum pm pole
    poles police polish polo polygon pond pony poor pope porter post potter power powers predator price prince
    progressive project psycho pub publisher pug pulp pulsar puma puppet puppeteer queen quick racket ram rangers
    ravens ray react reading reason red redux reed reels rent republican rice rich ring rings rip ripple rivers road
    roads rob robin rock rockets rocky rogue rollup root rose rush rusty sad safari sage saints salt samza sandy
    sarge sass sat savage saw sawyer sc scheme scotch scream scrubs sed selenium self sequoia seven sharks sharp
    sheets shell shepherd shore short sid sidekick sierra signal silver sim sin sinon sis sketch skinner sky slack
    slackware slav slides small smith smiths snap snowflake snowpack so sonoma sort sos soul south spark speed
    splash spring sprint square stand star stars status steam steel stellar stocks stone stories storm stranger
    street stretch stripe strokes strong stylus subway sue suede suits summer sun suns surface swan swarm swede
    sweet switch tail tails tan tanner target tea teams telegram telegraph temple tenet tether thing things threads
    thunder tidal tide tiger time tinder tip top tornado towers trial triumph trump turkey turks turner unity unreal
    up us usher vagrant van vanguard vault ventura vi violet virgin visa vista voice void volt wa walker wan
    wanted ward watt weather weaver week wells west whisper white who whole wi wicked wild will windows winter wire
    wired wise wolf wonder wood woods woody word words wright yarn young zig zoom""",
)
"""Words whose capital may make another thing of them: inside a sentence the writer's case is kept.

Not beside another capital, though: Will Smith, South Korea and the White House are names in any case."""

NO_MASS = words_of("python java go excel swift julia perl may march august")
"""Ambiguous words that after "in" are the name whatever their case: nothing else fits there without an article."""

ALWAYS_SMALL = words_of("will may can it no so he if is on at in as be or and not am who do hi ok")
"""Ambiguous words that a sentence may open with, where the capital means nothing."""

EMPHASIS = words_of("not never only every each must always")
"""Words written in capitals for stress alone."""

UNIT_CASE = words_of(
    """kb mb gb tb pb kib mib gib tib kbps mbps gbps mw gw kw ma mv ms ps ns pa mpa kpa ph db mg mm nm pm mhz ghz khz
    ev kev mev gev co cs hf os sn po ni nb mol cal kcal bn mn tn cm km kg ml dl hz mah wh kwh mwh mbar kn""",
)
"""Units and formulas in which a capital is another prefix, unit or element: kept as written."""

NUMBERED: dict[str, str] = {
    name.lower(): name
    for name in (
        "COVID-19", "GPT-3", "GPT-4", "GPT-5", "UTF-8", "UTF-16", "HTML5", "CSS3", "MP3", "MP4", "IPv4",
        "IPv6", "Web3", "ES6", "SHA-256", "SHA256", "MD5", "Base64",
        "Python3", "HTTP/2", "HTTP/3", "WW2", "WW1", "PS5", "PS4", "USB-C",
    )
}  # fmt: skip
"""Names with digits whose capitals say nothing. Not CO2: Co2 is another substance."""

AFTER_THE = words_of(
    """netherlands philippines bahamas maldives usa uk eu un sahara gobi nile rhine thames danube alps andes himalayas
    pacific atlantic mediterranean arctic antarctic balkans caribbean louvre vatican kremlin colosseum parthenon
    titanic bible quran torah internet renaissance holocaust olympics beatles pantheon acropolis iliad aeneid
    hobbit congo ganges mississippi volga seine euphrates tigris caucasus pyrenees urals crimea bronx hague
    romans greeks vikings aztecs incas mayans ottomans egyptians persians french british english germans chinese
    japanese americans russians""",
)
"""Names that stand alone after "the" and are nothing without their capital; of others (the Doors) we cannot tell."""

MIXED_CASE = words_of(
    """github gitlab javascript typescript postgresql mysql mongodb nosql graphql youtube linkedin tiktok
    whatsapp facebook iphone iphones ipad ipads macbook imac ios macos airpods ebay paypal wordpress chatgpt openai
    pytorch tensorflow numpy scipy fastapi opencv opengl vscode intellij pycharm webstorm powershell powerpoint onedrive
    icloud ipod ubuntu centos freebsd openbsd latex bitcoin dna rna mrna phd""",
)
"""Names that write capitals inside and are nothing else in small letters."""
