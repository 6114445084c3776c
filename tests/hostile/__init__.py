"""Calls with bad, strange and merely unusual arguments, and the rules that every one of them must keep.

Generators make a call from a `random.Random`: Hypothesis's, which can shrink what it finds, Python's own for long runs,
or one that reads the bytes of a coverage-guided fuzzer. `inventory` has one for every public function.
"""
