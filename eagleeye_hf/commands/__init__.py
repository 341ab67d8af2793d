"""The commands of `eagleeye`, one module each: a config, and a function `run` whose docstring is the help."""
