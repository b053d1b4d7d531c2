"""`python -m cloob_cli`, so that `accelerate launch -m cloob_cli train RECIPE` works."""

from cloob_cli.main import run

if __name__ == "__main__":
    run()
