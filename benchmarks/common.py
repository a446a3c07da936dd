"""What several benchmarks need."""

from __future__ import annotations

from pathlib import Path


def cpu_name() -> str:
    """The processor's model, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def process_memory(name: str) -> int:
    """Bytes of a line of Linux's account of this process: `VmRSS` now, `VmHWM` at the peak so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def put_between(path: Path, marks: tuple[str, str], lines: list[str]) -> None:
    """Replace what stands between two marks of a Markdown document."""
    before, _, rest = path.read_text(encoding="utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    table = "\n".join(lines)
    path.write_text(f"{before}{marks[0]}\n\n{table}\n\n{marks[1]}{after}", encoding="utf-8")
