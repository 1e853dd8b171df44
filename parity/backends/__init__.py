"""What can be compared. Each module here is a program that runs under the interpreter it is asked for:
`python -m parity.backends.tf_worker --job job.json`."""
