"""Chance with a seed, for tests that try many things.

`ACL_FUZZ_SEED` is where they begin (0), `ACL_FUZZ_ROUNDS` how many times as much they try as in the minute that
`make test` gives them (1). Whatever fails names the seed with which it fails again.
"""
import json
import os
import random

SEED = int(os.environ.get("ACL_FUZZ_SEED", 0))
ROUNDS = float(os.environ.get("ACL_FUZZ_ROUNDS", 1))


def rounds(n):
    """How often to try what an ordinary run tries n times; at least once."""
    return max(1, round(n * ROUNDS))


def chance(*of_what):
    """A generator of its own for each thing that is tried, so that one of them can be tried again alone."""
    return random.Random(" ".join(map(str, (*of_what, SEED))))


DAMAGE = ["cut", "bits", "bytes", "number", "hole", "twice", "zeros", "begin", "tail", "moved", "exchanged", "as text"]


def changed(content, chance):
    """A file's content with something done to it that happens to files; a word for what it was."""
    content, at = bytearray(content), chance.randrange(len(content))
    other, n = chance.randrange(len(content)), chance.randrange(1, min(3000, 2 + len(content) // 3))
    what = chance.choice(DAMAGE)
    if what == "cut":
        return bytes(content[:at]), what
    if what == "bits":
        for _ in range(chance.randrange(1, 20)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif what == "begin":  # where headers are
        content[chance.randrange(min(64, len(content)))] = chance.randrange(256)
    elif what == "bytes":
        content[at:at + chance.randrange(1, 50)] = chance.randbytes(chance.randrange(50))
    elif what == "number":
        at = min(at, chance.randrange(120))
        content[at:at + 4] = chance.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x01", b"\x01\0\0\0"])
    elif what == "hole":
        del content[at:at + n]
    elif what == "twice":
        content[at:at] = content[at:at + n]
    elif what == "zeros":
        content[at:at + 500] = bytes(len(content[at:at + 500]))
    elif what == "tail":  # a longer file was overwritten by this one
        content += chance.randbytes(n)
    elif what == "moved":  # a block of the disk in the wrong place
        block = content[other:other + 512]
        content[at:at + len(block)] = block
    elif what == "exchanged":
        first, second = sorted((at, other))
        n = min(512, second - first, len(content) - second)
        content[first:first + n], content[second:second + n] = content[second:second + n], content[first:first + n]
    elif what == "as text":  # transferred between systems with other ends of lines
        content = content.replace(b"\r\n", b"\n") if chance.random() < 0.5 else content.replace(b"\n", b"\r\n")
    return bytes(content), what


ODD_VALUES = [None, True, False, -1, 0, 1, 10**30, 1.5, -0.0, float("nan"), float("inf"), 5e-324, "", " ", "0.5", "nan", "../x", "a/b", "ü", "\0", "\ud800",
              "x" * 3000, "math:sqrt", "no:such", ":", [], [1], ["a", 2], {}, {"x": 1}]


def changed_values(value, chance):
    """What JSON holds, with one value, name or item of it replaced, left out or added."""
    value = json.loads(json.dumps(value))
    places = [(None, None)]

    def collect(part):
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                collect(part[key])

    collect(value)
    part, key = chance.choice(places)
    odd, what = chance.choice(ODD_VALUES), chance.choice(["replaced", "replaced", "left out", "renamed"])
    if part is None:
        return odd
    if what == "replaced" or (what == "renamed" and isinstance(part, list)):
        part[key] = odd
    elif what == "left out":
        del part[key]
    else:
        part[chance.choice(["x", key.upper(), key + " ", ""])] = part.pop(key)
    return value


class Outcomes:
    """What came of many tries: how often it was right or refused, and what was wrong.

    `errors` are those that a user may see; each must name what it is about.
    """

    def __init__(self, *errors):
        self.errors, self.right, self.refused, self.wrong = errors, 0, 0, []

    def add(self, which, call, *, names, is_right):
        """Call, and look at what comes of it."""
        try:
            result = call()
        except self.errors as error:
            said = str(error)
            if any(str(name) in said for name in names):
                self.refused += 1
            else:
                self.wrong.append((which, "no name", type(error).__name__, said))
        except Exception as error:
            self.wrong.append((which, "a bare error", type(error).__name__, str(error)))
        else:
            if is_right(result):
                self.right += 1
            else:
                self.wrong.append((which, "other content", result))

    def report(self, tried, what):
        tried(what, right=self.right, refused=self.refused, wrong=len(self.wrong))
        listing = "\n".join(map(repr, self.wrong[:20]))
        assert not self.wrong, f"seed {SEED}: {len(self.wrong)} of {what}\n{listing}"
