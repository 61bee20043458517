"""Tokenizers for prepare.py: SentencePiece, loaded or trained, GPT-2's, and (hugging_face_tokenizer.py) tokenizer.json."""
import array
import io
import re

from hugging_face_tokenizer import HuggingFaceTokenizer
from long_words import LONGEST_LINE, divide_long_lines
from mistakes import UserError, import_package, one_line
from shard_files import fnv1a_64, type_code_for
from regular_files import read_bytes
from tokenizer_files import check_sentencepiece, is_json
from workers import run_apart

LEAST_VOCABULARY = 300  # 256 bytes, control tokens and some characters of the text

# The texts that decide whether a long document may be encoded in pieces.
PROBES = "one two\nthree", "one \n two", "one\n\n\ntwo", "\n\none", "one\n", "a.\n\t \n b  \n\n  c", "é\n中 文\n"


def import_sentencepiece():
    return import_package("sentencepiece", "a SentencePiece tokenizer", "python3-sentencepiece")


class SentencePieceTokenizer:
    kind = "sentencepiece"

    def __init__(self, model, name):
        """model: the bytes of a .model file; also `source`, from which a worker process loads it again."""
        self.source = self.model = model
        check_sentencepiece(model, name)
        self.processor = import_sentencepiece().SentencePieceProcessor()
        try:
            loaded = self.processor.LoadFromSerializedProto(model)
        except RuntimeError:
            loaded = False
        if not loaded or self.processor.get_piece_size() == 0:
            raise UserError(f"{name}: not a SentencePiece model")
        self.hash = fnv1a_64(model)
        self.vocabulary_size = self.processor.get_piece_size()
        self.type_code = type_code_for(self.vocabulary_size)
        self.start_id = self.processor.bos_id() if self.processor.bos_id() >= 0 else self.processor.eos_id()
        if self.start_id < 0:
            raise UserError(f"{name}: this model has neither a begin nor an end token to separate documents")
        # Most models put a space before the text. In the middle of a document it has to go again.
        self.prefix = 2 * len(self.processor.encode("\n")) - len(self.processor.encode("\n\n"))
        try:
            self.splittable = self.can_split_at_newlines()
        except UnicodeDecodeError:
            raise UserError(f"{name}: damaged: it has pieces that are not UTF-8") from None

    def can_split_at_newlines(self):
        """True if encoding the pieces between newlines gives exactly the tokens of the whole text.

        It holds when no piece of the vocabulary joins a newline with something else, and when the model's
        normalization leaves newlines and the spaces beside them alone.
        """
        size = self.vocabulary_size
        if any("\n" in piece and piece != "\n" for piece in map(self.processor.id_to_piece, range(size))):
            return False
        return all(self.processor.encode(text[:cut]) + self.processor.encode(text[cut:])[self.prefix:]
                   == self.processor.encode(text)
                   for text in PROBES for cut in range(1, len(text)) if text[cut] == "\n")

    def encode(self, text, starts_document):
        """Tokens as bytes; text that continues a document starts with a newline (see can_split_at_newlines)."""
        ids = self.processor.encode(text)
        ids = [self.start_id] + ids if starts_document else ids[self.prefix:]
        return array.array(self.type_code, ids).tobytes()


class GPT2Tokenizer:
    """GPT-2's vocabulary from tiktoken, which downloads it once; gives the same shards as llm.c's own scripts."""

    kind, model, source, splittable = "gpt2", None, "gpt2", False

    def __init__(self):
        tiktoken = import_package("tiktoken", "--tokenizer gpt2")
        try:
            self.encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # whatever its download raises
            raise UserError(f"--tokenizer gpt2: tiktoken can't load its vocabulary: {one_line(error)}") from None
        self.hash = fnv1a_64(b"tiktoken:gpt2")
        self.vocabulary_size = self.encoding.n_vocab
        self.type_code = type_code_for(self.vocabulary_size)
        self.start_id = self.encoding.eot_token

    def encode(self, text, starts_document):
        ids = self.encoding.encode_ordinary(text)
        return array.array(self.type_code, [self.start_id] * starts_document + ids).tobytes()


def load_tokenizer(source):
    """source: 'gpt2', the path of a SentencePiece model or of a tokenizer.json, or a model's bytes."""
    if source == "gpt2":
        return GPT2Tokenizer()
    if isinstance(source, bytes):
        return SentencePieceTokenizer(source, "the trained tokenizer")
    content = read_bytes(source)
    if is_json(content):
        return HuggingFaceTokenizer(source, content)
    return SentencePieceTokenizer(content, source)


def train_sentencepiece(lines, vocabulary_size):
    """The bytes of the model file of a tokenizer trained on these lines, in a process of its own: the trainer can't be
    interrupted, and may end its process."""
    sample = list(divide_long_lines(lines))
    if not any(sample):
        raise UserError("the training sample of the tokenizer is empty; raise --train-sample-mb")
    return run_apart(("tokenization", "trainer", (vocabulary_size,)), sample)


def trainer(vocabulary_size):
    return lambda lines: train_here(lines, vocabulary_size)


def train_here(lines, vocabulary_size):
    """Trains a byte-pair encoding with Llama's settings and returns the bytes of the model file.

    Lossless: no normalization, white space stays, and what the vocabulary lacks becomes bytes. unk 0, bos 1, eos 2.
    """
    model = io.BytesIO()
    try:
        import_sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
            vocab_size=vocabulary_size, byte_fallback=True, split_digits=True, character_coverage=0.9999,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, max_sentence_length=8 * LONGEST_LINE, minloglevel=2)
    except (RuntimeError, OverflowError, TypeError) as error:  # the latter two: a number that C++ can't hold
        raise training_error(one_line(error), vocabulary_size) from None
    return model.getvalue()


def training_error(reason, vocabulary_size):
    """A UserError for what SentencePiece's trainer says, without the places in its sources."""
    flag = f"--vocab-size {vocabulary_size}:"
    most, least = re.search(r"value <= (\d+)", reason), re.search(r"required_chars\. \d+ vs (\d+)", reason)
    if most and int(most[1]) < LEAST_VOCABULARY:
        return UserError(f"{flag} this text is too short or too uniform to train a tokenizer on: only {most[1]} pieces can be made of "
                         "it; give more text, or a --tokenizer")
    if most:
        return UserError(f"{flag} is too large for this text, the largest possible is {most[1]}")
    if least:
        return UserError(f"{flag} is too small for the characters of this text, the smallest possible is {least[1]}")
    return UserError("training the tokenizer failed: " + re.sub(r"^\w+: \S+\(\d+\) \[.*?\] (?=\w)", "", reason))
