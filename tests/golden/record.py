# SPDX-License-Identifier: MIT
"""Record the result of every case, or compare with the recorded results.

python tests/golden/record.py [--only PATTERN]            writes golden.json
python tests/golden/record.py --check [--only PATTERN]    prints each difference
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden.json")


def read() -> dict[str, Any]:
    """What was recorded: the machine, and one record a case."""
    return json.loads(FILE.read_text())


def write(machine: dict[str, str], cases: dict[str, Any]) -> None:
    text = json.dumps({"machine": machine, "cases": cases}, sort_keys=True, indent=1)
    FILE.write_text(text + "\n")


def main(words: list[str]) -> int:
    from golden_cases import CASES, compute
    from golden_digests import differences, machine

    import regrow

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    given = parser.parse_args(words)
    names = [name for name in sorted(CASES) if fnmatch(name, given.only)]
    here, old = machine(), read() if FILE.exists() else {"machine": {}, "cases": {}}
    exact = here == old["machine"]
    print(f"{len(names)} cases of {Path(regrow.__file__).parent}")
    if given.check and not exact:
        print("another machine or torch: counts, events and sums are compared, not bits")
    found, bad, begun = {}, 0, time.perf_counter()
    for name in names:
        at = time.perf_counter()
        try:
            found[name] = compute(name)
        except Exception:
            bad += 1
            print(f"FAILED {name}\n{traceback.format_exc(limit=-6)}")
            continue
        wrong = []
        if given.check:
            before = old["cases"].get(name)
            wrong = differences(before, found[name], exact) if before else ["was not recorded"]
            bad += bool(wrong)
        print(f"{'DIFFERS' if wrong else 'ok     '} {name} {time.perf_counter() - at:.2f} s")
        for line in wrong:
            print(f"    {line}")
    print(f"{len(found)} computed, {bad} bad, {time.perf_counter() - begun:.1f} s")
    if not given.check and not bad:
        write(here, found if given.only == "*" else {**old["cases"], **found})
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
