"""What the relay costs, beside other collectors: ``make bench``, or ``python -m benchmarks``."""
