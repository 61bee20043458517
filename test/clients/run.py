#!/usr/bin/env python3
"""Runs the tests of this folder in one process, so that they share tokenizer, shards and models:

    make test-clients        makes the environment that they need, then runs all
"""
import argparse
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import fixture  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="./train_qat")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="such as test_import or test_exports.Class.test_name; default: all")
    arguments = parser.parse_args()
    fixture.program = arguments.program
    loader = unittest.defaultTestLoader
    tests = loader.loadTestsFromNames(arguments.tests) if arguments.tests else loader.discover(HERE, "test_*.py")
    result = unittest.TextTestRunner(verbosity=2).run(tests)
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
