"""What `run.loader` and `run.step` cost beside a plain DataLoader, in one process. `make bench-loader` runs it.

CPU time of the training thread, so other load matters little. Without workers: with them, the same is done beside it.
"""

import json
import tempfile
from pathlib import Path

from tests.harness.training_processes import TrainingProcesses

SAMPLES = 1_000_000


def main() -> int:
    """Returns the exit status: 1 if a limit is exceeded."""
    with tempfile.TemporaryDirectory() as directory, TrainingProcesses(Path(directory)) as trainings:
        attempt = trainings.run("loaders:main", epochs=1, args={"samples": SAMPLES})
        lines = [json.loads(line) for line in attempt.log.splitlines() if line.startswith('{"what"')]
        if attempt.code or not lines:
            print(attempt.log)  # noqa: T201
            return 1
    for line in lines:
        low, middle, high = line["quartiles"]
        print(  # noqa: T201
            f"{line['what']:52} plain {line['plain']:7.1f} here {line['ours']:7.1f} {line['unit']}:"
            f" ratio {line['ratio']:.3f}, limit {line['limit'] or 'none'}"
            f" (in pairs {middle:.3f} [{low:.3f}-{high:.3f}])"
        )
    return int(any(line["limit"] and line["ratio"] > line["limit"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
