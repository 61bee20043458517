"""A SentencePiece BPE model as tokenizer.json, the format of Hugging Face's tokenizers, with the same tokens for any text.
Of models without a `peculiarity` (sentencepiece_model.py): those of data/prepare.py are such.

transformers would convert tokenizer.model itself, but leaves out the space that SentencePiece puts before a text when there
is one already.
"""
SPACE = "\u2581"  # SentencePiece's, in pieces


def merges(tokenizer):
    """Pairs of pieces in the order in which they are joined: by the score of what they make, the highest first."""
    from formats.sentencepiece_model import NORMAL
    index = {piece: i for i, piece in enumerate(tokenizer.pieces) if tokenizer.types[i] == NORMAL}
    pairs = []
    for piece, i in index.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in index and right in index:
                pairs.append((-tokenizer.scores[i], index[left], index[right], [left, right]))
    return [pair for *_, pair in sorted(pairs)]


def special(tokenizer, index):
    return {"id": index, "content": tokenizer.piece(index), "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}


def begin_of_text(tokenizer):
    """The post-processor that puts the begin token before a text."""
    begin = {"SpecialToken": {"id": tokenizer.piece(tokenizer.bos), "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    name = tokenizer.piece(tokenizer.bos)
    return {"type": "TemplateProcessing", "single": [begin, sequence], "pair": [begin, sequence, second],
            "special_tokens": {name: {"id": name, "ids": [tokenizer.bos], "tokens": [name]}}}


def content(tokenizer):
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.adds_space:
        spaces.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(tokenizer, index) for index in (tokenizer.unk, tokenizer.bos, tokenizer.eos) if index is not None],
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "post_processor": begin_of_text(tokenizer) if tokenizer.bos is not None else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": None, "unk_token": tokenizer.piece(tokenizer.unk), "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {piece: index for index, piece in enumerate(tokenizer.pieces)}, "merges": merges(tokenizer)},
    }
