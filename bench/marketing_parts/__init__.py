"""The parts of `python -m bench.marketing`: each answers its figures and whether its limits hold."""
