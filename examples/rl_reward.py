"""A reward function for reinforcement learning on code: what a policy wrote is run against hidden tests, a batch at a time.

    python examples/rl_reward.py

The policy here is a list of completions. In training it is a model that finds every way to a reward there is: to patch the test, to exit
with 0 early, to forge what it reports, to exhaust the machine that trains it. So each completion has a sandbox of its own, what comes back
is data, and whatever ends otherwise than with a result is worth nothing.
"""

import time
from dataclasses import dataclass

from shoal import Sandbox, SandboxExecutor

HIDDEN_TESTS = [((3,), "Fizz"), ((5,), "Buzz"), ((15,), "FizzBuzz"), ((7,), "7"), ((0,), "FizzBuzz")]

COMPLETIONS = [
    "def f(n):\n    return ('Fizz' * (n % 3 == 0) + 'Buzz' * (n % 5 == 0)) or str(n)",
    "def f(n):\n    return 'Fizz' if n % 3 == 0 else str(n)",
    "def f(n):\n    return 1 / 0",
    "import os\nos._exit(0)",
    "class Any(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef f(n): return Any()",
    "def f(n):\n    while True: pass",
    "import os, struct\nos.write(3, struct.pack('<IB', 2, 1) + bytes([0xCB, 0x7F])); os._exit(0)",
    "def f(n) return n",
]


def answers(completion, arguments):
    """Runs inside. The tests' answers never go there, so there is nothing to compare with that a completion could change."""
    namespace = {}
    exec(completion, namespace)
    return [namespace["f"](*given) for given in arguments]


@dataclass
class Reward:
    value: float
    why: str


def reward_of(call):
    error = call.exception()
    if error is not None:
        return Reward(0.0, f"{call.reason}: {error}")
    found = call.result()  # plain values, whatever they were inside: `Any` above is only text here
    if not isinstance(found, list) or len(found) != len(HIDDEN_TESTS):
        return Reward(0.0, "not a list of answers")
    right = sum(type(answer) is str and answer == wanted for answer, (_, wanted) in zip(found, HIDDEN_TESTS, strict=True))
    return Reward(right / len(HIDDEN_TESTS), f"{right} of {len(HIDDEN_TESTS)}")


def rewards(executor, completions):
    """The rewards of a batch, in order."""
    limited = executor.with_limits(timeout=1, output="16K", result="64K")
    arguments = [given for given, _ in HIDDEN_TESTS]
    return [reward_of(call) for call in [limited.submit(answers, completion, arguments) for completion in completions]]


if __name__ == "__main__":
    with SandboxExecutor(Sandbox(tmp="16M"), max_workers=4, warm=4) as executor:
        executor.wait_ready()
        for completion, reward in zip(COMPLETIONS, rewards(executor, COMPLETIONS), strict=True):
            print(f"{reward.value:.1f}  {completion.splitlines()[0][:40]:<40}  {reward.why:.60}")
        batch = [COMPLETIONS[0], COMPLETIONS[1], COMPLETIONS[2]] * 40
        began = time.perf_counter()
        mean = sum(reward.value for reward in rewards(executor, batch)) / len(batch)
        print(f"a batch of {len(batch)}: mean reward {mean:.3f}, {len(batch) / (time.perf_counter() - began):.0f} a second")
