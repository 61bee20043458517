"""Lines for the tokenizer's training, divided where SentencePiece's trainer would not survive them.

The trainer keeps places in a word as 16-bit integers: a word of more than 32768 characters (not bytes) kills the process,
be it DNA, base64 or Chinese, which has no spaces. A line of more bytes than its limit is dropped without a word.
"""
import unicodedata

LONGEST_WORD = 1 << 12  # characters
LONGEST_LINE = 1 << 16  # characters
JOINERS = "\u200c\u200d"


def continues(character):
    """True of characters that belong to the one before: accents, signs of vowels, variants and joiners."""
    return unicodedata.category(character)[0] == "M" or character in JOINERS


def safe_cut(text, begin, end):
    """The last place up to `end` at which no character is torn from its accents; `end` where there is none nearby."""
    for cut in range(end, max(begin, end - 16), -1):
        if cut == len(text) or not (continues(text[cut]) or text[cut - 1] in JOINERS):
            return cut
    return end


def divide_words(line):
    """The line, with a space after every LONGEST_WORD characters of a word."""
    if len(line) <= LONGEST_WORD:
        return line
    parts = []
    for word in line.split(" "):
        begin = 0
        while len(word) - begin > LONGEST_WORD:
            cut = safe_cut(word, begin, begin + LONGEST_WORD)
            parts.append(word[begin:cut])
            begin = cut
        parts.append(word[begin:])
    return " ".join(parts)


def divide_long_lines(lines):
    """Yields lines of at most LONGEST_LINE characters whose words have at most LONGEST_WORD; NUL, at which the trainer
    would end a line, divides them as well."""
    for whole in lines:
        for line in map(divide_words, whole.split("\0")):
            begin = 0
            while len(line) - begin > LONGEST_LINE:
                cut = line.rfind(" ", begin, begin + LONGEST_LINE) + 1 or begin + LONGEST_LINE
                yield line[begin:cut]
                begin = cut
            yield line[begin:]
