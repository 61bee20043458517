#!/usr/bin/env python3
"""Tests of many ranks as users run them: on tiny synthetic shards, under mpirun where there is one.

    test/program/test_ranks.py --program ./train_qat [TESTS]
"""
import glob
import os
import re
import shutil
import signal
import sys
import time

from program_fixture import (Job, SEQUENCE, VOCABULARY, RanksTest, checkpoint, checkpoints, expected_shapes, read_bytes,
                             read_checkpoint, read_metrics, read_run_record, run_tests, write_shards)

TOTAL_BATCH = 12  # sequences: whole micro-batches for 1, 2, 3 and 4 ranks
# The number of ranks changes the order of float32 sums over a step's tokens. The terms of a loss have one sign: they
# leave an error like that of a random walk. Those of a gradient cancel, and sqrt(terms) more of the error is left.
TERMS = TOTAL_BATCH * SEQUENCE
LOSS_TOLERANCE, NORM_TOLERANCE = (4 + TERMS**0.5) * 2**-24, TERMS * 2**-24


def losses_of(directory):
    steps, validations = read_metrics(directory)
    return [record["loss"] for record in steps], [record["validation_loss"] for record in validations]


# ---- training on many ranks ---------------------------------------------------------------------------------------

class SameNumbersTest(RanksTest):
    """The number of ranks changes the order of sums and nothing else."""

    def check_close(self, expected, found, tolerance):
        self.assertEqual(len(expected), len(found))
        for a, b in zip(expected, found):
            self.assertLessEqual(abs(a - b), tolerance * abs(a), (a, b))

    def check_metrics(self, one, many, first, last):
        """The steps after `first` up to `last`, and the validations among them that both made."""
        (steps, validations), (its_steps, its_validations) = (
            [[record for record in records if first < record["step"] <= last] for records in read_metrics(run)]
            for run in (one, many))
        for key in ("step", "phase", "learning_rate"):
            self.assertEqual([record[key] for record in steps], [record[key] for record in its_steps])
        for key, tolerance in (("loss", LOSS_TOLERANCE), ("gradient_norm", NORM_TOLERANCE)):
            self.check_close([record[key] for record in steps], [record[key] for record in its_steps], tolerance)
        expected, found = ({(record["step"], record["weights"]): record["validation_loss"] for record in records}
                           for records in (validations, its_validations))
        common = sorted(set(expected) & set(found))
        self.assertGreaterEqual(len(common), (last - first) // 4)
        self.check_close([expected[key] for key in common], [found[key] for key in common], LOSS_TOLERANCE)

    def check_ranks(self, flags):
        """Freely up to the switch. Beyond it a weight that lies near the border of two levels can take either: there a
        step is compared that starts from the state of the one process."""
        flags = f"{flags} -total_batch {TOTAL_BATCH} -dtype fp32 -steps 20 -qat_frac 0.5 -lr 3e-4 -val_every 4"
        flags += " -save_every 5 -keep 0"
        one = self.path("one")
        self.run_program(flags, "-batch 12", output="one")
        for ranks, batch in ((2, 2), (3, 4), (4, 1)):
            for first, last in ((0, 10), (10, 11), (15, 16)):
                with self.subTest(flags=flags, ranks=ranks, first=first):
                    output = f"ranks_{ranks}_{first}"
                    resume = self.copy_until(first, "one", output) if first else ""
                    self.run_job(ranks, flags, f"-batch {batch} -until {last}", resume, output=output)
                    self.check_metrics(one, self.path(output), first, last)

    def test_one_bit(self):
        self.check_ranks("-b 1")

    def test_four_bits(self):
        self.check_ranks("-b 4 -ffn 72 -width 36 -heads 3")

    def test_eight_bits(self):
        self.check_ranks("-b 8 -heads 4 -kv_heads 2")

    def test_groups(self):
        self.check_ranks("-b 4 -group 32 -width 64")

    def test_same_ranks_same_bits(self):
        for flags in ("-dtype bf16 -b 2", "-dtype fp32 -b 4 -group 32"):
            flags += f" -total_batch {TOTAL_BATCH} -batch 2 -steps 12 -qat_frac 0.5 -lr 5e-3 -val_every 5"
            outputs = [flags.replace(" ", "") + name for name in ("a", "b", "zero")]
            for output in outputs[:2]:
                self.run_job(3, flags, output=output)
            self.same_folders(self.path(outputs[0]), self.path(outputs[1]))
            # Dividing the optimizer among ranks or not: the same arithmetic.
            self.run_job(3, flags, "-zero 0", output=outputs[2])
            self.same_run(self.path(outputs[0]), self.path(outputs[2]))
            self.assertEqual(read_run_record(self.path(outputs[2]))["layout"]["zero"], 0)

    def test_one_rank_is_one_process(self):
        flags = "-steps 12 -qat_frac 0.5 -val_every 5 -grad_accum 3"
        self.run_program(flags, output="one")
        self.run_job(1, flags, output="rank")
        self.same_folders(self.path("one"), self.path("rank"))

    def test_every_sample_is_read_once(self):
        # Weights that do not move: the loss of a step tells which samples it read.
        train = write_shards(self.path("few"), "train", TOTAL_BATCH * SEQUENCE + 1, seed=5)
        flags = f"-lr 1e-30 -steps 6 -qat_frac 0 -b 16 -dtype fp32 -val_sequences {TOTAL_BATCH} -batch 1"
        for ranks in (1, 2, 3, 4):
            with self.subTest(ranks=ranks):
                output = f"ranks_{ranks}"
                self.run_job(ranks, flags, f"-total_batch {TOTAL_BATCH}", output=output, train=train)
                evaluated = self.start([self.program, "-eval_only", "-e", self.path(output), "-j", train, "-batch", "1", "-dtype",
                                        "fp32", "-device", "cpu", "-val_sequences", str(TOTAL_BATCH)]).stdout
                loss = float(re.search(r"full precision +([\d.]+)", evaluated)[1])
                self.check_close([loss] * 6, losses_of(self.path(output))[0], max(LOSS_TOLERANCE, 1e-4))
        # Were a sample read twice instead of another, it would show.
        self.run_job(2, flags, f"-total_batch {TOTAL_BATCH - 2}", output="other", train=train)
        steps, _ = losses_of(self.path("other"))
        self.assertGreater(min(abs(step - loss) for step in steps), 1e-4)


class RecordTest(RanksTest):
    """What is written and printed: by rank 0 alone, with the numbers of bytes that ranks exchange."""

    def first_row(self, rows, rank, ranks):
        return rows * rank // ranks

    def expected_bytes(self, ranks, zero, quantized, bits, group, weight_bytes):
        """What rank 0 sends in a step, from the shapes alone."""
        sent = {"gradients": 0, "weights": 0, "unpacked_weights": 0}
        for name, shape in expected_shapes(False, 0).items():
            is_norm = len(shape) == 1
            rows, columns = (1, shape[0]) if is_norm else shape
            own = self.first_row(rows, 1, ranks)  # of rank 0, which begins at row 0
            scales = columns // (group or columns) if quantized and not is_norm else 0
            sent["gradients"] += (rows - own) * columns * 4
            if zero == 0:  # and then the finished ones to all others
                sent["gradients"] += own * (columns + scales) * 4 * (ranks - 1)
                continue
            own_bits = max(bits, 4) if "embed" in name else bits
            code_bits = {1: 1, 1.58: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}[own_bits]
            plain = columns * (4 if is_norm else weight_bytes)
            packed = -(-columns * code_bits // 128) * 16 + scales * 4
            sent["weights"] += own * (packed if scales else plain) * (ranks - 1)
            sent["unpacked_weights"] += own * plain * (ranks - 1)
        return sent

    def check_record(self, ranks, zero, dtype, bits, group, batch):
        accumulation = TOTAL_BATCH // ranks // batch
        flags = f"-zero {zero} -dtype {dtype} -b {bits} -group {group} -batch {batch} -total_batch {TOTAL_BATCH}"
        printed = self.run_job(ranks, flags, "-steps 8 -qat_frac 0.5 -val_every 3 -save_every 3")
        out = self.path("out")
        record = read_run_record(out)
        self.assertEqual(record["layout"], {"ranks": ranks, "zero": zero, "batch": batch, "grad_accum": accumulation,
                                            "logit_rows": min(batch * SEQUENCE, 512)})
        self.assertEqual(record["configuration"]["total_batch"], TOTAL_BATCH)
        self.assertEqual(record["plan"]["tokens_per_step"], TOTAL_BATCH * SEQUENCE)
        weight_bytes = {"fp32": 4, "bf16": 2}[dtype]
        self.assertEqual(record["results"]["bytes_sent_per_step"],
                         {phase: self.expected_bytes(ranks, zero, phase == "QAT", bits, group, weight_bytes)
                          for phase in ("FP", "QAT")})
        steps, validations = read_metrics(out)
        self.assertEqual([step["step"] for step in steps], list(range(1, 9)))
        self.assertEqual([(record["step"], record["weights"]) for record in validations],
                         [(3, "full_precision"), (4, "full_precision"), (4, "rounded"), (6, "quantized"),
                          (8, "quantized")])
        self.assertEqual(re.findall(r"^step +(\d+)/8 +\w+ +loss", printed, re.MULTILINE), list("12345678"))
        self.assertEqual(re.findall(r"^saved .*step_0000000(\d)$", printed, re.MULTILINE), list("368"))
        for once in ("device: ", "ranks: ", "model ", "plan", "memory (", "validation loss", "sent by a rank"):
            self.assertEqual(len(re.findall("^" + re.escape(once), printed, re.MULTILINE)), 1, once)
        self.assertRegex(printed, rf"\nranks: {ranks} ranks over MPI")
        self.assertEqual(sorted(os.listdir(out)), ["metrics.jsonl", "run.json", "step_00000006", "step_00000008"])
        shutil.rmtree(out)

    def test_two_ranks(self):
        self.check_record(2, 1, "fp32", 1, 0, 3)
        self.check_record(2, 0, "bf16", 8, 32, 2)

    def test_three_ranks(self):
        self.check_record(3, 1, "bf16", 2, 32, 4)
        self.check_record(3, 0, "fp32", 4, 0, 1)

    def test_what_is_only_printed(self):
        for flags in ("-h", "-plan"):
            printed = self.run_job(3, "-steps 4 -qat_frac 0.5", flags)
            self.assertEqual(len(re.findall(r"^(?:Usage: |  total .*MiB)", printed, re.MULTILINE)), 1, printed)
            self.assertEqual(os.listdir(self.directory), [])


# ---- checkpoints --------------------------------------------------------------------------------------------------

class RanksResumeTest(RanksTest):
    def test_on_another_number_of_ranks(self):
        flags = f"-total_batch {TOTAL_BATCH} -batch 2 -dtype fp32 -steps 24 -qat_frac 0.5 -lr 3e-4 -val_every 5"
        flags += " -save_every 4 -keep 0"
        self.run_job(2, flags, output="whole")
        whole = self.path("whole")
        parts = self.path("parts")
        for position, (ranks, until) in enumerate(((2, 7), (1, 12), (3, 17), (2, 24))):
            resume = "-resume" if position else ""
            printed = self.run_job(ranks, flags, f"-until {until}", resume, output="parts")
            self.assertEqual("resume: step" in printed, bool(resume))
            self.assertEqual(checkpoints(parts)[-1], until)
            # Read by other numbers of ranks and written again: the same files.
            before = read_checkpoint(parts, until)
            for others in {1, 3} - {ranks} if until < 24 else ():
                self.run_job(others, flags, f"-until {until} -resume", output="parts")
                after = read_checkpoint(parts, until)
                self.assertEqual(sorted(before), sorted(after))
                for name in before:
                    self.assertTrue(before[name] == after[name], f"{name}, step {until}, {ranks} to {others} ranks")
        def losses(directory, first, last):
            return [(record["step"], record.get("phase"), record.get("loss", record.get("validation_loss")))
                    for records in read_metrics(directory) for record in records if first < record["step"] <= last]

        # Quantized weights near the border of two levels part ways: there a step is compared from the same state.
        self.run_job(1, flags, "-until 18", self.copy_until(17, "parts", "alone"), output="alone")
        self.assertEqual([step for step, _, _ in losses(whole, 0, 24)], [step for step, _, _ in losses(parts, 0, 24)])
        for expected, found in ((losses(whole, 0, 12), losses(parts, 0, 12)),
                                (losses(self.path("alone"), 17, 18)[:1], losses(parts, 17, 18)[:1])):
            for mine, its in zip(expected, found, strict=True):
                self.assertEqual(mine[:2], its[:2])
                self.assertLessEqual(abs(mine[2] - its[2]), LOSS_TOLERANCE * mine[2], (mine, its))

    def test_on_the_same_number_of_ranks(self):
        flags = f"-total_batch {TOTAL_BATCH} -batch 1 -b 1 -steps 14 -qat_frac 0.5 -val_every 3 -lr 5e-3"
        self.run_job(3, flags, output="whole")
        for resume, until in (("", 4), ("-resume", 7), ("-resume", 11), ("-resume", 14)):
            self.run_job(3, flags, f"-until {until}", resume, "-keep 1", output="parts")
        self.same_run(self.path("whole"), self.path("parts"))


# ---- mishaps ------------------------------------------------------------------------------------------------------

class MishapTest(RanksTest):
    # Runs that cannot end before they are disturbed: -until ends them, and those that they are compared with.
    ENDLESS = f"-total_batch {TOTAL_BATCH} -batch 1 -steps 100000 -warmup 5 -print_every 1000"
    SAVING = "-save_every 25 -keep 1"

    def check_ends(self, job, seconds=30):
        """The job ends by itself within these seconds, with an error, and leaves no process. Returns the result."""
        job.process.wait(seconds)
        deadline = time.monotonic() + seconds
        while job.processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(job.processes(), [])
        result = job.end()
        self.assertNotEqual(result.returncode, 0)
        return result

    def check_goes_on(self, ranks, flags, step, output):
        """A resume from this step, and a run that was never disturbed: the same bits."""
        out, whole = self.path(output), self.path("whole_" + output)
        self.assertEqual(checkpoints(out), [step])
        until = f"-until {step + 30}"
        self.assertIn(f"resume: step {step} from ", self.run_job(ranks, flags, until, "-resume", output=output))
        self.run_job(ranks, flags, until, output="whole_" + output)
        self.assertEqual(read_metrics(out), read_metrics(whole))
        for name in ("model.safetensors", "optimizer.safetensors"):
            files = [read_checkpoint(run, step + 30)[name] for run in (out, whole)]
            self.assertTrue(files[0] == files[1], f"{name} differs")

    def test_killed_rank(self):
        for rank, fraction in ((0, 0.5), (1, 0.9995)):  # in full precision, and quantization-aware
            with self.subTest(rank=rank):
                flags, output = f"{self.ENDLESS} -qat_frac {fraction}", f"killed_{rank}"
                job = self.start_job(2, flags, self.SAVING, output=output)
                self.wait_for(job, checkpoint(self.path(output), 75))
                os.kill(job.rank(rank), signal.SIGKILL)
                self.check_ends(job)
                step = checkpoints(self.path(output))[-1]
                shutil.rmtree(checkpoint(self.path(output), step - 25), ignore_errors=True)  # killed between two
                self.check_goes_on(2, flags, step, output)

    def test_rank_that_does_not_answer(self):
        job = self.start_job(3, self.ENDLESS, "-qat_frac 0.5 -rank_timeout 1", self.SAVING)
        self.wait_for(job, checkpoint(self.path("out"), 50))
        os.kill(job.rank(1), signal.SIGSTOP)
        result = self.check_ends(job)
        lines = self.own_lines(result)
        self.assertTrue(lines, result.stderr)
        for line in lines:
            self.assertRegex(line, r"error: rank [02]: no answer from rank 1 for 1 s .*-rank_timeout")

    def check_stopped(self, signal_number, fraction):
        flags = f"{self.ENDLESS} -qat_frac {fraction}"
        job = self.start_job(2, flags, self.SAVING)
        self.wait_for(job, checkpoint(self.path("out"), 75))
        job.process.send_signal(signal_number)
        result = self.check_ends(job)
        message = re.search(r"^stopped after step (\d+); go on with the same command and -resume$", result.stdout,
                            re.MULTILINE)
        self.assertTrue(message, result.stdout + result.stderr)
        step = int(message[1])
        self.assertGreaterEqual(step, 75)
        self.assertEqual([record["step"] for record in read_metrics(self.path("out"))[0]], list(range(1, step + 1)))
        self.check_goes_on(2, flags, step, "out")

    def test_terminated(self):
        self.check_stopped(signal.SIGTERM, 0.9995)

    def test_interrupted(self):
        self.check_stopped(signal.SIGINT, 0.5)

    def test_asked_to_stop(self):
        self.check_stopped(signal.SIGUSR1, 0.9)

    def test_bad_token(self):
        # One sample of twelve: one rank alone sees it.
        good = write_shards(self.path("silent"), "train", TOTAL_BATCH * SEQUENCE + 1, seed=5, stated=False)
        path = glob.glob(good)[0]
        data = bytearray(read_bytes(path))
        data[1024 + 2 * (5 * SEQUENCE + 3)] = VOCABULARY + 7
        with open(path, "wb") as file:
            file.write(data)
        result = self.job(3, f"-total_batch {TOTAL_BATCH} -batch 4 -steps 4 -qat_frac 0.5 -vocab {VOCABULARY}",
                          train=path)
        self.check_job_error(result, "silent_train_000000.bin", f"has id {VOCABULARY + 7}",
                             f"vocabulary has {VOCABULARY}")
        self.assertRegex(self.own_lines(result)[0], r"error: rank [012]: ")

    def test_numbers_that_go_wrong(self):
        result = self.job(3, "-qat_frac 0.5 -steps 40 -lr 1e30 -warmup 0 -dtype fp32 -save_every 1")
        out = self.path("out")
        self.check_job_error(result, "error: step 2: ", "first bad gradient: model.embed_tokens.weight",
                             "nothing of this step was kept", "the last good checkpoint is " + checkpoint(out, 1),
                             "-lr")
        self.assertEqual(checkpoints(out), [1])
        self.assertEqual([record["step"] for record in read_metrics(out)[0]], [1])

    def test_mistakes(self):
        flags = f"-steps 4 -qat_frac 0.5 -total_batch {TOTAL_BATCH}"
        self.run_job(3, flags)
        for mistake, text in [("-step 9", ["--step", "-h"]),
                              ("-total_batch 20", ["-total_batch 20", "ranks, 3"]),
                              ("-device cuda", ["no CUDA device", "-device cpu"]),
                              ("", ["holds a run already", "step_00000004", "-resume"])]:
            self.job_fails(3, flags, mistake, text=text)
        self.job_fails(3, flags, validation=self.path("none_*.bin"), text=["no token shard matches", "none_*.bin"])


# ---- ranks unlike one another --------------------------------------------------------------------------------------

class AgreementTest(RanksTest):
    """Ranks that were started unlike one another."""

    def unlike(self, *changes):
        """Two ranks, the second with other flags."""
        flags = f"-steps 4 -qat_frac 0.5 -total_batch {TOTAL_BATCH}"
        first, second = self.command(flags), self.command(flags, *changes)
        command = [*self.launched(1, first), ":", "-np", "1", *second]
        job = Job(command, self.directory)
        self.addCleanup(job.kill)
        return job.end()

    def test_settings(self):
        self.check_job_error(self.unlike("-lr 2e-3"), "rank 1 has other settings than rank 0")
        self.check_job_error(self.unlike("-zero 0"), "rank 1 has other settings than rank 0")

    def test_data(self):
        flags = f"-steps 4 -qat_frac 0.5 -total_batch {TOTAL_BATCH}"
        for changed, words in [({"train": self.other}, "training shards (-i)"),
                               ({"validation": self.other}, "validation shards (-j)")]:
            command = [*self.launched(1, self.command(flags)), ":", "-np", "1", *self.command(flags, **changed)]
            job = Job(command, self.directory)
            self.addCleanup(job.kill)
            self.check_job_error(job.end(), "rank 1 has other " + words)

    def test_devices(self):
        self.assertNotEqual(self.unlike("-device cuda").returncode, 0)

    def test_a_launcher_of_another_mpi(self):
        environment = {**os.environ, "PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}
        result = self.start(self.command("-steps 4 -qat_frac 0.5"), env=environment)
        self.assertEqual(result.returncode, 2)
        self.assertIn("4 ranks", result.stderr)


if __name__ == "__main__":
    names = ["SameNumbersTest", "RecordTest", "RanksResumeTest", "MishapTest", "AgreementTest"]
    sys.exit(run_tests(__doc__, sys.modules[__name__], names))
