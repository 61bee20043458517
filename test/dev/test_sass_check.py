#!/usr/bin/env python3
"""dev/sass_check.py on short pieces of machine code: what it must find, and what it must leave alone.

    test/dev/test_sass_check.py
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dev"))

import sass  # noqa: E402
import sass_check  # noqa: E402

PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, R72, gdesc[UR12], R24"  # sums R24 ... R55, operand a R72 ... R75
LAST = PRODUCT + ", gsb0"


def cuobjdump(*lines):
    """A kernel as cuobjdump prints it, 16 bytes an instruction; 'NAME:' in front of a line: its place, of which {NAME} tells."""
    lines = [re.match(r"(?:(\w+): )?(.*)", line).groups() for line in lines]
    places = {name: f"0x{16 * i:x}" for i, (name, _) in enumerate(lines) if name}
    body = "".join(f"        /*{16 * i:04x}*/  {text.format(**places)} ;   /* 0x000000ff0200720c */\n{' ' * 60}/* 0x0 */\n"
                   for i, (_, text) in enumerate(lines))
    return f"\t\tFunction : kernel\n\t.headerflags @\"EF_CUDA_SM90\"\n{body}\t\t..........\n"


def nvdisasm(*lines):
    """The same kernel as nvdisasm prints it."""
    text = ".text.kernel:\n"
    for i, line in enumerate(lines):
        name, body = re.match(r"(?:(\w+): )?(.*)", line).groups()
        body = re.sub("{(.)}", r"`(.L_x_\1)", body)
        text += (f".L_x_{name}:\n" if name else "") + f"        /*{16 * i:04x}*/     {body} ;\n"
    return text


class SassCheckTest(unittest.TestCase):
    def found(self, *lines):
        """[(offset, text)] of the findings, which both disassemblers' output must give."""
        results = [sass_check.check_text(write(*lines))["kernel"][1] for write in (cuobjdump, nvdisasm)]
        self.assertEqual([(f.offset, f.text) for f in results[0]], [(f.offset, f.text) for f in results[1]])
        return [(finding.offset // 16, finding.text) for finding in results[0]]

    def test_registers_may_be_used_again_behind_a_wait(self):
        self.assertEqual(self.found("LDS.128 R72, [R4]", "WARPGROUP.ARRIVE", PRODUCT, LAST, "IMAD.MOV.U32 R76, RZ, RZ, R72",
                                    "WARPGROUP.DEPBAR.LE gsb0, 0x0", "LDS.128 R72, [R4]", "FMUL R24, R24, R5",
                                    "STG.E.128 desc[UR4][R2.64], R52", "EXIT"), [])

    def test_a_missing_wait_is_found_for_every_register_of_operand_a(self):
        for written in ("LDS.64 R74, [R4]", "LDS.128 R72, [R4+0x10]", "IMAD.WIDE R74, R1, R2, R4", "@P0 MOV R75, R1",
                        "LOP3.LUT P0, R73, R1, R2, RZ, 0xc0, !PT", "SHFL.BFLY PT, R72, R1, 0x1, 0x1f", "CS2R R74, SRZ",
                        "MOVM.16.MT88 R74, R10", "LDSM.16.M88.4 R72, [R4]", "IADD3 R75, P1, R1, R2, RZ",
                        "HGMMA.64x8x16.F32.BF16 R72, gdesc[UR4], RZ, !UPT"):
            (place, text), *others = self.found(PRODUCT, LAST, written, "EXIT")
            self.assertEqual((place, others), (2, []), written)
            self.assertRegex(text, r"^writes R7[2-5], operand a of the HGMMA at 00[01]0 ")

    def test_what_looks_like_a_write_and_is_none(self):
        for harmless in ("ISETP.GE.AND P0, PT, R72, R5, PT", "STS.128 [R4], R72", "R2UR UR4, R73", "SYNCS.ARRIVE.TRANS64 RZ, [UR9], R72",
                         "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR21], R74", "MOV R76, R75", "LDS.128 R68, [R4]", "MOV R1, c[0x0][0x72]",
                         "UMOV UR72, UR73", "STSM.16.MT88.4 [R6], R72", "FSETP.GT.OR P0, PT, R72, R73, P0", "S2R R0, SR_TID.X"):
            self.assertEqual(self.found(PRODUCT, LAST, harmless, "EXIT"), [], harmless)

    def test_a_sum_that_is_read_or_written_early_is_found(self):
        for access, verb in (("FADD R1, R2, R55", "reads R55"), ("STG.E.64 desc[UR4][R2.64], R54", "reads R54"),
                             ("STSM.16.M88.4 [R6], R52", "reads R52"), ("MOV R24, RZ", "writes R24"),
                             ("LDG.E R1, desc[UR4][R54.64]", "reads R54"), ("LDS.128 R20, [R26]", "reads R26"),
                             ("HGMMA.64x8x16.F32.BF16 R80, R52, gdesc[UR4], RZ, !UPT", "reads R52"),
                             ("HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24", "writes R24")):
            (place, text), *others = self.found(LAST, access, "EXIT")
            self.assertEqual((place, others), (1, []), access)
            self.assertTrue(text.startswith(f"{verb}, a sum of the HGMMA at 0000 "), text)
        for harmless in ("FADD R1, R2, R56", "MOV R23, RZ", "LDS.128 R20, [R4]", "FADD R1, R2, -R23", PRODUCT):
            self.assertEqual(self.found(LAST, harmless, "EXIT"), [], harmless)

    def test_a_wait_leaves_the_newest_groups_under_way(self):
        other = LAST.replace("R72", "R76")
        self.assertEqual(self.found(LAST, other, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "MOV R72, RZ", "EXIT"), [])
        (place, text), = self.found(LAST, other, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "MOV R76, RZ", "EXIT")
        self.assertEqual((place, text.split(" that")[0]), (3, "writes R76, operand a of the HGMMA at 0010"))
        # A group that no HGMMA has closed is not waited for.
        self.assertEqual(len(self.found(PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R72, RZ", "EXIT")), 1)

    def test_a_conditional_wait_may_not_have_happened(self):
        self.assertEqual(len(self.found(LAST, "@P0 WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R72, RZ", "EXIT")), 1)
        around = [LAST, "BSSY B0, {J}", "@P0 BRA {A}", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "A: BSYNC B0", "J: MOV R72, RZ", "EXIT"]
        self.assertEqual(len(self.found(*around)), 1)
        around[2] = "@P0 BRA {E}"  # those that do not wait leave
        self.assertEqual(self.found(*around[:-1], "E: EXIT"), [])

    def test_a_product_of_the_round_before_is_under_way_in_a_loop(self):
        def loop(wait):
            # Levels in R72 and R76 by turns, as in a loop that makes those of the next slice while this one is multiplied.
            return ["T: " + LAST, f"WARPGROUP.DEPBAR.LE gsb0, {wait}", "LDS.128 R76, [R4]", LAST.replace("R72", "R76"),
                    f"WARPGROUP.DEPBAR.LE gsb0, {wait}", "LDS.128 R72, [R4]", "@P0 BRA {T}",
                    "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT"]
        self.assertEqual(self.found(*loop("0x1")), [])
        self.assertEqual([place for place, _ in self.found(*loop("0x2"))], [2, 5])
        # Groups without end, of a loop that never waits: the list stays short.
        self.assertEqual([place for place, _ in self.found("T: " + LAST, "@P0 BRA {T}", "MOV R72, RZ", "EXIT")], [2])

    def test_called_functions_are_followed(self):
        lines = [LAST, "CALL.REL.NOINC {F}", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R72, RZ", "EXIT", "F: MOV R{}, RZ",
                 "RET.REL.NODEC R16 0x0"]
        for register, places in ((1, []), (72, [5])):
            self.assertEqual([place for place, _ in self.found(*[line.replace("R{}", f"R{register}") for line in lines])], places)

    def test_spills_and_computed_jumps_are_found(self):
        self.assertEqual(self.found("STL [R1], R5", "LDL R5, [R1]", "BRX R2 -0x40"),
                         [(0, "registers spill to local memory"), (1, "registers spill to local memory"),
                          (2, "a jump that cannot be followed")])

    def test_what_the_ptx_asks_for_must_be_there(self):
        ptx = sass_check.kernels_of_ptx(".visible .entry kernel(\n.param .b32 x)\n{ setmaxnreg.inc.sync.aligned.u32 240;\n"
                                        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 ...; }\n.entry other()\n{ ret; }\n")
        _, findings = sass_check.check_text(cuobjdump("EXIT"), ptx)["kernel"]
        self.assertEqual([finding.instruction for finding in findings], ["HGMMA", "USETMAXREG"])
        _, findings = sass_check.check_text(cuobjdump(LAST, "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0", "EXIT"), ptx)["kernel"]
        self.assertEqual(findings, [])

    def test_unknown_instructions_of_warpgroups_are_not_passed_over(self):
        with self.assertRaisesRegex(sass_check.Failure, "kernel: WARPGROUP.NEW: this check does not know"):
            sass_check.check_text(cuobjdump("WARPGROUP.NEW", "EXIT"))

    # ---- the program

    def run_program(self, *words, **environment):
        return subprocess.run([sys.executable, ROOT / "dev" / "sass_check.py", *map(str, words)], capture_output=True, text=True,
                              env={**os.environ, **environment})

    def test_exit_status_and_lines(self):
        with tempfile.TemporaryDirectory() as directory:
            bad, good = pathlib.Path(directory, "bad.sass"), pathlib.Path(directory, "good.sass")
            bad.write_text(cuobjdump(LAST, "MOV R72, RZ", "EXIT"))
            good.write_text(cuobjdump(LAST, "EXIT"))
            result = self.run_program(bad, good)
            self.assertEqual(result.returncode, 1, result.stderr)
            lines = result.stdout.splitlines()
            self.assertRegex(lines[0], "bad.sass: 1 kernels, 1 HGMMA: 1 findings$")
            self.assertEqual(lines[1], "    kernel /*0010*/ MOV R72, RZ: writes R72, operand a of the HGMMA at 0000 that may be "
                                       "under way")
            self.assertRegex(lines[2], "good.sass: 1 kernels, 1 HGMMA: clean$")
            self.assertEqual(self.run_program(good).returncode, 0)

    def test_what_cannot_run_is_said_in_one_line(self):
        with tempfile.TemporaryDirectory() as directory:
            empty = pathlib.Path(directory, "empty.sass")
            empty.write_text("nothing")
            for words, told in (((empty,), "no function in it"), ((pathlib.Path(directory, "absent"),), "No such file"),
                                (("--disassembler", "/absent", pathlib.Path(directory, "a.cubin")), "--disassembler /absent")):
                result = self.run_program(*words)
                self.assertEqual((result.returncode, result.stdout), (2, ""), result.stderr)
                self.assertRegex(result.stderr, f"^dev/sass_check.py: error: .*{told}.*\n$")


if __name__ == "__main__":
    unittest.main()
