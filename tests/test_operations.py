"""The interpreter as installed: each operation ends with a call of the next, which the compiler must make a jump of.

Nothing promises that it does (rust/soft/src/interp/op.rs); where it does not, the stack grows with each instruction.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest
from supermachine.host import bundle


@pytest.mark.skipif(platform.machine() != "x86_64", reason="what is looked for is x86-64 code")
def test_operations_hand_over_by_jumps() -> None:
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    command = ["objdump", "-d", "--no-show-raw-insn", bundle.worker()]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    instructions = [line.split("\t", 1)[1].strip() if "\t" in line else "" for line in lines]
    jumps = calls = 0
    for at, instruction in enumerate(instructions):
        if not instruction.startswith(("jmp    *%", "call   *%")):
            continue
        # What leads to it: up to the branch before.
        first = at
        while first > 0 and at - first < 12 and not re.match(r"j|call|ret|$", instructions[first - 1]):
            first -= 1
        before = instructions[first:at]
        # The handler of the operation behind this one, and where that is.
        handler = any(re.match(r"mov +0x18\(%r\w+\),", i) for i in before)
        operation = any(re.match(r"add +\$0x18,%rsi|lea +0x18\(%r\w+\),%rsi", i) for i in before)
        if handler and operation:
            jumps += instruction.startswith("jmp")
            calls += instruction.startswith("call")
    assert calls == 0
    assert jumps > 500, "nothing is found: operations have another size, or the compiler has made no jumps"
