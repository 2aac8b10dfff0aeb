"""The native lookup in a stand-in for tritonserver (host.cpp), so that no server is needed and it may misbehave."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sparsefeed.native import library
from sparsefeed.workflows.serving.steps.lookup import LookupStep

__all__ = ["TYPES", "Host", "build", "given_as", "wanted"]

TYPES = {"bool": 1, "uint8": 2, "uint64": 5, "int32": 8, "int64": 9, "float16": 10, "float32": 11, "float64": 12}


def build(program: Path, *flags: str) -> Path:
    """Compile the stand-in with the backend's sources; with the sanitizers unless other flags are given."""
    sources = Path(library.__file__).parent
    command = ["g++", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{sources}"]
    command += flags or ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-o", str(program), str(Path(__file__).with_name("host.cpp")), str(sources / "feed_hps.cpp")]
    subprocess.run(command, check=True, timeout=250)
    return program


class Host:
    """The stand-in, one model loaded."""

    def __init__(self, program: Path, model: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [str(program), str(model), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.loaded = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise AssertionError(f"the host ended: {self.process.communicate()[1][-4000:]}")
        return text.removesuffix("\n")

    def metrics(self) -> dict[str, float]:
        """`name{label=value,...}` -> what was counted."""
        self.say("metrics")
        pairs = (one.rsplit(" ", 1) for one in self.line().split(";") if one)
        return {name: float(value) for name, value in pairs}

    def say(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def ask(self, *words: str) -> str:
        """What became of one request; it was sent, released and counted exactly once."""
        self.say(*words)
        times, _, answer = self.line().partition(" ")
        assert times == ("11101" if answer.startswith("ok ") else "11010")
        return answer

    def close(self) -> None:
        _, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, errors) == (0, "")  # the sanitizers' leaks too


def given_as(name: str, tensor: NDArray[Any], cuts: Sequence[int] = ()) -> str:
    """A tensor as a word of the host's, in pieces that end at these bytes."""
    raw = tensor.tobytes()
    ends = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = "|".join(raw[start:end].hex() for start, end in pairwise(ends))
    return f"{name}={TYPES[tensor.dtype.name]}:{','.join(map(str, tensor.shape))}:{pieces}"


def wanted(step: LookupStep, tensors: dict[str, NDArray[Any]]) -> str:
    """What the Python step answers, in the host's words."""
    (answer,) = step.run([tensors])
    return f"3 {answer}" if isinstance(answer, Exception) else f"ok {answer['OUTPUT0'].tobytes().hex()}"
