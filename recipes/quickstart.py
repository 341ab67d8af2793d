"""What `eagleeye quickstart` does: the whole method in about two minutes, without network.

accelerate launch recipes/quickstart.py
"""

from eagleeye_hf import run_recipe
from eagleeye_hf.commands.quickstart import Config, run

if __name__ == "__main__":
    run_recipe(run, Config)
