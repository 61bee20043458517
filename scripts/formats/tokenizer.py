"""The tokenizer of an export: a SentencePiece model, or what a Hugging Face folder holds."""
import os

from errors import UserError
from formats.sentencepiece_model import SentencePieceModel
from formats.tokenizer_folder import TokenizerFolder


def load(path, vocabulary):
    """For a model with so many tokens. path: a SentencePiece model, a tokenizer.json, or a folder with one of them. UserError."""
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
    files = [os.path.join(folder, file) for file in ("tokenizer.json", "tokenizer.model")]
    if not name:
        path = next(filter(os.path.isfile, files), None)
        if path is None:
            raise UserError(f"--tokenizer {folder}: holds neither tokenizer.json nor tokenizer.model")
    if not os.path.isfile(path):
        raise UserError(f"--tokenizer {path}: no such file")
    tokenizer = TokenizerFolder(folder or ".") if os.path.basename(path) == "tokenizer.json" else SentencePieceModel(path)
    if tokenizer.count > vocabulary:
        raise UserError(f"--tokenizer {path}: has {tokenizer.count} pieces, the model only {vocabulary}: another tokenizer")
    return tokenizer
