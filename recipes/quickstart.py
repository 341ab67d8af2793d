"""What `eagleeye quickstart` does: the whole method in two to three minutes, without network.

accelerate launch recipes/quickstart.py
"""

from eagleeye_hf import QuickstartConfig, run_quickstart, run_recipe

if __name__ == "__main__":
    run_recipe(run_quickstart, QuickstartConfig)
