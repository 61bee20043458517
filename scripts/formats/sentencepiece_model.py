"""A SentencePiece model as exports need it: pieces, scores, types, special tokens."""
import os

from errors import UserError
from formats import tokenizer_json
from formats.json_file import write_json
from tokenizer_files import check_sentencepiece

# Types of pieces, numbered alike in SentencePiece and GGUF.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BPE = 2  # the model type


class SentencePieceModel:
    def __init__(self, path, content):
        """content: the bytes of the file."""
        self.path, self.content = path, content
        check_sentencepiece(content, f"--tokenizer {path}")
        from sentencepiece import sentencepiece_model_pb2 as protobuf

        model = protobuf.ModelProto()
        try:
            model.ParseFromString(content)
        except Exception:  # whatever protobuf's version raises
            raise UserError(f"--tokenizer {path}: is not a SentencePiece model") from None
        self.pieces = [piece.piece for piece in model.pieces]
        if not all(isinstance(piece, str) for piece in self.pieces):  # protobuf leaves bytes what is no UTF-8
            raise UserError(f"--tokenizer {path}: damaged: it has pieces that are not UTF-8")
        self.scores = [piece.score for piece in model.pieces]
        self.types = [int(piece.type) for piece in model.pieces]
        # As SentencePiece itself finds them: pieces of these names that are of this type.
        index = {(piece, kind): i for i, (piece, kind) in enumerate(zip(self.pieces, self.types))}
        spec = model.trainer_spec
        self.unk = self.types.index(UNKNOWN) if UNKNOWN in self.types else None
        self.bos, self.eos = index.get((spec.bos_piece or "<s>", CONTROL)), index.get((spec.eos_piece or "</s>", CONTROL))
        if self.unk is None:
            raise UserError(f"--tokenizer {path}: is not a SentencePiece model: it has no piece for what is unknown")
        # Why readers that know pieces and scores alone would find other tokens; "" for models of data/prepare.py.
        self.peculiarity = ("is no BPE model" if model.trainer_spec.model_type != BPE else
                            "has no byte pieces" if BYTE not in self.types else
                            "normalizes its text" if model.normalizer_spec.precompiled_charsmap else
                            "has pieces that users defined" if set(self.types) - {NORMAL, UNKNOWN, CONTROL, BYTE} else
                            "removes spaces" if model.normalizer_spec.remove_extra_whitespaces else "")
        self.adds_space = model.normalizer_spec.add_dummy_prefix

    @property
    def count(self):
        """Of the tokens."""
        return len(self.pieces)

    @property
    def obstacle_to_llama_cpp(self):
        """Why llama.cpp would find other tokens, or ""."""
        return self.peculiarity

    def piece(self, index):
        """None of None."""
        return None if index is None else self.pieces[index]

    def write_folder(self, directory):
        """The files of a Hugging Face folder."""
        with open(os.path.join(directory, "tokenizer.model"), "wb") as file:
            file.write(self.content)
        if self.peculiarity:
            return  # transformers converts such models itself
        write_json(directory, "tokenizer.json", tokenizer_json.content(self))
        write_json(directory, "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": self.piece(self.unk),
            "bos_token": self.piece(self.bos), "eos_token": self.piece(self.eos),
            "clean_up_tokenization_spaces": False,
        })

    def add_to_gguf(self, writer):
        """writer: a gguf.GGUFWriter."""
        writer.add_tokenizer_model("llama")
        writer.add_token_list(self.pieces)
        writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        writer.add_unk_token_id(self.unk)
        for add, index in ((writer.add_bos_token_id, self.bos), (writer.add_eos_token_id, self.eos)):
            if index is not None:
                add(index)
        writer.add_add_bos_token(self.bos is not None)
        writer.add_add_space_prefix(self.adds_space)
        writer.add_remove_extra_whitespaces(False)
