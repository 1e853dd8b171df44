"""One module per backend that needs a framework. Each runs in its own process, with its own interpreter if
asked for: `python -m parity.workers.<name>_worker --job job.json`."""
