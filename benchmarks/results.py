"""What was measured, the arithmetic on it, and its form in a file."""

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.cases import OPS, Case, format_shape
from benchmarks.operation import Shape
from benchmarks.peers import PEERS, REFERENCE, RIVALS, SCRIPTED, absent, version

__all__ = [
    "DTYPES",
    "Report",
    "Result",
    "Summary",
    "by_operation",
    "geometric_mean",
    "machine",
    "summarize",
]

# In the order of tables; pictures show the first that there is.
DTYPES = ("float32", "float64", "float16", "bfloat16")
NEAR = 0.8  # of the roof: where a rival is as near as this, less of a lead is left to gain
# Variables that change the speed: spinning OpenMP threads, normlib's CPU level, huge pages.
ENVIRONMENT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "NORMLIB_CPU", "NUMPY_MADVISE_HUGEPAGE")


@dataclass(frozen=True)
class Result:
    """Seconds of a call, by contestant; roofs: of the roofline, by whose it is.

    failures: what was wrong, by contestant. others: cores that other processes kept busy. beside:
    seconds of the operation that is timed beside this one. loop: which loop normlib ran.
    """

    case: Case
    threads: int
    seconds: dict[str, float]
    roofs: dict[str, float]
    failures: dict[str, str] = field(default_factory=dict)
    others: float | None = None
    beside: dict[str, float] = field(default_factory=dict)
    loop: str = ""

    @property
    def ours(self) -> float | None:
        """Seconds of normlib; None if it did not run, or failed."""
        return self.seconds.get(REFERENCE)

    def ratio(self, name: str) -> float | None:
        """A contestant's time by ours: above 1, normlib is ahead."""
        if self.ours is None or name not in self.seconds:
            return None
        return self.seconds[name] / self.ours

    @property
    def rival(self) -> str | None:
        """The fastest of `RIVALS`; of all, where none of these runs."""
        others = [name for name in self.seconds if name != REFERENCE]
        rivals = [name for name in others if name in RIVALS] or others
        return min(rivals, key=self.seconds.__getitem__, default=None)

    @property
    def lead(self) -> float | None:
        """The ratio to the rival."""
        return None if self.rival is None else self.ratio(self.rival)

    @property
    def plain_rival(self) -> str | None:
        """The fastest in the operation beside this one."""
        return min(self.beside, key=self.beside.__getitem__, default=None)

    @property
    def plain_lead(self) -> float | None:
        """The ratio to that."""
        if self.ours is None or self.plain_rival is None:
            return None
        return self.beside[self.plain_rival] / self.ours

    @property
    def goal(self) -> float:
        """The lead to reach."""
        op = self.case.operation
        near = self.rival is not None and (self.of_roof(self.rival) or 0) > NEAR
        return op.near_floor if near and op.near_floor is not None else op.floor

    def speed(self, name: str = REFERENCE) -> float | None:
        """GB/s, of the bytes that a perfect kernel moves; or GFLOP/s."""
        seconds = self.seconds.get(name)
        return None if seconds is None else self.case.work / seconds / 1e9

    @property
    def roof(self) -> float | None:
        """The same of the roofline, by whom it is fastest."""
        if not self.roofs:
            return None
        return self.case.roof_work / min(self.roofs.values()) / 1e9

    def of_roof(self, name: str = REFERENCE) -> float | None:
        """A contestant's speed by that of the roofline."""
        speed, roof = self.speed(name), self.roof
        return None if speed is None or roof is None else speed / roof

    def plain_of_roof(self, name: str) -> float | None:
        """The same in the operation beside this one."""
        seconds, other = self.beside.get(name), self.case.beside
        if seconds is None or other is None or self.roof is None:
            return None
        return other.work / seconds / 1e9 / self.roof


def geometric_mean(ratios: Iterable[float]) -> float:
    """exp of the mean of logarithms."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def by_operation(results: Sequence[Result]) -> dict[tuple[int, str, str], list[Result]]:
    """Results by threads, operation and dtype, in the order of `OPS`."""
    groups: dict[tuple[int, str, str], list[Result]] = {}
    for result in results:
        key = (result.threads, result.case.op, result.case.dtype)
        groups.setdefault(key, []).append(result)
    places = list(OPS)
    order = sorted(groups, key=lambda key: (key[0], places.index(key[1]), DTYPES.index(key[2])))
    return {key: groups[key] for key in order}


class Lead(NamedTuple):
    """The ratio to a rival, the least to reach, and where it was measured."""

    ratio: float
    goal: float
    shape: Shape
    rival: str


@dataclass(frozen=True)
class Summary:
    """One operation, dtype and thread count over its shapes."""

    title: str
    dtype: str
    threads: int
    mean: float
    goal: float
    worst: Lead
    losses: int
    shapes: int


def summarize(results: Sequence[Result]) -> list[Summary]:
    """Geometric mean and least of the ratios to the rivals, for each operation."""
    summaries = []
    for (threads, name, dtype), group in by_operation(results).items():
        op = OPS[name]
        leads = [
            Lead(result.lead, result.goal, result.case.shape, result.rival)
            for result in group
            if result.lead is not None and result.rival is not None
        ]
        scripted = [
            [
                Lead(ratio, result.goal, result.case.shape, name)
                for result in group
                if (ratio := result.ratio(name)) is not None
            ]
            for name in SCRIPTED
        ]
        plain_leads = [
            Lead(
                result.plain_lead,
                op.beside_floor,
                result.case.shape,
                f"{result.plain_rival}, {op.beside_kind}",
            )
            for result in group
            if result.plain_lead is not None
        ]
        for title, some, goal in (
            (op.title, leads, op.goal),
            *((f"{op.title}, to {some[0].rival}", some, op.goal) for some in scripted if some),
            (f"{op.title}, to a {op.beside_kind} one", plain_leads, op.beside_goal),
        ):
            if some:
                summaries.append(
                    Summary(
                        title=title,
                        dtype=dtype,
                        threads=threads,
                        mean=geometric_mean(lead.ratio for lead in some),
                        goal=goal,
                        worst=min(some, key=lambda lead: lead.ratio),
                        losses=sum(lead.ratio < min(1, lead.goal) for lead in some),
                        shapes=len(some),
                    )
                )
    return summaries


def machine(peers: Sequence[str]) -> dict[str, str]:
    """What the figures depend on."""
    from normlib.info import config

    values = config()
    absentees = {name: absent(name) for name in PEERS}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu_model()}, of which this process may use {_count(values['threads'], 'core')}",
        "CPU level": str(values["cpu_level"]),
        "system": f"{platform.system()} {platform.release()}, Python {values['python']}",
        "environment": " ".join(f"{n}={os.environ[n]}" for n in ENVIRONMENT if n in os.environ)
        or "none of " + ", ".join(ENVIRONMENT),
        "contestants": ", ".join(f"{name} {version(name)}" for name in peers),
        "not installed": ", ".join(
            f"{name} ({', '.join(packages)})" for name, packages in absentees.items() if packages
        )
        or "none",
    }


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@dataclass
class Report:
    """A run: the machine and the results."""

    head: dict[str, str]
    results: list[Result] = field(default_factory=list)

    @property
    def load(self) -> str:
        """How busy other processes were, in a sentence."""
        values = [result.others for result in self.results if result.others is not None]
        if not values:
            return "unknown"
        mean, most = sum(values) / len(values), max(values)
        return f"other processes kept {mean:.2f} cores busy on average, {most:.2f} at most"

    def save(self, path: Path) -> None:
        """Write JSON, with the figures that follow from the times."""
        results = []
        for result in self.results:
            values: dict[str, Any] = asdict(result)
            values["case"]["shape"] = format_shape(result.case.shape)
            values |= {
                "ratios": {name: result.ratio(name) for name in result.seconds},
                "plain_ratio": result.plain_lead,
                "unit": result.case.operation.unit,
                "speeds": {name: result.speed(name) for name in result.seconds},
                "roof": result.roof,
            }
            results.append(values)
        text = json.dumps({"head": self.head, "load": self.load, "results": results}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["head"], [_result(entry) for entry in values["results"]])


def _result(entry: dict[str, Any]) -> Result:
    shape = tuple(map(int, entry["case"]["shape"].split("x")))
    case = Case(entry["case"]["op"], shape, str(np.dtype(entry["case"]["dtype"])))
    return Result(
        case,
        entry["threads"],
        entry["seconds"],
        entry["roofs"],
        entry["failures"],
        entry["others"],
        entry["beside"],
        entry["loop"],
    )
