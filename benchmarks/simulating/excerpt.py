"""The arrivals that the simulator ships, cut from ../shared/data once: data/traces.npz.

    python -m benchmarks.simulating.excerpt [--data ../shared/data]

code, conv    arrivals of Azure's LLM inference traces of 2023-11-16, code and conversation, whole: milliseconds from
              the first (github.com/Azure/AzurePublicDataset, CC BY 4.0; changed: time column alone, in milliseconds)
day           requests in each of 288 spans of 5 minutes at a load balancer on 2014-04-14, a Monday
              (github.com/numenta/NAB, realAWSCloudwatch/elb_request_count_8c0756, MIT)
storms        for each of the 40 days of 2025 on which most US federal vacancies opened: the second of the day at which
              each did (OPM / USA Staffing through github.com/abigailhaddad/usajobs_historical; public domain)
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FILE = Path(__file__).resolve().parent / "data" / "traces.npz"
SERIES, DAY = "elb_request_count_8c0756", "2014-04-14"
SPAN_S, SPANS = 300, 288
STORM_DAYS = 40


def cut(shared: Path) -> dict[str, NDArray[np.generic]]:
    out = {name: _azure(shared / "arrival_traces" / f"azure_llm_2023_{name}.csv") for name in ("code", "conv")}
    day = np.zeros(SPANS, np.uint16)
    for row in _rows(shared / "arrival_traces" / "nab_real_counts_5min.csv"):
        if row["series"] == SERIES and row["timestamp"].startswith(DAY):
            day[_second(row["timestamp"][11:]) // SPAN_S] += int(float(row["count"]))
    opened: defaultdict[str, list[int]] = defaultdict(list)
    for row in _rows(shared / "usajobs_lifecycle" / "lifecycle_2025.csv"):
        if len(row["open_at"]) > 10:  # others are dates alone
            opened[row["open_at"][:10]].append(_second(row["open_at"][11:19]))
    storms = sorted(opened.values(), key=len)[-STORM_DAYS:]
    return {
        **out,
        "day": day,
        "storm_seconds": np.concatenate([np.sort(each) for each in storms]).astype(np.uint32),
        "storm_sizes": np.array([len(each) for each in storms], np.uint16),
    }


def _azure(path: Path) -> NDArray[np.generic]:
    return np.array([round(float(row["t_seconds"]) * 1000) for row in _rows(path)], np.uint32)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _second(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(float(seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the shared data folder")
    np.savez_compressed(FILE, **cut(parser.parse_args().data))
    print(f"{FILE}: {FILE.stat().st_size} bytes")
