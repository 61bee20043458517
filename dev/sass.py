"""SASS as cuobjdump -sass and nvdisasm print it: functions, their control flow, and which registers an instruction touches.

For what kernels of compute capability 9.0 are made of. Where a width cannot be read off an instruction, the larger one is
taken: an access too many shows as a finding that can be looked at, one too few would hide a fault.
"""
import re
from collections import namedtuple

Instruction = namedtuple("Instruction", "offset predicate opcode operands text")

HEADER = re.compile(r"^\s*Function\s*:\s*(\S+)|^\.text\.(\S+):")
LABEL = re.compile(r"^(\.L_\w+|\$\S+):")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
REGISTER = re.compile(r"(?<![A-Z_\w])R(\d+)\b(\.64)?")
PREDICATE = re.compile(r"^!?U?P(?:\d+|T)$")
PLAIN_REGISTER = re.compile(r"^[-|~!]*R(?:\d+|Z)\b")
TARGET = re.compile(r"0x([0-9a-f]+)|`\(([^)]+)\)")

# First operand, after predicates, that is a register and still read only.
READ_ONLY = re.compile(r"^(?:[A-Z]*SETP|FCHK|R2P|R2B|RED|WARPSYNC|RET|BMOV|NANOSLEEP|BAR|BRX|JMX|CALL)$")
JUMPS, COMPUTED_JUMPS, ENDS = {"BRA", "JMP", "CALL"}, {"BRX", "JMX"}, {"RET", "KILL"}


class Function:
    """A kernel: name, its instructions in order, and where labels point."""

    def __init__(self, name):
        self.name, self.instructions, self.labels = name, [], {}
        self.pending = []  # labels of the next instruction

    def index(self):
        return {instruction.offset: i for i, instruction in enumerate(self.instructions)}

    def successors(self):
        """For every instruction the indices of those that may come next."""
        index = self.index()
        joins = {}  # barrier register of BSSY: where BSYNC goes on
        for instruction in self.instructions:
            if instruction.opcode == "BSSY":
                joins.setdefault(instruction.operands[0], []).append(self.target(instruction))
        return [[index[offset] for offset in self.after(i, joins) if offset in index]
                for i in range(len(self.instructions))]

    def after(self, i, joins):
        instruction = self.instructions[i]
        following = [self.instructions[i + 1].offset] if i + 1 < len(self.instructions) else []
        name = instruction.opcode.split(".")[0]
        conditional = instruction.predicate is not None
        if name in JUMPS:
            # A predicate among the operands, or .DIV: goes there or on. A called function comes back.
            goes_on = conditional or name == "CALL" or len(instruction.operands) > 1 or ".DIV" in instruction.opcode
            return (following if goes_on else []) + [self.target(instruction)]
        if name == "EXIT" or name in ENDS or instruction.opcode.startswith("BPT.TRAP"):
            return following if conditional else []
        if name == "BSYNC":
            places = joins.get(instruction.operands[0], [])
            return following if following and following[0] in places else following + places
        return following

    def jumps_out_of_sight(self):
        """Instructions that go where the text does not say."""
        index = self.index()
        return [i for i in self.instructions if i.opcode.split(".")[0] in COMPUTED_JUMPS or
                i.opcode.split(".")[0] in JUMPS and self.target(i) not in index]

    def target(self, instruction):
        """Offset where a jump goes; None where the text does not say."""
        found = TARGET.search(" ".join(instruction.operands))
        if not found:
            return None
        return int(found[1], 16) if found[1] else self.labels.get(found[2])


def parse(text):
    """[Function] of a disassembler's output."""
    functions = []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            functions.append(Function(header[1] or header[2]))
            continue
        if not functions:
            continue
        function = functions[-1]
        label = LABEL.match(line)
        if label:
            function.pending.append(label[1])
            continue
        match = LINE.match(line)
        if match:
            offset = int(match[1], 16)
            operands = tuple(operand.strip() for operand in match[4].split(",")) if match[4] else ()
            text_of_it = re.sub(r"\s+", " ", line.split("*/", 1)[1].split(";")[0]).strip()
            function.instructions.append(Instruction(offset, match[2], match[3], operands, text_of_it))
            function.labels.update((name, offset) for name in function.pending)
            function.pending = []
    return functions


# ---- registers


def registers(operand, width):
    """Those of an operand; width: of a plain one. Addresses say by .64 that they take two."""
    result = set()
    for number, pair in REGISTER.findall(operand):
        count = max(width if PLAIN_REGISTER.match(operand) else 1, 2 if pair else 1)
        result.update(range(int(number), int(number) + count))
    return result


def memory_width(modifiers):
    return next((int(modifier) // 32 for modifier in modifiers if modifier in ("64", "128")), 1)


def widths(opcode, count):
    """(registers that the result takes, [registers that each of `count` sources takes])"""
    name, *modifiers = opcode.split(".")
    if re.match(r"(LD|LDG|LDS|LDL|LDC|LDSM|ST|STG|STS|STL|STSM|ATOM|ATOMG|ATOMS|RED|LDGSTS|SYNCS)$", name):
        width = memory_width(modifiers)
        if name in ("LDSM", "STSM"):
            width = int(modifiers[-1]) if modifiers[-1].isdigit() else 1
        return width, [width] * count
    if name == "CS2R":
        return (1 if "32" in modifiers else 2), [1] * count
    if name in ("HMMA", "IMMA", "DMMA"):
        return 4, [4, 2, 4][:count] + [1] * (count - 3)
    if name == "IMAD" and "WIDE" in modifiers:
        return 2, [1, 1, 2][:count] + [1] * (count - 3)
    if name == "IMAD" and "HI" in modifiers:
        return 1, [1, 1, 2][:count] + [1] * (count - 3)
    if name in ("DADD", "DMUL", "DFMA", "DSETP") or "F64" in modifiers:
        return 2, [2] * count
    if name in ("I2F", "F2I", "FRND") and set(modifiers) & {"U64", "S64"}:
        return 2, [2] * count
    return 1, [1] * count


def accesses(instruction):
    """(registers read, registers written); of products by warpgroups: product_registers."""
    operands = list(instruction.operands)
    while operands and PREDICATE.match(operands[0]):
        operands.pop(0)
    name = instruction.opcode.split(".")[0]
    has_result = bool(operands) and bool(PLAIN_REGISTER.match(operands[0])) and not READ_ONLY.match(name)
    sources = operands[1:] if has_result else operands
    values = [operand for operand in sources if not PREDICATE.match(operand)]
    result_width, source_widths = widths(instruction.opcode, len(values))
    read, written = set(), set()
    for operand, width in zip(values, source_widths):
        read |= registers(operand, width)
    if has_result:
        written = registers(operands[0], result_width)
    return read, written


Product = namedtuple("Product", "sums a closes")


def product_registers(instruction):
    """Of an HGMMA: registers of its sums, of operand a (none when it lies in shared memory), whether it closes a group."""
    shape = re.search(r"\.(\d+)x(\d+)x\d+", instruction.opcode)
    # 64 x N numbers over 128 threads, of 32 or 16 bits.
    count = int(shape[2]) // (2 if ".F32" in instruction.opcode or ".S32" in instruction.opcode else 4)
    first, second = instruction.operands[:2]
    sums = registers(first, count)
    a = registers(second, 4) if PLAIN_REGISTER.match(second) else set()
    return Product(frozenset(sums), frozenset(a), "gsb0" in instruction.operands)
