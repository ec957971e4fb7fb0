"""CPython's own tests of subprocess, with shoal.subprocess in place of the standard module. Run as a program, it prints what became
of each test, as JSON.

It has to be an interpreter of its own: what is imported under a name stays so, and the tests change the process they run in.
"""

import json
import subprocess as standard
import sys
import types
import unittest

from shoal import subprocess as ours


class _Ours(types.ModuleType):
    """Some tests choose what communicate() waits with. That method is the standard one, so they have to choose it there."""

    @property
    def _PopenSelector(self):
        return standard._PopenSelector

    @_PopenSelector.setter
    def _PopenSelector(self, selector):
        standard._PopenSelector = selector


class _Results(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.became = {}

    def addSuccess(self, test):
        self.became.setdefault(self._name(test), "passed")

    def addError(self, test, err):
        self.became[self._name(test)] = self._exc_info_to_string(err, test)

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test, reason):
        self.became[self._name(test)] = f"skipped: {reason}"

    def addExpectedFailure(self, test, err):
        self.became[self._name(test)] = "passed"

    def addUnexpectedSuccess(self, test):
        self.became[self._name(test)] = "an expected failure passed"

    @staticmethod
    def _name(test):
        return ".".join(test.id().split(".")[-2:])


def main():
    ours.__class__ = _Ours
    sys.modules["subprocess"] = ours
    from test import test_subprocess

    assert test_subprocess.subprocess is ours
    assert issubclass(ours.Popen, standard.Popen)
    results = _Results()
    suite = unittest.defaultTestLoader.loadTestsFromModule(test_subprocess)
    saved = sys.stdout, sys.stderr
    suite.run(results)
    sys.stdout, sys.stderr = saved
    sys.stdout.flush()
    with open(sys.argv[1], "w") as file:
        json.dump(results.became, file)


if __name__ == "__main__":
    main()
