"""A SentencePiece model as exports need it: pieces, scores, types, special tokens."""
import os

from errors import UserError

# Types of pieces, numbered alike in SentencePiece and GGUF.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BPE = 2  # the model type


class SentencePieceModel:
    def __init__(self, path):
        from sentencepiece import sentencepiece_model_pb2 as protobuf

        self.path = path
        model = protobuf.ModelProto()
        try:
            with open(path, "rb") as file:
                model.ParseFromString(file.read())
        except OSError as error:
            raise UserError(f"--tokenizer {path}: {error.strerror}") from None
        except Exception:  # whatever protobuf's version raises
            raise UserError(f"--tokenizer {path}: is not a SentencePiece model") from None
        if not model.pieces:
            raise UserError(f"--tokenizer {path}: is not a SentencePiece model: it has no pieces")
        self.pieces = [piece.piece for piece in model.pieces]
        self.scores = [piece.score for piece in model.pieces]
        self.types = [int(piece.type) for piece in model.pieces]
        spec = model.trainer_spec
        self.unk, self.bos, self.eos = (index if index >= 0 else None for index in (spec.unk_id, spec.bos_id, spec.eos_id))
        # Why readers that know pieces and scores alone would find other tokens; "" for models of data/prepare.py.
        self.peculiarity = ("is no BPE model" if model.trainer_spec.model_type != BPE else
                            "has no byte pieces" if BYTE not in self.types else
                            "normalizes its text" if model.normalizer_spec.precompiled_charsmap else
                            "has pieces that users defined" if set(self.types) - {NORMAL, UNKNOWN, CONTROL, BYTE} else
                            "removes spaces" if model.normalizer_spec.remove_extra_whitespaces else "")
        self.adds_space = model.normalizer_spec.add_dummy_prefix


    def piece(self, index):
        """None of None."""
        return None if index is None else self.pieces[index]


def load(path, vocabulary):
    """For a model with so many tokens. UserError."""
    if not os.path.isfile(path):
        raise UserError(f"--tokenizer {path}: no such file")
    model = SentencePieceModel(path)
    if len(model.pieces) > vocabulary:
        raise UserError(f"--tokenizer {path}: has {len(model.pieces)} pieces, the model only {vocabulary}: another tokenizer")
    return model
