"""Folders with a tokenizer.json and files beside it that name its begin and end tokens, for tests of all that read them: the
trainer, data/prepare.py, exports."""
import json
import os

NAMES = "tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"
BEGIN, END, WORD = 256, 257, 258  # WORD is in the vocabulary alone, no added token


def byte_characters():
    """What stands for the 256 bytes in a tokenizer.json."""
    codes, following = [], 256
    for byte in range(256):
        prints = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        codes.append(byte if prints else following)
        following += not prints
    return list(map(chr, codes))


def tokenizer_json():
    """Byte-level; 260 tokens, of which one (259) has no name."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    vocabulary |= {"<s>": BEGIN, "</s>": END, "the": WORD, "far": 260}
    added = [{"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for index, text in ((BEGIN, "<s>"), (END, "</s>"))]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []}}


DECODER = {"added_tokens_decoder": {}}
# Files, and the begin and end tokens that follow.
KNOWN = [
    ({}, (None, None)),
    ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}}, (BEGIN, END)),
    ({"tokenizer_config.json": {"bos_token": "the"}}, (WORD, None)),
    ({"tokenizer_config.json": {"bos_token": None}, "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "the"}}, (BEGIN, WORD)),
    ({"tokenizer_config.json": {}, "config.json": {"bos_token_id": 5, "eos_token_id": [7, 6]}}, (5, 7)),
    ({"tokenizer_config.json": {"bos_token": "<s>", **DECODER}, "special_tokens_map.json": {"bos_token": "the"}}, (BEGIN, None)),
    ({"tokenizer_config.json": {"bos_token": "<s>"}, "special_tokens_map.json": {"bos_token": "the"}}, (WORD, None)),
    ({"tokenizer_config.json": {"bos_token": None, **DECODER}, "config.json": {"bos_token_id": 9, "eos_token_id": []},
      "generation_config.json": {"bos_token_id": 8, "eos_token_id": 3}}, (9, 3)),
    ({"tokenizer_config.json": {"bos_token": "<nobody>", "eos_token": ""}, "config.json": {"bos_token_id": 259, "eos_token_id": 261},
      "generation_config.json": {"bos_token_id": -1, "eos_token_id": 2**60}}, (None, None)),
]
# Files, and what one line about them must say.
DAMAGED = [
    ({"tokenizer_config.json": "{"}, "tokenizer_config.json"),
    ({"tokenizer_config.json": ""}, "tokenizer_config.json"),
    ({"special_tokens_map.json": "[]"}, "special_tokens_map.json"),
    ({"special_tokens_map.json": "\ufeff{}"}, "byte order mark"),
    ({"config.json": "7"}, "config.json"),
    ({"generation_config.json": "[" * 100_000}, "generation_config.json"),
    ({"tokenizer_config.json": {"bos_token": 5}}, "tokenizer_config.json: bos_token"),
    ({"tokenizer_config.json": {"eos_token": ["</s>"]}}, "tokenizer_config.json: eos_token"),
    ({"special_tokens_map.json": {"bos_token": {"text": "<s>"}}}, "special_tokens_map.json: bos_token"),
    ({"special_tokens_map.json": {"eos_token": {"content": None}}}, "special_tokens_map.json: eos_token"),
    ({"config.json": {"bos_token_id": "1"}}, "config.json: bos_token_id"),
    ({"config.json": {"eos_token_id": 1.5}}, "config.json: eos_token_id"),
    ({"config.json": {"eos_token_id": [True]}}, "config.json: eos_token_id"),
    ({"config.json": {"eos_token_id": 2**70}}, "config.json: eos_token_id"),
    ({"generation_config.json": {"bos_token_id": {}}}, "generation_config.json: bos_token_id"),
]


def drawn(draw):
    """Files that all who read them must understand alike."""
    texts = [None, "<s>", "</s>", "the", "", "<nobody>", {"content": "<s>"}, {"content": "</s>", "rstrip": False}]
    ids = [None, 0, 77, BEGIN, END, 259, 260, 261, -3, 10**12, [], [END], [4, 5]]
    files = {}
    typed = [{"__type": "AddedToken", **value} if isinstance(value, dict) else value for value in texts]  # as transformers writes them
    for name in NAMES:
        if draw.random() < 0.3:
            continue
        values, suffix = (typed, "") if name == NAMES[0] else (texts, "") if name == NAMES[1] else (ids, "_id")
        files[name] = {f"{role}_token{suffix}": draw.choice(values) for role in ("bos", "eos") if draw.random() < 0.7}
    if "tokenizer_config.json" in files and draw.random() < 0.5:
        files["tokenizer_config.json"] |= DECODER
    return files


def write(folder, files, name="tokenizer.json", content=None):
    """A folder with a tokenizer and these files, as objects or as they are; returns the tokenizer's path."""
    os.makedirs(folder)
    for file, values in {name: tokenizer_json() if content is None else content, **files}.items():
        with open(os.path.join(folder, file), "w", encoding="utf-8") as stream:
            stream.write(values if isinstance(values, str) else json.dumps(values))
    return os.path.join(folder, name)
