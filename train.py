"""Pretrains ALBERT: see albert/programs/train.py, or --help."""

from albert.programs.train import run

if __name__ == "__main__":
    run()
