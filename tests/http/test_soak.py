#!/usr/bin/env python3
"""A few seconds of soak.py, which people run for minutes."""
import harness
from soak import SERVER, Soak


def test_soak():
    seconds, disconnects = (10, 150) if harness.SANITIZED else (5, 250)
    with harness.Server(*SERVER) as server:
        count = Soak(server, seconds, disconnects, seed=1).run()
    assert count["left"] >= disconnects and min(count[name] for name in ("answers", "streams", "errors", "aborted")) > 0, count


if __name__ == "__main__":
    harness.main(globals())
