"""Text files to characters: plain or gzipped, in the encoding that their first bytes show."""
import codecs
import gzip
import io
import unicodedata
import zlib

from mistakes import UserError, one_line

SAMPLE_BYTES = 1 << 16
DEFAULT_ENCODING = "utf-8-sig"  # UTF-8, without a byte order mark where there is one

# Byte order marks, the longer ones first. These codecs drop them.
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# First bytes of files that are no text, whatever their names say.
NOT_TEXT = ((b"\x1f\x8b", "a gzip file: give it a name that ends in .gz"), (b"PK\x03\x04", "a zip file: unpack it"),
            (b"\x28\xb5\x2f\xfd", "a Zstandard file: unpack it with unzstd"), (b"\xfd7zXZ\x00", "an xz file: unpack it with unxz"),
            (b"BZh", "a bzip2 file: unpack it with bunzip2"), (b"%PDF-", "a PDF: turn it into text with pdftotext"),
            (b"PAR1", "a Parquet file: give it a name that ends in .parquet"))
MOST_ODD = 0.005  # share of characters that no text has, in text that is read in the right encoding
LEAST_ODD = 0.05  # the same of text that is read in a wrong one, which has few such characters by chance
LEAST_LATIN = 0.9
MOST_NULS = 0.01  # share of NUL bytes from which on a file is no text


def odd_share(sample, encoding):
    """Of the characters that this encoding makes of the bytes: those that no text has. 1: it makes none."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeError:
        return 1.0
    odd = sum(unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\r\f"
              for character in text)
    return odd / len(text) if text else 1.0


def wide_encoding(sample):
    """UTF-16 or UTF-32 without a mark: it has NUL bytes, and makes text of what would be none one byte at a time."""
    if b"\0" not in sample or is_narrow(sample):
        return None
    share, encoding = min((odd_share(sample, encoding), rank, encoding) for rank, encoding in enumerate(WIDE))[::2]
    if share > MOST_ODD or is_narrow(sample.replace(b"\0", b"")) and latin_share(sample, encoding) < LEAST_LATIN:
        return None
    return encoding


def is_narrow(sample):
    """Whether these bytes are text one at a time, or as UTF-8."""
    return min(odd_share(sample, "utf-8"), odd_share(sample, "latin-1")) <= LEAST_ODD


def latin_share(sample, encoding):
    """Of the characters: those below U+0100, each of which is one byte and NULs. Where wide text is narrow text without its
    NULs, nearly all are: else the NULs divide narrow text (`abc\\0` again and again), and two of its bytes seem a character."""
    text = codecs.getincrementaldecoder(encoding)().decode(sample)
    return sum(character < "\u0100" for character in text) / max(len(text), 1)


def is_utf8(sample):
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return True
    except UnicodeDecodeError:
        return False


def encoding_of(sample, path, asked):
    """The encoding to read a file in that begins with `sample`; UserError where it is no text, or not what is asked."""
    for mark, encoding in MARKS:
        if sample.startswith(mark):
            return encoding
    for magic, kind in NOT_TEXT:
        if sample.startswith(magic) and (magic == b"%PDF-" or not is_utf8(sample)):
            raise UserError(f"{path}: is {kind}")
    found = wide_encoding(sample)
    if found:
        return found
    name = codecs.lookup(asked).name
    if name.startswith(("utf-16", "utf-32")):
        if b"\0" not in sample and is_utf8(sample):
            raise UserError(f"{path}: is UTF-8, not {asked} as --encoding says: it holds no NUL byte and no byte order mark")
        if name in ("utf-16", "utf-32"):
            raise UserError(f"{path}: has no byte order mark: name its byte order with --encoding {name}-le or {name}-be")
    elif sample.count(b"\0") > MOST_NULS * len(sample):
        raise UserError(f"{path}: holds NUL bytes, the first at byte {sample.index(0)}: it is no text, or in an encoding "
                        "to be named with --encoding")
    return asked


def open_binary(path, gzipped):
    return gzip.open(path, "rb") if gzipped else open(path, "rb")


def open_text(path, gzipped, asked, findings):
    """A text stream with universal newlines: \\r\\n becomes \\n. An encoding that was not asked for is noted."""
    binary = open_binary(path, gzipped)
    try:
        sample = binary.read(SAMPLE_BYTES)
        encoding = encoding_of(sample, path, asked)
        binary.seek(0)
    except BaseException:
        binary.close()
        raise
    if encoding != DEFAULT_ENCODING and encoding != asked:
        findings.encodings[path] = encoding
    return io.TextIOWrapper(binary, encoding=encoding)


class Blocks:
    """The characters of a text stream, some at a time. The stream's own read(n) asks for n times as many bytes as there were to a
    character so far: terabytes, of an encoding that holds text back (utf-7, idna)."""

    def __init__(self, file):
        """file: of open_text, at its beginning."""
        self.binary = file.buffer
        self.decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(file.encoding)(), translate=True)

    def read(self, size):
        """Those of about so many bytes; "" at the end."""
        while data := self.binary.read(size):
            if text := self.decoder.decode(data):
                return text
        return self.decoder.decode(b"", final=True)


def faulty_line(path, gzipped, encoding):
    """The number of the first line that is not valid in an encoding, which has ASCII's newlines; else None."""
    try:
        with open_binary(path, gzipped) as file:
            for number, line in enumerate(file, 1):
                line.decode(encoding)
    except UnicodeError:
        return number
    except (OSError, EOFError, zlib.error, LookupError):  # LookupError: a name that codecs have in their errors alone
        pass
    return None


def encoding_error(path, gzipped, error, asked):
    """A UserError for a UnicodeError: where it is, and which encoding it may be."""
    encoding = getattr(error, "encoding", None) or asked
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))
    number = None if wide else faulty_line(path, gzipped, encoding)
    place = f"{path}, line {number}" if number else path
    reason = f"byte {error.object[error.start]:#04x}" if isinstance(error, UnicodeDecodeError) else one_line(error)
    hint = (f"; --encoding {asked} doesn't suit this file" if asked != DEFAULT_ENCODING and not wide else
            "; the file is cut short or damaged" if wide else "; name its encoding with --encoding, for example latin-1")
    return UserError(f"{place}: not valid {encoding} ({reason}){hint}")


def gzip_error(path, error):
    return UserError(f"{path}: damaged gzip file: {one_line(error)}")


GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
