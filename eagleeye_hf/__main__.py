"""`python -m eagleeye_hf`, as `accelerate launch -m eagleeye_hf search ...` starts it."""

import sys

from eagleeye_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
