"""What is learned from data off-line: estimators built on scikit-learn and implicit, and how they are judged.

Loaded by `python -m marketing.evaluate` and by benchmarks only: neither the serving process nor the worker
pays for these libraries' memory.
"""
