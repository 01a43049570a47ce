"""What marketing promises, measured: recommendations' speed, learning against baselines, off-line policy
estimates, and a campaign of a million contacts that is killed in the middle.

Run as `python -m bench.marketing [--only PART ...]`. Prints figures beside limits, writes
build/reports/marketing.json, and exits with 1 when a limit is missed. Parts that need the real data are
skipped, and said to be, where it is not there (MARKETING_DATA, else ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench.marketing_parts import campaign, learning, policy, recommend  # noqa: E402
from bench.reporting import write_report  # noqa: E402

from chassis.localstack import free_ports  # noqa: E402
from chassis.localstack.mongo import MongoNode  # noqa: E402

#: (figures, whether every limit holds) of a part, given a MongoDB.
Part = Callable[[str], tuple[dict[str, Any], bool]]
PARTS: Mapping[str, Part] = {
    "recommend": recommend.run,
    "telemarketing": lambda _: learning.telemarketing(),
    "retail": lambda _: learning.retail(),
    "policy": lambda _: policy.run(),
    "campaign": campaign.run,
}


def main() -> int:
    """0 when every limit is met, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), help="some parts only")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "marketing.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    ok = True
    with tempfile.TemporaryDirectory() as directory:
        node = MongoNode(Path(directory), free_ports(1)[0])
        node.start()
        try:
            for name in arguments.only or PARTS:
                figures, good = PARTS[name](node.uri)
                report |= figures | {f"{name}_ok": good}
                ok &= good
                for figure, value in figures.items():
                    print(f"{figure:44} {value}", flush=True)
        finally:
            node.stop()
    report["ok"] = ok
    print(f"{'ok':44} {ok}")
    return write_report(report, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
