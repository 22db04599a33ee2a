"""What single English words are to the normal form: data, and the tables made of it.

Every list here is closed on purpose. A word that is missing from a list of things to fold costs a hit; a word
that stands wrongly in one can serve a wrong answer, so the lists of what forbids folding (`MENTION`,
`SYMBOL`) are generous and the lists of what folds are not.
"""

from __future__ import annotations


def words_of(*texts: str) -> frozenset[str]:
    """The words of the texts; `_` in a word stands for a space."""
    return frozenset(word.replace("_", " ") for text in texts for word in text.split())


WH = words_of("what which who whom whose where when why how")
COPULA = words_of("is are was were")
MODAL = words_of("can could should would will may might must shall")
AUXILIARY = COPULA | MODAL | words_of("do does did has have had am")
PRONOUN = words_of("i you he she it we they one")
DETERMINER = words_of("a an the this that these those my our your his her its their some any")

VERBS = words_of(
    """add adjust advise analyze annotate answer arrange brainstorm break build calculate categorize change check
    choose cite clarify classify clean combine comment compare compile complete compose compute condense construct
    contrast convert correct count craft create critique debug decide decode decrypt deduce define delete
    demonstrate derive describe design detail detect determine develop diagnose differentiate discuss display
    distinguish divide draft draw edit elaborate encode enumerate estimate evaluate examine expand explain extract
    factor fill find fix format formulate generate give guess help highlight identify illustrate implement improve
    increase infer insert integrate interpret introduce invent investigate join justify label list locate make map
    match mention merge modify multiply name note optimize order organize outline paraphrase parse pick plan plot
    predict prepare prioritize produce proofread propose prove provide put quote rank rate read recommend
    recite refactor remove rename reorder rephrase replace report reply represent resolve respond restate
    return review revise rewrite round select shorten show simplify simulate sketch solve sort specify split state
    suggest summarize suppose switch tell test tokenize train transcribe transform translate trim turn use
    validate verify walk write""",
    "analyse categorise optimise organise prioritise summarise",
)
"""Imperatives that people put to an assistant; courtesy words go only where one of these or a question follows."""

OPENER = WH | AUXILIARY | VERBS | words_of("please pls plz kindly i i'd i'm isn't aren't don't doesn't didn't")
QUESTION = WH | AUXILIARY

MENTION = words_of(
    """translate translated translates translating translation say says said saying word words phrase phrases
    sentence sentences spell spells spelled spelling spelt pronounce pronounced pronunciation mean means meant
    meaning synonym synonyms antonym antonyms rhyme rhymes rhyming letter letters character characters syllable
    syllables capitalize capitalized capitalise uppercase lowercase contraction contractions apostrophe comma commas
    punctuation grammar grammatical grammatically proofread rewrite rephrase paraphrase correct abbreviation
    abbreviations acronym acronyms etymology plural singular noun verb adjective adverb conjugate conjugation vowel
    vowels consonant consonants palindrome anagram anagrams lyrics title titles titled called named quote quotes
    slogan tweet caption hashtag british american english accent slang idiom idioms numeral numerals greeting
    greet message sms email reply preposition pronoun tense emoji morse encode decode encrypt tokens tokenize
    written typed expressing""",
)
"""Words that say the question is, or may be, about words: then its words are not ours to change."""

SYMBOL = words_of(
    """regex regexp regexes glob wildcard operator operators punctuation symbol symbols sign signs mark marks
    character characters pattern patterns quantifier ruby rails macro macros method methods prolog scheme lisp
    clojure factorial swift kotlin typescript julia""",
)
"""Words beside which a question or exclamation mark may be part of what is asked about."""

PROGRAMMING = words_of(
    """function functions code script program programs class classes list lists dictionary dict variable
    variables array arrays loop loops sort parse file files compile compiler library libraries module modules
    package packages regex json csv xml yaml api error errors exception exceptions install slice slices import
    decorator generator thread threads async string strings integer integers struct structs interface interfaces
    closure closures programming software developer backend framework repository debug linked database query""",
)

ENGLISH = words_of(
    """the and what how why which where when who with from this that does did should please between write give
    explain is are was were of for to in on you your my i can it a an not best vs versus""",
)
"""Words that speak for English where no opener does."""

FOREIGN = words_of(
    """der das und ist ein eine nicht mit für le la les des est que qui une dans pour el los las una por para
    il di che non un del nel wat het een van niet en de og är och att som med til nie jest się na czy ve bir
    bu da do os uma não com em é o e y es se su al lo gli i na si jak co je""",
) - words_of("i do")
"""Words that speak against it: one of them and no opener, and nothing is folded."""

FOREIGN_OPENER = words_of(
    """qué cuál cuáles cómo dónde quién cuándo cuánto cuántos cuánta cuántas quel quelle quels quelles comment
    pourquoi où quand combien qui warum wie wo wann wer welche welcher welches wieviel quale quali qual quais
    perché dove quanto quanti cos'è como onde quando quem hoe waarom wanneer wie waar hur varför var när""",
)
"""Openers of other languages whose capital at the start of a text means nothing."""

_BRITISH = """
colour:color colours:colors coloured:colored flavour:flavor flavours:flavors favourite:favorite
favourites:favorites behaviour:behavior behaviours:behaviors neighbour:neighbor neighbours:neighbors
neighbourhood:neighborhood rumour:rumor rumours:rumors humour:humor tumour:tumor tumours:tumors vapour:vapor
odour:odor odours:odors honour:honor honours:honors armour:armor centre:center centres:centers
theatre:theater theatres:theaters litre:liter litres:liters metres:meters kilometre:kilometer
kilometres:kilometers centimetre:centimeter centimetres:centimeters millimetre:millimeter
millimetres:millimeters fibre:fiber fibres:fibers organise:organize organised:organized organising:organizing
organisation:organization organisations:organizations realise:realize realised:realized recognise:recognize
recognised:recognized recognising:recognizing optimise:optimize optimised:optimized optimising:optimizing
optimisation:optimization summarise:summarize summarised:summarized summarising:summarizing analyse:analyze
analysed:analyzed analysing:analyzing visualise:visualize visualising:visualizing visualisation:visualization
memorise:memorize minimise:minimize minimising:minimizing maximise:maximize maximising:maximizing
normalise:normalize normalised:normalized normalising:normalizing normalisation:normalization
serialise:serialize serialisation:serialization initialise:initialize initialised:initialized
initialising:initializing synchronise:synchronize synchronising:synchronizing customise:customize
customising:customizing prioritise:prioritize prioritising:prioritizing apologise:apologize
criticise:criticize emphasise:emphasize categorise:categorize categorising:categorizing authorise:authorize
authorised:authorized authorisation:authorization utilise:utilize generalise:generalize tokenise:tokenize
tokenised:tokenized aluminium:aluminum licence:license travelling:traveling
travelled:traveled traveller:traveler cancelled:canceled cancelling:canceling modelling:modeling
labelled:labeled labelling:labeling jewellery:jewelry pyjamas:pajamas moustache:mustache sceptical:skeptical
plough:plow mould:mold moulds:molds anaemia:anemia oestrogen:estrogen foetus:fetus paediatric:pediatric
diarrhoea:diarrhea haemoglobin:hemoglobin leukaemia:leukemia manoeuvre:maneuver"""
# Left out because the two spellings are two things somewhere: labour, grey, programme, metre, tyre, cheque, storey,
# dialogue, disc, defence, practise, catalogue, draught, kerb, mum, harbour and endeavour.

BRITISH: dict[str, str] = dict(pair.split(":") for pair in _BRITISH.split())
AMERICAN = frozenset(BRITISH.values())

NUMBERS: dict[str, str] = {
    word: str(number)
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 2
    )
}
NUMBER_PARTS = frozenset(NUMBERS) | words_of(
    """zero one thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy
    eighty ninety hundred hundreds thousand thousands million millions billion billions trillion dozen half halves
    quarter quarters third thirds fourth fourths fifth fifths sixth sixths seventh eighth eighths ninth tenth tenths
    point and or to by o'clock plus minus times squared cubed score percent per""",
)
"""Words beside which a number word is a part of something larger, and stays."""

CONTRACTIONS: dict[str, tuple[str, ...]] = {
    "what's": ("what", "is"), "where's": ("where", "is"), "who's": ("who", "is"), "how's": ("how", "is"),
    "when's": ("when", "is"), "why's": ("why", "is"), "which's": ("which", "is"), "it's": ("it", "is"),
    "that's": ("that", "is"), "there's": ("there", "is"), "what're": ("what", "are"), "who're": ("who", "are"),
    "i'm": ("i", "am"), "you're": ("you", "are"), "we're": ("we", "are"), "they're": ("they", "are"),
    "i've": ("i", "have"), "you've": ("you", "have"), "we've": ("we", "have"), "they've": ("they", "have"),
    "i'll": ("i", "will"), "you'll": ("you", "will"), "we'll": ("we", "will"), "they'll": ("they", "will"),
    "it'll": ("it", "will"), "isn't": ("is", "not"), "aren't": ("are", "not"), "wasn't": ("was", "not"),
    "weren't": ("were", "not"), "don't": ("do", "not"), "doesn't": ("does", "not"), "didn't": ("did", "not"),
    "can't": ("can", "not"), "cannot": ("can", "not"), "couldn't": ("could", "not"), "won't": ("will", "not"),
    "wouldn't": ("would", "not"), "shouldn't": ("should", "not"), "mustn't": ("must", "not"),
    "haven't": ("have", "not"), "hasn't": ("has", "not"), "hadn't": ("had", "not"),
    "whats": ("what", "is"), "wheres": ("where", "is"), "dont": ("do", "not"), "doesnt": ("does", "not"),
    "didnt": ("did", "not"), "isnt": ("is", "not"), "arent": ("are", "not"), "couldnt": ("could", "not"),
    "wasnt": ("was", "not"), "werent": ("were", "not"), "shouldnt": ("should", "not"),
    "wouldnt": ("would", "not"), "havent": ("have", "not"), "hasnt": ("has", "not"),
}  # fmt: skip
IS_OR_HAS = words_of(
    """been got had gone done become made taken given come changed happened seen known written won lost left
    begun broken grown shown said told put set cut let sent built better""",
)
"""Words after which 's may stand for "has": the contraction stays as it is."""

LANGUAGES = words_of(
    """english spanish french german italian portuguese dutch russian chinese mandarin cantonese japanese korean
    arabic hebrew hindi urdu bengali turkish greek latin swedish norwegian danish finnish hungarian czech
    romanian ukrainian vietnamese thai indonesian malay tagalog swahili persian farsi catalan polish welsh irish""",
)

NUMERAL_SUBJECT = words_of("number numbers numeral numerals digit digits convert roman binary count hex")
"""Words beside which a number word may be asked about as a word."""
