#!/usr/bin/env python3
"""Data preparation with a tokenizer.json: the tests of test/data/test_prepare.py that need the package tokenizers, which
Debian has not.

    make test-clients        makes the environment that this needs, then runs it
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "test", "data"))

import tokenizers  # noqa: E402, F401
from test_prepare import HuggingFaceTokenizerTest  # noqa: E402, F401
