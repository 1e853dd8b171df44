"""Latency and throughput of a served model by concurrency. Bounded, and on this machine only unless told
otherwise.

    python deploy/load_test.py http://127.0.0.1:8501 shapes photo.jpg --seconds 10 --concurrency 1 2 4 8
    python deploy/load_test.py grpc://127.0.0.1:8500 shapes photo.jpg

Run it twice, with and without --enable_batching on the server, for the effect of batching. The table is
Markdown.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from tf_d2.client import Client

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_SECONDS, MAX_CONCURRENCY, MAX_REQUESTS = 120, 64, 100_000


def measure(client: Client, data: bytes, concurrency: int, seconds: float) -> tuple[np.ndarray, int, float]:
    """Latencies of successful requests in seconds, number of failed ones, seconds it all took."""
    latencies: list[float] = []
    failures = 0
    lock = threading.Lock()
    start = time.perf_counter()

    def work() -> None:
        nonlocal failures
        while time.perf_counter() - start < seconds and len(latencies) < MAX_REQUESTS:
            before = time.perf_counter()
            try:
                client.predict_bytes([data])
                failed = False
            except RuntimeError as error:
                failed = True
                if not failures:
                    print(f"first failed request: {error}", file=sys.stderr)
                time.sleep(0.05)  # a refused call comes back at once: do not spin
            with lock:
                failures += failed
                if not failed:
                    latencies.append(time.perf_counter() - before)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(latencies), failures, time.perf_counter() - start


def row(concurrency: int, latencies: np.ndarray, failures: int, seconds: float) -> str:
    """One line of the table."""
    cells = (
        [f"{v * 1e3:.0f}" for v in np.percentile(latencies, [50, 95, 99])] if len(latencies) else ["-"] * 3
    )
    rate = f"{len(latencies) / seconds:.2f}"
    return f"| {concurrency} | {' | '.join(cells)} | {rate} | {len(latencies)} | {failures} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each concurrency")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--remote", action="store_true", help="allow a server on another machine")
    options = parser.parse_args()
    if urlsplit(options.url).hostname not in LOOPBACK and not options.remote:
        parser.error("the server is not on this machine; pass --remote if it may be loaded")
    if options.seconds > MAX_SECONDS or max(options.concurrency) > MAX_CONCURRENCY:
        parser.error(f"at most {MAX_SECONDS} seconds and {MAX_CONCURRENCY} at once")
    data = options.image.read_bytes()
    with Client(options.url, options.model) as client:
        client.predict_bytes([data])
        print("| at once | p50 ms | p95 ms | p99 ms | images/s | requests | failed |")
        print("|---|---|---|---|---|---|---|")
        for concurrency in options.concurrency:
            print(row(concurrency, *measure(client, data, concurrency, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
