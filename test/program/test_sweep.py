#!/usr/bin/env python3
"""Tests of sweeps, and of the branches that they are made of, as users run them: on tiny synthetic shards, under mpirun where
there is one.

    test/program/test_sweep.py --program ./train_qat [TESTS]
"""
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from program_fixture import (BATCH, LIMIT_SECONDS, SEQUENCE, ProgramTest, RanksTest, checkpoint, checkpoints, parameter_count,
                             read_bytes, read_metrics, read_run_record, run_tests, snapshot, write_shards)


class BranchTest(ProgramTest):
    """-until stops a run, -from begins another one with its steps: as if that had been trained alone."""

    def check_branch(self, trunk_flags, flags, step, common="-dtype fp32 -warmup 3 -val_every 4 -lr 3e-3"):
        with self.subTest(trunk=trunk_flags, flags=flags, step=step):
            shutil.rmtree(self.path("trunk"), ignore_errors=True)
            name = f"{step}{flags.replace(' ', '')}"
            self.run_program(common, trunk_flags, f"-until {step}", output="trunk")
            self.assertEqual(checkpoints(self.path("trunk")), [step])
            before = snapshot(self.path("trunk"))
            printed = self.run_program(common, flags, f"-from {checkpoint(self.path('trunk'), step)}", output=name)
            self.assertIn(f"branch: step {step} from {checkpoint(self.path('trunk'), step)}", printed)
            self.assertNotRegex(printed, rf"(?m)^step +{step}/\d+ +\w+ +loss")  # was not trained again
            self.assertEqual(snapshot(self.path("trunk")), before)
            self.run_program(common, flags, output=name + "_alone")
            self.same_folders(self.path(name), self.path(name + "_alone"))

    def test_before_the_switch(self):
        self.check_branch("-steps 40 -b 8 -qat_frac 0.5", "-steps 30 -b 2 -group 32 -qat_frac 0.4", 9)
        self.check_branch("-steps 40 -b 8 -qat_frac 0.5", "-steps 30 -b 1 -qat_frac 0.4", 5)

    def test_at_the_switch(self):
        self.check_branch("-steps 40 -b 4 -qat_frac 0.25", "-steps 20 -b 3 -qat_frac 0.5", 10)
        self.check_branch("-steps 40 -b 4 -qat_frac 0", "-steps 24 -b 4 -qat_frac 0.5", 12)  # validated there too

    def test_at_a_validation(self):
        self.check_branch("-steps 40 -b 4 -qat_frac 0.25", "-steps 20 -b 4 -qat_frac 0.25", 8)

    def test_off_a_run_that_went_on(self):
        common = "-dtype fp32 -warmup 3 -val_every 4 -lr 3e-3"
        self.run_program(common, "-steps 24 -b 4 -qat_frac 0.5 -save_every 4 -keep 0", output="other")
        for flags, step in (("-steps 20 -b 2 -qat_frac 0.4", 8), ("-steps 16 -b 1 -qat_frac 0.5", 4)):
            self.run_program(common, flags, f"-from {checkpoint(self.path('other'), step)}", output=f"branch_{step}")
            self.run_program(common, flags, output=f"alone_{step}")
            self.same_folders(self.path(f"branch_{step}"), self.path(f"alone_{step}"))

    def test_in_full_precision_only(self):
        self.check_branch("-steps 40 -b 4 -qat_frac 0.25", "-steps 20 -b 16", 13)

    def test_no_steps_left(self):
        self.check_branch("-steps 16 -b 16", "-steps 16 -b 2 -qat_frac 0", 16)
        self.check_branch("-steps 16 -b 2 -qat_frac 0", "-steps 16 -b 16", 16)

    def test_with_checkpoints_on_the_way(self):
        self.check_branch("-steps 40 -b 4 -qat_frac 0.25", "-steps 20 -b 4 -qat_frac 0.5 -save_every 6 -keep 1", 8)

    def test_until_before_what_is_done(self):
        self.run_program("-steps 12 -qat_frac 0.5 -until 8")
        before = snapshot(self.path("out"))
        self.assertIn("step 8 is done already", self.run_program("-steps 12 -qat_frac 0.5 -until 5 -resume"))
        self.assertEqual(snapshot(self.path("out")), before)

    def test_until_stops_a_run(self):
        flags = "-steps 20 -qat_frac 0.5 -save_every 7 -val_every 4"
        self.run_program(flags, output="whole")
        for resume, until in (("", 3), ("-resume", 8), ("-resume", 10), ("-resume", 15), ("-resume", 99)):
            self.run_program(flags, f"-until {until}", resume, output="parts")
            self.assertEqual(checkpoints(self.path("parts"))[-1], min(until, 20))
        self.same_run(self.path("whole"), self.path("parts"))

    def test_refused(self):
        flags = "-steps 20 -qat_frac 0.5 -b 4 -warmup 3"
        self.run_program(flags, "-save_every 5 -keep 0", output="trunk")
        trunk = self.path("trunk")
        for changed, step, text in [("-seed 2", 5, ["-from: the checkpoint was trained with seed"]),
                                    ("-lr 2e-3", 5, ["-from: the checkpoint was trained with lr"]),
                                    ("-batch 5", 5, ["-from: the checkpoint was trained with total_batch"]),
                                    ("-steps 21", 15, ["-from", "step 15", "first 10 steps"]),
                                    ("", 10, ["-from", "step 10"]),  # its weights are quantized already
                                    ("-qat_frac 0.8", 5, ["-from", "step 5", "first 4 steps"]),
                                    ("-warmup 4", 5, ["-from", "step 5", "first 0 steps", "-warmup in steps"])]:
            self.fails(flags, changed, f"-from {checkpoint(trunk, step)}", text=text)
        self.fails(flags, f"-from {checkpoint(trunk, 5)}", train=self.other, text=["-from", "shards", "-i"])
        self.fails(flags, f"-from {self.path('none')}", text=["none", "no such directory"])


# ---- sweeps -------------------------------------------------------------------------------------------------------

GRID = {"tokens": [1920, 3840], "b": [4, 1], "qat_frac": [0, 0.5]}
SWEEP = "-warmup 3 -lr 3e-3 -val_every 5 -dtype fp32"
TOKENS_PER_STEP = BATCH * SEQUENCE


class SweepTest(RanksTest):
    def grid(self, values, name="grid.json"):
        with open(self.path(name), "w") as file:
            file.write(values if isinstance(values, str) else json.dumps(values))
        return f"-sweep {self.path(name)}"

    def results(self, output="out", may_repeat=False):
        """{name: record}, a later one replacing earlier ones; may_repeat: else there is one line for each."""
        records = [json.loads(line) for line in read_bytes(self.path(output), "results.jsonl").decode().splitlines()]
        by_name = {record["run"]: record for record in records}
        self.assertTrue(may_repeat or len(by_name) == len(records))
        return by_name

    def runs_of(self, grid):
        """(name, flags) of every combination."""
        prefixes = {"tokens": "t", "b": "b", "qat_frac": "f", "lr": "lr"}
        runs = [("", "")]
        for key in ("tokens", "b", "qat_frac", "lr"):
            runs = [(f"{name}_{prefixes[key]}{value}".lstrip("_"), f"{flags} -{key} {value}")
                    for name, flags in runs for value in grid.get(key, [])] if key in grid else runs
        return runs

    def check_runs(self, grid, output="out", ranks=0, flags=SWEEP):
        """Every run of a finished sweep: as if it had been trained alone, on this many ranks."""
        results = self.results(output)
        self.assertEqual(sorted(results), sorted(name for name, _ in self.runs_of(grid)))
        for name, own_flags in self.runs_of(grid):
            with self.subTest(run=name):
                # Of all tests of this class.
                alone = os.path.join(self.data, "alone", re.sub(r"\W+", "_", f"{ranks} {flags} {own_flags}"))
                if not os.path.exists(alone):
                    self.run_job(ranks, flags, own_flags, output=alone)
                self.same_folders(results[name]["directory"], alone)
                self.check_result(results[name], alone)

    def check_result(self, result, alone):
        record = read_run_record(alone)
        steps, _ = read_metrics(alone)
        losses = {key: record["results"][key] for key in ("full_precision_at_switch", "rounded_at_switch", "quantized")}
        qat_steps = sum(step["phase"] == "QAT" for step in steps)
        bits = record["configuration"]["b"]
        final = "quantized" if qat_steps else "rounded_at_switch" if bits < 16 else "full_precision_at_switch"
        tokens_per_step = record["plan"]["tokens_per_step"]
        expected = {"status": "done", "reason": None, "n": parameter_count(), "b": bits, "seed": 1,
                    "tokens": len(steps) * tokens_per_step, "qat_tokens": qat_steps * tokens_per_step,
                    "fp_tokens": (len(steps) - qat_steps) * tokens_per_step, "losses": losses,
                    "validation_loss": losses[final], "lr": record["configuration"]["lr"],
                    "tokens_per_step": tokens_per_step, "qat_frac_used": record["configuration"]["qat_frac"],
                    "tokens_per_parameter_byte": len(steps) * tokens_per_step / (parameter_count() * bits / 8)}
        for key, value in expected.items():
            self.assertEqual(result[key], value, key)
        self.assertEqual(result["trained_steps"] + result["shared_steps"], len(steps))
        self.assertLessEqual(result["shared_steps"], len(steps) - qat_steps)
        self.assertIsNotNone(result["validation_loss"])
        self.assertGreater(result["seconds"], 0)

    def shared_steps(self, runs):
        """Steps of all runs when those that begin alike, in full precision at equal learning rates, are one."""
        prefixes, quantized = set(), 0
        for run in runs:
            rates = [(step["phase"], step["learning_rate"]) for step in read_metrics(run)[0]]
            full = [rate for phase, rate in rates if phase == "FP"]
            prefixes.update(tuple(full[:count]) for count in range(1, len(full) + 1))
            quantized += len(rates) - len(full)
        return len(prefixes) + quantized

    def trained_steps(self, output="out"):
        """Steps that all processes of a sweep have printed."""
        logs = glob.glob(self.path(output, "*", "*", "log.txt"))
        return sum(len(re.findall(rb"(?m)^step +\d+/\d+ +\w+ +loss", read_bytes(log))) for log in logs)

    def test_runs_and_plan(self):
        sweep = self.grid(GRID)
        before = snapshot(self.directory)
        plan = self.run_program(SWEEP, sweep, "-plan")
        self.assertEqual(snapshot(self.directory), before)
        self.run_program(SWEEP, sweep)
        self.check_runs(GRID)
        runs = [record["directory"] for record in self.results().values()]
        shared = self.shared_steps(runs) * TOKENS_PER_STEP
        alone = sum(sum(GRID["tokens"]) for _ in GRID["b"] for _ in GRID["qat_frac"])
        row = re.search(r"^  total +8 +8 +\d+ +\d+ +([\d.]+)K +([\d.]+)K +([\d.]+)%$", plan, re.MULTILINE)
        self.assertTrue(row, plan)
        self.assertEqual([float(row[1]), float(row[2])], [round(alone / 1e3, 1), round(shared / 1e3, 1)])
        self.assertAlmostEqual(float(row[3]), 100 * (1 - shared / alone), delta=0.051)
        self.assertEqual(self.trained_steps() * TOKENS_PER_STEP, shared)  # what was planned is what was done
        self.assertGreater(alone / shared, 2)

    def claims(self):
        """The claims of a running sweep's workers; those that are being written are left out."""
        found = []
        for path in glob.glob(self.path("out", "queue", "*.claim")):
            try:
                found.append(json.loads(read_bytes(path)))
            except (OSError, ValueError):
                pass
        return found

    def test_over_mpi(self):
        # Two learning rates share no trunk: two jobs are ready from the first moment on.
        grid = {"tokens": [1920, 3840], "b": [4], "qat_frac": [0, 0.5], "lr": [1e-3, 3e-3]}
        job = self.start_job(3, SWEEP, self.grid(grid))
        # Whoever begins first waits for a second worker, who could else find nothing left.
        deadline = time.monotonic() + LIMIT_SECONDS
        stopped = None
        while len({claim["worker"] for claim in self.claims()}) < 2:
            self.assertTrue(job.process.poll() is None and time.monotonic() < deadline, "no second worker began")
            if stopped is None and (first := self.claims()):
                stopped = first[0]["process"]
                os.kill(stopped, signal.SIGSTOP)
            time.sleep(0.002)
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
        result = job.end()
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.check_runs(grid)
        self.assertEqual(len(re.findall(r"^results ", result.stdout, re.MULTILINE)), 1)
        self.assertEqual(sorted(re.findall(r"^done (t\S+),", result.stdout, re.MULTILINE)),
                         sorted(name for name, _ in self.runs_of(grid)))
        self.assertLessEqual({claim["worker"] for claim in self.claims()}, {"rank 0", "rank 1", "rank 2"})

    def test_runs_of_two_ranks(self):
        grid = {"tokens": [3840], "b": [4, 1], "qat_frac": [0.25, 0.5]}
        self.run_job(4, SWEEP, self.grid(grid), "-sweep_ranks 2")
        self.check_runs(grid, ranks=2)
        record = read_run_record(self.results()["t3840_b4_f0.5"]["directory"])
        self.assertEqual(record["layout"]["ranks"], 2)

    def test_runs_without_steps_of_their_own(self):
        grid = {"tokens": [1920], "b": [16, 4, 1], "qat_frac": [0]}
        self.run_program(SWEEP, self.grid(grid))
        self.check_runs(grid)
        self.assertEqual(self.trained_steps(), 1920 // TOKENS_PER_STEP)

    def test_again_and_enlarged(self):
        small = {**GRID, "b": [4]}
        self.run_program(SWEEP, self.grid(small))
        before = snapshot(self.path("out", "runs"))
        times = {path: os.stat(path).st_mtime_ns for path in before}
        for grid, ranks in ((small, 0), (GRID, 2)):
            self.run_job(ranks, SWEEP, self.grid(grid))
            self.check_runs(grid)
            for path, content in before.items():
                self.assertEqual(os.stat(path).st_mtime_ns, times[path], path)
        self.assertEqual({path: snapshot(self.path("out", "runs"))[path] for path in before}, before)

    def test_disturbed_at_random_moments(self):
        sweep = self.grid(GRID)
        begin = time.monotonic()
        self.run_job(2, SWEEP, sweep, output="whole")
        seconds = time.monotonic() - begin
        generator = random.Random(3)
        finished = {}  # log of a run that is done: when it was written last
        disturbed = set()
        for attempt in range(8):
            job = self.start_job(2, SWEEP, sweep)
            try:
                # The last attempt may finish.
                job.process.wait(generator.uniform(0.4, 0.9) * seconds if attempt < 7 else LIMIT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                gently = attempt % 3 == 2
                disturbed.add(gently)
                if gently:
                    job.process.terminate()
                    job.end()
                else:
                    job.kill()
            for path in glob.glob(self.path("out", "queue", "*.done")):
                identity = os.path.basename(path)[:-len(".done")]
                for log in glob.glob(self.path("out", "runs", f"*_{identity}", "log.txt")):
                    finished.setdefault(log, os.stat(log).st_mtime_ns)
        result = job.end()
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn(False, disturbed)
        for log, written in finished.items():
            self.assertEqual(os.stat(log).st_mtime_ns, written, log)
        results = self.results(may_repeat=True)  # where a run was recorded, but not yet crossed off
        self.assertEqual(sorted(results), sorted(self.results("whole")))
        for name, undisturbed in self.results("whole").items():
            self.same_folders(results[name]["directory"], undisturbed["directory"])
            for key in set(undisturbed) - {"seconds", "directory"}:
                self.assertEqual(results[name][key], undisturbed[key], (name, key))

    def test_killed_and_reordered(self):
        # Another run now owns the plan of the shared steps, and goes on from what is there of them.
        flags = f"{SWEEP} -save_every 20 -print_every 100"
        grid = {"tokens": [1001 * TOKENS_PER_STEP], "b": [4, 1], "qat_frac": [0.5]}
        job = self.start_job(0, flags, self.grid(grid))
        trunk = self.path("out", "trunks", "*", "step_00000040")
        while not glob.glob(trunk):
            self.assertIsNone(job.process.poll())
            time.sleep(0.002)
        job.kill()
        grid["b"].reverse()
        self.run_program(flags, self.grid(grid))
        self.check_runs(grid, flags=flags)
        log = read_bytes(glob.glob(self.path("out", "trunks", "*", "log.txt"))[0]).decode()
        self.assertRegex(log, r"(?m)^resume: step \d+ from ")

    def test_two_sweeps_in_one_directory(self):
        sweep = self.grid({"tokens": ["1B"], "b": [4, 1], "qat_frac": [0.5]})
        job = self.start_job(2, SWEEP, sweep, "-print_every 1000")
        self.wait_for(job, self.path("out", "trunks"))
        self.check_job_error(self.job(2, SWEEP, sweep), "-o", "another process is at work in it (a sweep, process", "choose another -o")
        job.process.send_signal(signal.SIGUSR1)
        stopped = job.end()
        self.assertNotEqual(stopped.returncode, 0)
        self.assertIn("interrupted; the same command goes on", stopped.stdout, (stopped.returncode, stopped.stderr))
        self.assertFalse(os.path.exists(self.path("out", "results.jsonl")))
        # And now it is free.
        self.run_program(SWEEP, self.grid({"tokens": [1920], "qat_frac": [0.5]}))

    def test_shards_that_change(self):
        """No job begins with other tokens than those before it, in this process or the next."""
        train = write_shards(self.path("s"), "train", 5000, seed=1)
        shard = train.replace("*", "000001")
        flags = ("-b 4 -qat_frac 0.5 -steps 3000 -print_every 1000 -sample_tokens 0", self.grid({"seed": [1, 2]}))
        job = self.start_job(0, *flags, train=train)
        self.wait_for(job, self.path("out", "runs"))
        while not glob.glob(self.path("out", "runs", "*", "metrics.jsonl")):
            self.assertIsNone(job.process.poll())
            time.sleep(0.01)
        tokens = read_bytes(shard)
        with open(shard, "r+b") as file:  # in place, and not at an end
            file.seek(1024 + 2 * 1000)
            file.write(bytes(20))
        for result in (job.end(), self.start(self.command(*flags, train=train))):
            self.check_error(result, "-sweep: ", shard, "other tokens", "-o")
            self.assertEqual(len(glob.glob(self.path("out", "queue", "*.done"))), 1)
        with open(shard, "r+b") as file:
            file.write(tokens)
        self.run_job(0, *flags, train=train)
        self.assertEqual([record["status"] for record in self.results().values()], ["done", "done"])

    def test_idle_teams_keep_in_touch(self):
        # The second team has nothing to do while the first trains the trunk, for longer than ranks wait for an answer.
        sweep = self.grid({"tokens": ["20M"], "b": [4, 1], "qat_frac": [0.02]})
        job = self.start_job(4, SWEEP, sweep, "-sweep_ranks 2 -rank_timeout 2 -print_every 1000 -val_every 100000")
        time.sleep(5)
        self.assertIsNone(job.process.poll())
        self.assertEqual(glob.glob(self.path("out", "queue", "*.done")), [], "the trunk was too short")
        job.process.send_signal(signal.SIGUSR1)
        result = job.end()
        self.assertEqual(self.own_lines(result), [])
        self.assertIn("interrupted; the same command goes on", result.stdout)

    def test_one_rank_stopped_stops_all(self):
        sweep = self.grid({"tokens": ["1B"], "b": [4], "qat_frac": [0.5], "seed": [1, 2]})
        job = self.start_job(2, SWEEP, sweep, "-print_every 1000")
        for seed in (1, 2):
            deadline = time.monotonic() + LIMIT_SECONDS
            while not glob.glob(self.path("out", "runs", f"*_s{seed}_*", "metrics.jsonl")):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
        os.kill(job.rank(1), signal.SIGTERM)
        result = job.end()
        self.assertIn("interrupted; the same command goes on", result.stdout)
        self.assertEqual(len(glob.glob(self.path("out", "runs", "*", "step_*"))), 2)
        self.assertEqual(glob.glob(self.path("out", "queue", "*.claim")), [])

    def test_damaged_trunk_is_trained_again(self):
        grid = {"tokens": [1920], "b": [4, 8], "qat_frac": [0.5]}
        self.run_program(SWEEP, self.grid(grid), "-keep 0")
        trunk, = glob.glob(self.path("out", "trunks", "*", "step_*"))
        os.remove(os.path.join(trunk, "model.safetensors"))
        grid["b"].append(6)
        self.run_program(SWEEP, self.grid(grid), "-keep 0")
        self.check_runs(grid)

    def test_lost_results_are_made_again_without_training(self):
        grid = {"tokens": [1920], "b": [4, 8], "qat_frac": [0, 0.5]}
        for ranks, output in ((0, "one"), (2, "two")):
            self.run_job(ranks, SWEEP, self.grid(grid), output=output)
            self.assertEqual(glob.glob(self.path(output, "trunks", "*", "step_*")), [])
            trained, before = self.trained_steps(output), self.results(output)
            os.remove(self.path(output, "results.jsonl"))
            self.run_job(ranks, SWEEP, self.grid(grid), output=output)
            self.assertEqual(self.trained_steps(output), trained)
            after = self.results(output)
            self.assertEqual(sorted(after), sorted(before))
            for name, record in before.items():
                for key in set(record) - {"seconds"}:
                    self.assertEqual(after[name][key], record[key], (name, key))
            # What was lost of it is there for a larger grid too.
            self.run_job(ranks, SWEEP, self.grid({**grid, "b": [4, 8, 2]}), output=output)
            self.assertEqual(len(self.results(output, may_repeat=True)), 6)

    def test_another_split_of_a_step_is_another_sweep(self):
        # The same sequences a step, but other last places: nothing of one may go on in the other.
        grid = {"tokens": [1920], "b": [4, 1], "qat_frac": [0.5]}
        first = f"{SWEEP} -batch 4"
        self.run_program(first, self.grid(grid))
        before = snapshot(self.path("out", "runs"))
        for flags, ranks in (("-batch 2 -grad_accum 2", 0), ("-batch 2 -total_batch 4 -sweep_ranks 2", 2),
                             ("-batch 4 -logit_rows 5", 1)):
            trained, known = self.trained_steps(), set(glob.glob(self.path("out", "runs", "*")))
            self.run_job(ranks, SWEEP, flags, self.grid(grid))
            self.assertGreater(self.trained_steps(), trained)
            self.assertEqual(len(set(glob.glob(self.path("out", "runs", "*"))) - known), 2)
            for name, own_flags in self.runs_of(grid):
                self.run_job(ranks, SWEEP, flags.replace("-sweep_ranks 2", ""), own_flags, output=f"alone_{ranks}_{name}")
                directory = self.results(may_repeat=True)[name]["directory"]
                self.same_folders(directory, self.path(f"alone_{ranks}_{name}"))
        self.assertEqual({path: snapshot(self.path("out", "runs"))[path] for path in before}, before)
        # And the first one is still finished.
        trained = self.trained_steps()
        self.run_program(first, self.grid(grid))
        self.assertEqual(self.trained_steps(), trained)

    def test_used_trunks_leave_no_checkpoints(self):
        self.run_program(SWEEP, self.grid({"tokens": [1920], "b": [4, 8], "qat_frac": [0.5]}), "-save_every 4")
        self.assertEqual(glob.glob(self.path("out", "trunks", "*", "step_*")), [])
        self.assertTrue(glob.glob(self.path("out", "trunks", "*", "log.txt")))

    def test_a_new_axis_renames_runs(self):
        grid = {"tokens": [1920], "b": [4, 8], "qat_frac": [0.5]}
        self.run_program(SWEEP, self.grid(grid))
        trained = self.trained_steps()
        self.run_program(SWEEP, self.grid({**grid, "seed": [1]}))
        self.assertEqual(self.trained_steps(), trained)
        self.run_program(SWEEP, self.grid({**grid, "seed": [1, 2]}))
        self.assertEqual({f"t1920_b{bits}_f0.5_s{seed}" for bits in (4, 8) for seed in (1, 2)},
                         {name for name in self.results(may_repeat=True) if "_s" in name})

    def test_runs_below_a_failed_trunk_are_recorded(self):
        flags = SWEEP.replace("-lr 3e-3", "-lr 1e30")
        self.run_program(flags, self.grid({"tokens": [1920], "b": [4, 2], "qat_frac": [0.5]}))
        self.run_program(flags, self.grid({"tokens": [1920], "b": [4, 2, 8], "qat_frac": [0.5]}))
        records = self.results()
        self.assertEqual({record["b"]: record["status"] for record in records.values()},
                         {4: "failed", 2: "failed", 8: "failed"})

    def test_failing_runs(self):
        grid = {"tokens": [1920], "qat_frac": [0.2, 0.5], "lr": [0.003, 1e30]}
        sweep = self.grid(grid)
        flags = "-warmup 0 -dtype fp32"
        for ranks, output in ((0, "one"), (2, "two")):
            for again in ("", "-retry_failed"):
                printed = self.run_job(ranks, flags, sweep, again, output=output)
                self.assertIn(" 3 failed", printed)  # two runs and their trunk
            lines = read_bytes(self.path(output), "results.jsonl").decode().splitlines()
            records = {record["run"]: record for record in map(json.loads, lines)}
            self.assertEqual(sorted((record["status"], record["lr"]) for record in records.values()),
                             [("done", 0.003), ("done", 0.003), ("failed", 1e30), ("failed", 1e30)])
            self.assertEqual(len(lines), 6)  # the failures again, not the others
            for record in records.values():
                if record["status"] == "failed":
                    self.assertRegex(record["reason"], r"step 2: the gradient norm is not finite")
                    self.assertIsNone(record["validation_loss"])
                else:
                    alone = f"alone_{record['qat_frac']}"
                    if not os.path.exists(self.path(alone)):
                        self.run_program(flags, f"-tokens 1920 -qat_frac {record['qat_frac']} -lr 0.003", output=alone)
                    self.same_folders(record["directory"], self.path(alone))

    def test_mistakes(self):
        for grid, text in [({"bits": [4]}, ["grid.json", "unknown key \"bits\""]),
                           ({"b": [4, 7]}, ["b7", "-b"]),
                           ({"b": [4], "qat_frac": [0.5, "some"]}, ["grid.json", "\"qat_frac\"", "\"some\""]),
                           ({"b": [4, 16], "qat_frac": [0.5]}, ["b16", "-qat_frac"]),
                           ({"b": [4, 4]}, ["grid.json", "\"b\"", "twice"]),
                           ({"b": []}, ["grid.json", "\"b\"", "no values"]),
                           ('{"b": [4', ["grid.json", "JSON"])]:
            self.fails("-steps 20 -qat_frac 0.5", self.grid(grid), text=["-sweep" if "b7" in text else "", *text])
        sweep = self.grid({"bits": [4]})
        self.job_fails(3, "-steps 20", sweep, text=["grid.json", "unknown key \"bits\""])
        self.fails("-steps 20", f"-sweep {self.path('none.json')}", text=["none.json", "No such file"])
        sweep = self.grid({"b": [4], "qat_frac": [0.5]})
        self.job_fails(3, "-steps 20", sweep, "-sweep_ranks 2", text=["-sweep_ranks 2", "number of ranks, 3"])
        self.fails("-steps 20", sweep, train=self.path("none_*"), text=["no token shard matches"])


if __name__ == "__main__":
    names = ["BranchTest", "SweepTest"]
    sys.exit(run_tests(__doc__, sys.modules[__name__], names))
