"""Compile every kernel with every shipped config for GPUs that need not be there.

    python -m fastres.kernels.audit [--summary] [--json FILE] [--target sm_90 ...] [--jobs N]

What is compiled is what runs: the launchers are called with meta tensors of ResNet's shapes, their
launches are recorded, and the arguments are specialised as at run time. The machine code is then
read with the cuobjdump that Triton ships. It fails on a spill, on more shared memory than the chip
has, and on an sm_90 matrix kernel of 16-bit operands without warpgroup MMA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import audit_cases, audit_chain, audit_moments
from .launch import Launch, recording
from .tuned import CONFIGS, FAMILIES, load_rows

# shared memory a block can get, in bytes
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "sm_120": 99 * 1024}

# operator -> the function that makes its launches for one row and dtype
MAKERS = audit_cases.MAKERS | audit_moments.MAKERS | audit_chain.MAKERS

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
}
# a matrix product of 16-bit operands in TTIR
_PRODUCT = re.compile(r"tt\.dot .*tensor<[\dx]*x(?:f16|bf16)> \*")
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True)
class Case:
    """One kernel, specialised: what `triton.compile` needs."""

    label: str
    target: str
    launch: Launch = field(repr=False)
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, int]

    @property
    def key(self) -> str:
        """Equal for two launches that compile to the same machine code."""
        name = self.launch.kernel.__name__
        specialised = (self.signature, self.constants, self.attributes, self.options)
        return repr((name, self.target, specialised))


@dataclass
class Finding:
    """What the machine code of one case says."""

    kernel: str
    config: str
    target: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    products: int = 0
    hgmma: int = 0
    wide_loads: int = 0
    problems: list[str] = field(default_factory=list)


def _specialise(label: str, target: str, made: Launch) -> Case:
    """The arguments as the JIT specialises them: 1 and None constant, 16 | n and 16 | address."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list] = {}
    meta = dict(made.meta)
    options = {name: meta.pop(name) for name in _OPTIONS if name in meta}
    values = dict(zip(made.kernel.arg_names, made.args, strict=False)) | meta
    for position, parameter in enumerate(made.kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return Case(label, target, made, signature, constants, attributes, options)


def _describe(row: dict[str, Any], dtype: str, kind: str) -> str:
    config = row["config"]
    numbers = [config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "tile") if name in config]
    shape = "x".join(map(str, numbers))
    stages = f"s{config['num_stages']}" if "num_stages" in config else ""
    return " ".join(filter(None, [dtype, kind, shape, f"w{config['num_warps']}{stages}"]))


@cache
def cases(targets: tuple[str, ...]) -> list[Case]:
    """Every distinct launch of every shipped config, for these targets."""
    found: dict[str, Case] = {}
    for path in sorted(CONFIGS.glob("*.json")):
        for row in load_rows(path)[1]:
            for dtype in row["dtypes"]:
                with recording() as launches:
                    for kind in MAKERS[row["operator"]](row, dtype):
                        for made in launches:
                            label = _describe(row, dtype, kind)
                            for target in set(targets) & set(row["families"]):
                                case = _specialise(label, target, made)
                                found.setdefault(case.key, case)
                        launches.clear()
    return sorted(found.values(), key=lambda case: (case.target, case.key))


def _cuobjdump() -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.exists():
        raise FileNotFoundError(f"Triton {triton.__version__} has no cuobjdump at {path}")
    return str(path)


def _dump(flag: str, cubin: str) -> str:
    return subprocess.run(
        [_cuobjdump(), flag, cubin], check=True, capture_output=True, text=True
    ).stdout


def inspect(case: Case) -> Finding:
    """Compile one case and judge its machine code."""
    kernel = case.launch.kernel
    finding = Finding(kernel.__name__, case.label, case.target)
    constants = {(kernel.arg_names.index(name),): v for name, v in case.constants.items()}
    source = ASTSource(kernel, case.signature, constants, case.attributes)
    target = GPUTarget("cuda", int(case.target.removeprefix("sm_")), 32)
    try:
        compiled = triton.compile(source, target=target, options=dict(case.options))
    except Exception as error:  # whatever the compiler raises is what the audit reports
        finding.problems.append(f"does not compile: {type(error).__name__}: {error}")
        return finding
    with tempfile.TemporaryDirectory() as folder:
        cubin = os.path.join(folder, "kernel.cubin")
        Path(cubin).write_bytes(compiled.asm["cubin"])
        usage, sass = _dump("-res-usage", cubin), _dump("-sass", cubin)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    finding.registers, finding.stack = numbers["REG"], numbers["STACK"]
    finding.spills = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    finding.shared = compiled.metadata.shared
    finding.products = len(_PRODUCT.findall(compiled.asm["ttir"]))
    finding.hgmma = len(re.findall(r"\bHGMMA\b", sass))
    finding.wide_loads = len(re.findall(r"\b(?:LDG|LDGSTS)[.\w]*\.128\b", sass))
    _judge(finding, case)
    return finding


def _judge(finding: Finding, case: Case) -> None:
    if finding.spills or finding.stack:
        finding.problems.append(f"spills: {finding.spills} accesses, {finding.stack} bytes")
    if finding.shared > SHARED[case.target]:
        finding.problems.append(
            f"shared memory {finding.shared} B, {case.target} has {SHARED[case.target]} B"
        )
    if case.target == "sm_90" and finding.products and not finding.hgmma:
        finding.problems.append("no HGMMA: the matrix product is not on warpgroup MMA")


def _inspect_index(targets: tuple[str, ...], index: int) -> Finding:
    torch.set_num_threads(1)
    return inspect(cases(targets)[index])


def audit(targets: Sequence[str], jobs: int) -> list[Finding]:
    """Findings of every case for these targets, compiled by `jobs` processes."""
    chosen = tuple(targets)
    total = len(cases(chosen))
    if jobs == 1:
        return [_inspect_index(chosen, index) for index in range(total)]
    # a fresh process a worker: a forked one could inherit a lock that is held
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_inspect_index, [chosen] * total, range(total)))


def table(findings: list[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = [
        "| kernel | config | target | registers | spills | shared, B | HGMMA | 16-byte loads | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f.kernel} | {f.config} | {f.target} | {f.registers} | {f.spills} | {f.shared} "
        f"| {f.hgmma} | {f.wide_loads} | {'; '.join(f.problems) or 'ok'} |"
        for f in findings
    ]
    return "\n".join(lines)


def summary(findings: list[Finding]) -> str:
    """One line a kernel and target: how many builds, and their extremes, as a Markdown table.

    The fewest HGMMA are those of builds with 16-bit products.
    """
    lines = [
        "| kernel | target | builds | registers | spills | shared, B, at most | HGMMA, at least |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, target in sorted({(f.kernel, f.target) for f in findings}):
        own = [f for f in findings if (f.kernel, f.target) == (kernel, target)]
        registers = [f.registers for f in own]
        products = [f.hgmma for f in own if f.products]
        lines.append(
            f"| {kernel} | {target} | {len(own)} | {min(registers)} to {max(registers)} "
            f"| {sum(f.spills for f in own)} | {max(f.shared for f in own)} "
            f"| {min(products) if products else '–'} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit; 1 if any case fails."""
    parser = argparse.ArgumentParser(prog="python -m fastres.kernels.audit", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the findings to this file")
    parser.add_argument("--summary", action="store_true", help="a line a kernel, not a build")
    parser.add_argument("--target", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        print("the audit compiles: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    findings = audit(options.target, options.jobs)
    failed = [finding for finding in findings if finding.problems]
    print(summary(findings) if options.summary else table(findings))
    print(f"\nTriton {triton.__version__}: {len(findings)} kernels compiled, {len(failed)} failed")
    for finding in failed:
        where = f"{finding.kernel} [{finding.config}] on {finding.target}"
        print(f"FAIL {where}: {'; '.join(finding.problems)}", file=sys.stderr)
    if options.json is not None:
        record = {"triton": triton.__version__, "findings": [asdict(f) for f in findings]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
