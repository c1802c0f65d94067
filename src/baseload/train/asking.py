"""How people type: other openings, synonyms, greetings, missing words and marks, slips of the fingers.

Some words are also replaced by stray ones and some sentences turned, so that no single word or place in the sentence
decides: what a model learns from a few dozen phrasings must hold for those it never saw.
"""

from baseload.domain.rng import Rng

# Openings that mean the same. The first that a question begins with is exchanged for another of its group.
_OPENINGS: tuple[tuple[str, ...], ...] = (
    (
        "how do i", "how can i", "how to", "how would i", "how does one", "how do you", "how should i", "how do we",
        "what's the way to", "what is the best way to", "is there a way to", "is it possible to", "can i",
        "i want to", "i need to", "i'd like to", "show me how to", "tell me how to", "explain how to", "steps to",
        "help me",
        "what do i do to", "what command do i use to", "how could i", "how can you", "how does someone", "howto",
    ),
    ("what is", "what's", "whats", "what exactly is", "explain", "describe", "tell me about", "define", "what are"),
    ("what does", "what will", "explain what", "tell me what", "what do"),
    ("what happens", "what will happen", "what does baseload do", "tell me what happens", "what happened"),
    ("can i", "could i", "am i able to", "is it possible to", "may i", "does baseload let me", "is there a way to"),
    ("does baseload", "can baseload", "is baseload able to", "will baseload", "do you", "does it", "can it"),
    ("is baseload", "is it", "would you say baseload is", "are you"),
    ("where is", "where's", "where are", "where do i find", "where can i find", "where can i see", "find"),
    ("where are", "where is", "where do i find", "where can i find", "where do i look for"),
    ("where do i", "where can i", "where should i", "where would i"),
    ("why does", "why did", "how come", "for what reason does", "why would"),
    ("why is", "why's", "how come", "what is the reason", "why was"),
    ("which", "what", "tell me which", "list which"),
    ("how many", "what number of", "how much"),
    ("how much", "what", "how many"),
    ("how long", "how much time", "for how long"),
    ("how does", "how will", "in what way does", "explain how", "tell me how"),
    ("how is", "how are", "in what way is", "explain how", "how was"),
    ("i get", "i got", "i am getting", "i'm seeing", "i see", "why do i get", "what does it mean to get"),
)  # fmt: skip

_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("delete", "remove", "drop", "get rid of", "erase"),
    ("create", "make", "generate", "get", "add"),
    ("start", "launch", "run", "begin", "bring up"),
    ("stop", "shut down", "halt", "quit", "end"),
    ("show", "see", "view", "display", "look at"),
    ("find", "locate", "see"),
    ("change", "set", "edit", "modify", "adjust", "configure"),
    ("error", "failure", "problem", "message"),
    ("cost", "price"),
    ("machine", "computer", "server", "box", "host"),
    ("request", "call", "query"),
    ("requests", "calls", "queries"),
    ("setting", "option", "parameter"),
    ("settings", "options", "configuration", "config"),
    ("model", "llm"),
    ("models", "llms"),
    ("replica", "copy", "worker"),
    ("replicas", "copies", "workers"),
    ("command", "cli command"),
    ("maximum", "max", "highest", "upper limit on"),
    ("minimum", "min", "lowest"),
    ("automatically", "by itself", "on its own"),
    ("supported", "available", "possible"),
    ("need", "require"),
    ("use", "work with"),
    ("answer", "reply", "response"),
    ("answers", "replies", "responses"),
    ("folder", "directory"),
    ("program", "script", "app"),
    ("check", "verify", "test"),
    ("fast", "quick"),
    ("big", "large"),
    ("crashes", "dies", "fails"),
    ("mean", "stand for"),
    ("colleague", "coworker", "teammate", "friend"),
    ("give", "grant", "hand"),
    ("limit", "cap", "restrict", "bound"),
    ("lost", "gone"),
    ("slow", "sluggish", "laggy"),
    ("memory", "ram"),
    ("documentation", "docs", "manual"),
    ("awake", "running", "loaded", "up"),
    ("asleep", "sleeping"),
    ("sleep", "hibernate"),
    ("prompt", "input"),
    ("user", "customer", "person"),
    ("users", "customers", "people"),
    ("electricity", "power", "energy"),
    ("dollars", "money", "euros"),
    ("bill", "invoice"),
    ("killed", "terminated"),
    ("interrupted", "stopped", "aborted"),
    ("resume", "continue", "go on with"),
    ("terminal", "shell", "console", "command line"),
    ("allow", "let", "permit"),
    ("forbid", "deny", "block"),
    ("refused", "rejected", "denied", "turned away"),
    ("store", "save", "keep", "record"),
    ("stored", "saved", "kept", "recorded"),
    ("install", "set up", "setup"),
    ("upgrade", "update"),
    ("version", "release"),
    ("broken", "damaged", "faulty"),
    ("wrong", "bad", "off"),
    ("happens", "occurs"),
    ("several", "multiple", "many"),
    ("another", "a second", "one more", "a different"),
    ("without", "with no"),
    ("each", "every"),
    ("always", "permanently", "all the time", "24/7"),
    ("now", "currently", "at the moment", "right now"),
    ("crash", "failure"),
    ("restart", "reboot"),
    ("own", "personal"),
    ("token", "key"),
    ("leaked", "stolen"),
    ("revoke", "disable", "invalidate", "cancel"),
    ("train", "teach"),
    ("simulate", "try out"),
    ("traffic", "load"),
    ("idle", "unused"),
    ("shown", "displayed", "printed"),
    ("connect", "attach", "hook up"),
    ("explain", "describe", "clarify"),
)
_FILLERS = (
    "really", "just", "actually", "maybe", "somehow", "please", "now", "also", "ever", "even", "simply", "exactly",
    "quickly", "thing", "stuff", "own", "new", "old", "this", "that", "all", "again", "still", "already", "some",
    "properly", "easily", "best", "way", "things", "here", "currently", "other", "always", "only", "much", "whole",
)  # fmt: skip
_STRAY = (
    "time", "people", "year", "day", "man", "world", "life", "hand", "part", "child", "eye", "woman", "place",
    "work", "week", "case", "point", "company", "number", "group", "problem", "fact", "first", "last", "long",
    "great", "little", "right", "high", "next", "early", "young", "important", "few", "public", "same", "able",
    "red", "blue", "seven", "twenty", "house", "water", "room", "mother", "area", "money", "story", "month",
    "lot", "study", "book", "word", "business", "issue", "side", "kind", "head", "friend", "father", "power",
    "hour", "game", "line", "member", "law", "car", "city", "name", "team", "minute", "idea", "body", "back",
    "parent", "face", "level", "office", "door", "health", "art", "war", "party", "result", "change", "morning",
    "reason", "research", "girl", "guy", "moment", "air", "teacher", "force", "education", "foot", "boy", "age",
    "policy", "music", "plan", "market", "sense", "college", "death", "effect", "use", "class", "field",
    "think", "want", "give", "find", "ask", "seem", "feel", "try", "leave", "call", "need", "become", "put",
    "mean", "keep", "let", "begin", "help", "talk", "turn", "start", "show", "hear", "play", "run", "move",
    "like", "live", "believe", "hold", "bring", "happen", "write", "provide", "sit", "stand", "lose", "pay",
    "meet", "include", "continue", "set", "learn", "change", "lead", "understand", "watch", "follow",
    "together", "often", "later", "never", "once", "almost", "enough", "far", "perhaps", "soon", "today",
    "yesterday",
)  # fmt: skip
_CONTEXTS = (
    "we run two servers. ", "my boss wants to know: ", "i am an operator. ", "i read the readme but ",
    "for a project at work, ", "i tried everything. ", "a colleague asked me: ", "we have many users, ",
    "just a quick one, ", "i am a beginner, ", "maybe a stupid question, ", "one more thing: ", "ok next question. ",
    "let's say i run baseload. ", "i use ubuntu. ", "i have one gpu server. ", "sorry to bother you. ",
)  # fmt: skip

_BEFORE = (
    "hi, ", "hello, ", "hey ", "please ", "can you tell me ", "tell me ", "i want to know ", "quick question: ",
    "ok so ", "could you explain ", "i'd like to know ", "sorry, ", "so ", "um ", "question: ", "and ", "also ",
    "do you know ", "excuse me, ", "hey there! ", "i was wondering ", "baseload: ", "in baseload, ", "well, ",
    "good morning, ", "i'm new here. ", "ok, ", "thanks! ", "now ", "but ",
)  # fmt: skip
_AFTER = (
    " please", " thanks", " in baseload", " with baseload", " here", " exactly", " now", " again", " pls", " thx",
    " on my machine", " for me", " then", " in this system", " using baseload", " i wonder", " right now",
)  # fmt: skip
_MARKS = ("?", "?", "?", "", "", "", "", " ?", "??", ".", "!", "?!", "...")
_DROPPED = frozenset(
    ("the", "a", "an", "my", "do", "i", "is", "to", "of", "for", "in", "it", "that", "this", "are", "does", "with",
     "on", "your", "please", "can", "you", "and", "one")
)  # fmt: skip
_EMPTY = _DROPPED | frozenset(
    ("how", "what", "where", "which", "when", "why", "would", "should", "could", "will", "there", "any", "some",
     "have", "has", "be", "me", "tell", "show", "explain", "get", "if", "then", "so", "or", "at", "by", "from",
     "baseload")
)  # fmt: skip
_KEYS = "qwertyuiop asdfghjkl zxcvbnm"


def vary(question: str, rng: Rng) -> str:
    """The question as somebody else would type it: lower case, another opening, synonyms, a slip or none."""
    text = question.lower().strip().rstrip("?.! ")
    if rng.below(100) < 40:
        text = _reopen(text, rng)
    words = text.split()
    if rng.below(100) < 45:
        words = _exchange(words, rng)
    die = rng.below(100)
    if die < 18:
        words = [word for word in words if word not in _EMPTY] or words  # keywords, as one types into a search box
    elif die < 34:
        words = [word for word in words if word not in _DROPPED or rng.below(2)] or words
    if rng.below(100) < 12 and len(words) > 3:
        del words[rng.below(len(words))]
    if rng.below(100) < 12:
        words.insert(rng.below(len(words) + 1), _FILLERS[rng.below(len(_FILLERS))])
    if rng.below(100) < 30:
        words = [_STRAY[rng.below(len(_STRAY))] if rng.below(9) == 0 else word for word in words]
    if words and rng.below(100) < 10:
        at = rng.below(len(words))
        words = words[at:] + words[:at]
    if rng.below(100) < 25:
        words = _slip(words, rng)
    text = " ".join(words)
    if rng.below(100) < 4:
        text = _CONTEXTS[rng.below(len(_CONTEXTS))] + text
    elif rng.below(100) < 18:
        text = _BEFORE[rng.below(len(_BEFORE))] + text
    if rng.below(100) < 12:
        text += _AFTER[rng.below(len(_AFTER))]
    if rng.below(100) < 15:
        text = text.replace("'", "")
    return text + _MARKS[rng.below(len(_MARKS))]


def _reopen(text: str, rng: Rng) -> str:
    """Exchange the opening of a question for another that means the same."""
    for group in _OPENINGS:
        for opening in group:
            if text.startswith(opening + " "):
                other = group[rng.below(len(group))]
                return other + text[len(opening) :]
    return text


def _exchange(words: list[str], rng: Rng) -> list[str]:
    """Exchange words for synonyms, each with even odds."""
    out = []
    for word in words:
        group = next((g for g in _SYNONYMS if word in g), None)
        out.append(group[rng.below(len(group))] if group is not None and rng.below(2) else word)
    return out


def _slip(words: list[str], rng: Rng) -> list[str]:
    """One slip of the fingers in one longer word: letters swapped, lost, doubled or missed."""
    long = [index for index, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return words
    which = long[rng.below(len(long))]
    word, at = words[which], 1 + rng.below(len(words[which]) - 2)
    match rng.below(4):
        case 0:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            word = word[:at] + word[at + 1 :]
        case 2:
            word = word[:at] + word[at] + word[at:]
        case _:
            near = _KEYS[(_KEYS.index(word[at]) + 1) % len(_KEYS)] if word[at] in _KEYS else word[at]
            word = word[:at] + (near if near != " " else "e") + word[at + 1 :]
    return [*words[:which], word, *words[which + 1 :]]
