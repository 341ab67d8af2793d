"""The paper's analyses: sub-nets are scored in every way, fine-tuned, and the scores compared with what came of it."""
