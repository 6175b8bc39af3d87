"""Evaluates runs and other models: see albert/programs/evaluate.py, or --help."""

from albert.programs.evaluate import run

if __name__ == "__main__":
    run()
