"""A tokenizer as Hugging Face's folders hold it: tokenizer.json and the files beside it, which exports take over as they are.
Into GGUF go byte-level BPE tokenizers whose way to cut a text into words llama.cpp has too: those of GPT-2, Llama 3, Qwen and
SmolLM. (llama.cpp leaves out Qwen's normalization to composed characters, NFC, which most texts have anyway.)
"""
import json
import os
import shutil
import tempfile

from errors import UserError, one_line
from formats.sentencepiece_model import SentencePieceModel
from json_objects import parse_object
from regular_files import read_bytes
from tokenizer_files import begin_and_end

FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
         "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt")
# Types of tokens as GGUF numbers them.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# llama.cpp's name of each way: the steps of tokenizer.json's pre_tokenizer.
PRE_TOKENIZERS = {
    (("ByteLevel", True),): "gpt-2",
    (("Split", WORDS.format(numbers=r"\p{N}{1,3}")), ("ByteLevel", False)): "llama-bpe",
    (("Split", WORDS.format(numbers=r"\p{N}")), ("ByteLevel", False)): "qwen2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
}


def steps_of(pre_tokenizer):
    """In the form of PRE_TOKENIZERS' keys; None where a step has settings that none of those has."""
    if not pre_tokenizer:
        return ()
    if pre_tokenizer["type"] == "Sequence":
        parts = [steps_of(step) for step in pre_tokenizer["pretokenizers"]]
        return None if None in parts else sum(parts, ())
    kind = pre_tokenizer["type"]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ((kind, pre_tokenizer.get("use_regex", True)),)
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return ((kind, pre_tokenizer["pattern"].get("Regex")),)
    return ((kind, pre_tokenizer["individual_digits"]),) if kind == "Digits" else None


def token_of(value):
    if not isinstance(value, str):
        raise TypeError(f"a token is {json.dumps(value)[:60]}")
    return value


def id_of(value):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**24:
        raise ValueError(f"a token's id is {json.dumps(value)[:60]}")
    return value


class TokenizerFolder:
    """count: of the tokens; bos, eos: ids, or None."""

    def __init__(self, path, content):
        """path: of the tokenizer.json, whatever it is called, with the other files beside it; content: its bytes."""
        self.path, self.directory, self.bytes = path, os.path.dirname(path), content
        self.content = parse_object(content, f"--tokenizer {path}")
        try:
            self.model, self.added = self.content["model"], self.content.get("added_tokens") or []
            vocabulary = self.model["vocab"]
            pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((entry[0], i) for i, entry in enumerate(vocabulary))
            ids = {token_of(token): id_of(index) for token, index in pairs}
            ids |= {token_of(entry["content"]): id_of(entry["id"]) for entry in self.added}
            self.tokens = {index: token for token, index in ids.items()}
            self.count = max(self.tokens) + 1
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"--tokenizer {self.path}: is not a tokenizer of Hugging Face's tokenizers "
                            f"({type(error).__name__}: {one_line(error)})") from None
        self.bos, self.eos = begin_and_end(path, ids.get, self.tokens.__contains__)

    def write_folder(self, directory):
        for name in filter(self.has_beside, FILES):
            shutil.copyfile(os.path.join(self.directory, name), os.path.join(directory, name))
        with open(os.path.join(directory, "tokenizer.json"), "wb") as file:
            file.write(self.bytes)

    def has_beside(self, name):
        path = os.path.join(self.directory, name)
        return os.path.isfile(path) and not os.path.samefile(path, self.path)

    @property
    def sentencepiece(self):
        """The SentencePiece model that tokenizer.json was made of, or None."""
        if not self.model.get("byte_fallback") or not self.has_beside("tokenizer.model"):
            return None
        path = os.path.join(self.directory, "tokenizer.model")
        return SentencePieceModel(path, read_bytes(path))

    @property
    def obstacle_to_llama_cpp(self):
        """Why llama.cpp can't have these tokens, or ""."""
        model = self.sentencepiece
        if model:
            return model.obstacle_to_llama_cpp or ("adds tokens to those of tokenizer.model" if model.count != self.count else "")
        decoder = self.content.get("decoder")
        decodes_bytes = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
        if self.model.get("type") != "BPE" or self.model.get("byte_fallback") or not decodes_bytes:
            return "is no byte-level BPE tokenizer"
        try:
            return self.obstacle_of_words() or self.obstacle_of_settings()
        except (KeyError, TypeError, AttributeError, RecursionError):
            return "has a pre_tokenizer that can't be read"

    def obstacle_of_words(self):
        pre_tokenizer = self.content.get("pre_tokenizer")
        if steps_of(pre_tokenizer) in PRE_TOKENIZERS:
            return ""
        return f"cuts words by {json.dumps(pre_tokenizer)}, which is none of {', '.join(PRE_TOKENIZERS.values())}"

    def obstacle_of_settings(self):
        normalizer = self.content.get("normalizer")
        if normalizer and normalizer["type"] != "NFC":
            return f"normalizes its text ({normalizer['type']})"
        if self.model.get("ignore_merges") and self.pre_tokenizer != "llama-bpe":
            return "takes whole words without merges, and is not Llama 3's"
        if self.model.get("continuing_subword_prefix") or self.model.get("end_of_word_suffix"):
            return "marks the pieces of a word"
        stripping = [entry["content"] for entry in self.added if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word")]
        return f"has tokens that take spaces with them ({stripping[0]})" if stripping else ""

    @property
    def pre_tokenizer(self):
        """llama.cpp's name."""
        return PRE_TOKENIZERS[steps_of(self.content["pre_tokenizer"])]

    def add_to_gguf(self, writer):
        """writer: a gguf.GGUFWriter; without an obstacle_to_llama_cpp."""
        import gguf

        if self.sentencepiece:
            self.sentencepiece.add_to_gguf(writer)
            return
        types = {entry["id"]: CONTROL if entry.get("special") else USER_DEFINED for entry in self.added}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list([self.tokens.get(index, f"[PAD{index}]") for index in range(self.count)])
        writer.add_token_types([types.get(index, NORMAL if index in self.tokens else UNUSED) for index in range(self.count)])
        with tempfile.TemporaryDirectory() as directory:  # whose files have the names that gguf looks for
            self.write_folder(directory)
            special = gguf.SpecialVocab(directory, load_merges=True, n_vocab=self.count)
        special.special_token_ids |= {role: index for role, index in (("bos", self.bos), ("eos", self.eos)) if index is not None}
        special.add_special_token.setdefault("bos", False)
        special.add_to_gguf(writer, quiet=True)
