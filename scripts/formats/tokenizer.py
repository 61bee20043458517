"""The tokenizer of an export: a SentencePiece model, or what a Hugging Face folder holds."""
from errors import UserError
from formats.sentencepiece_model import SentencePieceModel
from formats.tokenizer_folder import TokenizerFolder
from regular_files import read_bytes
from tokenizer_files import is_json, tokenizer_file


def load(path, vocabulary):
    """For a model with so many tokens. path: a SentencePiece model, a tokenizer.json, or a folder with one of them; what the
    file holds says which, as for the trainer. UserError."""
    path = tokenizer_file(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"--tokenizer {path}: can't be read: {error.strerror}") from None
    tokenizer = (TokenizerFolder if is_json(content) else SentencePieceModel)(path, content)
    if tokenizer.count > vocabulary:
        raise UserError(f"--tokenizer {path}: has {tokenizer.count} pieces, the model only {vocabulary}: another tokenizer")
    return tokenizer
